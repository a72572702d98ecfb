"""What folders say of images where there is no root to look into: those inside archives."""

from __future__ import annotations

from collections.abc import Iterable

from featpipe.sources.naming import SPLITS, Place, root_place


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
