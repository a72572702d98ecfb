"""Stores and vectors for the tests of what learns on them; no test stands here."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe._files import content_key, lock
from featpipe.store import EmbeddingStore, Index, Manifest, Outcome, StoreWriter
from featpipe.types import ImageRef

RUN = "FEATPIPE_TEST_RUN"
"""Names the folder of one run of the tests; `conftest` sets it."""


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

    def make(folder: Path) -> None:
        images = unpack(folder / "surfaces").images
        embed(images, output=folder / "store", device="cpu")

    store = EmbeddingStore.open(made_once("demo", make) / "store")
    X = np.array(store.X, dtype=np.float32)
    return X, [str(v) for v in store.labels()], [str(v) for v in store.splits]


def hymenoptera_store(shared: Path, path: Path) -> EmbeddingStore:
    """Return a store at ``path`` of hymenoptera_data, 398 photographs, by the built-in backbone."""
    from featpipe.embedding import embed

    def make(folder: Path) -> None:
        embed(shared / "datasets" / "hymenoptera_data", output=folder / "store", device="cpu")

    # A copy: what learns on a store keeps the vectors of its baselines there.
    shutil.copytree(made_once("hymenoptera", make) / "store", path)
    return EmbeddingStore.open(path)


def made_once(name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that ``make`` has filled, once for all processes of one run of the tests."""
    folder = Path(os.environ[RUN]) / name
    with lock(folder.with_name(f"{name}.lock"), what=name, timeout=600):
        if not folder.exists():
            part = Path(tempfile.mkdtemp(dir=folder.parent))
            make(part)
            part.rename(folder)
    return folder


def small(n_classes: int, per_class: int, seed: int = 0) -> tuple[NDArray[np.float32], list[str]]:
    """Return demo vectors of a few classes, ``per_class`` rows of each."""
    X, labels, _ = demo_vectors()
    names = sorted(set(labels))[:n_classes]
    rng = np.random.default_rng(seed)
    rows = np.concatenate(
        [rng.permutation(np.flatnonzero(np.array(labels) == name))[:per_class] for name in names]
    )
    return X[rows], [labels[i] for i in rows]
