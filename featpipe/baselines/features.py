"""Vectors that owe nothing to pretraining: raw pixels, and a backbone with random weights."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from featpipe._files import KEY_BYTES, printable
from featpipe.backbones import Backbone, list_backbones, load_backbone
from featpipe.backbones.random_weights import randomise
from featpipe.embedding import stream
from featpipe.errors import FeatpipeError, StoreError, WriteError
from featpipe.quality.looks import source_of
from featpipe.store import EmbeddingStore
from featpipe.types import ImageRef, Key, Progress, ProgressCallback

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

RAW_PIXELS, RANDOM = "raw pixels", "random weights"
NAMES = (RAW_PIXELS, RANDOM)
_FILES = {RAW_PIXELS: "raw-pixels.parquet", RANDOM: "random-weights.parquet"}
_WIDTHS = {RAW_PIXELS: 3 * 32 * 32}
_NAMES = ("key", "vector")
_MOST_BYTES = 2**28


def features(
    store: EmbeddingStore, rows: Ints, name: str, progress: ProgressCallback | None = None
) -> dict[int, Floats]:
    """Return vectors of rows of a store by row; those that cannot be had are not among them.

    What was computed is kept in the store, by content.

    Parameters
    ----------
    name : str
        ``raw pixels`` (32 × 32 of them), or ``random weights``: the store's backbone with
        weights that have learnt nothing.

    Raises
    ------
    FeatpipeError
        When there is no such backbone here, or none of its weights can be drawn.
    """
    file, width = _FILES[name], _WIDTHS.get(name, store.dimension)
    known = _read(file, store, width)
    missing = [row for row in rows.tolist() if store.keys[row] not in known]
    if missing:
        new = _computed(store, missing, name, progress)
        known.update(new)
        if new:
            wanted = {store.keys[row] for row in rows.tolist()}
            with suppress(WriteError):
                _write(file, {key: value for key, value in known.items() if key in wanted}, store)
    keys = store.keys
    return {row: known[keys[row]] for row in rows.tolist() if keys[row] in known}


def _computed(
    store: EmbeddingStore, rows: list[int], name: str, progress: ProgressCallback | None
) -> dict[Key, Floats]:
    source = source_of(store)
    if source is None:
        return {}
    keys = {store.keys[row] for row in rows}
    with tempfile.TemporaryDirectory() as folder:
        backbone = _backbone(store, name, Path(folder))
        session = backbone.open_session("cpu", "fp32")
        refs = [ImageRef(store.paths[row]) for row in rows]
        found: dict[Key, Floats] = {}
        done = 0
        for batch in stream(
            source, refs, backbone, session, wanted=keys.__contains__, total=len(refs)
        ):
            for key, row in zip(batch.keys, batch.rows, strict=True):
                if key is not None and row is not None:
                    found[key] = batch.vectors[row].copy()
            done += len(batch.refs)
            if progress is not None:
                progress(Progress(done, len(refs), stage=name))
        return found


def _backbone(store: EmbeddingStore, name: str, folder: Path) -> Backbone:
    if name == RAW_PIXELS:
        return load_backbone("raw_pixels")
    # By its name among the files that are here: nothing is exported, no path is followed.
    path = list_backbones().get(str(store.card["name"]).replace("/", "-"))
    backbone = None if path is None else load_backbone(path)
    if backbone is None or backbone.fingerprint != store.fingerprint:
        raise FeatpipeError(f"the backbone {printable(str(store.card['name']))} is not here")
    return randomise(backbone, folder / "random.onnx")


def _read(name: str, store: EmbeddingStore, width: int) -> dict[Key, Floats]:
    """Return what was computed before; nothing where it cannot be used."""
    try:
        with store.folder.opened(name) as file:
            opened = pq.ParquetFile(file)
            # Before anything is read: a small file may hold very much.
            if not opened.schema_arrow.equals(_schema(store, width), check_metadata=True):
                return {}
            if opened.metadata.num_rows * (4 * width + KEY_BYTES) > _MOST_BYTES:
                return {}
            table = opened.read()
    except (OSError, pa.ArrowException, StoreError):
        return {}
    if not len(table):
        return {}
    keys, lists = (table.column(name).combine_chunks() for name in _NAMES)
    values = lists.flatten().to_numpy()
    if keys.null_count or len(values) != len(keys) * width or not np.isfinite(values).all():
        return {}
    return dict(zip(keys.to_pylist(), values.reshape(len(keys), width), strict=True))


def _write(name: str, known: dict[Key, Floats], store: EmbeddingStore) -> None:
    vectors = np.stack(list(known.values()))
    schema = _schema(store, vectors.shape[1])
    values = pa.array(vectors.ravel())
    lists = pa.FixedSizeListArray.from_arrays(values, type=schema.field("vector").type)
    table = pa.table([pa.array(list(known), pa.binary(KEY_BYTES)), lists], schema=schema)
    with store.folder.written(name) as file:
        pq.write_table(table, file, compression="zstd")


def _schema(store: EmbeddingStore, width: int) -> pa.Schema:
    """Return the columns of a file that holds vectors of this store's images and backbone."""
    # Parquet's own name for what a list holds.
    types = pa.binary(KEY_BYTES), pa.list_(pa.field("element", pa.float32()), width)
    columns = list(zip(_NAMES, types, strict=True))
    return pa.schema(columns, metadata={"featpipe.baseline": f"1 {store.fingerprint}"})
