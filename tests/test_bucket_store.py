"""A store in a bucket: what a store on this machine is, with the crash rule that buckets allow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from buckets import Server, server_of_buckets
from conftest import PHOTOS

from featpipe.embedding import embed
from featpipe.store import EmbeddingStore


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Return a server of S3 with one bucket, ``bucket``."""
    with server_of_buckets() as running:
        yield running


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return two classes of 60 small crops each, all of real photographs and all different."""
    from PIL import Image

    root = tmp_path_factory.mktemp("crops")
    for name in ("cat", "coffee"):
        (root / name).mkdir()
        with Image.open(next(PHOTOS.glob(f"{name}*.jpg"))) as photo:
            for i in range(60):
                left, top = 3 * (i % 10), 5 * (i // 10)
                photo.crop((left, top, left + 160, top + 160)).save(root / name / f"{i:02}.jpg")
    return root


def test_a_store_in_a_bucket_equals_one_on_this_machine(
    server: Server, crops: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    here = embed(crops, tiny_backbone, output=tmp_path / "store")
    embed(crops, tiny_backbone, output="s3://bucket/equal/store")
    there = EmbeddingStore.open("s3://bucket/equal/store")
    assert there.index == here.index
    assert there.manifest == here.manifest
    assert np.array_equal(there.X, here.X)
    assert there.path == "s3://bucket/equal/store"
