"""Stores and vectors for the tests of what learns on them; no test stands here."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe._files import content_key
from featpipe.store import EmbeddingStore, Index, Manifest, Outcome, StoreWriter
from featpipe.types import ImageRef


def card(
    dimension: int, name: str = "tiny", fingerprint: str = "0123456789abcdef"
) -> dict[str, Any]:
    """Return the least that a store says of its backbone."""
    return {"name": name, "fingerprint": fingerprint, "dimension": dimension}


def make_store(
    path: Path,
    X: NDArray[Any],
    labels: Sequence[str | None],
    *,
    splits: Sequence[str | None] | None = None,
    groups: Sequence[str | None] | None = None,
    contents: Sequence[object] | None = None,
    columns: Mapping[str, Sequence[str | None]] | None = None,
    backbone: Mapping[str, Any] | None = None,
    dtype: str = "float32",
) -> EmbeddingStore:
    """Write a store as `featpipe.embed` would; rows with equal ``contents`` share a key."""
    n = len(labels)
    keys = [content_key(repr(c).encode()) for c in (contents or range(n))]
    refs = [
        ImageRef(
            f"{i:05d}.jpg",
            size=1,
            mtime_ns=1,
            label=labels[i],
            split=splits[i] if splits else None,
            group=groups[i] if groups else None,
            labels={name: values[i] for name, values in (columns or {}).items()},
        )
        for i in range(n)
    ]
    manifest = Manifest(backbone or card(X.shape[1]), dtype, str(path.parent / "photos"))
    with StoreWriter.opened(path, manifest) as writer:
        writer.append(keys, np.asarray(X, dtype=np.float32))
        outcomes = [Outcome("ok", key, 8, 8) for key in keys]
        writer.commit(Index.build(zip(refs, outcomes, strict=True), writer.places))
    return EmbeddingStore.open(path)


@lru_cache(maxsize=1)
def demo_vectors() -> tuple[NDArray[np.float32], list[str], list[str]]:
    """Return vectors, labels and splits of the demo's photographs, by the built-in backbone."""
    from featpipe.demo.dataset import unpack
    from featpipe.embedding import embed

    with tempfile.TemporaryDirectory() as folder:
        images = unpack(Path(folder) / "surfaces").images
        store = embed(images, output=Path(folder) / "store", device="cpu")
        X = np.array(store.X, dtype=np.float32)
        return X, [str(v) for v in store.labels()], [str(v) for v in store.splits]


def small(n_classes: int, per_class: int, seed: int = 0) -> tuple[NDArray[np.float32], list[str]]:
    """Return demo vectors of a few classes, ``per_class`` rows of each."""
    X, labels, _ = demo_vectors()
    names = sorted(set(labels))[:n_classes]
    rng = np.random.default_rng(seed)
    rows = np.concatenate(
        [rng.permutation(np.flatnonzero(np.array(labels) == name))[:per_class] for name in names]
    )
    return X[rows], [labels[i] for i in rows]
