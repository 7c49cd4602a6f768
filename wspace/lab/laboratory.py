"""What the stages of an experiment share: data, encoder, zoo, Gram matrix, losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wspace.errors import WspaceError
from wspace.grams import Gram, gram
from wspace.lab.data import Task, load_tasks
from wspace.lab.encoders import HEAD_PATTERNS, Encoder, open_encoder
from wspace.lab.evaluation import Evaluator
from wspace.lab.experiments.context import Context
from wspace.lab.experiments.efficient import Workbench
from wspace.lab.finetune import Progress, save_base, train_zoo, zoo_jobs
from wspace.lab.settings import Settings, digest
from wspace.modules import ResidentZoo
from wspace.zoo import Zoo, open_zoo

# Of the memory that is free: the zoo stays resident, and training and features need theirs.
RESIDENT_SHARE = 0.8
# With fewer rows than features a probe fits all of them, and only the penalty holds it.
WEAK_PENALTY = 0.01


class StageError(WspaceError):
    """A results folder of another experiment, or a zoo that no stage can work on."""


@dataclass
class Lab:
    """What the stages share; each part is made when one first asks for it."""

    settings: Settings
    folder: Path
    device: str = "auto"
    progress: Progress | None = None
    note: Callable[[str], None] = lambda line: None

    @cached_property
    def tasks(self) -> dict[str, Task]:
        return load_tasks(self.settings)

    @cached_property
    def encoder(self) -> Encoder:
        wanted = self.settings
        return open_encoder(
            wanted.base, pooling=wanted.pooling, device=self.device, bf16=wanted.bf16
        )

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """Of all models, trained here if they are not there yet."""
        jobs = zoo_jobs(self.tasks, self.settings)
        save_base(self.encoder, self.folder / "base")
        models = self.folder / "models"
        records = train_zoo(self.encoder, jobs, self.settings, models, self.progress)
        for record in records:
            if record["status"] != "done":
                self.note(f"note: {record['name']} {record['status']}; it is left out")
        return records

    @cached_property
    def done(self) -> list[dict[str, Any]]:
        done = [record for record in self.records if record["status"] == "done"]
        if len(done) < 2:
            raise StageError(
                f"{self.folder}: {len(done)} of {len(self.records)} models were trained without a "
                "failure; a zoo takes at least 2 (a lower learning rate may help)"
            )
        return done

    @cached_property
    def zoo(self) -> Zoo:
        members = [self.folder / "models" / record["name"] for record in self.done]
        return open_zoo(members, base=self.folder / "base", exclude=HEAD_PATTERNS)

    @cached_property
    def gram(self) -> Gram:
        """From one read of the zoo, or from the file that an earlier run left."""
        path, key = self.folder / "cache" / "gram.npz", digest(self.identities)
        if path.exists():
            with np.load(path) as kept:
                if str(kept["key"]) == key:
                    products = torch.from_numpy(kept["per_tensor"])
                    names = tuple(kept["tensors"].tolist())
                    total = torch.from_numpy(kept["total"])
                    left = self.zoo.left_out
                    return Gram(total, products, names, self.names, True, left)

        def tell(done: int, total: int) -> None:
            if self.progress:
                self.progress("Gram matrix", done, total)

        found = gram(self.zoo, device="cpu", progress=tell)
        assert found.per_tensor is not None
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(".gram.partial.npz")
        np.savez(
            partial, key=key, total=found.total.numpy(), per_tensor=found.per_tensor.numpy(),
            tensors=np.array(found.tensors),
        )  # fmt: skip
        partial.replace(path)
        return Gram(found.total, found.per_tensor, found.tensors, self.names, True, found.left_out)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(record["name"] for record in self.done)

    @property
    def identities(self) -> tuple[str, ...]:
        """A hash of each member's weights, then the base's."""
        return (*(record["weights"] for record in self.done), self.done[0]["base"]["hash"])

    @cached_property
    def resident(self) -> ResidentZoo:
        device = self.encoder.device
        wanted = 4 * self.zoo.numel * len(self.zoo.checkpoints)
        free = _free_bytes(device)
        if wanted > RESIDENT_SHARE * free:
            raise StageError(
                f"{self.folder}: the {len(self.zoo)} models take {wanted / 2**30:.1f} GiB, and "
                f"{device} has {free / 2**30:.1f} GiB free; take fewer tasks or seeds"
            )

        def tell(done: int, total: int) -> None:
            if self.progress:
                self.progress("loading the zoo", done, total)

        return ResidentZoo(self.zoo, device, progress=tell)

    @cached_property
    def evaluator(self) -> Evaluator:
        probe = self.settings.probe
        rows = [min(len(task.train), probe.train_rows or math.inf) for task in self.tasks.values()]
        if min(rows) <= self.encoder.hidden and probe.l2 < WEAK_PENALTY:
            self.note(
                f"note: probes of {min(rows)} rows on {self.encoder.hidden} features overfit, and "
                "their losses say little; raise probe.train_rows or probe.l2"
            )
        return Evaluator(
            self.encoder, self.resident, self.tasks, self.settings.probe,
            self.folder / "cache" / "losses.jsonl", self.progress, identities=self.identities,
        )  # fmt: skip

    def evaluation_seconds(self) -> dict[str, float]:
        """Seconds of mixing, of features and of probes since this was last asked for."""
        if "evaluator" not in self.__dict__:
            return {}
        seconds, passes = self.evaluator.seconds, self.evaluator.forward_passes
        found = {**seconds, "forward_passes": passes} if passes else {}
        self.evaluator.seconds = dict.fromkeys(seconds, 0.0)
        self.evaluator.forward_passes = 0
        return found

    def context(self, *, evaluates: bool) -> Context:
        return Context(
            records=self.done,
            zoo=self.zoo,
            gram=self.gram,
            resident=self.resident if evaluates else None,
            evaluator=self.evaluator if evaluates else None,
            tasks=self.tasks,
            settings=self.settings.experiments,
            seed=self.settings.seed,
            progress=self.note,
        )

    @property
    def bench(self) -> Workbench:
        return Workbench(self.encoder, self.settings, self.folder, self.identities, self.progress)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available
