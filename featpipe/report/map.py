"""A map of the embeddings: every image a point, alike images close to one another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

from featpipe.store import EmbeddingStore
from featpipe.vectors import finite_vectors

MOST_IMAGES = 10_000
_NEIGHBOURS = 15


@dataclass(frozen=True, slots=True)
class EmbeddingMap:
    """Places of images in a plane.

    Attributes
    ----------
    rows : ndarray of int, (n,)
        Rows of the store.
    places : ndarray of float, (n, 2)
        0 to 1 in both directions.
    method : str
        In words.
    """

    rows: NDArray[np.int64]
    places: NDArray[np.float64]
    method: str


def embedding_map(store: EmbeddingStore, rows: NDArray[np.int64], seed: int = 0) -> EmbeddingMap:
    """Place images in a plane by their vectors: by UMAP where it is installed, else by PCA.

    Vectors are L2-normalised first. At most 10,000 images are placed, drawn at random.

    References
    ----------
    Jolliffe 2002, "Principal Component Analysis", chapter 5. McInnes, Healy, Melville 2018,
    "UMAP: Uniform Manifold Approximation and Projection for Dimension Reduction".
    """
    if len(rows) > MOST_IMAGES:
        chosen = np.random.default_rng(seed).choice(len(rows), MOST_IMAGES, replace=False)
        rows = rows[np.sort(chosen)]
    vectors = finite_vectors(store, rows)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.maximum(lengths, np.finfo(np.float32).tiny)
    found = _umap(vectors, seed)
    if found is not None:
        return EmbeddingMap(rows, _scaled(found), "UMAP of the cosine distances")
    with threadpool_limits(1):
        pca = PCA(2, svd_solver="randomized", random_state=seed)
        places = pca.fit_transform(vectors)
    share = 100 * float(pca.explained_variance_ratio_.sum())
    return EmbeddingMap(
        rows,
        _scaled(places),
        f"the two main directions in which the vectors vary (PCA; {share:.0f} % of all variance)",
    )


def _umap(vectors: NDArray[np.float32], seed: int) -> NDArray[np.float32] | None:
    """Return what UMAP finds, or None where it is not installed or the images are too few."""
    if len(vectors) <= _NEIGHBOURS:
        return None
    try:
        # Not among featpipe's own packages; it takes seconds to load.
        from umap import UMAP  # noqa: PLC0415
    except ImportError:
        return None
    reducer = UMAP(n_neighbors=_NEIGHBOURS, metric="cosine", random_state=seed, n_jobs=1)
    places: NDArray[np.float32] = reducer.fit_transform(vectors)
    return places


def _scaled(places: NDArray[np.floating]) -> NDArray[np.float64]:
    low, high = places.min(axis=0), places.max(axis=0)
    scaled: NDArray[np.float64] = (places - low) / np.maximum(high - low, 1e-12)
    return scaled
