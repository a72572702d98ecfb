"""Near-duplicates: images that are copies of one another, but not byte for byte."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from featpipe._threads import single_threads
from featpipe.neighbours import Rows, search
from featpipe.quality.looks import Looks, differing_bits, first_rows, look_at
from featpipe.quality.threshold import Threshold, threshold_for
from featpipe.store import EmbeddingStore
from featpipe.types import Progress, ProgressCallback
from featpipe.vectors import StoredValues, StoredVectors

Ints = NDArray[np.int64]

_NEAREST = 12
_QUERIES = 1024


@dataclass(frozen=True, slots=True)
class Nearest:
    """The images that are nearest to each image, of several equal files the first alone.

    Attributes
    ----------
    rows : ndarray of int64, (m,)
        Rows of the store, in rising order.
    others : ndarray of int64, (m, k)
        Rows of the store, the nearest first; a row may be among its own.
    cosines : ndarray of float64, (m, k)
    """

    rows: Ints
    others: Ints
    cosines: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class NearDuplicates:
    """Pairs of images that are copies of one another and have different bytes.

    Attributes
    ----------
    pairs : ndarray of int64, (m, 2)
        Rows of the store, the lower one first; sorted. Of several equal files the first stands
        for all.
    cosines : ndarray of float64, (m,)
    bits : ndarray of int64, (m,)
        In which the perceptual hashes differ.
    threshold : Threshold
    looks : Looks
        What was seen of the images; none that could not be looked at is in a pair.
    nearest : Nearest
        What was compared.
    """

    pairs: Ints
    cosines: NDArray[np.float64]
    bits: Ints
    threshold: Threshold
    looks: Looks
    nearest: Nearest

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def n_unseen(self) -> int:
        """Images that could not be looked at, as they are gone or have changed."""
        return int((~self.looks.is_seen).sum())

    def groups(self, store: EmbeddingStore) -> NDArray[np.object_]:
        """Return for every row the number of its group of copies; None where it has none.

        Equal files are in one group, so that each of them is a copy of what the first is.
        """
        n = len(store)
        found = np.full(n, None, dtype=object)
        if not len(self):
            return found
        ends = self.pairs[:, 0], self.pairs[:, 1]
        graph = coo_array((np.ones(len(self)), ends), shape=(n, n))
        component = connected_components(graph, directed=False)[1]
        of = {store.keys[row]: int(component[row]) for row in np.unique(self.pairs).tolist()}
        for row, key in enumerate(store.keys):
            found[row] = of.get(key)
        return found


def find_near_duplicates(
    store: EmbeddingStore,
    *,
    models_dir: str | os.PathLike[str] | None = None,
    progress: ProgressCallback | None = None,
) -> NearDuplicates:
    """Find the images of a store that are resized or re-encoded copies of others.

    Of every image the 12 nearest by cosine are candidates (all images are compared, a block at
    a time: memory grows with their number, not with its square). Those count whose vectors and
    whose perceptual hashes are both as alike as those of copies are; see `threshold_for`.

    Parameters
    ----------
    store : EmbeddingStore
    models_dir : path, optional
        A folder of backbones, for the one that made the store.
    progress : callable, optional
        Called with a `Progress`, stage ``looking`` or ``comparing``.

    Raises
    ------
    StoreError
        When a part is damaged.
    """
    looks = look_at(store, progress)
    threshold = threshold_for(store, models_dir)
    nearest = find_nearest(store, progress)
    low, high, cosines = _pairs(nearest)
    bits = differing_bits(looks.hashes[low], looks.hashes[high])
    near = (cosines >= threshold.cosine) & (bits <= threshold.bits)
    near &= looks.is_seen[low] & looks.is_seen[high]
    return NearDuplicates(
        pairs=np.column_stack([low, high])[near],
        cosines=cosines[near],
        bits=bits[near],
        threshold=threshold,
        looks=looks,
        nearest=nearest,
    )


def find_nearest(store: EmbeddingStore, progress: ProgressCallback | None = None) -> Nearest:
    """Compare all images of a store, a block at a time; see `Nearest`.

    The vectors are read from the store for every batch of images: never are all in memory.
    """
    rows = np.unique(first_rows(store))
    vectors = _measured(store).only(rows)
    k = min(_NEAREST + 1, len(rows))
    others, cosines = np.empty((len(rows), k), dtype=np.int64), np.empty((len(rows), k))
    with single_threads(vectors.tasks(_QUERIES)) as pool:
        for start in range(0, len(rows), _QUERIES):
            at = slice(start, min(start + _QUERIES, len(rows)))
            distances, positions = search(vectors, vectors.take(at), k, pool)
            others[at], cosines[at] = rows[positions], 1 - distances
            if progress is not None:
                progress(Progress(at.stop, len(rows), stage="comparing"))
    return Nearest(rows, others, cosines)


def _measured(store: EmbeddingStore) -> Rows:
    try:
        # Not `store.X`: of several parts it would hold all vectors at once.
        return Rows.measured(StoredValues(store))
    except ValueError:
        # Whoever reads them as float32 names the image.
        for _ in StoredVectors(store, np.arange(len(store))).blocks():
            pass
        raise


def _pairs(nearest: Nearest) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """Return every pair once, the lower row first, sorted."""
    own = np.repeat(nearest.rows, nearest.others.shape[1])
    other, cosines = nearest.others.ravel(), nearest.cosines.ravel()
    low, high = np.minimum(own, other), np.maximum(own, other)
    order = np.lexsort((high, low))
    low, high, cosines = low[order], high[order], cosines[order]
    is_new = low != high
    is_new[1:] &= (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    return low[is_new], high[is_new], cosines[is_new]
