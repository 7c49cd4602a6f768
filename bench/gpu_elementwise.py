"""The benchmarks of methods that choose elements: thresholds, ranks, sums, joins."""

from __future__ import annotations

import math

import numpy as np
import torch

from bench import truth
from bench.gpu_cases import make_rows
from bench.gpu_session import Arm, Session
from wkernels import elementwise, reference
from wkernels.gpu import columns, consensus, kept, ranks, scores, selection
from wkernels.masks import DIGITS, Joint, Mask, no_mask

N_ROWS = 8
DENSITY = 0.3
LINE = 4096
"""Elements of a line that is ranked, and of a row of a matrix."""
SMALLER = 8
"""Of rows: what is written by hand with torch has several temporary copies in float32."""


def choices(session: Session) -> None:
    """What ``ties``, ``dare`` and ``sce`` do with 8 rows and their base, bfloat16; ``della`` and
    ``arcee_fusion`` with one, ``nuslerp`` with the columns of two."""
    n = session.sizes.row_bytes // 2 // SMALLER
    rows = list(make_rows(session, N_ROWS + 1, n, torch.bfloat16))
    x, base = rows[:-1], rows[-1]
    _digits(session, x, base)
    mask = _thresholds(session, x, base)
    _sums(session, x, base, mask)
    _variances(session, x, base)
    _ranks(session, x[0], base)
    _importances(session, x[0], base)
    _columns(session, x[:2], base)
    for name, chosen, elect in (("trimmed, elected", mask, "sum"), ("drawn", _drawn(), "none")):
        _join(session, x, base, name, chosen, elect)


def _whole(row: torch.Tensor) -> np.ndarray:
    return np.array([[0, len(row)]])


def _nbytes(*rows: torch.Tensor) -> int:
    return sum(row.nbytes for row in rows)


def _differences(
    x: list[torch.Tensor], base: torch.Tensor, part: slice = slice(None)
) -> torch.Tensor:
    """As kernels take them, in float32: exact here."""
    return torch.stack([row[part].float() - base[part].float() for row in x])


def _digits(session: Session, x: list[torch.Tensor], base: torch.Tensor) -> None:
    shift, width = DIGITS["float32"][0]
    prefix = np.zeros((1, N_ROWS), np.int64)

    def run() -> torch.Tensor:
        counts = torch.zeros((1, N_ROWS, 1 << width), dtype=torch.int64, device=base.device)
        selection.digit_counts(x, base, _whole(base), prefix, shift, width, counts)
        return counts[0]

    def check(found: torch.Tensor) -> None:
        expected = torch.zeros_like(found)
        for start in range(0, len(base), 1 << 24):
            digits = _differences(x, base, slice(start, start + (1 << 24))).abs()
            digits = (digits.view(torch.int32) >> shift).long()
            for row, counts in zip(digits, expected, strict=True):
                counts += torch.bincount(row, minlength=1 << width)
        assert torch.equal(found, expected), "other counts"

    session.measure(
        f"counts of a digit, {N_ROWS} rows, bfloat16", {"wkernels": Arm(run, check)},
        moved=f"{N_ROWS} rows and a base read", n_bytes=_nbytes(*x, base), limits=("read",),
    )  # fmt: skip


def _thresholds(session: Session, x: list[torch.Tensor], base: torch.Tensor) -> Mask:
    """Also the mask of the largest, for what follows."""
    count = int(DENSITY * len(base))

    def run() -> tuple[np.ndarray, np.ndarray]:
        return elementwise.largest(x, count, base=base)

    def by_hand() -> torch.Tensor:
        sizes = ((row - base).abs() for row in x)
        return torch.stack([torch.topk(row, count, sorted=False).values.min() for row in sizes])

    def check(found: tuple[np.ndarray, np.ndarray]) -> None:
        n_kept = torch.zeros(N_ROWS, dtype=torch.int64)
        for start in range(0, len(base), 1 << 24):
            d = _differences(x, base, slice(start, start + (1 << 24)))
            n_kept += _kept(d, found, start).sum(1).cpu()
        assert (n_kept == count).all(), f"{n_kept.tolist()} kept of {count}"

    session.measure(
        f"thresholds, {N_ROWS} rows, bfloat16",
        {"wkernels": Arm(run, check), "topk": Arm(by_hand, lambda found: None)},
        moved=f"{N_ROWS} rows and a base read 4 times", n_bytes=4 * _nbytes(*x, base),
        limits=("read",),
    )  # fmt: skip
    keep, keep_before = run()
    return no_mask(1, N_ROWS)._replace(keep=keep, keep_before=keep_before)


def _kept(d: torch.Tensor, limits: tuple[np.ndarray, np.ndarray], start: int) -> torch.Tensor:
    """Which of differences that begin at a place are among the largest, from the definition."""
    bits = d.abs().view(torch.int32)
    keep, before = (torch.from_numpy(table[0]).to(d.device)[:, None] for table in limits)
    places = torch.arange(start, start + d.shape[1], device=d.device)
    return (bits > keep) | ((bits == keep) & (places < before))


def _sums(session: Session, x: list[torch.Tensor], base: torch.Tensor, mask: Mask) -> None:
    first = np.zeros(1, np.int64)

    def run() -> np.ndarray:
        sums = np.zeros((1, N_ROWS, kept.N_SUMS))
        kept.kept_sums(x, base, _whole(base), first, mask, sums)
        return sums[0]

    def check(found: np.ndarray) -> None:
        expected = torch.zeros((N_ROWS, kept.N_SUMS), dtype=torch.float64)
        for start in range(0, len(base), 1 << 22):
            d = _differences(x, base, slice(start, start + (1 << 22)))
            chosen = torch.where(_kept(d, (mask.keep, mask.keep_before), start), d, 0).double()
            columns = d.double().abs(), chosen.abs(), chosen.square(), (chosen != 0).double()
            expected += torch.stack([column.sum(1) for column in columns], dim=1).cpu()
        error = (torch.from_numpy(found) - expected).abs()
        assert (error <= 1e-12 * expected).all(), f"error {error.max():.1e}"

    session.measure(
        f"sums of what is kept, {N_ROWS} rows, bfloat16", {"wkernels": Arm(run, check)},
        moved=f"{N_ROWS} rows and a base read", n_bytes=_nbytes(*x, base), limits=("read",),
    )  # fmt: skip


def _variances(session: Session, x: list[torch.Tensor], base: torch.Tensor) -> None:
    out = torch.full((len(base),), torch.nan, device=base.device)

    def run() -> torch.Tensor:
        scores.variances(x, base, out)
        return out

    def by_hand() -> torch.Tensor:
        return _differences(x, base).var(0, unbiased=False)

    def check(found: torch.Tensor) -> None:
        for part in truth.edges(len(base)):
            expected = _differences(x, base, part).double().var(0, unbiased=False)
            error = (found[part].double() - expected).abs()
            assert (error <= 16 * truth.FLOAT32_EPS * expected).all(), f"error {error.max():.1e}"

    session.measure(
        f"variances, {N_ROWS} rows, bfloat16",
        {"wkernels": Arm(run, check), "torch": Arm(by_hand, check)},
        moved=f"{N_ROWS} rows and a base read, float32 written",
        n_bytes=_nbytes(*x, base, out),
    )


def _lines(n: int) -> int:
    """Elements of a line: as many in each."""
    return math.gcd(n, LINE)


def _ranks(session: Session, row: torch.Tensor, base: torch.Tensor) -> None:
    n, length = len(base), _lines(len(base))
    out = torch.full((1, n), torch.nan, device=base.device)
    shapes, epsilon = [(n // length, length, 1)], 0.1

    def run() -> torch.Tensor:
        ranks.rank_chances([row], base, _whole(base), shapes, [DENSITY], [epsilon], out)
        return out[0]

    def by_hand() -> torch.Tensor:
        sizes = _differences([row], base)[0].abs().reshape(-1, length)
        table = torch.linspace(DENSITY - epsilon, DENSITY + epsilon, length, device=base.device)
        order = sizes.argsort(dim=1, stable=True)
        return torch.empty_like(sizes).scatter_(1, order, table.expand_as(sizes)).flatten()

    def check(found: torch.Tensor) -> None:
        end = max(1, truth.EDGE // length) * length
        for part in (slice(0, end), slice(n - end, n)):
            d = _differences([row], base, part)[0].reshape(-1, length).cpu()
            expected = reference.rank_chances(d, DENSITY, epsilon).float().flatten()
            assert torch.equal(found[part].cpu(), expected), "other chances"

    session.measure(
        f"chances by rank in lines of {length}, bfloat16",
        {"wkernels": Arm(run, check), "argsort": Arm(by_hand, lambda found: None)},
        moved="a row and a base read, float32 written", n_bytes=_nbytes(row, base, out),
    )  # fmt: skip


def _importances(session: Session, row: torch.Tensor, base: torch.Tensor) -> None:
    n, length = len(base), _lines(len(base))
    out = torch.full((n,), torch.nan, device=base.device)

    def run() -> torch.Tensor:
        scores.importances(row, base, _whole(base), np.array([length]), out)
        return out

    def by_hand() -> torch.Tensor:
        return reference.importances(row.reshape(-1, length), base.reshape(-1, length))[0].float()

    def check(found: torch.Tensor) -> None:
        end = max(1, truth.EDGE // length) * length
        for part in (slice(0, end), slice(n - end, n)):
            x, origin = (t[part].cpu().reshape(-1, length) for t in (row, base))
            expected, terms = reference.importances(x, origin)
            # the last two roundings to float32, and a float64 sum of terms of both signs
            bound = truth.FLOAT32_EPS * expected + length * 2.3e-16 * terms
            error = (found[part].cpu().reshape(-1, length).double() - expected).abs()
            assert (error <= bound).all(), f"error {error.max():.1e}"

    session.measure(
        f"importances in lines of {length}, bfloat16",
        {"wkernels": Arm(run, check), "torch": Arm(by_hand, lambda found: None)},
        moved="a row and a base read, float32 written", n_bytes=_nbytes(row, base, out),
    )  # fmt: skip


def _columns(session: Session, x: list[torch.Tensor], base: torch.Tensor) -> None:
    n, width = len(base), _lines(len(base))
    first, widths, out = np.zeros(1, np.int64), np.array([width]), torch.full_like(base, torch.nan)
    factors = np.linspace([0.2, 0.9], [0.7, -0.3], width)

    def multiply() -> np.ndarray:
        gram = np.zeros((width, 2, 2))
        columns.column_products(x, base, _whole(base), first, widths, [gram])
        return gram

    def check_products(found: np.ndarray) -> None:
        expected, terms = np.zeros((2, width, 2, 2))
        step = (1 << 22) // width * width
        for start in range(0, n, step):
            d = _differences(x, base, slice(start, start + step)).double().reshape(2, -1, width)
            for table, rows in ((expected, d), (terms, d.abs())):
                table += torch.einsum("irc,jrc->cij", rows, rows).cpu().numpy()
        error = np.abs(found - expected)
        assert (error <= 2 * n // width * 2.3e-16 * terms).all(), f"error {error.max():.1e}"

    session.measure(
        f"products of {width} columns, bfloat16", {"wkernels": Arm(multiply, check_products)},
        moved="2 rows and a base read", n_bytes=_nbytes(*x, base), limits=("read",),
    )  # fmt: skip

    def add() -> torch.Tensor:
        columns.column_sums(x, base, _whole(base), first, [factors], out)
        return out

    def check_sums(found: torch.Tensor) -> None:
        part = slice(0, max(1, truth.EDGE // width) * width)
        d = _differences(x, base, part).double().cpu().reshape(2, -1, width)
        table = torch.from_numpy(factors).T[:, None]
        origin = base[part].double().cpu().reshape(-1, width)
        expected = origin + (table * d).sum(0)
        terms = origin.abs() + (table * d).abs().sum(0)
        bound = 0.5 * torch.finfo(out.dtype).eps * expected.abs() + 1e-15 * terms
        error = (found[part].cpu().reshape(-1, width).double() - expected).abs()
        assert (error <= bound).all(), f"error {error.max():.1e}"

    session.measure(
        f"sums of {width} columns, bfloat16", {"wkernels": Arm(add, check_sums)},
        moved="2 rows and a base read, one written", n_bytes=_nbytes(*x, base, out),
    )  # fmt: skip


def _drawn() -> Mask:
    mask = no_mask(1, N_ROWS)
    mask.chance[:], mask.key[:] = DENSITY, np.arange(N_ROWS)
    return mask


def _join(
    session: Session, x: list[torch.Tensor], base: torch.Tensor, name: str, mask: Mask, elect: str
) -> None:
    weights = np.linspace(0.2, 1.0, N_ROWS)[None]
    joint = Joint(weights, weights, weights, np.ones(1), elect=elect, divide=True)
    first, out = np.zeros(1, np.int64), torch.full_like(base, torch.nan)

    def run() -> torch.Tensor:
        consensus.joined(x, base, _whole(base), first, mask, joint, out)
        return out

    factors = torch.tensor(weights[0], dtype=torch.float32, device=base.device)[:, None]
    limits = torch.from_numpy(mask.keep[0]).to(base.device, torch.int32)[:, None]

    def by_hand() -> torch.Tensor:
        """In float32, with other draws, and all that is as large as the threshold."""
        d = _differences(x, base)
        if elect == "none":
            d *= torch.bernoulli(torch.full_like(d, DENSITY))
            return (base + (factors * d).sum(0) / factors.sum()).to(base.dtype)
        d = torch.where(d.abs().view(torch.int32) >= limits, d, 0) * factors
        agree = d.sign() == d.sum(0).sign()
        share = (factors * agree).sum(0).clamp_min(1e-8)
        return (base + (d * agree).sum(0) / share).to(base.dtype)

    def kept_of(d: torch.Tensor, start: int) -> torch.Tensor:
        if elect == "none":
            stop = start + d.shape[1]
            drawn = [reference.drawn(stop, key, DENSITY)[start:] for key in range(N_ROWS)]
            return torch.stack(drawn).to(d.device)
        return _kept(d, (mask.keep, mask.keep_before), start)

    def check(found: torch.Tensor) -> None:
        part = slice(0, min(len(base), truth.EDGE))
        d = _differences(x, base, part)
        d = torch.where(kept_of(d, 0), d, 0)
        expected = reference.joined(
            d.cpu(), base[part].cpu(), factor=weights[0], vote=weights[0], share=weights[0],
            elect=elect,
        )  # fmt: skip
        # a divisor is at least 0.2, and terms may be that much larger than what they are divided to
        terms = 5 * d.double().abs().sum(0).cpu() + base[part].double().abs().cpu()
        bound = 0.5 * torch.finfo(out.dtype).eps * expected.abs() + 16 * truth.FLOAT32_EPS * terms
        error = (found[part].double().cpu() - expected).abs()
        assert (error <= bound).all(), f"error {error.max():.1e}"

    session.measure(
        f"join, {name}, {N_ROWS} rows, bfloat16",
        {"wkernels": Arm(run, check), "torch": Arm(by_hand, lambda found: None)},
        moved=f"{N_ROWS} rows and a base read, one written",
        n_bytes=_nbytes(*x, base, out),
    )
