"""Where the files of a store lie: a folder of this machine, or below an address in a bucket.

A place is a `Path`, or the address of a folder as a text (``s3://bucket/stores/photos``).
Everything above asks a `Folder` for what it needs, and for nothing else; errors of reading are
OSErrors, errors of writing are `WriteError`.
"""

from __future__ import annotations

import io
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import pyarrow as pa

from featpipe import storage
from featpipe._files import atomic_file, lock, make_folder, printable
from featpipe.errors import StoreError, WriteError

Place = Path | str
"""A folder of this machine, or the address of one as a text."""

T = TypeVar("T")
R = TypeVar("R")

_BLOCK = 2**20
_REQUESTS = 16
"""Requests to a bucket at once: one answer takes tens of milliseconds, whatever its size."""
_COLLAPSED = re.compile(r"(s3|gs|gcs|https?):/[^/]")


class Folder(Protocol):
    """The files of a store; names are relative, with ``/`` between their parts.

    Attributes
    ----------
    is_exclusive : bool
        Whether `lock` keeps other writers out.
    """

    is_exclusive: bool

    def place(self, name: str) -> Place:
        """Return where a file lies."""

    def names(self) -> list[str]:
        """Return what lies in the folder, sorted."""

    def files(self, folder: str) -> dict[str, storage.Entry]:
        """Return what is known of the files of a folder, by name, without those below it."""

    def used(self) -> int:
        """Return the bytes of everything that lies here."""

    def has(self, name: str) -> bool:
        """Tell whether there is such a file."""

    def read(self, name: str) -> bytes:
        """Return all bytes of a file."""

    def blocks(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of a file, some at a time where they need not come at once."""

    def opened(self, name: str) -> Any:
        """Open a file for Arrow to read, as a `pyarrow.NativeFile`."""

    def written(
        self, name: str, *, is_new: bool = False
    ) -> AbstractContextManager[IO[bytes] | io.BytesIO]:
        """Write to a file that takes its place, whole, when the block ends without an error.

        ``is_new`` raises FileExistsError where nothing else keeps two writers apart and the
        name is taken.
        """

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""

    def rename(self, name: str, new: str) -> None:
        """Give a file another name, if it is there."""

    def made(self) -> None:
        """Make the folder, if it is not there."""

    def locked(self, timeout: float) -> AbstractContextManager[None]:
        """Keep other writers out for the time of the block, where that is possible."""


def located(place: str | os.PathLike[str]) -> Place:
    """Return a place as it is kept: a `Path`, or an address as a text without a slash at its end.

    Raises
    ------
    StoreError
        When an address has become a path on its way here, or holds credentials.
    """
    text = os.fspath(place)
    if not storage.is_url(text):
        if isinstance(place, os.PathLike) and _COLLAPSED.match(text):
            raise StoreError(
                f"{printable(text)} was the address of a bucket before it was made a path: give "
                "it as a text"
            )
        return Path(place)
    if storage.shown(text) != text:
        raise StoreError(
            f"the address {printable(storage.shown(text))} was given with credentials in it: leave "
            "them out, and give them as the tools of the storage expect them (for S3 AWS_PROFILE, "
            "or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
        )
    return text.rstrip("/")


def folder_of(place: Place) -> Folder:
    """Return the files below a place."""
    return LocalFolder(place) if isinstance(place, Path) else BucketFolder(place)


def at_once(
    place: Place, work: Callable[[T], R], items: Iterable[T], requests: int = _REQUESTS
) -> Iterator[R]:
    """Do ``work`` on every item, in order; in a bucket sixteen at once, as each of them waits."""
    if isinstance(place, Path):
        yield from map(work, items)
        return
    with ThreadPoolExecutor(requests) as pool:
        rest = iter(items)
        waiting = deque(pool.submit(work, item) for item in islice(rest, requests))
        try:
            while waiting:
                done = waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in islice(rest, 1))
                yield done
        finally:
            for future in waiting:
                future.cancel()


def cannot_read(place: Place, error: OSError) -> StoreError:
    """Say that a file of a store cannot be read, and what to do where that is known."""
    said = str(error.strerror or error)
    if isinstance(place, Path):
        return StoreError(f"cannot read {printable(str(place))}: {said}")
    return StoreError(f"cannot read a store: {printable(said)}{_remedy(error)}")


def is_out_of_reach(error: StoreError) -> bool:
    """Tell whether a file of a bucket was not had, which says nothing of whether it is damaged."""
    cause = error.__cause__
    return isinstance(cause, storage.StorageError) or (
        isinstance(cause, PermissionError) and cause.filename is None
    )


def is_gone(error: BaseException) -> bool:
    """Tell whether a storage has not answered for as long as featpipe waits."""
    return isinstance(error.__cause__, storage.StorageGoneError)


def _remedy(error: OSError) -> str:
    if isinstance(error, storage.StorageGoneError):
        return ": see that it can be reached and run the same command again"
    return ": see what its credentials allow" if isinstance(error, PermissionError) else ""


class LocalFolder:
    """A folder of this machine: files are renamed into place and synced, writers hold a lock."""

    is_exclusive = True

    def __init__(self, path: Path) -> None:
        self._path = path

    def place(self, name: str) -> Path:
        """Return where a file lies."""
        return self._path / name

    def names(self) -> list[str]:
        """Return what lies in the folder, sorted."""
        return sorted(os.listdir(self._path))

    def files(self, folder: str) -> dict[str, storage.Entry]:
        """Return what is known of the files of a folder, by name."""
        found: dict[str, storage.Entry] = {}
        if not (self._path / folder).is_dir():
            return found
        with os.scandir(self._path / folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # a writer's temporary file comes and goes
                    if entry.is_file():
                        stat = entry.stat()
                        found[entry.name] = storage.Entry(
                            entry.name, stat.st_size, stat.st_mtime_ns
                        )
        return found

    def used(self) -> int:
        """Return the bytes of everything that lies here."""
        total = 0
        for found in self._path.rglob("*"):
            with suppress(FileNotFoundError):  # a writer's temporary file comes and goes
                total += found.stat().st_size if found.is_file() else 0
        return total

    def has(self, name: str) -> bool:
        """Tell whether there is such a file."""
        return (self._path / name).exists()

    def read(self, name: str) -> bytes:
        """Return all bytes of a file."""
        return (self._path / name).read_bytes()

    def blocks(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of a file, a mebibyte at a time."""
        with (self._path / name).open("rb") as file:
            while block := file.read(_BLOCK):
                yield block

    def opened(self, name: str) -> Any:
        """Open a file for Arrow to read."""
        return pa.OSFile(str(self._path / name))

    def written(self, name: str, *, is_new: bool = False) -> AbstractContextManager[IO[bytes]]:  # noqa: ARG002 - the lock keeps others out
        """Write to a file that takes its place, whole and synced, at the end."""
        return atomic_file(self._path / name)

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        (self._path / name).unlink(missing_ok=True)

    def rename(self, name: str, new: str) -> None:
        """Give a file another name, if it is there."""
        if self.has(name):
            (self._path / name).rename(self._path / new)

    def made(self) -> None:
        """Make the folder, if it is not there."""
        make_folder(self._path)

    def locked(self, timeout: float) -> AbstractContextManager[None]:
        """Hold the lock of the store."""
        return lock(self._path / ".lock", what=f"the store {self._path}", timeout=timeout)


class BucketFolder:
    """A folder in a bucket: an object is whole or not there; nothing keeps other writers out."""

    is_exclusive = False

    def __init__(self, url: str) -> None:
        self._url = url

    def place(self, name: str) -> str:
        """Return the address of a file."""
        return storage.joined(self._url, name)

    def names(self) -> list[str]:
        """Return what lies in the folder, sorted."""
        return [entry.name for entry in self._entries("")]

    def files(self, folder: str) -> dict[str, storage.Entry]:
        """Return what is known of the files of a folder, by name: a request for each thousand."""
        return {entry.name: entry for entry in self._entries(folder) if not entry.is_folder}

    def used(self) -> int:
        """Return the bytes of everything that lies here."""
        folders = [""]
        total = 0
        while folders:
            folder = folders.pop()
            for entry in self._entries(folder):
                total += entry.size or 0
                if entry.is_folder:
                    folders.append(f"{folder}/{entry.name}".lstrip("/"))
        return total

    def has(self, name: str) -> bool:
        """Tell whether there is such a file."""
        place = self.place(name)
        try:
            with _reading(place):
                storage.look_at(place)
        except FileNotFoundError:
            return False
        return True

    def read(self, name: str) -> bytes:
        """Return all bytes of a file."""
        return storage.read_file(self.place(name))

    def blocks(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of a file, all at once."""
        yield self.read(name)

    def opened(self, name: str) -> Any:
        """Fetch a file for Arrow to read."""
        place = self.place(name)
        with _reading(place):
            return pa.BufferReader(storage.read_file(place, is_large=True))

    @contextmanager
    def written(self, name: str, *, is_new: bool = False) -> Iterator[io.BytesIO]:
        """Gather what is written, and put it there in one request at the end."""
        place, gathered = self.place(name), io.BytesIO()
        yield gathered
        with _writing(place):
            storage.write_file(place, gathered.getvalue(), create=is_new)

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        place = self.place(name)
        with _writing(place):
            storage.delete_file(place)

    def rename(self, name: str, new: str) -> None:
        """Write a file under another name and delete the former one, if it is there."""
        with suppress(FileNotFoundError), _reading(self.place(name)):
            data = self.read(name)
            with self.written(new) as file:
                file.write(data)
            self.delete(name)

    def made(self) -> None:
        """Do nothing: in a bucket a folder is what names begin with."""

    @contextmanager
    def locked(self, timeout: float) -> Iterator[None]:  # noqa: ARG002 - there is none to wait for
        """Hold nothing: parts are claimed by their numbers, one by one."""
        yield

    def _entries(self, folder: str) -> list[storage.Entry]:
        place = self.place(folder)
        try:
            with _reading(place):
                return storage.list_folder(place)
        except FileNotFoundError:
            return []


@contextmanager
def _reading(place: str) -> Iterator[None]:
    """Turn what a storage refuses into a sentence; FileNotFoundError is for the caller."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise cannot_read(place, exc) from exc


@contextmanager
def _writing(place: str) -> Iterator[None]:
    """Turn what a storage refuses into a sentence; FileExistsError is for the caller."""
    try:
        yield
    except FileExistsError:
        raise
    except FileNotFoundError as exc:
        raise WriteError(
            f"cannot write {printable(place)}: there is no such bucket: make it, or give another "
            "place with -o"
        ) from exc
    except OSError as exc:
        said = f"{printable(str(exc.strerror or exc))}{_remedy(exc)}"
        raise WriteError(f"cannot write a store: {said}") from exc
