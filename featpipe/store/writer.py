"""Writing a store: one writer at a time, parts that never change, an index replaced whole.

The order of every write is the crash rule: vectors before keys, parts before the index that
refers to them, a new index before old parts go. So a process may die anywhere, and the next
one finds a store that is whole. In a bucket there is no lock: writers claim the numbers of their
parts, and leave alone what another may be at.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe._files import KEY_BYTES, printable
from featpipe.errors import StoreError
from featpipe.storage import Entry
from featpipe.store import parts
from featpipe.store.folder import Place, at_once, folder_of, is_gone, is_out_of_reach
from featpipe.store.index import FILE_NAME as INDEX_NAME
from featpipe.store.index import Index
from featpipe.store.manifest import FILE_NAME, Manifest
from featpipe.store.places import Places, Words
from featpipe.types import Key

_FIRST_PART_ROWS, PART_ROWS = 32, 2048
_RECENT_SECONDS = 600
"""A part that has been without its keys for longer is no writer's any more."""


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

    def __init__(self, path: Place, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self.shape = parts.PartShape(manifest.dimension, manifest.dtype)
        self.notes: list[str] = []
        self._folder = folder_of(path)
        files = self._folder.files(parts.FOLDER)
        self._sweep(files)
        numbers = parts.numbers_in(files, ".keys")
        self.places = Places(self._finished(numbers, files))
        taken = max(parts.numbers_in(files, ".keys", ".npy"), default=-1) + 1
        self._next = max(taken, manifest.next_part)
        self._has_moved = False
        self._rows = min(_FIRST_PART_ROWS << len(numbers), PART_ROWS)
        self._keys: list[Key] = []
        self._vectors = np.empty((0, manifest.dimension), dtype=manifest.dtype)
        self.previous = self._read_index()

    @classmethod
    @contextmanager
    def opened(
        cls,
        path: Place,
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
        folder = folder_of(path)
        folder.made()
        _refuse_strangers(path)
        with folder.locked(timeout):
            writer = cls(path, _settle(path, manifest, admit))
            try:
                yield writer
            except BaseException as exc:
                # The images so far are worth keeping; a second error would hide the first.
                with contextlib.suppress(Exception):
                    if not is_gone(exc):
                        writer.flush()
                raise
            writer.flush()

    def record(self, engine: Mapping[str, str]) -> None:
        """Write down, before the first of its vectors, what computes them."""
        if not self._folder.is_exclusive:
            self.manifest = Manifest.read(self.path)  # another writer may have added its own
        settled = self.manifest.with_engine(engine)
        if settled != self.manifest:
            settled.write(self.path)
            self.manifest = settled

    def promise(self, count: int) -> range:
        """Give away the numbers of ``count`` parts, for good: others write them, or nobody does.

        That is on disk before the first of them can be begun, so a worker that outlives this
        process never writes a part that the next one writes, too. In a bucket, where another
        writer may take the same, whoever writes one claims it.
        """
        self.flush()
        if not self._folder.is_exclusive:
            self.manifest = Manifest.read(self.path)  # another writer may have promised some
        first = max(self._next, self.manifest.next_part)
        promised = range(first, first + count)
        self.manifest = replace(self.manifest, next_part=promised.stop)
        self.manifest.write(self.path)
        self._next = promised.stop
        return promised

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

    def extend(self, keys: Words, vectors: NDArray[Any]) -> None:
        """Add vectors in blocks, as `append` does, but for what has to be known of them.

        None of the keys may be held already, and `places` does not learn of them: this is for
        very many, of which whoever writes them knows where they come to lie.

        Parameters
        ----------
        keys : ndarray of uint64, (n, 2)
        vectors : ndarray, (n, D), float32 or of the store's dtype
        """
        begin = 0
        while begin < len(keys):
            held = len(self._keys)
            end = min(begin + self._rows - held, len(keys))
            self._put(slice(held, held + end - begin), vectors[begin:end])
            self._keys += [key.tobytes() for key in keys[begin:end]]
            begin = end
            if len(self._keys) >= self._rows:
                self.flush()

    def flush(self) -> None:
        """Write what has been appended as a part."""
        count = len(self._keys)
        if not count:
            return
        self._write_part(count)
        self._next += 1
        self._rows = min(self._rows * 2, PART_ROWS)
        self._keys = []

    def _write_part(self, count: int) -> None:
        """Write a part under the next number that nobody else has taken."""
        while True:
            vectors = self._vectors[:count]
            try:
                parts.write_part(self.path, self._next, self.shape, self._keys, vectors, claim=True)
            except FileExistsError:
                self._move()
            else:
                return

    def _move(self) -> None:
        """Take the next number; places that `append` has told of lead to another's part now."""
        told = enumerate(self._keys)
        moved = [(key, row) for row, key in told if self.places.get(key) == (self._next, row)]
        self._has_moved |= bool(moved)
        self._next += 1
        for key, row in moved:
            self.places[key] = (self._next, row)

    def _put(self, row: int | slice, vector: NDArray[Any]) -> None:
        """Copy vectors to where the next part is gathered: the only copy of them that is kept."""
        if len(self._vectors) < self._rows:
            larger = np.empty((self._rows, self.manifest.dimension), dtype=self.manifest.dtype)
            larger[: len(self._keys)] = self._vectors[: len(self._keys)]
            self._vectors = larger
        # A value beyond float16 becomes infinite here; `fit` names the image when it meets it.
        with np.errstate(over="ignore"):
            self._vectors[row] = vector

    def commit(self, index: Index) -> None:
        """Make ``index`` the store's, after everything that it refers to is on disk."""
        self.flush()
        if self._has_moved:
            index = index.placed(self.places)
        if index != self.previous or not self._folder.has(INDEX_NAME):
            index.write(self.path)
            self.previous = index

    def drop_part(self, number: int) -> None:
        """Delete a part that no index refers to any more: keys first, as they make it count."""
        self._folder.delete(parts.keys_name(number))
        self._folder.delete(parts.vectors_name(number))

    def drop_unfinished(self) -> None:
        """Delete the vectors without keys in a bucket, where `_sweep` leaves them alone.

        Raises
        ------
        StoreError
            When some are so new that another writer may be about to write their keys.
        """
        unfinished = _unfinished(self._folder.files(parts.FOLDER))
        newest = max((entry.mtime_ns or 0 for entry in unfinished), default=0)
        age = time.time() - newest / 1e9
        if age < _RECENT_SECONDS:
            raise StoreError(
                f"another process may be writing to {printable(str(self.path))}: a part has been "
                f"without its keys for {max(age, 0):.0f} seconds; run `featpipe gc` again when no "
                f"writer is there and {_RECENT_SECONDS // 60} minutes have passed"
            )
        for entry in unfinished:
            self._folder.delete(f"{parts.FOLDER}/{entry.name}")

    def _sweep(self, files: dict[str, Entry]) -> None:
        """Delete what an interrupted process left: temporary files, vectors without keys.

        In a bucket they may be another writer's, who is about to write the keys.
        """
        if not self._folder.is_exclusive:
            return
        for name in self._folder.files(""):
            if _is_temporary(name):
                self._folder.delete(name)
        left = [name for name in files if _is_temporary(name)]
        for name in [*left, *(entry.name for entry in _unfinished(files))]:
            self._folder.delete(f"{parts.FOLDER}/{name}")
            del files[name]

    def _finished(self, numbers: list[int], files: dict[str, Entry]) -> Iterator[tuple[int, bytes]]:
        """Yield number and keys of every part that is whole; put the others out of the way."""
        for number, keys in zip(numbers, at_once(self.path, self._load, numbers), strict=True):
            rows = len(keys) // KEY_BYTES
            vectors = files.get(parts.vectors_name(number).partition("/")[2])
            if rows and vectors and vectors.size == self.shape.file_size(rows):
                yield number, keys
            else:
                self._set_aside(number)

    def _load(self, number: int) -> bytes:
        """Return the keys of a part; none where they are damaged."""
        try:
            return parts.read_key_bytes(self.path, number)
        except StoreError as exc:
            if is_out_of_reach(exc):
                raise
            return b""

    def _set_aside(self, number: int) -> None:
        """Put a damaged part out of the way, without deleting what may still be of use."""
        for name in (parts.keys_name(number), parts.vectors_name(number)):
            self._folder.rename(name, name + ".damaged")
        shown = printable(str(parts.vectors_path(self.path, number)))
        self.notes.append(f"{shown} was damaged and is set aside; its images are computed anew")

    def _read_index(self) -> Index:
        try:
            return Index.read(self.path, at_once=True)
        except StoreError as exc:
            if is_out_of_reach(exc):
                raise
            if not isinstance(exc.__cause__, FileNotFoundError):
                shown = printable(str(self._folder.place(INDEX_NAME)))
                self.notes.append(f"{shown} was damaged and is made anew; its vectors are kept")
            return Index.empty()


def _unfinished(files: dict[str, Entry]) -> list[Entry]:
    """Return the vectors that have no keys."""
    return [
        entry
        for name, entry in files.items()
        if name.endswith(".npy") and name.removesuffix(".npy") + ".keys" not in files
    ]


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def _settle(
    path: Place, wanted: Manifest, admit: Callable[[Manifest], None] | None = None
) -> Manifest:
    """Return the manifest of an existing store that fits ``wanted``, or write a new one."""
    found = Manifest.find(path)
    if found is None:
        try:
            wanted.write(path, is_new=True)
        except FileExistsError:  # in a bucket, by a writer who has begun with us
            return _settle(path, wanted, admit)
        return wanted
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


def _refuse_strangers(path: Place) -> None:
    """Keep out of a folder that holds other things, before even a lock is put there.

    A process that died before it had written the manifest leaves a lock and temporary files.
    """
    folder = folder_of(path)
    if folder.has(FILE_NAME):
        return
    strangers = [n for n in folder.names() if n != ".lock" and not n.endswith(".tmp")]
    # Another process may have made the store while we looked.
    if strangers and not folder.has(FILE_NAME):
        raise StoreError(
            f"{printable(str(path))} holds other things (such as {printable(strangers[0])}) "
            "and is no store: give an empty or new folder with -o"
        )
