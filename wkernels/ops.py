"""The public operations: what each means, what it checks, and which path runs it.

Every operation takes the rows of a zoo: a tensor ``[n_models, n]``, or a sequence of ``n_models``
one-dimensional tensors of equal length, which may then differ in dtype. Rows are float64, float32,
float16, bfloat16, float8_e4m3fn or float8_e5m2, contiguous, on one device; nothing is copied. The
tensors' device chooses the path: Triton on a GPU (``wkernels.gpu``), numba on the CPU
(``wkernels.cpu``). Errors are ``TypeError`` (a dtype) and ``ValueError`` (everything else).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from wkernels import arguments, dtypes, mixes, moments, sketches
from wkernels.arguments import Rows, base_of, name_of, output_dtype, pointers_to, rows_of, whole


def weighted_sum(
    x: Rows,
    weights: torch.Tensor,
    *,
    base: torch.Tensor | None = None,
    out: Rows | None = None,
) -> Rows:
    """``out[j] = sum_i weights[j, i] * x[i]``, all mixes from one read of the rows.

    With a base, ``out[j] = base + sum_i weights[j, i] * (x[i] - base)``: differences are taken in
    registers, so that large extrapolation factors multiply small numbers.

    Shapes: ``weights [n_mixes, n_models]``, ``base [n]``, ``out [n_mixes, n]`` (a tensor or a
    sequence of rows; float64, float32, float16 or bfloat16; made in the type of the first 16- or
    32-bit row if absent, and must not overlap the inputs). Returns ``out``.

    Numerics: one fused multiply-add per model in the order given, in float32 (float64 if a row, the
    base or ``out`` is float64), and one rounding to nearest even at the store. The bits depend on
    nothing else: not on ``n``, threads, alignment or device. A mix that is one model (a single
    weight of 1), or with a base no model (all zeros), is copied bit for bit.
    Bytes: each row once, and ``n_mixes`` outputs; on a GPU a copied mix reads its row again.
    """
    rows = rows_of(x, "x")
    based = base_of(base, like=rows)
    weights = torch.as_tensor(weights)
    if weights.ndim != 2 or weights.shape[1] != len(rows) or not len(weights):
        raise ValueError(
            f"weights: expected shape [n_mixes, {len(rows)}], one column for each row of x, "
            f"got {list(weights.shape)}"
        )
    if out is None:
        out = rows[0].new_empty((len(weights), rows[0].numel()), dtype=output_dtype(rows))
    outs = rows_of(out, "out", like=rows, types=dtypes.OUTPUTS)
    if len(outs) != len(weights):
        raise ValueError(f"out: expected {len(weights)} rows, one for each mix, got {len(outs)}")
    plain = weights.detach().double().cpu().numpy()
    copied = mixes.copied_rows(plain, has_base=base is not None)
    if arguments.on_gpu(rows):
        from wkernels.gpu import weighted_sum as gpu

        computed = [j for j, source in enumerate(copied) if source == mixes.MIXED]
        if computed:
            compute = getattr(torch, dtypes.compute_type(*map(name_of, [*rows, *based, *outs])))
            selected = weights.to(rows[0].device, compute)[computed].contiguous()
            gpu.launch(rows, selected, [outs[j] for j in computed], base)
        for j, source in enumerate(copied):
            if source != mixes.MIXED:
                outs[j].copy_(based[0] if source == mixes.BASE else rows[source])
    else:
        from wkernels import cpu

        cpu.weighted_sum(
            pointers_to(rows), plain, copied, pointers_to(based), pointers_to(outs),
            rows[0].numel(), threads=torch.get_num_threads(),
        )  # fmt: skip
    return out


def weighted_sum_tensors(
    models: Sequence[Sequence[torch.Tensor]],
    weights: torch.Tensor,
    outs: Sequence[Sequence[torch.Tensor]],
    *,
    base: Sequence[torch.Tensor] | None = None,
) -> None:
    """:func:`weighted_sum` of whole state dicts: ``models[i][t]`` is tensor ``t`` of model ``i``.

    Meaning, types and numerics are those of :func:`weighted_sum`, tensor by tensor. Tensors may
    have any shape and length (also none) and must be contiguous; ``outs[j][t]`` is written.
    On a GPU all tensors of one signature (the dtypes of the models, base and outputs) go in one
    launch through a table of pointers: hundreds of small tensors cost what one large one does.
    Loads are 16 bytes wide; tensors of which a party's is a view that does not start at a multiple
    of 16 bytes go in launches of their own, with narrower loads.
    """
    parties = [*models, *outs, *([] if base is None else [base])]
    if not models or len({len(party) for party in parties}) != 1:
        raise ValueError(
            "models, outs and base: expected the same number of tensors in each, got "
            f"{[len(party) for party in parties]}"
        )
    weights = torch.as_tensor(weights)
    if weights.ndim != 2 or tuple(weights.shape) != (len(outs), len(models)):
        raise ValueError(
            f"weights: expected shape [{len(outs)}, {len(models)}], got {list(weights.shape)}"
        )
    for t in range(len(models[0])):
        flat = [party[t].detach().view(-1) for party in parties]
        inputs = [
            row for k, row in enumerate(flat) if not len(models) <= k < len(models) + len(outs)
        ]
        rows_of(inputs, f"tensor {t}")
        rows_of(flat[len(models) : len(models) + len(outs)], f"outs, tensor {t}", like=inputs,
              types=dtypes.OUTPUTS)  # fmt: skip
    copied = mixes.copied_rows(weights.double().cpu().numpy(), has_base=base is not None)
    computed = [j for j, source in enumerate(copied) if source == mixes.MIXED]
    if models[0] and arguments.on_gpu(models[0]):
        from wkernels.gpu import weighted_sum as gpu

        if computed:
            gpu.launch_tensors(models, weights[computed], [outs[j] for j in computed], base)
        for j, source in enumerate(copied):
            if source != mixes.MIXED:
                chosen = base if source == mixes.BASE else models[source]
                for target, tensor in zip(outs[j], chosen or (), strict=True):
                    target.copy_(tensor)
        return
    for t in range(len(models[0])):
        weighted_sum(
            [model[t].view(-1) for model in models],
            weights,
            base=None if base is None else base[t].view(-1),
            out=[out[t].view(-1) for out in outs],
        )


def gram(
    x: Rows,
    base: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    *,
    other: Rows | None = None,
    fast: bool = False,
) -> torch.Tensor:
    """Gram matrix of base-centred rows: ``G[i, j] = <x[i] - base, x[j] - base>``.

    With ``other``, the rectangular form ``G[i, j] = <x[i] - base, other[j] - base>`` (new models
    against old ones). Returns float64 ``[n_models, n_models]`` or ``[n_models, n_others]`` on the
    rows' device; the square form is symmetric in its bits.

    Numerics: differences in float32 (exact where 16-bit values are within a factor of 2**16; in
    float64 if any row is float64), products and sums in float64, in blocks of a fixed size added in
    order: the bits depend neither on threads nor on how a stream was cut.

    ``fast`` lets a GPU multiply rows that are not float64 by its 16-bit matrix units, in parts, and
    add in float32 within a block: errors are then up to ``2**-14`` of ``|x_i| |x_j|``, and as a
    rule below ``FAST_ERROR``; see ``wkernels.gpu.products.engines``. The CPU path is exact anyway.
    """
    return _products("dot", x, base, out, other, fast=fast)


FAST_ERROR = 1e-6
"""Error of an entry of a fast Gram matrix, as a rule, relative to its two rows' norms."""


def close_pairs(gram: torch.Tensor, *, error: float = FAST_ERROR) -> torch.Tensor:
    """Pairs whose distance a Gram matrix cannot tell: bool ``[n, n]``, never the diagonal.

    A matrix with errors of ``error * |x_i| |x_j|`` gives four right digits of a squared distance
    that is at least ``1e4 * error`` of the two squared norms; closer pairs are to be measured by
    :func:`pairwise_distances`.
    """
    norms = gram.diagonal()
    scale = norms[:, None] + norms[None, :]
    close = scale - 2 * gram < 1e4 * error * scale
    return close.fill_diagonal_(False)


def squared_distances(
    x: Rows, base: torch.Tensor | None = None, *, fast: bool = False
) -> torch.Tensor:
    """``|x[i] - x[j]|**2`` for all pairs, from their Gram matrix; close pairs directly.

    Returns float64 ``[n_models, n_models]`` on the rows' device. With ``fast``, see :func:`gram`,
    pairs that it cannot tell apart are measured by their differences, which reads the rows that are
    in such a pair once more. Relative error: 1e-4 at most, 1e-8 or less without ``fast``.
    """
    rows = rows_of(x, "x")
    products = gram(rows, base, fast=fast)
    norms = products.diagonal()
    found = (norms[:, None] + norms[None, :] - 2 * products).clamp_min_(0).fill_diagonal_(0)
    close = close_pairs(products, error=FAST_ERROR if fast else 1e-14)
    involved = close.any(dim=1).nonzero().flatten()
    if len(involved):
        direct = pairwise_distances([rows[i] for i in involved.tolist()])
        among = (involved[:, None], involved[None, :])
        found[among] = torch.where(close[among], direct, found[among])
    return found


def pairwise_distances(
    x: Rows, *, other: Rows | None = None, metric: str = "l2", out: torch.Tensor | None = None
) -> torch.Tensor:
    """Distances by direct difference, for every pair of rows.

    ``l2``: the squared Euclidean distance ``sum_k (x[i, k] - other[j, k])**2``. ``l1``: the mean
    absolute difference ``mean_k |x[i, k] - other[j, k]|``. ``other`` is ``x`` unless given.
    Returns float64 ``[n_models, n_others]`` on the rows' device.

    The oracle for distances from a Gram matrix, and the refinement for pairs much closer to each
    other than to the base. Numerics as :func:`gram`; costs about twice its arithmetic.
    """
    if metric not in ("l1", "l2"):
        raise ValueError(f"metric: expected 'l1' or 'l2', got {metric!r}")
    result = _products(metric, x, None, out, other)
    if metric == "l1":
        result /= max(len(x[0]), 1)
    return result


class RowStatistics(NamedTuple):
    """Statistics of each row, float64 ``[n_models]``, of its finite elements."""

    norm: torch.Tensor  # sqrt(sum_k x_k**2)
    mean: torch.Tensor
    max_abs: torch.Tensor
    kurtosis: torch.Tensor  # fourth central moment / variance**2: 3 for a normal distribution
    non_finite: torch.Tensor  # how many elements are NaN or Inf
    changed: torch.Tensor  # share of elements that differ from the base (NaN without a base)


def row_statistics(x: Rows, base: torch.Tensor | None = None) -> RowStatistics:
    """Norm, mean, max |x|, kurtosis, NaN/Inf count and share changed of each row, in one read.

    Power sums are accumulated in float64 in blocks of a fixed size; the central moments come from
    them, which loses about ``(mean / standard deviation)**4`` units in the last place. An element
    counts as changed when it compares unequal to the base's (so -0 equals +0, and NaN is changed).
    """
    rows = rows_of(x, "x")
    based = base_of(base, like=rows)
    length = rows[0].numel()
    sums = torch.zeros((1, len(rows), moments.N), dtype=torch.float64, device=rows[0].device)
    if arguments.on_gpu(rows):
        from wkernels.gpu import statistics as gpu

        gpu.launch(rows, base, whole(length), sums)
    else:
        from wkernels import cpu

        cpu.row_moments(
            pointers_to(rows), pointers_to(based), whole(length), sums.numpy(),
            threads=torch.get_num_threads(),
        )  # fmt: skip
    table = moments.statistics(sums[0].cpu().numpy(), length, has_base=base is not None)
    return RowStatistics(*(torch.from_numpy(column) for column in table))


def sketch(x: torch.Tensor, *, key: int = 0) -> torch.Tensor:
    """``S[b] = sum_k sign(k) x[k]`` over the elements in bucket ``b``: float64 ``[sketches.SIZE]``.

    Linear, and of inner products of tensors with one ``key`` (64 bits) an unbiased estimate:
    ``<S(x), S(y)>`` has a standard deviation of at most ``sketches.ERROR`` (0.55 %) of
    ``|x| |y|``; see ``wkernels.sketches``. ``x``: any shape, contiguous, on the CPU.

    Numerics: signed sums in float64 in the order of the elements, whatever the threads; of an
    ``x`` of up to ``SIZE`` elements, exactly its elements. Bytes: ``x`` once.
    """
    (row,) = rows_of([x.detach().view(-1)], "x")
    if arguments.on_gpu([row]):
        raise ValueError(f"x: expected a tensor on the CPU, got one on {row.device}")
    from wkernels import cpu

    n, sums = row.numel(), sketches.SketchSums()
    if n:
        column = np.zeros(1, np.int64)
        runs = sketches.Runs(whole(n), column, column + n, column, np.array([key], np.uint64))
        cpu.sketch(pointers_to([row]), runs, sums, threads=torch.get_num_threads())
    return torch.from_numpy(sums.value(0))


def _products(op, x, base, out, other, *, fast=False):
    rows = rows_of(x, "x")
    columns = None if other is None else rows_of(other, "other", like=rows)
    based = base_of(base, like=rows)
    shape = (len(rows), len(rows) if columns is None else len(columns))
    if out is None:
        out = torch.empty(shape, dtype=torch.float64, device=rows[0].device)
    if tuple(out.shape) != shape or out.dtype != torch.float64 or not out.is_contiguous():
        raise ValueError(
            f"out: expected contiguous float64 {list(shape)}, got {out.dtype} {list(out.shape)}"
        )
    out.zero_()
    length = rows[0].numel()
    if arguments.on_gpu(rows):
        from wkernels.gpu import products as gpu

        gpu.launch(op, rows, columns, base, whole(length), out[None], fast=fast)
    else:
        from wkernels import cpu

        cpu.products(
            op, pointers_to(rows), None if columns is None else pointers_to(columns),
            pointers_to(based), whole(length), out[None].numpy(), threads=torch.get_num_threads(),
        )  # fmt: skip
    return out
