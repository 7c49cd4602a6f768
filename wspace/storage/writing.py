"""Writing a checkpoint: headers first, byte ranges in place as the stream runs, then a rename."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from wspace import profiling
from wspace.errors import OutputError
from wspace.shares import WHOLE, Share
from wspace.sizes import format_bytes
from wspace.storage.blocks import Blocks, Place, blocks_within
from wspace.storage.checkpoints import INDEX, Checkpoint, open_checkpoint
from wspace.storage.checksums import ALGORITHM, BLANK, BLOCK, checksum, seal
from wspace.storage.commits import Commits
from wspace.storage.companions import companions, mend_config, write_json
from wspace.storage.files import WRITE, OutputFile
from wspace.storage.fingerprints import Fingerprint, digest_of, stamps_of
from wspace.storage.headers import render_header
from wspace.storage.journal import Block
from wspace.storage.naming import public_name
from wspace.storage.outputs import OutputTensor, plan_shards
from wspace.storage.partial import Partial, flush
from wspace.storage.remote import locations
from wspace.storage.stamps import refuse_changed

COMMIT_SECONDS = 1.0
"""What a crash may cost: so long after finished blocks were journaled, the next are."""


class NewCheckpoint(NamedTuple):
    """An output to be made."""

    out: Path
    tensors: Sequence[OutputTensor]
    job: Fingerprint
    max_shard_bytes: int
    stem: str = "model"
    own: Mapping[str, tuple[int, int]] | None = None
    """The bytes of tensors that this process makes, where it does not make all."""

    @property
    def metadata(self) -> dict[str, str]:
        """Of each shard."""
        return {"format": "pt", "wspace": json.dumps(self.job["made"])}


Note = Callable[[str], None]
"""Called with a line that a user may want to know."""


class CheckpointWriter:
    """One output checkpoint, in a hidden folder beside its name until :meth:`publish`.

    Hub names: ``model.safetensors``, or ``model-00001-of-00002.safetensors`` and an index. Finished
    blocks are journaled about once a second, when they are on the disk; those of an earlier run
    that still have their checksums are not written again.
    """

    def __init__(
        self,
        output: NewCheckpoint,
        pool: ThreadPoolExecutor,
        *,
        restart: bool = False,
        share: Share = WHOLE,
    ) -> None:
        self.out = output.out
        self._job, self._pool = output.job, pool
        self._published = False
        self._files: list[OutputFile] = []
        self._headers: list[str] = []  # their checksums
        self._places: dict[str, Place] = {}
        shards = plan_shards(output.tensors, output.max_shard_bytes)
        self._names = [f"{output.stem}.safetensors"]
        if len(shards) > 1:
            width = len(shards)
            self._names = [
                f"{output.stem}-{k + 1:05}-of-{width:05}.safetensors" for k in range(width)
            ]
        self._total = sum(tensor.nbytes for tensor in output.tensors)
        self._share, self._own = share, output.own
        self._earlier = False
        self._partial = Partial(self.out, output.job, restart=restart, share=share)
        try:
            for shard in shards:
                self._create(shard, output.metadata)
        except BaseException as error:
            self.abandon(keep=True)
            if isinstance(error, OSError):
                raise OutputError(f"{self.out}: cannot be written: {error.strerror}") from error
            raise
        self._blocks = Blocks(self._places, len(shards))
        self._commits = Commits(self._partial, self._files, self._blocks, pool, COMMIT_SECONDS)

    def _create(self, shard: Sequence[OutputTensor], metadata: dict[str, str]) -> None:
        header, starts, length = render_header(
            {tensor.name: (tensor.dtype, tensor.shape) for tensor in shard}, metadata
        )
        number = len(self._files)
        path = self._partial.output / self._names[number]
        again = self._partial.resumed or self._share.n > 1  # another may have made it just now
        self._files.append(OutputFile(path, length, again=again))
        self._headers.append(checksum(header))
        self._places |= {t.name: (number, starts[t.name], t.nbytes) for t in shard}
        self._files[number].write(np.frombuffer(header, dtype=np.uint8), 0)

    def restore(self, note: Note | None = None) -> None:
        """Read again what the journal says is finished, and keep what has its checksum."""
        try:
            finished = self._partial.finished()
        except OSError as error:
            message = f"{self.out}: its journal cannot be read: {error.strerror}"
            raise OutputError(message) from error
        found = self._blocks.split(finished)
        self._earlier = bool(found) if self._share.n > 1 else self.resumed
        claimed = found if self._own is None else blocks_within(found, self._own, self._places)
        same = list(self._pool.map(self._as_journaled, claimed))
        kept = [block for block, whole in zip(claimed, same, strict=True) if whole]
        self._blocks.restore(kept)
        if note and self._earlier and (claimed or self._own is None):
            done, lost = (sum(block.nbytes for block in part) for part in (kept, claimed))
            lost -= done
            damaged = f"; {format_bytes(lost)} had changed on the disk and are made again"
            total = self._total
            if self._own is not None:
                total = sum(stop - start for start, stop in self._own.values())
            of_it = f" (its share {self._share})" if self._share.n > 1 else ""
            note(
                f"{self.out}: going on from {format_bytes(done)} of {format_bytes(total)}{of_it}, "
                f"checked{damaged if lost else ''}"
            )

    def _as_journaled(self, block: Block) -> bool:
        try:
            data = self._files[block.shard].read(block.start, block.nbytes)
        except OSError:
            return False
        return checksum(data) == block.checksum

    @property
    def earlier(self) -> bool:
        """Whether an earlier run has left anything."""
        return self._earlier

    @property
    def resumed(self) -> bool:
        """Whether some of it may be finished before anything is written."""
        return self._partial.resumed

    def place(self, name: str, start: int) -> tuple[int, int]:
        """Shard and byte in its file of byte ``start`` of a tensor."""
        shard, first, _ = self._places[name]
        return shard, first + start

    def finished(self, shard: int, position: int, nbytes: int) -> bool:
        """Whether all of these bytes are there from an earlier run."""
        return not any(self._blocks.unfinished(shard, position, position + nbytes))

    def has(self, name: str, start: int = 0, nbytes: int | None = None) -> bool:
        """Whether all of a tensor, or of some of its bytes, is there from an earlier run."""
        if not self.resumed:
            return False
        shard, first, whole = self._places[name]
        return self.finished(shard, first + start, whole if nbytes is None else nbytes)

    def blocks_in(self, shard: int, position: int, nbytes: int) -> tuple[np.ndarray, list[int]]:
        """Of blocks that start in these bytes: see ``Blocks.within``."""
        return self._blocks.within(shard, position, position + nbytes)

    def write(self, shard: int, position: int, view: np.ndarray) -> list[Future[None]]:
        """Start writing; ``view`` (uint8) must stay as it is until every future is done."""
        futures = []
        for start, stop in self._blocks.unfinished(shard, position, position + len(view)):
            while start < stop:
                end = min(stop, start - start % WRITE + WRITE)  # whole pages, but for the ends
                part = view[start - position : end - position]
                futures.append(self._pool.submit(self._write, shard, start, part))
                start = end
        return futures

    def _write(self, shard: int, position: int, view: np.ndarray) -> None:
        try:
            unsummed = self._blocks.unsummed(shard, position, position + len(view))
            profiling.count(profiling.TAKEN, len(view) - unsummed)
            if unsummed:
                with profiling.stage(profiling.CHECKSUM, unsummed):  # some is in a cache yet
                    self._blocks.sum(shard, position, view.data)
            with profiling.stage(profiling.WRITE, len(view)):
                self._files[shard].write(view, position)
            finished = self._blocks.written(shard, position, position + len(view))
        except OSError as error:
            raise OutputError(f"{self.out}: {self._names[shard]}: {error.strerror}") from error
        self._commits.add(finished)

    def written(self) -> Checkpoint:
        """What was written so far, as a checkpoint."""
        self._commits.now()
        return open_checkpoint(self._partial.output)

    @profiling.stage(profiling.FLUSH)
    def publish(
        self,
        donor: Checkpoint,
        record: Mapping[str, Any],
        dtype: str | None = None,
        files: Mapping[str, str] | None = None,
    ) -> None:
        """Flush, add the index, ``wspace.json`` and the donor's config files, and give it its name.

        ``dtype``: what the config shall call the weights' type, if it is not the donor's.
        ``files``: names and texts of more files, in place of the donor's. ``wspace.json`` is the
        record, the stamps of the inputs, by their public names, and the checksums (see
        ``wspace.storage.verifying``).
        Raises CheckpointError if an input is not as it was when it was opened.
        """
        stamps = stamps_of(self._job)
        for path, stamp in zip(locations(stamps), stamps.values(), strict=True):
            refuse_changed(path, stamp)
        tensors, missing = self._blocks.checksums()
        if missing:
            raise OutputError(f"{self.out}: tensor {missing[0]!r} was not written whole")
        rest = self._commits.rest()
        try:
            for shard in self._files:
                shard.sync()
            self._close()
            try:
                self._complete(donor, dict(record), tensors, dtype, files or {})
            except BaseException:
                # for another run to go on from; where only the name is missing, it is closed
                with contextlib.suppress(OSError, ValueError):
                    self._partial.add(rest)
                raise
            self._published = True
        except OSError as error:
            raise OutputError(f"{self.out}: {error.strerror}") from error

    def _complete(
        self,
        donor: Checkpoint,
        record: dict[str, Any],
        tensors: dict[str, str],
        dtype: str | None,
        files: Mapping[str, str],
    ) -> None:
        """Add what an output has besides its tensors, whose checksums are given; name it."""
        folder = self._partial.output
        for file in folder.iterdir():  # what an earlier run may have added at this point
            if file.name not in self._names:
                file.unlink()
        if len(self._names) > 1:
            weight_map = {name: self._names[place[0]] for name, place in self._places.items()}
            index = {"metadata": {"total_size": self._total}, "weight_map": weight_map}
            write_json(folder / INDEX, index)
        for file in companions(donor):
            shutil.copyfile(file, folder / file.name)
        if (folder / "config.json").is_file():
            mend_config(folder / "config.json", dtype)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
        others = [file for file in sorted(folder.iterdir()) if file.name not in self._names]
        of_files = dict(zip(self._names, self._headers, strict=True))
        of_files |= {file.name: checksum(file.read_bytes()) for file in others}
        made = {
            **record,
            "inputs": {public_name(k): stamp for k, stamp in self._job["inputs"].items()},
            "fingerprint": digest_of(self._job),
            "checksums": {
                "algorithm": ALGORITHM, "block": BLOCK, "tensors": tensors, "files": of_files,
                "record": BLANK,
            },
        }  # fmt: skip
        write_json(folder / "wspace.json", made)
        seal(folder / "wspace.json")
        for file in (*others, folder / "wspace.json"):
            flush(file)
        self._partial.publish()

    def leave(self) -> None:
        """Journal this process's share, and let go of the output."""
        self._commits.now()
        self._partial.leave()

    def take_over(self) -> bool:
        """Whether all shares are finished, and no other process has the output; it is had then."""
        if not self._partial.take_over():
            return False
        self._blocks.complete(self._blocks.split(self._partial.journaled()))
        if self._blocks.checksums()[1]:
            self._partial.leave()
            return False
        return True

    def abandon(self, *, keep: bool, patience: float = 0.0) -> None:
        """Stop, unless published; ``keep``: leave what is finished, if anything is.

        ``patience``: see ``Partial.abandon``.
        """
        self._close()
        if not self._published:
            self._partial.abandon(keep=keep, patience=patience)

    def close(self) -> None:
        """Leave it as it is."""
        self._close()
        self._partial.close()

    def _close(self) -> None:
        while self._files:
            self._files.pop().close()
