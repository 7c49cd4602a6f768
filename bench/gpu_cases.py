"""The benchmarks of a GPU: limits, then every kernel against them and against plain torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

import wkernels
from bench import truth
from bench.gpu_session import Arm, Session
from bench.limits import Spread, Work, spread
from wkernels.gpu import products, statistics, weighted_sum

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GRAM_ROWS = (8, 16, 32, 64, 256)
FAST_GRAM_ROWS = (8, 16, 32, 256)


def make_limits(session: Session) -> None:
    """What the device can do at best, measured again beside every benchmark."""
    sizes, device = session.sizes, session.device
    source = torch.rand(sizes.row_bytes // 4, device=device)
    target = torch.empty_like(source)
    session.limits["copy"] = Work(lambda: target.copy_(source), 2 * source.nbytes)
    session.limits["read"] = Work(lambda: torch.sum(source), source.nbytes)
    host = torch.ones(sizes.link_bytes, dtype=torch.uint8)
    host = host.pin_memory() if device.type == "cuda" else host
    here = torch.empty(sizes.link_bytes, dtype=torch.uint8, device=device)
    session.limits["host to device"] = Work(
        lambda: here.copy_(host, non_blocking=True), host.nbytes
    )
    session.limits["device to host"] = Work(
        lambda: host.copy_(here, non_blocking=True), host.nbytes
    )
    for name, dtype, side in (
        ("bfloat16 product", torch.bfloat16, sizes.gemm),
        ("float64 product", torch.float64, sizes.float64_gemm),
    ):
        left, right = torch.randn((2, side, side), device=device).to(dtype)
        product = torch.empty_like(left)
        session.limits[name] = Work(
            lambda a=left, b=right, c=product: torch.mm(a, b, out=c), 2 * side**3, unit="Gflop/s"
        )


def make_rows(session: Session, n_models: int, n: int, dtype: torch.dtype) -> torch.Tensor:
    """``[n_models, n]`` on the device: a pattern, repeated."""
    pattern = truth.make_rows(n_models, min(n, truth.PERIOD), dtype)[0].to(session.device)
    x = torch.empty((n_models, n), dtype=dtype, device=session.device)
    for start in range(0, n, pattern.shape[1]):
        stop = min(start + pattern.shape[1], n)
        x[:, start:stop] = pattern[:, : stop - start]
    return x


def weighted_sums(session: Session) -> None:
    """2 to 16 models of one arena, 1 and 8 mixes; 8 models also as users write it by hand."""
    for dtype in DTYPES:
        n = session.sizes.row_bytes // dtype.itemsize
        arena = make_rows(session, 16, n, dtype)
        out = torch.empty((8, n), dtype=dtype, device=session.device)
        for n_models in (2, 4, 8, 16):
            for n_mixes in (1, 8):
                plain = n_models == 8 and n_mixes == 1
                _weighted_sum(session, arena[:n_models], out[:n_mixes], plain=plain)
        del arena, out


def _weighted_sum(session: Session, x: torch.Tensor, out: torch.Tensor, *, plain: bool) -> None:
    n_models, n_mixes = len(x), len(out)
    dtype = str(x.dtype).removeprefix("torch.")
    weights = truth.make_weights(n_mixes, n_models).float().to(session.device)
    rows, outs = list(x), list(out)

    def run() -> torch.Tensor:
        weighted_sum.launch(rows, weights, outs, None)
        return out

    def check(found: torch.Tensor) -> None:
        truth.check_mixes(found, x, weights)

    def check_plain(found: torch.Tensor) -> None:
        truth.check_mixes([found], x, weights, roundings=2 * n_models)

    out.fill_(torch.nan)
    arms = {"wkernels": Arm(run, check)}
    if plain:
        arms |= {name: Arm(way, check_plain) for name, way in _by_hand(x, weights[0]).items()}
    session.measure(
        f"weighted sum, {n_models} models, {n_mixes} mixes, {dtype}",
        arms,
        moved=f"{n_models} rows read, {n_mixes} written",
        n_bytes=x.nbytes + out.nbytes,
    )


def _by_hand(x: torch.Tensor, weights: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    factors = weights.to(x.dtype)[:, None]
    numbers = weights.tolist()

    def stack_and_sum() -> torch.Tensor:
        return (torch.stack(list(x)) * factors).sum(0)

    def accumulate() -> torch.Tensor:
        total = torch.zeros(x.shape[1], device=x.device)
        for row, weight in zip(x, numbers, strict=True):
            total.add_(row, alpha=weight)
        return total.to(x.dtype)

    def foreach() -> torch.Tensor:
        total = torch.zeros(x.shape[1], device=x.device)
        pieces = list(total.tensor_split(64))
        for row, weight in zip(x, numbers, strict=True):
            torch._foreach_add_(pieces, list(row.tensor_split(64)), alpha=weight)  # pyright: ignore[reportPrivateImportUsage]
        return total.to(x.dtype)

    ways = {"stack and sum": stack_and_sum, "accumulate": accumulate, "foreach": foreach}
    if x.is_cuda:  # on a CPU it needs a C++ compiler
        compiled = torch.compile(lambda rows: (rows.float() * weights[:, None]).sum(0).to(x.dtype))
        ways["torch.compile"] = lambda: compiled(x)
    return ways


def llama_shapes(scale: int) -> list[tuple[int, ...]]:
    """The 291 tensors of a 32-layer Llama, narrower than the 7B model: 0.95 GB of bfloat16."""
    hidden, inner, vocabulary = 1024 // scale, 2816 // scale, 32000 // scale
    layer = [(hidden, hidden)] * 4 + [(inner, hidden)] * 2 + [(hidden, inner)] + [(hidden,)] * 2
    return [(vocabulary, hidden), *layer * 32, (hidden,), (vocabulary, hidden)]


def state_dicts(session: Session) -> None:
    """8 resident state dicts of 291 tensors, in one launch through the table of pointers."""
    dtype, shapes = torch.bfloat16, llama_shapes(session.sizes.tensor_scale)
    models = []
    for seed in range(8):
        generator = torch.Generator(session.device).manual_seed(seed)
        models.append([
            torch.empty(shape, dtype=dtype, device=session.device).normal_(generator=generator)
            for shape in shapes
        ])  # fmt: skip
    out = [torch.full_like(tensor, torch.nan) for tensor in models[0]]
    weights = truth.make_weights(1, 8).float().to(session.device)
    numbers = weights[0].tolist()

    def run() -> list[torch.Tensor]:
        weighted_sum.launch_tensors(models, weights, [out], None)
        return out

    def foreach() -> list[torch.Tensor]:
        totals = torch._foreach_mul(models[0], numbers[0])  # pyright: ignore[reportPrivateImportUsage]
        for model, weight in zip(models[1:], numbers[1:], strict=True):
            torch._foreach_add_(totals, model, alpha=weight)  # pyright: ignore[reportPrivateImportUsage]
        return list(totals)

    def check(found: Sequence[torch.Tensor], roundings: int = 1) -> None:
        for t, tensor in enumerate(found):
            rows = [model[t].flatten() for model in models]
            truth.check_mixes([tensor.flatten()], rows, weights, roundings=roundings)

    session.measure(
        "weighted sum of state dicts, 8 models, 291 tensors, bfloat16",
        {"wkernels": Arm(run, check), "foreach": Arm(foreach, lambda found: check(found, 16))},
        moved="8 models read, one written",
        n_bytes=9 * sum(tensor.nbytes for tensor in out),
    )


def row_statistics(session: Session) -> None:
    """8 rows: power sums, largest value and counts, in one read."""
    n = session.sizes.row_bytes // 2
    x = make_rows(session, 8, n, torch.bfloat16)
    whole = np.array([[0, n]])

    def run() -> torch.Tensor:
        sums = torch.zeros((1, 8, 7), dtype=torch.float64, device=x.device)
        statistics.launch(list(x), None, whole, sums)
        return sums[0, :, :5]

    def by_hand() -> torch.Tensor:
        return torch.stack([x.abs().amax(1).float(), x.sum(1, dtype=torch.float32)])

    def check(found: torch.Tensor) -> None:
        for row, sums in zip(x, found, strict=True):
            values = row.double()
            for power in (1, 2, 3, 4):
                terms, expected = values.abs().pow(power).sum(), values.pow(power).sum()
                assert (sums[power - 1] - expected).abs() <= 1e-12 * terms
            assert sums[4] == values.abs().max()

    session.measure(
        "row statistics, 8 rows, bfloat16",
        {"wkernels": Arm(run, check), "torch: largest and sum only": Arm(by_hand, lambda _: None)},
        moved="8 rows read",
        n_bytes=x.nbytes,
        limits=("read",),
    )


def grams(session: Session) -> None:
    """Resident rows, products and sums in float64: against reading them, and a float64 product."""
    for n_rows in GRAM_ROWS:
        x = make_rows(session, n_rows, session.sizes.gram_bytes // 2 // n_rows, torch.bfloat16)
        expected = truth.gram_in_float64(x)
        whole = np.array([[0, x.shape[1]]])

        def run(x=x, whole=whole) -> torch.Tensor:
            gram = torch.zeros((1, len(x), len(x)), dtype=torch.float64, device=x.device)
            products.launch("dot", list(x), None, None, whole, gram)
            return gram[0]

        def by_hand(x=x) -> torch.Tensor:
            gram = torch.zeros((len(x), len(x)), dtype=torch.float64, device=x.device)
            for part in x.split(1 << 20, dim=1):
                wide = part.double()
                gram.addmm_(wide, wide.T)
            return gram

        def check(found: torch.Tensor, x=x, expected=expected) -> None:
            truth.check_gram(found, expected, x.shape[1], based=False)

        session.measure(
            f"Gram, {n_rows} rows, bfloat16",
            {"wkernels": Arm(run, check), "torch in float64, by columns": Arm(by_hand, check)},
            moved=f"{n_rows} rows read",
            n_bytes=x.nbytes,
            flops=n_rows * (n_rows + 1) * x.shape[1],
            limits=("read", "float64 product"),
        )
        del x


def fast_grams(session: Session) -> None:
    """Resident rows by the 16-bit matrix units, with and without a base, within their error."""
    for n_rows in FAST_GRAM_ROWS:
        x = make_rows(session, n_rows, session.sizes.gram_bytes // 2 // n_rows, torch.bfloat16)
        expected = truth.gram_in_float64(x)
        whole = np.array([[0, x.shape[1]]])

        def run(x=x, whole=whole, base=None) -> torch.Tensor:
            gram = torch.zeros((1, len(x), len(x)), dtype=torch.float64, device=x.device)
            products.launch("dot", list(x), None, base, whole, gram, fast=True)
            return gram[0]

        def check(found: torch.Tensor, expected=expected) -> None:
            error = truth.gram_error(found, expected)
            assert error <= wkernels.ops.FAST_ERROR, f"error {error:.1e} of the rows' norms"

        # four products of halves, as for the differences to any other base
        origin = torch.zeros_like(x[0])
        session.measure(
            f"fast Gram, {n_rows} rows, bfloat16",
            {
                "wkernels": Arm(run, check),
                "wkernels, with a base": Arm(lambda run=run, base=origin: run(base=base), check),
            },
            moved=f"{n_rows} rows read",
            n_bytes=x.nbytes,
            flops=n_rows * (n_rows + 1) * x.shape[1],
            limits=("read", "bfloat16 product"),
        )
        del x, origin


def call_overhead(session: Session) -> dict[str, Spread]:
    """Microseconds of the host for one call on tensors too small to take any time."""
    x = make_rows(session, 8, 1024, torch.bfloat16)
    scattered = [x[i] for i in (0, 2, 3, 5)]
    out = torch.empty((1, 1024), dtype=torch.bfloat16, device=x.device)
    on_device = torch.full((1, 8), 0.125, device=x.device)
    four, weights = on_device[:, :4].contiguous(), on_device.cpu()
    calls = {
        "launch, arena": lambda: weighted_sum.launch(list(x), on_device, [out[0]], None),
        "launch, table": lambda: weighted_sum.launch(scattered, four, [out[0]], None),
        "wkernels.weighted_sum": lambda: wkernels.weighted_sum(x, weights, out=out),
        "torch add_": lambda: out[0].add_(x[0], alpha=0.5),
    }
    found = {}
    for name, call in calls.items():
        call()
        session.clock.synchronize()
        times = []
        for _ in range(session.sizes.repeats):
            start = time.perf_counter()
            for _ in range(session.sizes.calls):
                call()
            times.append((time.perf_counter() - start) / session.sizes.calls * 1e6)
            session.clock.synchronize()
        found[name] = spread(times)
        session.log(f"{name}: {found[name].median:.1f} us a call")
    return found
