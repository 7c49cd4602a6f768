"""Generalized loss: what a new head reaches on frozen features. Convex, float64, deterministic."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from wspace.errors import WspaceError

MLP_SEED = 0
ITERATIONS = 1000
# Of the largest part of the gradient: the loss is then right to about 1e-9.
GRADIENT = 1e-6
CONSTANT = 1e-9  # of a feature's size: deviations below it are rounding


class ProbeError(WspaceError):
    """Features and labels that no head can be fitted on."""


@dataclass(frozen=True)
class ProbeResult:
    """Mean cross-entropy and accuracy on the test rows; NaN where features are not finite."""

    loss: float
    accuracy: float
    n_train: int
    n_test: int
    iterations: int = 0
    converged: bool = True


def fit_probe(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    n_classes: int,
    l2: float = 1e-4,
    *,
    kind: str = "linear",
    device: str | torch.device = "cpu",
) -> ProbeResult:
    """Multinomial logistic regression on the train features, judged on the test features::

        min over W, b of   mean cross-entropy(x W + b, y) + l2 / 2 * ||W||^2

    ``x`` is standardised by the train rows' means and deviations. So ``l2`` means the same for
    every encoder point: far extrapolations have features many times larger, and without it the
    penalty would weigh differently on them. L-BFGS runs in float64 from zero, in coordinates in
    which the features are nearly white (only its speed depends on them), until no part of the
    gradient exceeds 1e-6.

    Features ``[rows, hidden]``, labels int ``[rows]`` in ``[0, n_classes)``. ``kind="mlp"``: a tanh
    layer of the same width before, from a seeded start; deterministic, but not convex. Features
    that are not finite give a loss and an accuracy of NaN. Raises ProbeError for labels out of
    range. Source: the paper (arXiv 2302.04863), section 3.
    """
    for labels in (train_y, test_y):
        if len(labels) == 0 or labels.min() < 0 or labels.max() >= n_classes:
            raise ProbeError(f"probe: expected labels from 0 to {n_classes - 1}, at least one")
    sizes = {"n_train": len(train_y), "n_test": len(test_y)}
    if not (np.isfinite(train_x).all() and np.isfinite(test_x).all()):
        return ProbeResult(math.nan, math.nan, **sizes, converged=False)
    x, other = (torch.from_numpy(f).to(device, torch.float64) for f in (train_x, test_x))
    y, answers = (torch.from_numpy(np.asarray(v)).to(device) for v in (train_y, test_y))
    mean, spread = x.mean(0), x.std(0, correction=0)
    # a feature that does not vary says nothing
    spread = torch.where(spread > CONSTANT * x.abs().amax(0), spread, math.inf)
    x, other = (x - mean) / spread, (other - mean) / spread
    head = _Linear(x, n_classes, l2) if kind == "linear" else _Mlp(x, n_classes, l2)
    found, iterations, converged = _minimise(head, y)
    with torch.inference_mode():
        logits = head.logits(other, found)
        loss = torch.nn.functional.cross_entropy(logits, answers).item()
        right = (logits.argmax(1) == answers).double().mean().item()
    return ProbeResult(loss, right, **sizes, iterations=iterations, converged=converged)


class _Linear:
    """``x W + b`` with ``W = P V``: V is what is searched for, P whitens x up to the penalty."""

    def __init__(self, x: torch.Tensor, n_classes: int, l2: float) -> None:
        self.x, self.n_classes, self.l2 = x, n_classes, l2
        values, vectors = torch.linalg.eigh(x.T @ x / len(x))
        # the curvature of cross-entropy: about p (1 - p) of the features' covariance
        curvature = (1 - 1 / n_classes) / n_classes
        scale = (curvature * values.clamp_min(0) + l2 + 1e-12).rsqrt()
        self.back = vectors * scale  # P
        self.white = x @ self.back
        self.shift = curvature**-0.5  # of the intercept
        self.penalty = (l2 * scale.square())[:, None]
        self.size = (x.shape[1] + 1) * n_classes

    def start(self) -> torch.Tensor:
        return self.x.new_zeros(self.size)

    def loss_and_gradient(
        self, parameters: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weights = parameters.view(-1, self.n_classes)
        logits = torch.addmm(weights[-1] * self.shift, self.white, weights[:-1])
        logs = torch.log_softmax(logits, 1)
        rows = torch.arange(len(y), device=y.device)
        loss = -logs[rows, y].mean() + 0.5 * (self.penalty * weights[:-1].square()).sum()
        error = logs.exp_()
        error[rows, y] -= 1
        error /= len(y)
        gradient = torch.empty_like(weights)
        torch.mm(self.white.T, error, out=gradient[:-1])
        gradient[:-1] += self.penalty * weights[:-1]
        gradient[-1] = error.sum(0) * self.shift
        return loss, gradient.view(-1)

    def logits(self, x: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        weights = parameters.view(-1, self.n_classes)
        return x @ (self.back @ weights[:-1]) + weights[-1] * self.shift


class _Mlp:
    """``tanh(x A + a) W + b``, all of it with the penalty; from a seeded start."""

    def __init__(self, x: torch.Tensor, n_classes: int, l2: float) -> None:
        self.x, self.l2 = x, l2
        hidden = x.shape[1]
        self.shapes = [(hidden, hidden), (hidden,), (hidden, n_classes), (n_classes,)]

    def start(self) -> torch.Tensor:
        random = torch.Generator().manual_seed(MLP_SEED)
        parts = [
            torch.randn(shape, generator=random, dtype=torch.float64) / math.sqrt(shape[0])
            if len(shape) == 2
            else torch.zeros(shape, dtype=torch.float64)
            for shape in self.shapes
        ]
        return torch.cat([part.flatten() for part in parts]).to(self.x.device)

    def loss_and_gradient(
        self, parameters: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        free = parameters.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(self.logits(self.x, free), y)
        loss = loss + 0.5 * self.l2 * free.square().sum()
        (gradient,) = torch.autograd.grad(loss, free)
        return loss.detach(), gradient

    def logits(self, x: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
        parts = parameters.split([math.prod(shape) for shape in self.shapes])
        a, shift, w, b = (p.view(s) for p, s in zip(parts, self.shapes, strict=True))
        return torch.tanh(x @ a + shift) @ w + b


def _minimise(head: _Linear | _Mlp, y: torch.Tensor) -> tuple[torch.Tensor, int, bool]:
    from scipy.optimize import minimize
    from threadpoolctl import threadpool_limits

    start = head.start()

    def value(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        loss, gradient = head.loss_and_gradient(torch.from_numpy(parameters).to(start.device), y)
        return loss.item(), gradient.cpu().numpy()

    options = {"maxiter": ITERATIONS, "maxfun": 2 * ITERATIONS, "gtol": GRADIENT, "ftol": 0.0}
    # scipy's threads and torch's wait for work by spinning, each on the other's core: a hundred
    # times slower on two
    with threadpool_limits(limits=1, user_api="blas"):
        found = minimize(value, start.cpu().numpy(), jac=True, method="L-BFGS-B", options=options)
    best = torch.from_numpy(found.x).to(start.device)
    return best, int(found.nit), bool(np.abs(found.jac).max() <= 10 * GRADIENT)
