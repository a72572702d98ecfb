"""The training images that look most like an image, to the backbone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from featpipe.ood import normalised
from featpipe.store import EmbeddingStore
from featpipe.types import Vectors
from featpipe.vectors import StoredVectors

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

N_NEAREST = 3


def nearest_rows(
    store: EmbeddingStore,
    train: Ints,
    vectors: Vectors,
    same: Sequence[Flags],
    k: int = N_NEAREST,
) -> list[tuple[tuple[int, float], ...]]:
    """Return the rows of a store that are nearest to some vectors by cosine, nearest first.

    Parameters
    ----------
    store : EmbeddingStore
    train : ndarray of int, (n,)
        The rows to choose from.
    vectors : ndarray of float32, (m, D)
    same : sequence of ndarray of bool, (n,)
        For every vector which of ``train`` are left out, as they are the image itself or belong
        to it.

    Returns
    -------
    list of tuple of (row, cosine)
        At most ``k`` for each vector.
    """
    if not len(vectors) or not len(train):
        return [()] * len(vectors)
    queries = normalised(vectors)
    blocks = StoredVectors(store, train).blocks()
    cosines = np.concatenate([normalised(block) @ queries.T for _, block in blocks])
    found = []
    for at, own in enumerate(same):
        others = np.where(own, -np.inf, cosines[:, at])
        order = np.argsort(-others, kind="stable")[:k]
        found.append(tuple((int(train[i]), float(others[i])) for i in order if others[i] > -np.inf))
    return found
