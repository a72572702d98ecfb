"""Reading a store: vectors, labels and what is known of every image."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe._columns import LABEL_PREFIX
from featpipe._files import printable
from featpipe.errors import LabelError, StoreError
from featpipe.store import manifest, parts
from featpipe.store.folder import Folder, Place, folder_of, located
from featpipe.store.index import Index
from featpipe.store.manifest import Manifest
from featpipe.store.places import by_part
from featpipe.store.ranges import read_rows
from featpipe.types import Key

_KEPT_BYTES = 2**30
"""Vectors of a bucket that are kept rather than fetched again and again."""


class EmbeddingStore:
    """The vectors of a set of images, and everything the source said of them.

    Rows are the images that have a vector, in the order of the source; `failures` lists the
    others. A store never changes under its reader: it sees the state at `open`.

    Parameters
    ----------
    path : path, or address as a text
        The store's folder, on this machine or in a bucket (``s3://bucket/stores/photos``).

    Examples
    --------
    >>> store = EmbeddingStore.open("embeddings/photos-efficientnet_lite0")  # doctest: +SKIP
    >>> store.X.shape, store.labels()[:2]                                    # doctest: +SKIP
    ((398, 1280), array(['ants', 'ants'], dtype=object))
    """

    def __init__(self, path: str | os.PathLike[str], manifest_: Manifest, index: Index) -> None:
        self.path: Place = located(path)
        self.manifest = manifest_
        self._asked = 0
        self.index = index

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> EmbeddingStore:
        """Open a store for reading; never waits for a writer.

        Raises
        ------
        StoreError
            When there is no store, or it is damaged, or a newer featpipe wrote it.
        """
        place = located(path)
        return cls(place, Manifest.read(place), Index.read(place))

    @property
    def folder(self) -> Folder:
        """The store's files, for what others keep beside it."""
        return folder_of(self.path)

    @property
    def name(self) -> str:
        """Name of the store's folder."""
        if isinstance(self.path, str):
            return self.path.rpartition("/")[2]
        return self.path.resolve().name

    @cached_property
    def _has_vector(self) -> NDArray[np.bool_]:
        return self.index.with_vector()

    @cached_property
    def _rows(self) -> Index:
        return self.index if self._has_vector.all() else self.index.where(self._has_vector)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return (
            f"EmbeddingStore({str(self.path)!r}: {len(self)} images, "
            f"{self.manifest.name}, {self.dimension} dimensions)"
        )

    @cached_property
    def X(self) -> NDArray[Any]:  # noqa: N802 - scikit-learn's name for it
        """The vectors, (n, D), float32 or float16.

        A read-only memory map where all lie in one part in order, else one array; from a bucket
        all of them are fetched.

        Raises
        ------
        StoreError
            When a part is damaged; the message names the file.
        """
        try:
            return self._gather(self._rows.integers("part"), self._rows.integers("row"))
        except StoreError:
            # `featpipe gc` may have moved the vectors since the index was read.
            moved = Index.read(self.path).places_of(self.keys)
            if moved is None:
                raise
            return self._gather(*moved)

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return vectors of some rows, (m, D) float32; parts are mapped one at a time.

        Unlike `X` it keeps nothing, so a store may be larger than memory; but of a store in a
        bucket, with up to 1 GiB of vectors, all are kept once more rows were asked for than it has.

        Raises
        ------
        StoreError
            When a part is damaged; the message names the file.
        """
        return self._read(rows, np.dtype(np.float32))

    def read_stored(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return what `read` does in the dtype of the store.

        Raises
        ------
        StoreError
            When a part is damaged; the message names the file.
        """
        return self._read(rows, np.dtype(self.manifest.dtype))

    def _read(self, rows: NDArray[np.int64], dtype: np.dtype[Any]) -> NDArray[Any]:
        if self._is_in_memory(len(rows)):
            return np.asarray(self.X[rows], dtype=dtype)
        vectors = np.empty((len(rows), self.dimension), dtype=dtype)
        try:
            self._fill(vectors, rows)
        except StoreError:
            # As in `X`: `featpipe gc` may have moved the vectors.
            moved = Index.read(self.path).places_of(self.keys)
            if moved is None:
                raise
            self._places = moved
            self._fill(vectors, rows)
        return vectors

    def _is_in_memory(self, count: int) -> bool:
        """Tell whether rows are taken from `X`, as those of a bucket that are asked for once more.

        Files of this machine are kept by the system; of a bucket every request is paid for.
        """
        size = len(self) * self.shape.row_size
        if isinstance(self.path, Path) or size > _KEPT_BYTES:
            return False
        self._asked += count
        return "X" in vars(self) or self._asked > len(self)

    def reading_order(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows in the order in which they lie on disk."""
        part, row = self._places
        return rows[np.lexsort((row[rows], part[rows]))]

    @cached_property
    def _places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self._rows.integers("part"), self._rows.integers("row")

    def _fill(self, vectors: NDArray[Any], rows: NDArray[np.int64]) -> None:
        part, row = (column[rows] for column in self._places)
        if isinstance(self.path, str):
            read_rows(self.path, self.shape, part, row, vectors)
            return
        for number, at in by_part(part):
            wanted = row[at]
            mapped = self._map(number, wanted)
            if len(at) == at[-1] - at[0] + 1 and np.all(np.diff(wanted) == 1):
                # Rows that follow each other are converted from the file, without a copy between.
                vectors[at[0] : at[-1] + 1] = mapped[wanted[0] : wanted[-1] + 1]
            else:
                vectors[at] = mapped[wanted]

    def _gather(self, part: NDArray[np.int64], row: NDArray[np.int64]) -> NDArray[Any]:
        if isinstance(self.path, str):
            fetched = np.empty((len(row), self.dimension), dtype=self.manifest.dtype)
            read_rows(self.path, self.shape, part, row, fetched)
            return fetched
        if len(part) and (part == part[0]).all():
            vectors = self._map(int(part[0]), row)
            if len(vectors) == len(row) and np.array_equal(row, np.arange(len(row))):
                return vectors
        gathered = np.empty((len(row), self.dimension), dtype=self.manifest.dtype)
        for number, at in by_part(part):
            gathered[at] = self._map(number, row[at])[row[at]]
        return gathered

    def _map(self, number: int, rows: NDArray[np.int64]) -> NDArray[Any]:
        vectors = parts.map_vectors(self.path, number, self.shape)
        if len(rows) and (rows.max() >= len(vectors) or rows.min() < 0):
            path = parts.vectors_path(self.path, number)
            raise StoreError(parts.damaged(path, "it has fewer rows than the index says"))
        return vectors

    @property
    def shape(self) -> parts.PartShape:
        """Dimension and dtype of every part."""
        return parts.PartShape(self.dimension, self.manifest.dtype)

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.manifest.dimension

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the backbone that made the vectors."""
        return self.manifest.fingerprint

    @property
    def card(self) -> dict[str, Any]:
        """Card of the backbone that made the vectors."""
        return dict(self.manifest.backbone)

    @property
    def source(self) -> str:
        """Where the images came from."""
        return self.manifest.source

    @cached_property
    def paths(self) -> list[str]:
        """Paths of the images, aligned with `X`."""
        return self._rows.paths()

    @cached_property
    def keys(self) -> list[Key]:
        """Content keys of the images, aligned with `X`; equal files have equal keys."""
        return self._rows.values("key")

    @property
    def label_columns(self) -> list[str]:
        """Names that `labels` takes: ``label`` where any image has one, then the others."""
        main = [] if self._rows.is_empty("label") else ["label"]
        return main + self._rows.label_columns

    def labels(self, target: str | None = None) -> NDArray[np.object_]:
        """Return the labels, aligned with `X`; None where an image has none.

        Parameters
        ----------
        target : str, optional
            A label column. Default: ``label``, or the only other one where no image has it.

        Raises
        ------
        LabelError
            When there is no such column; the message names those that there are.
        """
        known = self.label_columns
        if target is None:
            target = known[0] if len(known) == 1 else "label"
        if target == "label":
            return self._rows.objects("label")
        if target not in known:
            names = ", ".join(printable(name) for name in known) or "none"
            raise LabelError(
                f"{printable(str(self.path))} has no label column {printable(target)!r}: "
                f"it has {names}"
            )
        return self._rows.objects(LABEL_PREFIX + target)

    def counts(self, column: str) -> dict[str, int]:
        """Return how many images have each value of ``label``, ``split`` or ``group``, sorted."""
        return self._rows.counts(column)

    @property
    def distinct_contents(self) -> int:
        """How many different contents the images have."""
        return self._rows.distinct_keys()

    @cached_property
    def splits(self) -> NDArray[np.object_]:
        """``train``, ``val``, ``test`` or None for every image, aligned with `X`."""
        return self._rows.objects("split")

    @cached_property
    def groups(self) -> NDArray[np.object_] | None:
        """Group of every image (None where it has none), or None where no image has one."""
        return None if self._rows.is_empty("group") else self._rows.objects("group")

    @cached_property
    def failures(self) -> list[tuple[str, str, str]]:
        """(path, status, reason) of every image without a vector."""
        if self._has_vector.all():
            return []
        failed = self.index.where(~self._has_vector)
        return list(
            zip(failed.paths(), failed.values("status"), failed.values("reason"), strict=True)
        )


def newest_store(folder: str | os.PathLike[str] = "embeddings") -> EmbeddingStore:
    """Open the store in ``folder`` that was written last.

    Raises
    ------
    StoreError
        When there is none.
    """
    found = [
        (path.stat().st_mtime_ns, path.parent)
        for path in Path(folder).glob(f"*/{manifest.FILE_NAME}")
        if (path.parent / "index.parquet").exists()
    ]
    if not found:
        raise StoreError(
            f"there is no store under {printable(str(folder))}/: make one with "
            "`featpipe embed SOURCE`, or name the store"
        )
    return EmbeddingStore.open(max(found, key=_last_written)[1])


def _last_written(found: tuple[int, Path]) -> tuple[int, str]:
    return max(found[0], (found[1] / "index.parquet").stat().st_mtime_ns), found[1].name
