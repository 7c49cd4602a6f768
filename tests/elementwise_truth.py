"""The methods that choose elements, on one tensor, in float64 from their formulas.

``x``: the models' tensors; ``base``: the origin. Differences are taken in float32, as the choice of
elements is defined on those.
"""

import torch

from wkernels import reference
from wkernels.reference import drawn, joined, largest
from wspace.elementwise.statistics import draw_key


def differences(x, base):
    wide = torch.float64 if torch.float64 in {t.dtype for t in (*x, base)} else torch.float32
    return torch.stack([(t.to(wide) - base.to(wide)).flatten() for t in x])


def rescaled(kept, d):
    """What is kept of each row with the sum of magnitudes that all of it had."""
    whole, part = d.double().abs().sum(1), kept.double().abs().sum(1)
    factor = torch.where((whole < 1e-7) | (part < 1e-7), 1.0, whole / part)
    return kept.double() * factor[:, None]


def task_vectors(d, base, weights, *, consensus, normalize, scale=1.0):
    total = sum(weights)
    share = weights if normalize and consensus else None
    if normalize and not consensus and abs(total) >= 1e-8:
        scale = scale / total
    elect = "sum" if consensus else "none"
    return joined(d, base, factor=weights, vote=weights, share=share, scale=scale, elect=elect)


def keep(d, masks):
    return torch.where(torch.stack(masks), d, 0.0)


def trimmed(d, densities):
    return keep(d, [largest(r, int(p * r.numel())) for r, p in zip(d, densities, strict=True)])


def without_outliers(d, densities, gammas):
    masks = []
    for row, density, gamma in zip(d, densities, gammas, strict=True):
        n = row.numel()
        top = int(gamma * n)
        bottom = n - int(density * n) - top
        if bottom < 0:
            top, bottom = top + bottom, 0
        masks.append(largest(row, n - bottom) & ~largest(row, top))
    return keep(d, masks)


def kept_by_draw(d, name, chances, models, seed=0):
    """``chances``: of each row, a number or one for each element."""
    return keep(
        d,
        [
            drawn(row.numel(), draw_key(seed, model, name), torch.as_tensor(chance).float())
            for row, chance, model in zip(d, chances, models, strict=True)
        ],
    )


def rank_chances(row, shape, density, epsilon):
    """One for each element: from ``density - epsilon`` to ``density + epsilon``, along axis 1."""
    lines = row.reshape(shape if len(shape) > 1 else (1, -1))
    return reference.rank_chances(lines, density, epsilon).flatten()


def sce(d, base, share, guard=1e-6):
    d = d.double()
    if share < 1 and d.numel():
        variance = d.var(0, unbiased=False).float()
        count = int(torch.tensor(share) * (variance > 0).sum())
        d = torch.where(largest(variance, count), d, 0.0)
    squares = d.square().sum(1) / max(d.shape[1], 1)
    total = squares.sum()
    equal = total < guard or total == 0
    weights = torch.full_like(squares, 1 / len(d)) if equal else squares / total
    ones = torch.ones(len(d))
    return joined(d, base, factor=weights, vote=ones, share=weights, elect="sum", least=guard)


def ram(d, base, epsilon, r=0.0, alpha=0.0):
    active = d.abs() > epsilon
    d, n = torch.where(active, d, 0.0).double(), active.sum(0)
    shared = (active & (n > 1)).sum(1)
    unique = (active & (n == 1)).sum(1)
    lone = 1 + r * (shared / unique.clamp_min(1e-5)).clamp(0, alpha)
    terms = torch.where(n == 1, lone[:, None].double() * d, d / n.clamp_min(1))
    return base.double() + terms.sum(0)


def nearswap(x, base, t):
    x, base = x.double(), base.double()
    share = (t / (x - base).abs().clamp_min(1e-6)).clamp(0, 1)
    return share * x + (1 - share) * base


def fusion(x, base):
    importance = reference.importances(x, base)[0].float()
    ordered = importance.flatten().sort().values
    low, middle, high = (ordered[int(f * (ordered.numel() - 1))] for f in (0.25, 0.5, 0.75))
    return torch.where(importance >= middle + 1.5 * (high - low), x.double(), base.double())
