"""What names say where there is no folder to look into: those in archives, those of shards."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from featpipe.sources.naming import SPLITS, Place, root_place

_WORD = re.compile(r"[^\W\d_]+")


class Tree:
    """The folders of images that have no root: those inside archives.

    One folder around all others, as ``tar cf photos.tar photos`` makes it, says nothing of the
    images and is no class; then folders mean what they mean in `FolderSource`.

    Parameters
    ----------
    folders : iterable of str
        The folders that hold images, with ``/`` between their parts; "" for the root.
    """

    def __init__(self, folders: Iterable[str]) -> None:
        self.notes: list[str] = []
        parts = {tuple(folder.split("/")) if folder else () for folder in folders}
        self._depth = 0
        while self._is_wrapped(parts):
            self._depth += 1
        tops = sorted({part[self._depth] for part in parts if len(part) > self._depth})
        self._root = root_place(tops, self.notes)

    def _is_wrapped(self, parts: set[tuple[str, ...]]) -> bool:
        depth = self._depth
        if not parts or any(len(part) <= depth + 1 for part in parts):
            return False
        names = {part[depth] for part in parts}
        return len(names) == 1 and next(iter(names)).lower() not in SPLITS

    def place(self, folder: str) -> Place:
        """Return what a folder says of the images in it."""
        place = self._root
        for name in folder.split("/")[self._depth :] if folder else ():
            place = place.below(name)
        return Place(False) if place.awaits_split else place


def splits_of_names(names: Sequence[str]) -> list[str | None]:
    """Return the splits that the names of files say, such as ``train-0000.tar``.

    A name says one where it, or a folder above it, begins with its word; or holds it anywhere,
    where the names together speak of two splits. ``crash_test.tar`` alone is no test split.

    >>> splits_of_names(["train-0000.tar", "val/0000.tar", "extra.tar"])
    ['train', 'val', None]
    >>> splits_of_names(["crash_test.tar"])
    [None]
    """
    words = [[_WORD.findall(part.lower()) for part in name.split("/")] for name in names]
    first = [_only_split(w for part in parts for w in part[:1]) for parts in words]
    anywhere = [_only_split(w for part in parts for w in part) for parts in words]
    return anywhere if len({split for split in anywhere if split}) > 1 else first


def _only_split(words: Iterable[str]) -> str | None:
    found = {SPLITS[word] for word in words if word in SPLITS}
    return found.pop() if len(found) == 1 else None
