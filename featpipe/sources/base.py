"""What every source is to the stages after it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from stat import S_ISREG

import pyarrow as pa

from featpipe._columns import BLOCK_ROWS, in_columns
from featpipe._files import printable
from featpipe.errors import SourceError
from featpipe.types import ImageRef, Shard

MAX_FILE_BYTES = 2**30
"""A larger file is no photograph; it is refused before it fills the memory."""

NOT_REGULAR = "it is not a regular file"
TOO_LARGE = f"the file is larger than {MAX_FILE_BYTES >> 30} GiB"

REMOTE_READERS = 32
"""Requests at one time: a bucket takes tens of milliseconds to answer one, and as long for many."""


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
    piece : Shard or None
        Which piece of the place it is, where it is not all of it; see `sharded`.
    """

    name: str
    location: str
    piece: Shard | None = None

    def __init__(self) -> None:
        self.notes: list[str] = []

    def nothing_found(self) -> str:
        """Say that the listing was empty, and what else was there."""
        detail = f" ({'; '.join(self.notes)})" if self.notes else ""
        return (
            f"there is no image in {printable(self.location)}{detail}: give a folder with images, "
            "a table of paths, or an image file"
        )

    @property
    def readers(self) -> int:
        """How many threads should read beside those that decode.

        None where bytes come from a disk, many where each image is asked for far away.
        """
        return 0

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of tables that may hold the groups: all but those of paths, labels, splits."""
        return ()

    def with_groups(self, column: str) -> Source:  # noqa: ARG002 - those with tables use it
        """Return the source with groups from one of its `columns`; see `grouped`."""
        return self

    @abstractmethod
    def __iter__(self) -> Iterator[ImageRef]:
        """List every image once, lazily, in an order that is the same each time."""

    def batches(self) -> Iterator[pa.Table]:
        """List the same in columns (`featpipe._columns.LISTED`), some thousand rows at a time.

        A source of very many files may have a quicker way than through its own iteration.
        """
        refs = iter(self)
        while block := list(islice(refs, BLOCK_ROWS)):
            yield in_columns(block)

    def count(self) -> int:
        """Return how many images it lists; the notes are complete then, as after an iteration.

        A source that can tell without a look at every file overrides this and `between`.
        """
        return sum(len(batch) for batch in self.batches())

    def between(self, begin: int, end: int) -> Iterator[ImageRef]:
        """List the images from position ``begin`` of the listing to before ``end``."""
        return islice(iter(self), begin, end)

    def shard(self, i: int, n: int) -> Source | None:  # noqa: ARG002 - those made of files use it
        """Return the ``i``-th of ``n`` pieces (1 ≤ i ≤ n), where the source can divide itself.

        One that is made of files may give each piece some of them, and need not list the
        others then. The pieces cover the listing in its order, none twice; one may be empty.
        None, where it does not know a better way than positions in its listing: see `sharded`.
        """
        return None

    @property
    def whole(self) -> int | None:
        """How many images the whole place lists, where this is a piece and the number is known."""
        return None

    @abstractmethod
    def read(self, ref: ImageRef) -> bytes:
        """Return the bytes of one image; raise OSError where that cannot be done."""

    def reader(self) -> Source:
        """Return what reads the images of this source in another process, by pickle.

        It need not list them, and must not depend on the working directory.
        """
        return self


def grouped(source: Source, column: str) -> Source:
    """Return the source with the groups that a column of its tables holds.

    Raises
    ------
    SourceError
        When there is no such column; the message names those that there are.
    """
    known = source.columns
    if column in known:
        found = source.with_groups(column)
        found.piece = source.piece
        return found
    missing = f"there is no column {printable(column)!r} to group by"
    if known:
        names = ", ".join(printable(name) for name in known)
        raise SourceError(f"{missing}: choose one of {names} with --group")
    raise SourceError(
        f"{missing} in {printable(source.location)}: give a table that has it, as the source or "
        "with --labels"
    )


class LocalSource(Source):
    """A source whose paths are those of local files, below ``root`` unless absolute."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def read(self, ref: ImageRef) -> bytes:
        """Return the bytes of one file; raise OSError where that cannot be done."""
        with open(os.path.join(self.root, ref.path), "rb") as file:
            # Asked for one byte more than allowed: a device or a growing file has no true size.
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise OSError(TOO_LARGE)
        return data

    def reader(self) -> Source:
        """Return a source that knows the folder alone: a listing may be large."""
        return _FilesBelow(self)

    def locate(self, ref: ImageRef) -> ImageRef:
        """Add size and time of change to a listed path, or the problem with it."""
        try:
            stat = os.stat(os.path.join(self.root, ref.path))
        except (OSError, ValueError) as exc:
            return replace(ref, problem=getattr(exc, "strerror", None) or str(exc))
        if not is_regular(stat):
            return replace(ref, problem=NOT_REGULAR)
        return replace(ref, size=stat.st_size, mtime_ns=stat.st_mtime_ns)


class _FilesBelow(LocalSource):
    """Reads the files of a source that has been listed elsewhere."""

    def __init__(self, source: LocalSource) -> None:
        super().__init__(source.root.absolute())
        self.name, self.location = source.name, source.location

    def __iter__(self) -> Iterator[ImageRef]:
        return iter(())


def is_regular(stat: os.stat_result) -> bool:
    """Tell whether it is a file of bytes: a pipe would be waited for, a device never ends."""
    return S_ISREG(stat.st_mode)
