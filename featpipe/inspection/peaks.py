"""Where a map is largest, between the middles of its cells."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def peak_of(values: Floats) -> tuple[float, float]:
    """Return row and column of the maximum, in cells from the upper left corner.

    The largest cell, moved by half a cell at most, along either side, to the vertex of the
    parabola through it and its two neighbours; at an edge it stays where it is.

    Parameters
    ----------
    values : ndarray of float64, (h, w)

    Examples
    --------
    >>> peak_of(np.array([[0.0, 0, 0, 0], [0, 4, 4, 0], [0, 0, 0, 0]]))
    (1.5, 2.0)
    """
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    return (
        int(row) + 0.5 + _moved(values[:, column], int(row)),
        int(column) + 0.5 + _moved(values[row], int(column)),
    )


def _moved(line: Floats, at: int) -> float:
    if at in {0, len(line) - 1}:
        return 0.0
    before, here, after = line[at - 1 : at + 2].tolist()
    bend = before - 2 * here + after
    return 0.0 if bend >= 0 else 0.5 * (before - after) / bend
