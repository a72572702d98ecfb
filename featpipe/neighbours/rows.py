"""The rows that are searched: in memory or a memory map, read a block at a time.

Nothing here holds more than a block of rows as float32, however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

QUERIES = 1024
"""Queries that are answered at once."""
_CELLS = 2**21
"""Numbers in a block of rows: 8 MiB as float32."""
_STRIP = 2**17
_KEPT = np.int32(-0x70000001)
_SCALE = np.float32(2.0**112)
_LARGEST_HALF = 65504
_NOTHING = 1e-30
"""Shorter vectors than this have no direction."""


def widen(half: Array, out: Floats) -> Floats:
    """Write float16 numbers into a float32 array, exactly; finite numbers only.

    The bits of a float16, shifted to where a float32 has its own, are the number times 2**-112.
    NumPy's conversion takes seven times as long on processors without AVX512-FP16.

    >>> widen(np.array([[1.5, -6e-8]], dtype=np.float16), np.empty((1, 2), dtype=np.float32))
    array([[ 1.5000000e+00, -5.9604645e-08]], dtype=float32)
    """
    step = max(1, _STRIP // max(1, half.shape[1]))
    for start in range(0, len(half), step):
        floats = out[start : start + step]
        bits = floats.view(np.int32)
        np.copyto(bits, half[start : start + step].view(np.int16))
        np.left_shift(bits, 13, out=bits)
        # The sign was drawn out over three bits of the exponent.
        np.bitwise_and(bits, _KEPT, out=bits)
        np.multiply(floats, _SCALE, out=floats)
    return out


class Values(Protocol):
    """An array of float16, float32 or float64, (n, D), or what gives out its rows."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the numbers."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of rows, and their length."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, where: Any, /) -> Any:
        """Return some of the rows, of a slice or of positions, as an array."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows to be searched, and their lengths.

    Attributes
    ----------
    values : ndarray of float16, float32 or float64, (n, D), or `Values`
    norms : ndarray of float32, (n,)
        Euclidean lengths; 0 where a row has no direction.
    chosen : ndarray of int, (m,), optional
        The rows that count, in rising order; default: all.
    """

    values: Values
    norms: Floats
    chosen: Ints | None = None

    @classmethod
    def measured(cls, values: Values, look: Callable[[Array], None] | None = None) -> Self:
        """Measure the lengths of rows, a block at a time; ``look`` sees each as it is stored.

        Raises
        ------
        ValueError
            When one of them holds NaN or infinity.
        """
        norms = np.empty(len(values), dtype=np.float32)
        whole = cls(values, norms)
        for where, block in whole.blocks():
            if look is not None:
                look(values[where])
            norms[where] = lengths(block)
            if values.dtype == np.float16:
                # `widen` has made numbers of infinity and NaN.
                norms[where][np.abs(block).max(axis=1, initial=0) > _LARGEST_HALF] = np.nan
        bad = np.flatnonzero(~np.isfinite(norms))
        if len(bad):
            raise ValueError(f"Input X contains NaN or infinity, first in row {bad[0]}")
        return whole

    def only(self, chosen: Ints) -> Rows:
        """Return some of the rows, without copying any."""
        return Rows(self.values, self.norms, chosen)

    def __len__(self) -> int:
        return len(self.values) if self.chosen is None else len(self.chosen)

    @property
    def dimension(self) -> int:
        """Length D of a row."""
        return int(self.values.shape[1])

    def take(self, where: slice | Ints) -> Array:
        """Return rows as they are stored."""
        found: Array = self.values[where if self.chosen is None else self.chosen[where]]
        return found

    def inverse(self, where: slice) -> Floats:
        """Return what makes rows unit vectors: 1 / length, or 0."""
        norms = self.norms[where if self.chosen is None else self.chosen[where]]
        return np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)

    def buffer(self, n_rows: int) -> Floats | None:
        """Return room for so many rows, where they cannot be used as they are stored."""
        if self.values.dtype == np.float32:
            return None
        return np.empty((n_rows, self.dimension), dtype=np.float32)

    def block(self, where: slice, buffer: Floats | None) -> Floats:
        """Return rows as float32, (b, D), in the buffer where there is one."""
        found = self.take(where)
        if buffer is None:
            return found
        out = buffer[: len(found)]
        if found.dtype != np.float16:
            np.copyto(out, found, casting="same_kind")
            return out
        return widen(np.ascontiguousarray(found), out)

    def step(self, per_row: int = 0) -> int:
        """Return how many rows a block may have, at ``per_row`` numbers beside each."""
        return max(1, min(_CELLS // max(1, self.dimension), 2 * _CELLS // max(1, per_row)))

    def tasks(self, n_queries: int) -> int:
        """Return in how many blocks they are searched: so many threads can help."""
        return -(-len(self) // self.step(min(n_queries, QUERIES)))

    def blocks(self) -> Iterator[tuple[slice, Floats]]:
        """Yield all rows as float32, and where they are; each block ends the one before."""
        step = self.step()
        buffer = self.buffer(min(step, len(self)))
        for start in range(0, len(self), step):
            where = slice(start, min(start + step, len(self)))
            yield where, self.block(where, buffer)


def lengths(block: Array) -> Floats:
    """Return the lengths of rows, (n,); not finite where a row is not."""
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.sqrt(np.einsum("nd,nd->n", block, block))
        # Squares leave the range of float32 sooner than numbers do.
        odd = np.flatnonzero(~((norms > 1e-15) & (norms < np.inf)))
        if len(odd):
            norms[odd] = np.linalg.norm(block[odd].astype(np.float64), axis=1)
    norms[norms < _NOTHING] = 0
    found: Floats = norms.astype(np.float32, copy=False)
    return found


def units(rows: Array) -> NDArray[np.float64]:
    """Return rows as unit vectors, (n, D) float64; zero where a row has no direction."""
    wide = rows.astype(np.float64)
    norms = np.sqrt(np.square(wide).sum(axis=1, keepdims=True))
    norms[norms < _NOTHING] = np.inf
    wide /= norms
    return wide
