"""Occlusion: what a class loses while a patch of the picture is covered.

It asks nothing of head or backbone, and costs as many runs of the backbone as there are patches.

References
----------
Zeiler, Fergus 2014, "Visualizing and Understanding Convolutional Networks", section 4.2; here
with patches of the picture's own mean colour where theirs are grey, and with log-odds where they
take probabilities, which hardly move while a head is sure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featpipe.types import Pixels

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Patches:
    """Which parts of a square are covered, one after the other.

    Attributes
    ----------
    cells : int
        The map has so many a side.
    across : int
        Cells that a patch covers, a side.
    stride : int
        Cells from one patch to the next.
    """

    cells: int = 10
    across: int = 3
    stride: int = 1

    def corners(self) -> list[tuple[int, int]]:
        """Return the upper left cell of every patch, row by row; the last ones end at the edge."""
        last = self.cells - self.across
        starts = [*range(0, last, self.stride), last]
        return [(row, column) for row in starts for column in starts]

    def covered(self, pixels: Pixels) -> Iterator[Pixels]:
        """Yield the picture, (side, side, 3), with one patch after the other covered."""
        edges = np.linspace(0, len(pixels), self.cells + 1).round().astype(int)
        colour = pixels.reshape(-1, 3).mean(axis=0).round().astype(np.uint8)
        for row, column in self.corners():
            picture = pixels.copy()
            down = slice(edges[row], edges[row + self.across])
            picture[down, edges[column] : edges[column + self.across]] = colour
            yield picture

    def spread(self, losses: Floats) -> Floats:
        """Return for every cell the mean over the patches that cover it.

        Parameters
        ----------
        losses : ndarray of float, (m, patches)

        Returns
        -------
        ndarray of float64, (m, cells, cells)
        """
        sums = np.zeros((len(losses), self.cells, self.cells))
        counts = np.zeros((self.cells, self.cells))
        for number, (row, column) in enumerate(self.corners()):
            part = (slice(row, row + self.across), slice(column, column + self.across))
            sums[:, *part] += losses[:, number, None, None]
            counts[part] += 1
        found: Floats = sums / counts
        return found


FINE = Patches()
"""64 patches of three tenths of the side."""
COARSE = Patches(stride=2)
"""25 of the same size, for many pictures."""
