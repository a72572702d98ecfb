"""Images that are a file each, wherever it lies: a local path, or an address."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from featpipe import storage
from featpipe._threads import Threads
from featpipe.errors import SourceError
from featpipe.sources.base import (
    MAX_FILE_BYTES,
    NOT_REGULAR,
    REMOTE_READERS,
    TOO_LARGE,
    LocalSource,
    Source,
)
from featpipe.types import ImageRef

T = TypeVar("T")
_BLOCK = 2**10
_UNKNOWN_BYTES = 2**26
"""An image whose size the server does not tell may have as many."""


class FileSource(LocalSource):
    """Images that are named one by one; relative paths start at ``root``, a folder or address.

    An address is listed without user, password and signature: those stay in memory alone. A
    host that does not answer is asked once; its other images are rows with that reason.
    """

    def __init__(self, root: Path | str) -> None:
        super().__init__(root if isinstance(root, Path) else Path())
        self._base = root if isinstance(root, str) else None
        self._signed: dict[str, str] = {}
        self._silent: dict[str, str] = {}
        self._is_far = self._base is not None

    @property
    def readers(self) -> int:
        """Many, as soon as an address has been listed."""
        return REMOTE_READERS if self._is_far else 0

    def named(self, path: str) -> str:
        """Return a path as it may be kept: an address without its secrets."""
        if not storage.is_url(path):
            return path
        shown = storage.shown(path)
        if shown != path:
            self._signed[shown] = path
        return shown

    def located(self, refs: Iterator[ImageRef]) -> Iterator[ImageRef]:
        """Do what `locate` does, in order; addresses are asked many at a time."""
        with ExitStack() as stack:
            pool = None
            while block := list(islice(refs, _BLOCK)):
                if pool is None and any(self._address(ref.path) for ref in block):
                    self._is_far = True
                    pool = stack.enter_context(Threads(REMOTE_READERS))
                yield from (
                    map(self.locate, block) if pool is None else pool.stream(self.locate, block)
                )

    def locate(self, ref: ImageRef) -> ImageRef:
        """Add size, time of change and version to a listed path, or the problem with it."""
        address = self._address(ref.path)
        if address is None:
            return super().locate(ref)
        try:
            entry = self._asked(address, storage.look_at)
        except (OSError, SourceError) as exc:
            return replace(ref, problem=getattr(exc, "strerror", None) or str(exc))
        if entry.is_folder:
            return replace(ref, problem=NOT_REGULAR)
        if (entry.size or 0) > MAX_FILE_BYTES:
            return replace(ref, problem=TOO_LARGE)
        return replace(ref, size=entry.size, mtime_ns=entry.mtime_ns, version=entry.version)

    def read(self, ref: ImageRef) -> bytes:
        """Return the bytes of one file; raise OSError where that cannot be done."""
        address = self._address(ref.path)
        if address is None:
            return super().read(ref)
        # Many are read at one time: what is far larger than was said is not kept.
        most = min(max(ref.size or 0, _UNKNOWN_BYTES), MAX_FILE_BYTES)
        return self._asked(address, partial(storage.read_file, most=most))

    def reader(self) -> Source:
        """Return a source that knows where images lie, and what opens them, but lists none."""
        base = self.root.absolute() if self._base is None else self._base
        found = _Reader(base, self._signed, is_far=self._is_far)
        found.name, found.location = self.name, self.location
        return found

    def _address(self, path: str) -> str | None:
        """Return where an image lies, with all that opens it; None where that is a local file."""
        if storage.is_url(path):
            return self._signed.get(path, path)
        return None if self._base is None else storage.joined(self._base, path)

    def _asked(self, address: str, action: Callable[[str], T]) -> T:
        host = storage.host_of(address)
        if host in self._silent:
            raise storage.StorageError(self._silent[host])
        try:
            return action(address)
        except storage.StorageGoneError as exc:
            self._silent[host] = str(exc)
            raise storage.StorageError(str(exc)) from exc


class _Reader(FileSource):
    """Reads the images of a source that has been listed elsewhere."""

    def __init__(self, root: Path | str, signed: dict[str, str], *, is_far: bool) -> None:
        super().__init__(root)
        self._signed, self._is_far = signed, is_far

    def __iter__(self) -> Iterator[ImageRef]:
        return iter(())
