"""Whole passes on the device: files in the page cache, through the reader and the link, and back.

Wall time, of which each stage is also timed on its own: a pass in which all overlaps takes as long
as its slowest stage.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

import wspace as ws
from bench import truth
from bench.gpu_session import Result, Session, described, line
from bench.limits import rate_ratio, spread
from wspace.devices import device_named
from wspace.merging import merge
from wspace.stream import Stream, chunk_elements, plan_chunks

MEMORY = 2 << 30
"""Budget of the passes: their chunks are as large as the device likes best."""
REPEATS = 5
READER = "page cache to device, through the reader"
GRAM = "Gram matrix of files, exact"
MERGE = "merge of files, one output"


def passes(session: Session) -> None:
    """Reading only, the Gram matrix and a merge of a zoo in the page cache; and the Gram matrix of
    as many models as it has to keep up with."""
    with tempfile.TemporaryDirectory(prefix="wspace-bench-") as folder:
        zoo = _zoo(Path(folder), session.sizes.stream_models, session.sizes.stream_bytes)
        device = "cuda" if session.device.type == "cuda" else "cpu"
        _reader(session, zoo, device)
        _gram(session, zoo, device)
        _merge(session, zoo, device, Path(folder))
    with tempfile.TemporaryDirectory(prefix="wspace-bench-") as folder:
        sizes = session.sizes
        _gram(session, _zoo(Path(folder), sizes.many_models, sizes.many_bytes), device)


def _zoo(folder: Path, n_models: int, n_bytes: int) -> ws.Zoo:
    x, base = truth.make_rows(n_models, n_bytes // 2, torch.bfloat16)
    for name, row in [*((f"run-{i}", row) for i, row in enumerate(x)), ("base", base)]:
        (folder / name).mkdir()
        save_file({"weight": row.clone()}, folder / name / "model.safetensors")
    return ws.open_zoo(f"{folder}/run-*", base=folder / "base")


def read_only(zoo: ws.Zoo, device: str) -> None:
    """Every chunk of the zoo to the device, and nothing done with it."""
    worker, rows = device_named(device), range(len(zoo.checkpoints))

    def size(dtypes) -> int:
        return chunk_elements(MEMORY, worker.chunk_bytes, dtypes, 0)

    plans = list(plan_chunks(zoo, rows, size, 4096))
    with Stream(zoo, rows, plans, worker) as stream:
        for _ in stream:
            pass


def _reader(session: Session, zoo: ws.Zoo, device: str) -> None:
    n_bytes = sum(checkpoint.nbytes for checkpoint in zoo.checkpoints)
    limit = session.limits["host to device"]
    result = Result(READER, "all files read and copied", n_bytes, 0)

    def measure() -> None:
        own, link = [], []
        for repeat in range(-1, REPEATS):
            elapsed, at_best = (
                _seconds(lambda: read_only(zoo, device)),
                session.clock.seconds(limit.run),
            )
            if repeat >= 0:
                own.append(elapsed)
                link.append(at_best)
        result.seconds["wkernels"] = spread(own)
        ratio = rate_ratio(own, n_bytes, link, limit.amount)
        result.ratios["wkernels"] = {"host to device": ratio}

    _guarded(session, result, measure)


def _gram(session: Session, zoo: ws.Zoo, device: str) -> None:
    n_bytes = sum(checkpoint.nbytes for checkpoint in zoo.checkpoints)
    result = Result(f"{GRAM}, {len(zoo)} models", "all files read", n_bytes, 0)

    def measure() -> None:
        found = ws.gram(zoo, device=device, memory=MEMORY, per_tensor=False).total
        expected = ws.gram(zoo, device="cpu", memory=MEMORY, per_tensor=False).total
        scale = expected.diagonal().sqrt()
        assert ((found - expected).abs() <= 1e-9 * torch.outer(scale, scale)).all(), "Gram matrix"
        own, transfer = [], []
        for _ in range(REPEATS):
            own.append(_seconds(
                lambda: ws.gram(zoo, device=device, memory=MEMORY, per_tensor=False)
            ))  # fmt: skip
            transfer.append(_seconds(lambda: read_only(zoo, device)))
        result.seconds["wkernels"] = spread(own)
        shares = spread(alone / both for alone, both in zip(transfer, own, strict=True))
        result.ratios["wkernels"] = {"reading only": shares}

    _guarded(session, result, measure)


def _merge(session: Session, zoo: ws.Zoo, device: str, folder: Path) -> None:
    n = len(zoo)
    n_bytes = sum(c.nbytes for c in zoo.checkpoints) + zoo.checkpoints[0].nbytes
    result = Result(MERGE, f"{n} models and a base read, one written", n_bytes, 0)
    out = folder / "out"

    def run(where: str = device) -> None:
        shutil.rmtree(out, ignore_errors=True)
        merge(zoo, [[1 / n] * n], out, device=where, memory=MEMORY)

    def measure() -> None:
        run("cpu")
        expected = (out / "model.safetensors").read_bytes()
        run()
        assert (out / "model.safetensors").read_bytes() == expected, "other bits than on the CPU"
        own, slowest = [], []
        for _ in range(REPEATS):
            own.append(_seconds(run))
            stages = (
                _seconds(lambda: read_only(zoo, device)),
                _seconds(lambda: _write(folder / "plain", expected)),
            )
            slowest.append(max(stages))
        result.seconds["wkernels"] = spread(own)
        result.ratios["wkernels"] = {
            "the slowest stage": spread(its / mine for its, mine in zip(slowest, own, strict=True))
        }

    _guarded(session, result, measure)


def _write(path: Path, data: bytes) -> None:
    """As a merge leaves it: on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    path.unlink()


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _guarded(session: Session, result: Result, measure: Callable[[], None]) -> None:
    session.results.append(result)
    if session.late():
        result.notes["all"] = "left out: the time was used up"
        return
    try:
        measure()
    except Exception as error:  # whatever it is, the other passes go on
        result.notes["wkernels"] = described(error)
    session.log(line(result))
