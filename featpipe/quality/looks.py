"""How the images of a store look, in four numbers each; kept beside the vectors.

The perceptual hash tells a copy from an image that merely shows the same: compressing and
resizing hardly move it, another photograph of the same thing does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.fft import dctn

from featpipe._files import KEY_BYTES, content_key
from featpipe._threads import Threads, threads
from featpipe.errors import SourceError, StoreError, WriteError
from featpipe.images import decode_image
from featpipe.sources import LocalSource, Source, open_source
from featpipe.store import EmbeddingStore
from featpipe.types import Failure, ImageRef, Key, Pixels, Progress, ProgressCallback, ResizeRule

FILE_NAME = "looks.parquet"
SIDE = 128
"""Images are looked at with this many pixels a side, whatever their shape."""
_RULE = ResizeRule(SIDE, SIDE, "bilinear", squash=True)
_SMALL, _LOW = 32, 8
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_AT_ONCE = 32
_SAVED = 4096
"""Images after which what was seen is written down."""
_MOST_ROWS = 10_000
_SCHEMA = pa.schema(
    [
        ("key", pa.binary(KEY_BYTES)),
        ("hash", pa.uint64()),
        ("brightness", pa.float32()),
        ("contrast", pa.float32()),
        ("sharpness", pa.float32()),
    ],
    metadata={"featpipe.looks": "1"},
)

Look: TypeAlias = tuple[int, float, float, float]
"""Hash, brightness, contrast, sharpness."""


@dataclass(frozen=True, slots=True)
class Looks:
    """How every image of a store looks, aligned with its vectors.

    Attributes
    ----------
    is_seen : ndarray of bool, (n,)
        False where the image is not there any more, or has changed.
    hashes : ndarray of uint64, (n,)
        63 bits; see `perceptual_hash`.
    brightness, contrast : ndarray of float32, (n,)
        Mean and standard deviation of the grey values, 0 to 255.
    sharpness : ndarray of float32, (n,)
        Standard deviation of the Laplacian of the grey values, of 128 pixels a side.
    """

    is_seen: NDArray[np.bool_]
    hashes: NDArray[np.uint64]
    brightness: NDArray[np.float32]
    contrast: NDArray[np.float32]
    sharpness: NDArray[np.float32]


def look_at(store: EmbeddingStore, progress: ProgressCallback | None = None) -> Looks:
    """Look at every image of a store that has not been looked at before.

    What was found is kept in the store, by content; a store that cannot be written to is
    looked at anew each time.
    """
    known = _read(store)
    missing = [row for row in np.unique(first_rows(store)).tolist() if store.keys[row] not in known]
    for start in range(0, len(missing), _SAVED):
        new = _new_looks(store, missing[start : start + _SAVED], progress, start, len(missing))
        if new:
            known.update(new)
            with suppress(WriteError):
                _write(store, known)
    nothing: Look = (0, 0.0, 0.0, 0.0)
    looks = [known.get(key, nothing) for key in store.keys]
    columns = list(zip(*looks, strict=True)) or [()] * 4
    return Looks(
        np.array([key in known for key in store.keys], dtype=bool),
        np.array(columns[0], dtype=np.uint64),
        *(np.array(column, dtype=np.float32) for column in columns[1:]),
    )


def look(data: bytes) -> Look | None:
    """Return how an image file looks; None where it is no image."""
    decoded = decode_image(data, _RULE)
    return None if isinstance(decoded, Failure) else look_of(decoded.pixels)


def look_of(pixels: Pixels) -> Look:
    """Return how an image of ``SIDE`` × ``SIDE`` pixels looks."""
    grey = pixels.astype(np.float32) @ _LUMA
    inner = grey[1:-1, 1:-1]
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    sharpness = float((around - 4 * inner).std())
    return perceptual_hash(grey), float(grey.mean()), float(grey.std()), sharpness


def perceptual_hash(grey: NDArray[np.float32]) -> int:
    """Return 63 bits: which low frequencies of the picture are above their median.

    Parameters
    ----------
    grey : ndarray of float32, (SIDE, SIDE)

    References
    ----------
    Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions",
    section 3.2.1 (the DCT-based hash; here without the constant term, which only says how
    bright the picture is).

    Examples
    --------
    >>> grey = np.random.default_rng(0).uniform(0, 255, (128, 128)).astype(np.float32)
    >>> perceptual_hash(grey) == perceptual_hash(0.5 * grey + 10)
    True
    """
    step = SIDE // _SMALL
    small = grey.reshape(_SMALL, step, _SMALL, step).mean(axis=(1, 3))
    low = dctn(small, norm="ortho")[:_LOW, :_LOW].ravel()[1:]
    bits = np.packbits(low > np.median(low)).tobytes()
    return int.from_bytes(bits, "big")


def differing_bits(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return in how many bits hashes differ, element by element.

    >>> differing_bits(np.array([0b1011], np.uint64), np.array([0b0001], np.uint64))
    array([2])
    """
    apart = (a ^ b)[..., None].view(np.uint8)
    bits: NDArray[np.int64] = np.unpackbits(apart, axis=-1).sum(axis=-1, dtype=np.int64)
    return bits


def source_of(store: EmbeddingStore) -> Source | None:
    """Return where the images of a store lie, or None where that is gone, or no single place."""
    if store.source == "-":
        return None
    try:
        return open_source(store.source)
    except (SourceError, OSError):
        return None


def bytes_of(source: Source, path: str, key: Key) -> bytes | None:
    """Return an image file, or None where it is gone or has changed since it was embedded."""
    ref = ImageRef(path)
    # A pipe would be waited for, a device never ends.
    if isinstance(source, LocalSource) and source.locate(ref).problem is not None:
        return None
    try:
        data = source.read(ref)
    except (OSError, ValueError, MemoryError):
        return None
    return data if content_key(data) == key else None


def first_rows(store: EmbeddingStore) -> NDArray[np.int64]:
    """Return for every row the first row of the same content, (n,)."""
    first: dict[Key, int] = {}
    rows = [first.setdefault(key, row) for row, key in enumerate(store.keys)]
    return np.array(rows, dtype=np.int64)


def _new_looks(
    store: EmbeddingStore,
    rows: list[int],
    progress: ProgressCallback | None,
    before: int,
    total: int,
) -> dict[Key, Look]:
    source = source_of(store)
    if source is None:
        return {}
    paths, keys = store.paths, store.keys

    def work(some: list[int]) -> dict[Key, Look]:
        found = {}
        for row in some:
            data = bytes_of(source, paths[row], keys[row])
            seen = None if data is None else look(data)
            if seen is not None:
                found[keys[row]] = seen
        return found

    found: dict[Key, Look] = {}
    done = before
    blocks = [rows[i : i + _AT_ONCE] for i in range(0, len(rows), _AT_ONCE)]
    with threads(len(blocks)) as pool:
        for block, part in zip(blocks, _mapped(pool, work, blocks), strict=True):
            found.update(part)
            done += len(block)
            if progress is not None:
                progress(Progress(done, total, stage="looking"))
    return found


def _mapped(
    pool: Threads | None, work: Callable[[list[int]], dict[Key, Look]], blocks: list[list[int]]
) -> Iterator[dict[Key, Look]]:
    return map(work, blocks) if pool is None else pool.stream(work, blocks)


def _read(store: EmbeddingStore) -> dict[Key, Look]:
    """Return what was found before; nothing where it cannot be used."""
    try:
        with store.folder.opened(FILE_NAME) as file:
            opened = pq.ParquetFile(file)
            # Images may have left the store since; many more than there are is no record of ours.
            if opened.metadata.num_rows > _MOST_ROWS + 10 * len(store):
                return {}
            table = opened.read()
    except (OSError, pa.ArrowException, StoreError):
        return {}
    if not table.schema.equals(_SCHEMA, check_metadata=True):
        return {}
    if any(table.column(name).null_count for name in _SCHEMA.names):
        return {}
    if not all(np.isfinite(table.column(name).to_numpy()).all() for name in _SCHEMA.names[2:]):
        return {}
    keys, *columns = (table.column(name).to_pylist() for name in _SCHEMA.names)
    return dict(zip(keys, zip(*columns, strict=True), strict=True))


def _write(store: EmbeddingStore, known: dict[Key, Look]) -> None:
    # Of images that the store holds no more nothing is kept.
    kept = {key: known[key] for key in dict.fromkeys(store.keys) if key in known}
    columns = [list(kept), *(list(column) for column in zip(*kept.values(), strict=True))]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, _SCHEMA, strict=True)]
    with store.folder.written(FILE_NAME) as file:
        pq.write_table(pa.table(arrays, schema=_SCHEMA), file, compression="zstd")
