"""Ranks of ``torchrun``: processes, on one machine or many, that divide the parameters.

Columns of the zoo are divided by bytes, so that ranks read different byte ranges of the same
models, and a merge needs no word between them: each rank writes its byte ranges of the outputs,
which are on a disk that all of them share. For a Gram matrix each rank sends its sums once, and
they are added up in the order of the ranks. Bits are those of one process.

The sums are on the host whatever the device is, so gloo carries them, also where passes run on
GPUs, of which each rank has its own. Ranks of one machine have its processors in equal parts.

torchrun takes some three seconds to start, most of it for torch: it pays for jobs of half a minute
and more. ``bench/nodes.py`` works out what 1,000 models of 70e9 parameters take on 64 nodes.
"""

from __future__ import annotations

import datetime
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist

from wspace.errors import WspaceError
from wspace.passes import Accurate
from wspace.shares import Share
from wspace.team import Team
from wspace.watching import First, Meeting, Other

WAIT = datetime.timedelta(days=7)
"""For the slowest rank. One that died is known of long before."""

ENDING_SECONDS = 5.0
"""That ranks may take to end once one has failed."""


class Ranks(Team):
    """This process as one rank; ``torchrun``'s environment says which. Close it at the end."""

    meets = True
    patience = ENDING_SECONDS

    def __init__(self) -> None:
        rank, n = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
        self.share, self.leads = Share(rank, n), rank == 0
        bind_processors()
        self._owns = not dist.is_initialized()
        if self._owns:
            dist.init_process_group("gloo", timeout=WAIT)
        group = None if self._owns else dist.new_group(backend="gloo", timeout=WAIT)
        self._group = group if isinstance(group, dist.ProcessGroup) else None
        local = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
        host = "127.0.0.1" if local else os.environ["MASTER_ADDR"]
        self._watch: First | Other
        if rank == 0:
            self._watch = First(n, host if local else "")
            self._broadcast([self._watch.meeting])
        else:
            self._watch = Other(rank, host, Meeting(*self._broadcast([None])))
        self._stopped = self._said = False

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        if self.share.index:
            self.wait()
        yield
        if not self.share.index:
            self.wait()
        self.wait()

    def wait(self) -> None:
        with _lost():
            dist.barrier(self._group)

    def agree(self, what: str, value: str) -> None:
        found: list[str] = [""] * self.share.n
        with _lost():
            dist.all_gather_object(found, value, self._group)
        other = next((rank for rank, there in enumerate(found) if there != found[0]), None)
        if other is not None:
            raise WspaceError(f"rank {other} does not have the same {what} as rank 0")

    def added(self, pair: np.ndarray) -> np.ndarray:
        total = torch.from_numpy(pair)
        with _lost():
            if self.leads:
                sums, other = Accurate(pair), torch.empty_like(total)
                for rank in range(1, self.share.n):
                    dist.recv(other, rank, self._group)
                    sums.add_pair(other.numpy())
            else:
                dist.send(total, 0, self._group)
            dist.broadcast(total, 0, self._group)
        return pair

    def gathered(self, rows: np.ndarray) -> np.ndarray:
        own = torch.from_numpy(np.ascontiguousarray(rows))
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.share.n)]
        with _lost():
            dist.all_gather(counts, torch.tensor([len(rows)]), self._group)
            found = []
            for rank, count in enumerate(counts):
                shape = (int(count), *own.shape[1:])
                part = own if rank == self.share.index else torch.empty(shape, dtype=own.dtype)
                if count:
                    dist.broadcast(part, rank, self._group)
                found.append(part)
        return torch.cat(found).numpy()

    def device(self, name: str) -> str:
        """Each rank of a machine has a GPU of its own, as far as there are enough."""
        if name != "cuda":
            return name
        return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % max(1, torch.cuda.device_count())}"

    def stop(self, error: BaseException) -> None:
        if self._stopped:
            return
        self._stopped = True
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):  # torchrun's, once one has ended
                signal.signal(number, signal.SIG_IGN)
        text = " ".join(str(error).split()) or type(error).__name__
        self._said = self._watch.failed(None if isinstance(error, KeyboardInterrupt) else text)

    @property
    def said(self) -> bool:
        """Whether it was said what went wrong."""
        return self._said

    def close(self) -> None:
        """To be called by all at the end of the work."""
        self.wait()
        self._watch.close()
        if self._owns:
            dist.destroy_process_group()

    def _broadcast(self, content: list) -> tuple:
        dist.broadcast_object_list(content, 0, self._group)
        return content[0]


@contextmanager
def _lost() -> Iterator[None]:
    """A rank that is gone breaks the connections of all; the watch says which, and ends them."""
    try:
        yield
    except RuntimeError as error:
        time.sleep(ENDING_SECONDS)
        raise WspaceError(f"lost the connection to the other ranks: {error}") from error


def bind_processors() -> None:
    """Give this rank its part of the machine's processors, where torchrun started several."""
    local, n = (int(os.environ.get(name, "0")) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    if n < 2 or not hasattr(os, "sched_setaffinity"):
        return
    here = sorted(os.sched_getaffinity(0))
    own = here[len(here) * local // n : len(here) * (local + 1) // n]
    os.sched_setaffinity(0, own or [here[local % len(here)]])
