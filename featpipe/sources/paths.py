"""Images that are named one by one: a single file, a list on standard input, an iterable."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from featpipe.errors import SourceError
from featpipe.sources.files import FileSource
from featpipe.types import ImageRef


class PathSource(FileSource):
    """The given paths and addresses in their order, each once; relative ones start at ``root``."""

    def __init__(
        self, paths: Sequence[str], *, name: str, location: str, root: Path = Path()
    ) -> None:
        super().__init__(root)
        self.name, self.location = name, location
        self._paths = list(dict.fromkeys(self.named(path.replace(os.sep, "/")) for path in paths))
        if len(self._paths) < len(paths):
            self.notes.append(f"paths listed again: {len(paths) - len(self._paths)}")

    def __iter__(self) -> Iterator[ImageRef]:
        return self.between(0, self.count())

    def count(self) -> int:
        """Return how many paths there are; none is looked at."""
        return len(self._paths)

    def between(self, begin: int, end: int) -> Iterator[ImageRef]:
        """List some of the paths; no other is looked at."""
        return self.located(map(ImageRef, self._paths[begin:end]))


def read_path_list(data: bytes) -> list[str]:
    r"""Split a list of paths: one a line, or separated by NUL as ``find -print0`` does.

    >>> read_path_list(b"a.jpg\nb.jpg\n")
    ['a.jpg', 'b.jpg']

    Raises
    ------
    SourceError
        When the list is empty.
    """
    parts = data.split(b"\0") if b"\0" in data else data.splitlines()
    paths = [os.fsdecode(part) for part in parts if part.strip()]
    if not paths:
        raise SourceError("standard input holds no path: give one path a line")
    return paths
