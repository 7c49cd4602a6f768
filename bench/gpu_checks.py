"""Every kernel on the device against float64, and the weighted sum against the CPU path's bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

import wkernels
from bench import gpu_choices, truth
from bench.gpu_session import Session, described
from wkernels import dtypes, elementwise, reference

FLOATS = tuple(getattr(torch, name) for name in dtypes.FLOATS)
OUTPUTS = tuple(getattr(torch, name) for name in dtypes.OUTPUTS)
FEW_ROWS, TILE_OF_ROWS, TILES_OF_ROWS = 5, 12, 70
"""Numbers of rows that take different kernels."""


def checks(
    device: torch.device, *, past_int32: bool, smaller: int = 1
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Names, and functions that raise AssertionError if the device computes anything else.

    Each kernel at each type, but not each combination: every one is compiled first, for a second.
    ``smaller`` divides the lengths of rows.
    """
    short, n, long = 5_003 // smaller, 35_003 // smaller, 100_003 // smaller
    for dtype in FLOATS:
        for out_dtype in OUTPUTS:
            shape = (21, 9, short) if dtype == out_dtype else (3, 2, short)
            yield f"weighted sum, {dtype} to {out_dtype}", _mix(device, dtype, out_dtype, shape)
        yield f"statistics, {dtype}", _statistics(device, dtype, n)
        often = dtype in (torch.float32, torch.bfloat16)
        for n_rows in (FEW_ROWS, TILE_OF_ROWS, *([40, TILES_OF_ROWS] if often else [])):
            check = _products(device, dtype, n_rows, n, full=often)
            yield f"products, {n_rows} rows, {dtype}", check
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        for n_models in (1, 3, 8, 40):
            name = f"bits of the CPU path, {n_models} models, {dtype}"
            yield name, _bits(device, dtype, n_models, long)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        for n_rows in (FEW_ROWS, 40, TILES_OF_ROWS, 200):
            yield f"fast products, {n_rows} rows, {dtype}", _fast_products(device, dtype, n_rows, n)
    for step in (1e-3, 1e-4):
        yield f"distances of near-duplicates, steps of {step}", _close(device, 2 * long, step)
    for n_mixes in (1, 64):
        name = f"weighted sum of several types, {n_mixes} mixes"
        yield name, _several_types(device, n_mixes, short)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        yield f"elementwise merge, {dtype}", _elementwise(device, dtype, long)
        yield f"statistics of choices, {dtype}", gpu_choices.statistics(device, dtype, long)
    yield "chances by rank", gpu_choices.lines(device, long)
    for name in gpu_choices.RECIPES:
        yield f"recipe, {name}", gpu_choices.recipe(device, name)
    yield "state dicts", _tensors(device)
    if past_int32:
        yield "products, 4096 rows", _many_rows(device, 4096, 20_003)
        yield "more than 2**31 elements", _long(device)


def run_all(session: Session, found: dict[str, str | None]) -> None:
    """For each check None, or what was wrong; none is started when the time is used up."""
    for name, check in checks(
        session.device, past_int32=session.sizes.past_int32, smaller=session.sizes.checks_smaller
    ):
        if session.late():
            found[name] = "left out: the time was used up"
            continue
        try:
            check()
            found[name] = None
        except Exception as error:  # whatever it is, the other checks go on
            found[name] = described(error)
            session.log(f"{name}: {found[name]}")
    session.log(f"{sum(error is None for error in found.values())} of {len(found)} checks passed")


def _rows(device: torch.device, n_rows: int, n: int, dtype: torch.dtype, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator).to(dtype).to(device) for _ in range(n_rows)]


def _mix(device, dtype, out_dtype, shape) -> Callable[[], None]:
    def check() -> None:
        n_models, n_mixes, n = shape
        x, base = _rows(device, n_models, n, dtype), _rows(device, 1, n, dtype, seed=1)[0]
        weights = torch.randn(n_mixes, n_models, generator=torch.Generator().manual_seed(2))
        out = torch.full((n_mixes, n), torch.nan, dtype=out_dtype, device=device)
        wkernels.weighted_sum(x, weights, base=base, out=out)
        truth.check_mixes(out, x, weights.to(device), base)

    return check


def _bits(device, dtype, n_models, n) -> Callable[[], None]:
    def check() -> None:
        x = _rows(device, n_models, n, dtype)
        weights = torch.randn(3, n_models, generator=torch.Generator().manual_seed(2))
        for base in (None, x[0].flip(0)) if n_models == 3 else (None,):
            here = wkernels.weighted_sum(x, weights, base=base)
            there = wkernels.weighted_sum(
                [row.cpu() for row in x], weights, base=None if base is None else base.cpu()
            )
            assert torch.equal(torch.as_tensor(here).cpu(), torch.as_tensor(there)), "bits differ"

    return check


def _tensors(device) -> Callable[[], None]:
    def check() -> None:
        shapes = [(300, 70), (7,), (0,), (3, 5, 4097), (), (100_001,)]
        types = [torch.bfloat16, torch.bfloat16, torch.float32, torch.float16, torch.float32,
                 torch.bfloat16]  # fmt: skip
        models = [
            [torch.randn(s).to(t).to(device) for s, t in zip(shapes, types, strict=True)]
            for _ in range(4)
        ]
        outs = [[torch.full_like(tensor, torch.nan) for tensor in models[0]] for _ in range(2)]
        weights = torch.randn(2, 3)
        wkernels.weighted_sum_tensors(models[:3], weights, outs, base=models[3])
        for t, tensor in enumerate(models[0]):
            if tensor.numel():
                rows = [model[t].flatten() for model in models]
                found = [out[t].flatten() for out in outs]
                truth.check_mixes(found, rows[:3], weights.to(device), rows[3])

    return check


def _products(device, dtype, n_rows, n, *, full) -> Callable[[], None]:
    def check() -> None:
        x, other = _rows(device, n_rows, n, dtype), _rows(device, 3, n, dtype, seed=1)
        base = other[0]
        for columns in (None, other) if full else (None,):
            gram = wkernels.gram(x, base, other=columns)
            rows = _centred(x, base)
            others = rows if columns is None else _centred(columns, base)
            allowed = n * torch.finfo(torch.float64).eps * (rows.abs() @ others.abs().T)
            assert ((gram - rows @ others.T).abs() <= allowed).all(), "Gram"
            if columns is None:
                assert torch.equal(gram, gram.T), "not symmetric"
            for metric in ("l1", "l2") if full else ("l2",):
                found = wkernels.pairwise_distances(x, other=columns, metric=metric)
                for row, distances in zip(x, found, strict=True):
                    expected = reference.pairwise_distances(
                        [row], other=columns or x, metric=metric
                    )[0]
                    assert ((distances - expected).abs() <= 1e-11 * expected).all(), metric

    return check


def _fast_products(device, dtype, n_rows, n) -> Callable[[], None]:
    def check() -> None:
        x = _rows(device, n_rows, n, dtype)
        for base in (None, _rows(device, 1, n, dtype, seed=1)[0]):
            gram = wkernels.gram(x, base, fast=True)
            rows = torch.stack(x).double() if base is None else _centred(x, base)
            scale = rows.norm(dim=1)
            error = ((gram - rows @ rows.T).abs() / torch.outer(scale, scale)).max().item()
            assert error <= wkernels.ops.FAST_ERROR, f"error {error:.1e} of the rows' norms"

    return check


def _elementwise(device, dtype, n) -> Callable[[], None]:
    """Thresholds, draws, election and division: the bits of the CPU path."""

    def check() -> None:
        x, base = _rows(device, 4, n, dtype), _rows(device, 1, n, dtype, seed=1)[0]
        weights = np.array([[0.5, 0.25, -0.75, 1.5]])
        joint = elementwise.Joint(
            weights, weights, abs(weights), np.array([1.25]), elect="sum", divide=True
        )
        found = []
        for rows, origin in ((x, base), ([row.cpu() for row in x], base.cpu())):
            bits, before = elementwise.largest(rows, [n // 2, 1, n - 3, n // 5], base=origin)
            mask = elementwise.no_mask(1, 4)._replace(keep=bits, keep_before=before)
            mask.chance[:], mask.key[:] = 0.75, np.arange(4)
            found.append(elementwise.joined(rows, mask, joint, base=origin).cpu())
        assert torch.equal(*found), "bits differ"

    return check


def _several_types(device, n_mixes, n) -> Callable[[], None]:
    """Rows of all types, none of which starts at a multiple of 16 bytes, of an odd length."""

    def check() -> None:
        x = [_rows(device, 1, n + 1, dtype, seed=k)[0][1:] for k, dtype in enumerate(FLOATS)]
        for rows in (x, x[1:]):  # computed in float64, and in float32
            weights = torch.randn(n_mixes, len(rows), generator=torch.Generator().manual_seed(2))
            out = torch.full((n_mixes, n), torch.nan, device=device)
            wkernels.weighted_sum(rows, weights, out=out)
            truth.check_mixes(out, rows, weights.to(device))

    return check


def _many_rows(device, n_rows, n) -> Callable[[], None]:
    def check() -> None:
        generator = torch.Generator(device).manual_seed(0)
        x = torch.randn((n_rows, n), generator=generator, device=device).bfloat16()
        rows = x.double()
        expected = rows @ rows.T
        truth.check_gram(wkernels.gram(x), expected, n, based=False)
        error = truth.gram_error(wkernels.gram(x, fast=True), expected)
        assert error <= wkernels.ops.FAST_ERROR, f"error {error:.1e} of the rows' norms"

    return check


def _close(device, n, step_size) -> Callable[[], None]:
    def check() -> None:
        base = _rows(device, 1, n, torch.float32)[0]
        steps = _rows(device, 6, n, torch.float32, seed=1)
        x = [base + step_size * step for step in steps[:5]]
        x.append(x[0] + 1e-3 * step_size * steps[5])
        expected = reference.pairwise_distances(x)
        for fast in (False, True):
            found = wkernels.squared_distances(x, base, fast=fast)
            assert ((found - expected).abs() <= 1e-4 * expected).all(), f"fast={fast}"

    return check


def _centred(x: list[torch.Tensor], base: torch.Tensor) -> torch.Tensor:
    """Differences to the base as the kernel takes them, in float64."""
    compute = torch.float64 if x[0].dtype == torch.float64 else torch.float32
    return torch.stack([(row.to(compute) - base.to(compute)).double() for row in x])


def _statistics(device, dtype, n) -> Callable[[], None]:
    def check() -> None:
        x = _rows(device, 5, n, dtype)
        base = x[1].clone()
        found, expected = wkernels.row_statistics(x, base), reference.row_statistics(x, base)
        for name, values in expected.items():
            here = getattr(found, name).cpu()
            # the mean is a sum that cancels
            allowed = 1e-9 * values.double().cpu().abs() + (1e-13 if name == "mean" else 0)
            assert ((here - values.double().cpu()).abs() <= allowed).all(), name

    return check


def _long(device) -> Callable[[], None]:
    def check() -> None:
        n = 2**31 + 70_001
        x = torch.empty((2, n), dtype=torch.bfloat16, device=device)
        x[0], x[1] = 1, torch.nan
        x[:, -100_000:] = torch.stack(_rows(device, 2, 100_000, torch.bfloat16))
        x[1, :-100_000] = 3
        out = wkernels.weighted_sum(x, torch.tensor([[0.5, 0.25]]))
        out = torch.as_tensor(out)
        assert (out[0, :-100_000] == 1.25).all(), "before the last elements"
        weights = torch.tensor([[0.5, 0.25]], device=device)
        truth.check_mixes(out[:, -100_000:], x[:, -100_000:], weights)
        ends = x[:, -100_000:].double()
        gram = wkernels.gram(x)
        before = (n - 100_000) * torch.tensor([[1.0, 3.0], [3.0, 9.0]], device=device).double()
        assert torch.allclose(gram, before + ends @ ends.T, rtol=1e-12), "Gram"

    return check
