"""L-BFGS for several problems side by side, in variables that a preconditioner gives.

References
----------
Liu, Nocedal 1989, "On the Limited Memory BFGS Method for Large Scale Optimization",
Mathematical Programming 45, algorithm 2.1, with the scaling of equation 3.3 for the first
matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from featpipe.solvers.losses import Array
from featpipe.solvers.objective import Objective, Value
from featpipe.solvers.precondition import Preconditioner

MEMORY = 12
_STEPS = 12
"""Rejected steps in a row, after which a point counts as the best that the precision allows."""


@dataclass(frozen=True, slots=True)
class Found:
    """A minimum.

    Attributes
    ----------
    W : ndarray, (P, D + 1, K)
    value : Value
    steps : int
        How often the objective was evaluated.
    """

    W: Array
    value: Value
    steps: int


Watch = Callable[[Found], bool]
"""Called with every new point; True ends the search there."""


@dataclass(slots=True)
class _History:
    """Pairs of steps and changes of the gradient, whitened, and 1 / s'y, 0 for what is void."""

    axes: tuple[int, ...]
    pairs: list[tuple[Array, Array, Array]] = field(default_factory=list)
    gamma: Any = 1.0

    def dot(self, a: Array, b: Array) -> Array:
        product: Array = np.sum(a * b, axis=self.axes, keepdims=True)
        return product

    def add(self, s: Array, y: Array) -> None:
        sy, yy = self.dot(s, y), self.dot(y, y)
        sound = sy > np.finfo(s.dtype).eps * yy
        rho = np.where(sound, 1 / np.where(sound, sy, 1), 0)
        self.gamma = np.where(sound, sy / np.where(sound, yy, 1), self.gamma)
        self.pairs = [*self.pairs[-MEMORY + 1 :], (s, y, rho)]

    def direction(self, gradient: Array) -> Array:
        """Return H g by the two loops."""
        q = gradient.copy()
        alphas = []
        for s, y, rho in reversed(self.pairs):
            alpha = rho * self.dot(s, q)
            q -= alpha * y
            alphas.append(alpha)
        q *= self.gamma
        for (s, y, rho), alpha in zip(self.pairs, reversed(alphas), strict=True):
            q += (alpha - rho * self.dot(y, q)) * s
        return q


def minimise(
    objective: Objective,
    preconditioner: Preconditioner,
    start: Found,
    C: float,  # noqa: N803
    *,
    tol: float,
    floor: float = 0.0,
    max_iter: int,
    watch: Watch | None = None,
) -> tuple[Found, bool]:
    """Minimise, from a point whose value at this C is known.

    It ends when the decrease that the quadratic model promises, g'Hg / 2, is below ``tol``
    times the objective in every problem, or times ``floor`` where the objective is lower. A
    problem whose step does not lower its objective stays where it is and tries a shorter one,
    while the others go on. ``watch`` is shown every new point, and may say that it is enough.

    Returns
    -------
    found : Found
    converged : bool
    """
    history = _History((1,) if objective.loss.separable else (1, 2))
    W, value, steps = start.W, start.value, start.steps  # noqa: N806
    white = preconditioner(value.gradient)
    length = np.ones_like(value.loss)
    slack = 8 * np.finfo(objective.dtype).eps
    for _ in range(max_iter):
        direction = history.direction(white)
        decrease = history.dot(white, direction)
        length[(decrease / 2 <= tol * np.maximum(value.loss, floor)) | (length < 0.5**_STEPS)] = 0
        if not length.any():
            return Found(W, value, steps), True
        moved: Array = -1 * length.astype(objective.dtype) * direction
        trial = W + preconditioner(moved)
        tried = objective.value(trial, C)
        steps += 1
        tried_white = preconditioner(tried.gradient)
        history.add(moved, tried_white - white)
        better = tried.loss <= value.loss - 1e-4 * length * decrease + slack * value.loss
        W = np.where(better, trial, W)  # noqa: N806
        white = np.where(better, tried_white, white)
        value = Value(
            np.where(better, tried.loss, value.loss),
            np.where(better, tried.gradient, value.gradient),
            tried.curvature,
        )
        length = np.where(better, 1, length / 2)
        if watch is not None and better.any() and watch(Found(W, value, steps)):
            return Found(W, value, steps), True
    return Found(W, value, steps), False
