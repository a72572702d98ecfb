"""Penalised loss of linear classifiers over blocks of rows, for several problems at once.

A block is used by every problem that learns on it: the folds of a cross-validation share
blocks, and one product of matrices serves them all. Rows are standardised within the weights,
not as a copy for every problem: ``w'(x - m) / s = (w / s)'x - (w / s)'m``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from featpipe._threads import Threads
from featpipe.solvers.losses import Array, Ints, Loss

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows.

    Attributes
    ----------
    X : ndarray of float, (m, D)
        Or anything whose ``[:]`` gives that, such as a view of a file.
    y : ndarray of int, (m,)
    problems : tuple of int
        Which problems learn on these rows.
    """

    X: Any
    y: Ints
    problems: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Standardisation:
    """What every problem subtracts and divides by: two arrays, (P, D)."""

    shift: Array
    scale: Array


@dataclass(frozen=True, slots=True)
class Value:
    """The objective at a point.

    Attributes
    ----------
    loss : ndarray of float64, (P, 1, 1) or (P, 1, K)
        C × summed loss + half the penalty.
    gradient : ndarray, (P, D + 1, K)
        The last row is the intercept's.
    curvature : tuple of ndarray
        For each block the second derivative of its rows.
    """

    loss: Array
    gradient: Array
    curvature: tuple[Array, ...]


class Objective:
    """C × summed loss + 1/2 ||W||² of P problems.

    Parameters
    ----------
    blocks : sequence of Block
        In an order that does not depend on the machine: sums are made in it.
    loss : Loss
    n_problems, n_classes : int
    standardisation : Standardisation, optional
    pool : Threads, optional
        Runs blocks side by side.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        loss: Loss,
        n_problems: int,
        n_classes: int,
        standardisation: Standardisation | None = None,
        pool: Threads | None = None,
    ) -> None:
        self.blocks, self.loss, self.pool = blocks, loss, pool
        self.n_rows = sum(len(block.y) for block in blocks)
        self._standardisation = standardisation
        n_features = blocks[0].X.shape[1]
        self.shape = (n_problems, n_features + 1, loss.n_columns(n_classes))
        self.dtype = np.float64 if blocks[0].X.dtype == np.float64 else np.float32
        penalty = np.ones(n_features + 1, dtype=self.dtype)
        penalty[-1] = loss.intercept_penalty
        self.penalty = penalty

    def value(self, W: Array, C: float) -> Value:  # noqa: N803
        """Return loss, gradient and curvature at weights (P, D + 1, K)."""
        n_problems, size, n_columns = self.shape
        flat = self._to_rows(W)
        taken = {
            problems: np.ascontiguousarray(flat[:, problems, :]).reshape(size, -1)
            for problems in {block.problems for block in self.blocks}
        }
        total = np.zeros((n_problems, n_columns, size), dtype=self.dtype)
        sums = np.zeros((n_problems, 1, n_columns if self.loss.separable else 1))
        curvature = []
        parts = self.map(lambda block: self._part(block, taken[block.problems]), self.blocks)
        for block, (gradient, loss, row_curvature) in zip(self.blocks, parts, strict=True):
            for position, problem in enumerate(block.problems):
                total[problem] += gradient[position]
                sums[problem, 0] += loss[position]
            curvature.append(row_curvature)
        result = self._from_rows(total)
        result *= self.dtype(C)
        decayed = W * self.penalty[:, None]
        result += decayed
        axes = (1,) if self.loss.separable else (1, 2)
        half = 0.5 * np.sum(W * decayed, axis=axes, keepdims=True, dtype=np.float64)
        return Value(C * sums + half, result, tuple(curvature))

    def _part(self, block: Block, weights: Array) -> tuple[Array, Array, Array]:
        """Return one block's share of gradient, (P', K, D + 1), and loss; and its curvature."""
        X = np.asarray(block.X[:])  # noqa: N806
        scores = X @ weights[:-1]
        scores += weights[-1]
        n_problems, n_columns = len(block.problems), self.shape[2]
        loss, curvature = self.loss(scores.reshape(len(X), n_problems, n_columns), block.y)
        gradient = np.empty((scores.shape[1], self.shape[1]), dtype=self.dtype)
        # (K, m) (m, D): faster than its transpose where K is small.
        gradient[:, :-1] = scores.T @ X
        gradient[:, -1] = scores.sum(axis=0)
        return gradient.reshape(n_problems, n_columns, -1), loss, curvature

    def scores(self, X: Array, W: Array, problem: int) -> Array:  # noqa: N803
        """Return the scores, (m, K), that a problem's weights give to rows."""
        flat = self._to_rows(W)[:, problem]
        scores: Array = X @ np.ascontiguousarray(flat[:-1])
        scores += flat[-1]
        return scores

    def map(self, work: Callable[[_T], _R], items: Sequence[_T]) -> Iterator[_R]:
        """Run ``work`` on items, side by side where there is a pool; results come in order."""
        if self.pool is None or len(items) == 1:
            return map(work, items)
        return self.pool.stream(work, items)

    def _to_rows(self, W: Array) -> Array:  # noqa: N803
        """Return the weights for rows as they are, (D + 1, P, K)."""
        flat = np.ascontiguousarray(W.transpose(1, 0, 2))
        if self._standardisation is not None:
            flat[:-1] /= self._standardisation.scale.T[:, :, None]
            flat[-1] -= np.einsum("pd,dpk->pk", self._standardisation.shift, flat[:-1])
        return flat

    def _from_rows(self, gradient: Array) -> Array:
        """Undo `_to_rows` for a gradient, (P, K, D + 1): its transpose."""
        total = np.ascontiguousarray(gradient.transpose(0, 2, 1))
        if self._standardisation is not None:
            total[:, :-1] -= self._standardisation.shift[:, :, None] * total[:, -1:]
            total[:, :-1] /= self._standardisation.scale[:, :, None]
        return total
