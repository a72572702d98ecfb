"""Minima over rows that are read in every pass, a few blocks at a time.

The objective and the steps are those of rows in memory. What differs is where a search begins
and what it knows: a sample of the rows, small enough for memory, gives the directions in which
the problem is steep, and its minimum is near that of all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from featpipe._threads import Threads
from featpipe.solvers.lbfgs import Found, Watch
from featpipe.solvers.losses import Array, Ints, Loss
from featpipe.solvers.objective import Block, Objective
from featpipe.solvers.path import FINAL, Precision, descend
from featpipe.solvers.precondition import Spectrum, spectrum_of
from featpipe.solvers.problems import whole

ROWS = 2048
"""Rows a block: as many as a store keeps in one file."""
Read = Callable[[Ints], Array]
"""Returns rows, (m, D) float32, as the weights are to read them; called from several threads."""


@dataclass(frozen=True, slots=True)
class Unread:
    """Rows that are read whenever their contents are asked for: what a `Block` may hold."""

    read: Read
    rows: Ints
    n_features: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.rows), self.n_features

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """Of what is read."""
        return np.dtype(np.float32)

    def __getitem__(self, _: slice) -> Array:
        """Read all rows."""
        return self.read(self.rows)


def unread_blocks(read: Read, rows: Ints, y: Ints, n_features: int) -> list[Block]:
    """Cut rows into blocks that hold nothing but their numbers and classes.

    Parameters
    ----------
    rows : ndarray of int, (n,)
        What ``read`` takes, in the order in which they are best read.
    y : ndarray of int, (n,)
        Classes of these rows.
    """
    return [
        Block(Unread(read, rows[i : i + ROWS], n_features), y[i : i + ROWS], (0,))
        for i in range(0, len(rows), ROWS)
    ]


class StreamedProblem:
    """The penalised loss of rows that are read in every pass.

    Parameters
    ----------
    blocks : list of Block
    sample : ndarray of float32, (m, D)
        Some of the rows, drawn evenly.
    y : ndarray of int, (m,)
        Classes of the sample.
    loss : Loss
    n_classes : int
    pool : Threads, optional
        Reads and works on blocks side by side.
    """

    def __init__(
        self,
        blocks: list[Block],
        sample: Array,
        y: Ints,
        loss: Loss,
        n_classes: int,
        pool: Threads | None = None,
    ) -> None:
        self.objective = Objective(blocks, loss, 1, n_classes, None, pool)
        self._spectrum = _scaled(
            spectrum_of(whole(sample, y, loss, n_classes)), self.objective.n_rows
        )

    def minimum(
        self,
        start: Array,
        C: float,  # noqa: N803
        *,
        precision: Precision = FINAL,
        watch: Watch | None = None,
    ) -> Found:
        """Return the minimum at one C.

        Parameters
        ----------
        start : ndarray, (D + 1, K)
            Where to begin; the last row is the intercepts.
        watch : callable, optional
            Shown every point; True ends the search.
        """
        W = start[None].astype(self.objective.dtype)  # noqa: N806
        first = Found(W, self.objective.value(W, C), 1)
        if watch is not None and watch(first):
            return first
        return descend(self.objective, self._spectrum, first, C, precision, watch)


def _scaled(spectrum: Spectrum, n_rows: int) -> Spectrum:
    """Take the spectrum of a sample for that of so many rows."""
    share = n_rows / spectrum.n_rows
    return replace(
        spectrum, values=spectrum.values * share, rest=spectrum.rest * share, n_rows=n_rows
    )
