"""What every source is to the stages after it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from featpipe._files import printable
from featpipe.types import ImageRef

MAX_FILE_BYTES = 2**30
"""A larger file is no photograph; it is refused before it fills the memory."""


class Source(ABC):
    """Lists images, and reads their bytes; the only seam between storage and the rest.

    Attributes
    ----------
    name : str
        Short, for the name of a store.
    location : str
        Where it is, in full; two sources are the same when their locations are. It is
        written into stores and messages, so it never holds credentials.
    notes : list of str
        What a person should know of the listing: complete after one iteration.
    """

    name: str
    location: str

    def __init__(self) -> None:
        self.notes: list[str] = []

    def nothing_found(self) -> str:
        """Say that the listing was empty, and what else was there."""
        detail = f" ({'; '.join(self.notes)})" if self.notes else ""
        return (
            f"there is no image in {printable(self.location)}{detail}: give a folder with images, "
            "a table of paths, or an image file"
        )

    @abstractmethod
    def __iter__(self) -> Iterator[ImageRef]:
        """List every image once, lazily, in an order that is the same each time."""

    @abstractmethod
    def read(self, ref: ImageRef) -> bytes:
        """Return the bytes of one image; raise OSError where that cannot be done."""


class LocalSource(Source):
    """A source whose paths are those of local files, below ``root`` unless absolute."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def read(self, ref: ImageRef) -> bytes:
        """Return the bytes of one file; raise OSError where that cannot be done."""
        with open(os.path.join(self.root, ref.path), "rb") as file:
            if ref.size is None or ref.size > MAX_FILE_BYTES:
                size = os.fstat(file.fileno()).st_size
                if size > MAX_FILE_BYTES:
                    raise OSError(f"the file is larger than {MAX_FILE_BYTES >> 30} GiB")
            return file.read()

    def locate(self, ref: ImageRef) -> ImageRef:
        """Add size and time of change to a listed path, or the problem with it."""
        try:
            stat = os.stat(os.path.join(self.root, ref.path))
        except (OSError, ValueError) as exc:
            return _with(ref, problem=getattr(exc, "strerror", None) or str(exc))
        return _with(ref, size=stat.st_size, mtime_ns=stat.st_mtime_ns)


def _with(
    ref: ImageRef,
    size: int | None = None,
    mtime_ns: int | None = None,
    problem: str | None = None,
) -> ImageRef:
    return ImageRef(ref.path, size, mtime_ns, ref.label, ref.split, ref.group, ref.labels, problem)
