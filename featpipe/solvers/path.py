"""Linear classifiers along a path of C, every value starting from the one before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from featpipe.solvers.lbfgs import Found, Watch, minimise
from featpipe.solvers.objective import Objective
from featpipe.solvers.precondition import Preconditioner, Spectrum, spectrum_of

_REFRESH, _ROUNDS = 30, 20
"""Iterations with one preconditioner, and how many of them there may be."""


@dataclass(frozen=True, slots=True)
class Precision:
    """When a minimum is near enough.

    Attributes
    ----------
    tol : float
        Decrease that the next step promises, relative to the objective.
    floor : float
        C times this loss a row stands for an objective that is lower.
    """

    tol: float
    floor: float


PATH = Precision(3e-4, 0.03)
HINGE_PATH = Precision(1e-4, 0.01)
"""For choosing C: rows that are right by a wide margin need not be so by a wider one.

Found on real vectors: the loosest at which the choices of tight minima stay.
"""
FINAL, FINAL_DOUBLE = Precision(2e-6, 0.0), Precision(1e-7, 0.0)
"""For what is kept: the promise falls short of the true distance by up to twenty times, and on
small problems that are hardly regularised by more; there float64 allows the second."""


def walk(
    objective: Objective,
    values: Sequence[float],
    precision: Precision = PATH,
    last: Precision | None = None,
) -> Iterator[Found]:
    """Yield the minimum at each value of C, best in rising order, for all problems at once.

    Parameters
    ----------
    objective : Objective
    values : sequence of float
    precision : Precision
    last : Precision, optional
        That of the last value.
    """
    spectrum = spectrum_of(objective)
    W, steps = np.zeros(objective.shape, dtype=objective.dtype), 0  # noqa: N806
    for number, C in enumerate(values, start=1):  # noqa: N806
        wanted = last if last is not None and number == len(values) else precision
        found = descend(objective, spectrum, Found(W, objective.value(W, C), steps + 1), C, wanted)
        W, steps = found.W, found.steps  # noqa: N806
        yield found


def descend(
    objective: Objective,
    spectrum: Spectrum,
    found: Found,
    C: float,  # noqa: N803
    wanted: Precision,
    watch: Watch | None = None,
) -> Found:
    """Return the minimum at one C, from a point whose value there is known."""
    for _ in range(_ROUNDS):
        found, converged = minimise(
            objective,
            Preconditioner(objective, spectrum, C, found.value.curvature),
            found,
            C,
            tol=wanted.tol,
            floor=wanted.floor * C * objective.n_rows,
            max_iter=_REFRESH,
            watch=watch,
        )
        if converged:
            break
    return found
