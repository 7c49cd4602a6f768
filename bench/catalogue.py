"""What a catalogue costs and how fast it answers: ``python -m bench.catalogue ZOO WORK``.

Indexing a zoo of ``bench.zoo`` anew, and reading its files, in turns in one process; what adding a
model to it reads, what exact distances read, and how far the sketches' are from them. The sketch
kernel on rows in memory, and reading those. Then ``--models`` models, whose sketches are drawn as
those of Gaussian weights would come out: families of a base, 93 models tuned from it, three mixes
of three and three copies. They are asked through the library and by the command, and every answer
is compared with what was drawn. To ``results/<machine>/catalogue.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import wspace
from bench import limits
from wkernels import ops
from wkernels.sketches import ERROR, SIZE
from wspace.catalogue import Catalogue, Likeness
from wspace.catalogue.facts import Facts
from wspace.catalogue.finding import find_models
from wspace.catalogue.layouts import Layout
from wspace.catalogue.store import Store

RESULTS = Path(__file__).parent / "results"
ROUNDS = 5
ASKED = 25  # of all models, and of mixes
FAMILY = 100
MIXES, COPIES = 3, 3
STEP = 1e-2


def indexing(zoo: Path, work: Path, rounds: int) -> dict[str, Any]:
    """The whole of ``index_zoo``, store included, against reading the same files."""
    files = sorted(zoo.rglob("*.safetensors"))
    size, store = sum(file.stat().st_size for file in files), work / "store"
    works = {
        "read": limits.read_files(files),
        "index": limits.Work(
            lambda: wspace.index_zoo(zoo, store=store), size,
            prepare=lambda: shutil.rmtree(store, ignore_errors=True),
        ),
    }  # fmt: skip
    seconds = limits.interleave(works, rounds)
    catalogue = wspace.open_catalogue(zoo, store=store)
    errors = [error for path in catalogue.models for error in _errors(catalogue, zoo / path)]
    assert max(map(abs, errors)) < 5 * ERROR / 2, errors
    return {
        "bytes": size,
        "models": len(catalogue),
        "read_gbps": limits.rate(works["read"], seconds["read"])._asdict(),
        "index_gbps": limits.rate(works["index"], seconds["index"])._asdict(),
        "of_reading": limits.rate_ratio(seconds["index"], size, seconds["read"], size)._asdict(),
        "adding": _adding(zoo, work, sorted(catalogue.models)),
        "error_stated": ERROR / 2,
        "error_found": float(np.sqrt(np.mean(np.square(errors)))),
        "errors_of_distances": errors,
    }


def _errors(catalogue: Catalogue, model: Path) -> list[float]:
    """Of the distances that sketches tell, of the exact ones."""
    found = catalogue.like(model).relatives
    exact, _ = catalogue.distances(model, [relative.path for relative in found])
    return [relative.distance / d - 1 for relative, d in zip(found, exact.tolist(), strict=True)]


def _adding(zoo: Path, work: Path, paths: list[str]) -> dict[str, Any]:
    """A model more, and its exact distance from the nearest: bytes that the process read."""
    linked = work / "linked"
    linked.mkdir()
    for path in paths[:-1]:
        (linked / path).symlink_to((zoo / path).absolute())
    wspace.index_zoo(linked)
    new = linked / paths[-1]
    new.symlink_to((zoo / paths[-1]).absolute())
    size = sum(file.stat().st_size for file in new.glob("*.safetensors"))
    catalogue, added = _reading(lambda: wspace.index_zoo(linked))
    assert catalogue.changes.added == (paths[-1],)
    found, asked = _reading(lambda: catalogue.like(new))
    _, measured = _reading(lambda: catalogue.distances(new, [found.relatives[0].path]))
    assert added < 1.01 * size, (added, size)
    assert asked < 0.01 * size, (asked, size)
    assert measured < 2.01 * size, (measured, size)
    return {
        "bytes_of_a_model": size, "read_to_add_it": added, "read_to_ask": asked,
        "read_for_an_exact_distance": measured,
    }  # fmt: skip


def _reading(work: Callable[[], Any]) -> tuple[Any, int]:
    """What it returns, and the bytes that calls of the system read for it."""
    before = _read_bytes()
    return work(), _read_bytes() - before


def _read_bytes() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def kernels(n: int, rounds: int) -> dict[str, Any]:
    """The sketch of one long row, against reading as many bytes of memory."""
    report = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(n).to(dtype)
        works = {
            "read": limits.read(x.nbytes),
            "sketch": limits.Work(lambda x=x: ops.sketch(x), x.nbytes),
        }
        seconds = limits.interleave(works, rounds)
        square = x.double().square().sum().item()
        assert abs(ops.sketch(x).square().sum().item() / square - 1) < 5 * ERROR
        report[str(dtype).removeprefix("torch.")] = {
            "bytes": x.nbytes,
            "gbps": limits.rate(works["sketch"], seconds["sketch"])._asdict(),
            "of_reading_memory": limits.rate_ratio(
                seconds["sketch"], x.nbytes, seconds["read"], x.nbytes
            )._asdict(),
        }
    return report


def llama_layout() -> Layout:
    """Of a Llama of 6.7 billion parameters."""
    layer: dict[str, tuple[int, ...]] = {
        **{f"self_attn.{p}_proj.weight": (4096, 4096) for p in "qkvo"},
        "mlp.gate_proj.weight": (11008, 4096), "mlp.up_proj.weight": (11008, 4096),
        "mlp.down_proj.weight": (4096, 11008), "input_layernorm.weight": (4096,),
        "post_attention_layernorm.weight": (4096,),
    }  # fmt: skip
    tensors = {f"model.layers.{k}.{n}": shape for k in range(32) for n, shape in layer.items()}
    tensors |= {"model.embed_tokens.weight": (32000, 4096), "lm_head.weight": (32000, 4096)}
    tensors["model.norm.weight"] = (4096,)
    names = sorted(tensors)
    return Layout(tuple(names), tuple(tensors[n] for n in names), (True,) * len(names))


def draw(root: Path, models: int) -> dict[str, dict[str, float]]:
    """A catalogue of so many models; returns the parents of each, with weights (NaN for a base).

    The files are a few bytes: a catalogue that is asked only looks at their sizes and times.
    """
    random = np.random.default_rng(0)
    layout, truth = llama_layout(), {}
    sync, os.fdatasync = os.fdatasync, lambda descriptor: None
    try:
        with Store(root / ".wspace", writing=True) as store:
            store._database.execute("PRAGMA synchronous = OFF")
            for first in range(0, models, FAMILY):
                _draw_family(store, root, layout, random, first, truth)
    finally:
        os.fdatasync = sync
    return truth


def _draw_family(store: Store, root: Path, layout: Layout, random, first: int, truth) -> None:
    base = random.standard_normal(SIZE, np.float32)
    tuned: list[np.ndarray] = []
    n_tuned = FAMILY - 1 - MIXES - COPIES
    for k in range(FAMILY):
        path = f"family-{first // FAMILY:03}/model-{k:02}"
        own = np.random.default_rng([first, k])  # what a copy shares with its origin
        parents: dict[str, float] = {}
        if k == 0:
            row = base
        elif k <= n_tuned:
            step = STEP * 10.0 ** random.uniform(-0.5, 0.5)
            row = base + np.float32(step) * random.standard_normal(SIZE, np.float32)
            tuned.append(row)
            parents = {f"family-{first // FAMILY:03}/model-00": np.nan}
        elif k <= n_tuned + MIXES:
            chosen = random.choice(n_tuned, 3, replace=False)
            weights = random.dirichlet([4.0, 4.0, 4.0])
            row = sum(w * tuned[i].astype(float) for w, i in zip(weights, chosen, strict=True))
            parents = {
                f"family-{first // FAMILY:03}/model-{i + 1:02}": float(w)
                for w, i in zip(weights, chosen, strict=True)
            }
        else:
            number = k - n_tuned - MIXES  # the first tuned models have copies
            row, own = tuned[number - 1], np.random.default_rng([first, number])
            parents = {f"family-{first // FAMILY:03}/model-{number:02}": 1.0}
        sketch = np.asarray(row, np.float32)
        truth[path] = parents
        (root / path).mkdir(parents=True)
        (root / path / "model.safetensors").write_bytes(b"")
        (found,) = find_models(root / path)
        norms = np.full(len(layout.names), np.linalg.norm(sketch) / len(layout.names) ** 0.5)
        hashes = own.integers(0, 256, (len(layout.names), 16), dtype=np.uint8)
        facts = Facts(layout, ("BF16",) * len(norms), norms, hashes, sketch, sketch, 13_476_831_232)
        store.put(path, found.files, facts)


def asking(root: Path, truth: dict[str, dict[str, float]], rounds: int) -> dict[str, Any]:
    """Seconds and right answers."""
    catalogue = wspace.open_catalogue(root)
    assert catalogue.stale() == []
    copies = {path: next(iter(p)) for path, p in truth.items() if list(p.values()) == [1.0]}
    wanted = [path for path in truth if path not in copies][:: max(1, len(truth) // ASKED)]
    wanted += [path for path, parents in truth.items() if len(parents) == MIXES][:ASKED]
    catalogue.like(root / wanted[0])
    spent, used, right = [], [], 0
    for path in wanted:
        start, busy = time.perf_counter(), time.process_time()
        found = catalogue.like(root / path)
        spent.append(time.perf_counter() - start)
        used.append(time.process_time() - busy)
        right += _is_right(found, truth[path], copies)
    start = time.perf_counter()
    groups = catalogue.duplicates()
    duplicates_s = time.perf_counter() - start
    pairs = {(r.path, g.first) for g in groups for r in g.others}
    assert pairs == set(copies.items()), (len(pairs), len(copies))
    argv = ["index", str(root), "--like", str(root / wanted[0]), "--quiet"]
    command = [sys.executable, "-m", "wspace", *argv]
    commands = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        commands.append(time.perf_counter() - start)
    return {
        "models": len(catalogue),
        "store_bytes": sum(512 * f.stat().st_blocks for f in (root / ".wspace").iterdir()),
        "like_seconds": limits.spread(spent)._asdict(),
        "like_processor_seconds": limits.spread(used)._asdict(),  # of all cores
        "asked": len(wanted), "right": right,
        "command_seconds": limits.spread(commands)._asdict(),
        "duplicates_seconds": duplicates_s, "duplicates_found": len(pairs),
        "duplicates_planted": len(copies),
    }  # fmt: skip


def _is_right(found: Likeness, expected: dict[str, float], copies: dict[str, str]) -> bool:
    """Whether the parents are those drawn, or copies of them, and the weights within 0.01."""
    got = {copies.get(r.path, r.path): r.weight for r in found.parents}
    return got.keys() == expected.keys() and all(
        np.isnan(w) == np.isnan(got[p]) and not abs(w - got[p]) > 0.01 for p, w in expected.items()
    )


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.catalogue")
    parser.add_argument("zoo", type=Path, help="a folder that bench.zoo made")
    parser.add_argument("work", type=Path, help="a new folder, for stores")
    parser.add_argument("--models", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--elements", type=int, default=32 << 20, help="of the row in memory")
    parser.add_argument("--only", choices=("indexing", "kernels", "asking"), action="append")
    parser.add_argument("--out", type=Path, default=RESULTS / limits.machine_name())
    options = parser.parse_args(given)
    options.out.mkdir(parents=True, exist_ok=True)
    place = options.out / "catalogue.json"
    report: dict[str, Any] = json.loads(place.read_text()) if place.exists() else {}
    only = options.only or ("indexing", "kernels", "asking")
    drawn = options.work / "drawn"
    for name in only:
        if name == "asking":
            truth = json.loads((drawn / "truth.json").read_text()) if drawn.exists() else {}
            if not truth:
                drawn.mkdir(parents=True)
                truth = draw(drawn, options.models)
                (drawn / "truth.json").write_text(json.dumps(truth))
            found = asking(drawn, truth, options.rounds)
        elif name == "kernels":
            found = kernels(options.elements, options.rounds)
        else:
            found = indexing(options.zoo, options.work, options.rounds)
        report[name] = {"machine": limits.machine()} | found
        place.write_text(json.dumps(report, indent=1) + "\n")
        print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
