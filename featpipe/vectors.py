"""Vectors of a store for those who learn on them: all at once, or block by block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe._files import printable
from featpipe.errors import StoreError
from featpipe.store import EmbeddingStore

Ints = NDArray[np.int64]
_AT_ONCE = 8192


class StoredVectors:
    """Vectors of some rows of a store, read when they are asked for.

    Stands for an array of float32, (n, D), of which only rows are taken.

    Parameters
    ----------
    store : EmbeddingStore
    rows : ndarray of int, (n,)
    """

    def __init__(self, store: EmbeddingStore, rows: Ints) -> None:
        self._store, self._rows = store, rows
        self.shape = (len(rows), store.dimension)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, positions: Ints | slice) -> NDArray[np.float32]:
        """Return (m, D) float32; raises `StoreError` when one holds NaN or infinity."""
        vectors = self._store.read(self._rows[positions])
        if _are_finite(vectors):
            return vectors
        raise _not_finite(self._store, self._rows)

    def reading_order(self, positions: Ints) -> Ints:
        """Return positions in the order in which their vectors lie on disk."""
        by_row = np.argsort(self._rows, kind="stable")
        ordered = self._store.reading_order(self._rows[positions])
        found: Ints = by_row[np.searchsorted(self._rows, ordered, sorter=by_row)]
        return found

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield positions and their vectors, some thousands at a time."""
        for at in _blocks(len(self)):
            yield at, self[at]


class StoredValues:
    """All vectors of a store as they are stored, read when they are asked for.

    Stands for `EmbeddingStore.X` where rows are taken block by block: it never holds all.

    Parameters
    ----------
    store : EmbeddingStore
    """

    def __init__(self, store: EmbeddingStore) -> None:
        self._store = store
        self.shape = (len(store), store.dimension)
        self.dtype: np.dtype[Any] = np.dtype(store.manifest.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, where: Ints | slice) -> NDArray[Any]:
        """Return (m, D) in the store's dtype."""
        rows = np.arange(len(self))[where] if isinstance(where, slice) else where
        return self._store.read_stored(rows)


def finite_vectors(store: EmbeddingStore, rows: Ints) -> NDArray[np.float32]:
    """Return vectors of a store as float32, (n, D).

    Raises
    ------
    StoreError
        When one of them holds NaN or infinity; the message names the image.
    """
    vectors = store.read(rows)
    if not all(_are_finite(vectors[at]) for at in _blocks(len(rows))):
        raise _not_finite(store, rows)
    return vectors


def _blocks(n_rows: int) -> list[slice]:
    return [slice(i, min(i + _AT_ONCE, n_rows)) for i in range(0, n_rows, _AT_ONCE)]


def _are_finite(vectors: NDArray[np.float32]) -> bool:
    """Look at sums first: they are finite only where all their terms are."""
    with np.errstate(invalid="ignore", over="ignore"):
        sums = vectors.sum(axis=1)
    return bool(np.isfinite(sums).all() or np.isfinite(vectors).all())


def _not_finite(store: EmbeddingStore, rows: Ints) -> StoreError:
    """Name the first image, and count them all."""
    bad = [
        at.start + np.flatnonzero(~np.isfinite(store.read(rows[at])).all(axis=1))
        for at in _blocks(len(rows))
    ]
    found = np.concatenate(bad)
    return StoreError(
        f"the vector of {printable(store.paths[rows[found[0]]])} in "
        f"{printable(str(store.path))} holds NaN or infinity ({len(found)} vectors do): embed "
        "again with --dtype float32 into a new store, or take the image out"
    )
