"""Writing a store: one writer at a time, parts that never change, an index replaced whole.

The order of every write is the crash rule: vectors before keys, parts before the index that
refers to them, a new index before old parts go. So a process may die anywhere, and the next
one finds a store that is whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featpipe._files import KEY_BYTES, lock, make_folder, printable
from featpipe.errors import StoreError
from featpipe.store import parts
from featpipe.store.index import Index
from featpipe.store.manifest import FILE_NAME, Manifest
from featpipe.store.places import Places
from featpipe.types import Key

_FIRST_PART_ROWS, PART_ROWS = 32, 2048


class StoreWriter:
    """Adds vectors to a store; use `StoreWriter.opened`, which holds the lock.

    Attributes
    ----------
    places : Places
        Part and row of every key that the store holds, on disk or about to be.
    previous : Index
        The index as it was found.
    notes : list of str
        What was found amiss and mended.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self.shape = parts.PartShape(manifest.dimension, manifest.dtype)
        self.notes: list[str] = []
        self._sweep()
        numbers = parts.list_parts(path)
        self.places = Places((n, keys) for n in numbers if (keys := self._load(n)))
        self._next = max(numbers, default=-1) + 1
        self._rows = min(_FIRST_PART_ROWS << len(numbers), PART_ROWS)
        self._keys: list[Key] = []
        self._vectors = np.empty((0, manifest.dimension), dtype=manifest.dtype)
        self.previous = self._read_index()

    @classmethod
    @contextmanager
    def opened(
        cls,
        path: Path,
        manifest: Manifest,
        *,
        timeout: float = 0.0,
        admit: Callable[[Manifest], None] | None = None,
    ) -> Iterator[StoreWriter]:
        """Lock a store, make it if it is not there, and yield its writer.

        What has been appended is on disk when the block ends, however it ends; the index is
        written by `commit` alone. ``admit`` is shown the record of a store that is there,
        under the lock and before anything is changed: it raises where this writer may not.

        Raises
        ------
        LockedError
            When another process writes there.
        StoreError, FingerprintError
            When what is there is damaged, or made by another backbone.
        WriteError
            When the operating system refuses to write.
        """
        make_folder(path)
        _refuse_strangers(path)
        with lock(path / ".lock", what=f"the store {path}", timeout=timeout):
            writer = cls(path, _settle(path, manifest, admit))
            try:
                yield writer
            except BaseException:
                # The images so far are worth keeping; a second error would hide the first.
                with contextlib.suppress(Exception):
                    writer.flush()
                raise
            writer.flush()

    def record(self, engine: Mapping[str, str]) -> None:
        """Write down, before the first of its vectors, what computes them."""
        settled = self.manifest.with_engine(engine)
        if settled != self.manifest:
            settled.write(self.path)
            self.manifest = settled

    def append(self, keys: list[Key], vectors: NDArray[np.float32]) -> None:
        """Add vectors, (n, D) float32; a key that is there already is left out.

        They reach the disk in parts of 32, 64 … 2,048 rows: early in a run little is at
        risk, later there are few files.
        """
        for key, vector in zip(keys, vectors, strict=True):
            if key in self.places:
                continue
            row = len(self._keys)
            # An interrupt may come between any two lines: a row is whole before it counts.
            self._put(row, vector)
            self._keys.append(key)
            self.places[key] = (self._next, row)
            if len(self._keys) >= self._rows:
                self.flush()

    def flush(self) -> None:
        """Write what has been appended as a part."""
        count = len(self._keys)
        if not count:
            return
        parts.write_part(self.path, self._next, self.shape, self._keys, self._vectors[:count])
        self._next += 1
        self._rows = min(self._rows * 2, PART_ROWS)
        self._keys = []

    def _put(self, row: int, vector: NDArray[np.float32]) -> None:
        """Copy a vector to where the next part is gathered: the only copy of it that is kept."""
        if len(self._vectors) < self._rows:
            larger = np.empty((self._rows, self.manifest.dimension), dtype=self.manifest.dtype)
            larger[:row] = self._vectors[:row]
            self._vectors = larger
        # A value beyond float16 becomes infinite here; `fit` names the image when it meets it.
        with np.errstate(over="ignore"):
            self._vectors[row] = vector

    def commit(self, index: Index) -> None:
        """Make ``index`` the store's, after everything that it refers to is on disk."""
        self.flush()
        if index != self.previous or not (self.path / "index.parquet").exists():
            index.write(self.path)
            self.previous = index

    def drop_part(self, number: int) -> None:
        """Delete a part that no index refers to any more: keys first, as they make it count."""
        parts.keys_path(self.path, number).unlink(missing_ok=True)
        parts.vectors_path(self.path, number).unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Delete what an interrupted process left: temporary files, vectors without keys."""
        folder = self.path / parts.FOLDER
        for path in (*self.path.glob(".*.tmp"), *folder.glob(".*.tmp")):
            path.unlink(missing_ok=True)
        for path in folder.glob("*.npy"):
            if not path.with_suffix(".keys").exists():
                path.unlink(missing_ok=True)

    def _load(self, number: int) -> bytes:
        """Return the keys of a part; none where it is damaged."""
        try:
            keys = parts.read_key_bytes(self.path, number)
        except StoreError:
            keys = b""
        if keys and parts.is_whole(self.path, number, self.shape, len(keys) // KEY_BYTES):
            return keys
        self._set_aside(number)
        return b""

    def _set_aside(self, number: int) -> None:
        """Put a damaged part out of the way, without deleting what may still be of use."""
        for path in (parts.keys_path(self.path, number), parts.vectors_path(self.path, number)):
            if path.exists():
                path.rename(path.with_name(path.name + ".damaged"))
        shown = printable(str(parts.vectors_path(self.path, number)))
        self.notes.append(f"{shown} was damaged and is set aside; its images are computed anew")

    def _read_index(self) -> Index:
        if not (self.path / "index.parquet").exists():
            return Index.empty()
        try:
            return Index.read(self.path)
        except StoreError:
            shown = printable(str(self.path / "index.parquet"))
            self.notes.append(f"{shown} was damaged and is made anew; its vectors are kept")
            return Index.empty()


def _settle(path: Path, wanted: Manifest, admit: Callable[[Manifest], None] | None) -> Manifest:
    """Return the manifest of an existing store that fits ``wanted``, or write a new one."""
    if not (path / FILE_NAME).exists():
        wanted.write(path)
        return wanted
    found = Manifest.read(path)
    if admit is not None:
        admit(found)
    found.require_backbone(wanted.backbone, printable(str(path)))
    if found.dtype != wanted.dtype:
        raise StoreError(
            f"{printable(str(path))} holds {found.dtype} vectors, not {wanted.dtype}: "
            "leave --dtype out, or give another store with -o"
        )
    settled = found
    for engine in wanted.engines:
        settled = settled.with_engine(engine)
    settled = replace(
        settled,
        source=wanted.source,
        group=wanted.group,
        shard=wanted.shard,
        whole=wanted.whole,
    )
    if settled != found:
        settled.write(path)
    return settled


def _refuse_strangers(path: Path) -> None:
    """Keep out of a folder that holds other things, before even a lock is put there.

    A process that died before it had written the manifest leaves a lock and temporary files.
    """
    if (path / FILE_NAME).exists():
        return
    names = sorted(p.name for p in path.iterdir())
    strangers = [name for name in names if name != ".lock" and not name.endswith(".tmp")]
    # Another process may have made the store while we looked.
    if strangers and not (path / FILE_NAME).exists():
        raise StoreError(
            f"{printable(str(path))} holds other things (such as {printable(strangers[0])}) "
            "and is no store: give an empty or new folder with -o"
        )
