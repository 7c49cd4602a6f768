"""Linear merge methods in float64, straight from their definitions: no Gram matrix, no factors.

Each takes float64 vectors, one for each model, and returns the merged one.
"""

import itertools
import math

import torch


def linear(x, weights, normalize=True):
    total = sum(weights) if normalize else 1
    return sum(w * v for w, v in zip(weights, x, strict=True)) / total


def task_arithmetic(x, base, weights, scale=1.0, normalize=False):
    return base + scale * linear([v - base for v in x], weights, normalize)


def slerp(a, b, t, parallel=0.9995):
    cosine = (a @ b) / (a.norm() * b.norm()) if a.norm() > 1e-8 and b.norm() > 1e-8 else a @ b
    if abs(cosine) > parallel:
        return (1 - t) * a + t * b
    angle = torch.arccos(cosine)
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


def nuslerp(a, b, weights):
    t = weights[1] / (weights[0] + weights[1])
    cosine = (a @ b) / (a.norm().clamp_min(1e-7) * b.norm().clamp_min(1e-7))
    angle = torch.arccos(cosine.clamp(-1, 1))
    if torch.sin(angle).abs() < 1e-8:
        return (1 - t) * a + t * b
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


def multislerp(x, weights, normalize=True, eps=1e-8):
    """The weighted mean direction at the weighted mean length."""
    w = [weight / (sum(weights) if normalize else 1) for weight in weights]
    direction = sum(wi * v / (v.norm() + eps) for wi, v in zip(w, x, strict=True))
    length = sum(wi * v.norm() for wi, v in zip(w, x, strict=True))
    return length * direction / direction.norm() if direction.norm() > 0 else direction


def karcher(x, max_iter=10, tol=1e-5):
    """Gradient steps on the unit sphere, on the vectors themselves."""
    norms = torch.stack([v.norm() for v in x])
    units = [v / n for v, n in zip(x, norms, strict=True) if n > tol]
    if not units:
        return torch.zeros_like(x[0])
    at = sum(units) / len(units)
    at = at / at.norm() if at.norm() >= tol else units[0]
    for _ in range(max_iter):
        step = torch.zeros_like(at)
        for u in units:
            cosine = (at @ u).clamp(-1, 1)
            angle = torch.arccos(cosine)
            if angle >= tol:
                step += angle / torch.sin(angle) * (u - cosine * at) / len(units)
        length = step.norm()
        if length < tol:
            break
        at = torch.cos(length) * at + torch.sin(length) * step / length
        at = at / at.norm()
    return norms.mean() * at


def model_stock(x, base, eps=1e-6):
    deltas = [v - base for v in x]
    cosines = []
    for a, b in itertools.combinations(deltas, 2):
        lengths = max(float(a.norm() * b.norm()), eps)
        cosines.append(float(a @ b) / lengths if lengths else 0.0)
    c, n = sum(cosines) / len(cosines), len(x)
    t = 0.0 if math.isclose(1 + (n - 1) * c, 0, abs_tol=1e-12) else n * c / (1 + (n - 1) * c)
    return t * (sum(x) / n) + (1 - t) * base


def by_rows(method, *vectors):
    """The method on each row along the last axis."""
    rows = zip(*(v.reshape(-1, v.shape[-1]) for v in vectors), strict=True)
    return torch.stack([method(*row) for row in rows]).reshape(vectors[0].shape)


def by_columns(method, *vectors):
    """The method on each column along the first axis; a vector is one column."""
    columns = zip(*(v.reshape(len(v), -1).T for v in vectors), strict=True)
    return torch.stack([method(*column) for column in columns], dim=1).reshape(vectors[0].shape)


def flat(method, *tensors):
    """The method on whole tensors as vectors."""
    return method(*(t.flatten() for t in tensors)).reshape(tensors[0].shape)
