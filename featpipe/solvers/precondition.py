"""A change of variables in which the curvature of a penalised loss is near to the identity.

Böhning (1992, section 2) bounds the second derivative of the multinomial loss by
½ (I - 11'/K) ⊗ X'X, whatever the weights are. So X'X, made once, tells the directions in which
a problem is steep for all values of C; how steep they are is taken from the curvature that the
rows have at hand in place of the bound ½, which is far above it where classes are told apart
well. Of X'X the leading eigenvectors are enough: the rest is replaced by its mean.

References
----------
Böhning 1992, "Multinomial Logistic Regression Algorithm", Annals of the Institute of
Statistical Mathematics 44. Halko, Martinsson, Tropp 2011, "Finding Structure with Randomness",
SIAM Review 53, algorithm 4.4 (randomised subspace iteration) and 5.3 (its eigenvalues).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featpipe.solvers.losses import Array
from featpipe.solvers.objective import Block, Objective

RANK, _OVERSAMPLED, _PASSES = 96, 16, 2
_SAMPLE = 4096
"""Rows that the eigenvectors are taken from: they steer the steps, not where they lead."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Leading eigenvectors, (D + 1, r), and eigenvalues of X'X, and the mean of the others."""

    vectors: Array
    values: Array
    rest: float
    n_rows: int


def spectrum_of(objective: Objective) -> Spectrum:
    """Return the spectrum of the rows of an objective."""
    blocks = objective.blocks
    n_rows = objective.n_rows
    taken = blocks[:: max(1, n_rows // _SAMPLE)]
    share = n_rows / sum(len(block.y) for block in taken)
    size = objective.shape[1]
    ones = objective.loss.intercept_penalty > 0
    square = sum(float(np.vdot(b.X[:], b.X[:])) + ones * len(b.y) for b in taken)
    rng = np.random.default_rng(0)
    width = min(RANK + _OVERSAMPLED, size)
    basis_vectors = rng.standard_normal((size, width)).astype(objective.dtype)
    for _ in range(_PASSES):
        basis_vectors = np.linalg.qr(_gram_times(taken, basis_vectors, ones=ones))[0]
    image = _gram_times(taken, basis_vectors, ones=ones)
    inner: Array = basis_vectors.T @ image
    values, turn = np.linalg.eigh(inner.astype(np.float64))
    keep = min(RANK, size)
    values, vectors = (
        np.maximum(values[-keep:], 0),
        basis_vectors @ turn[:, -keep:].astype(objective.dtype),
    )
    rest = max(square - float(values.sum()), 0.0) / max(size - keep, 1)
    return Spectrum(vectors, values * share, rest * share, n_rows)


def _gram_times(blocks: Sequence[Block], vectors: Array, *, ones: bool) -> Array:
    """Return X' X V, (D + 1, r); the last column of X is one, or zero."""
    total = np.zeros_like(vectors)
    for block in blocks:
        X = np.asarray(block.X[:])  # noqa: N806
        image = X @ vectors[:-1]
        if ones:
            image += vectors[-1]
            total[-1] += image.sum(axis=0)
        total[:-1] += X.T @ image
    return total


class Preconditioner:
    """The symmetric root of (c X'X + I)⁻¹, c being C times the mean curvature of the rows.

    Parameters
    ----------
    objective : Objective
    spectrum : Spectrum
    C : float
    curvature : tuple of ndarray
        Of each block's rows.
    """

    def __init__(
        self,
        objective: Objective,
        spectrum: Spectrum,
        C: float,  # noqa: N803
        curvature: tuple[Array, ...],
    ) -> None:
        total = sum(float(c.sum(dtype=np.float64)) for c in curvature)
        # Rows that nothing is wrong with any longer still have some curvature.
        c = C * max(total / spectrum.n_rows, 1e-6)
        dtype = objective.dtype
        self._vectors = spectrum.vectors
        self._rest = dtype((c * spectrum.rest + 1) ** -0.5)
        self._more = ((c * spectrum.values + 1) ** -0.5 - self._rest).astype(dtype)[:, None]
        penalised = objective.loss.intercept_penalty > 0
        self._intercept = None if penalised else dtype((c * spectrum.n_rows) ** -0.5)

    def __call__(self, values: Array) -> Array:
        """Multiply (P, D + 1, K) by the root: a gradient, or a step in the new variables."""
        inner = self._vectors.T @ values
        inner *= self._more
        result: Array = self._vectors @ inner
        result += self._rest * values
        if self._intercept is not None:
            result[:, -1] = self._intercept * values[:, -1]
        return result
