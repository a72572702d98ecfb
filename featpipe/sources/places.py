"""What the names above an image say of it: class folders, split folders, names of shards."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from featpipe._files import printable

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".tga"}
)

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}

OWN_RECORDS = frozenset({"store.json", "head.json"})
"""A folder that holds one of these was written by featpipe: nobody means its files."""
NOT_OURS = frozenset({"__macosx", "@eadir", "$recycle.bin", "system volume information"})
"""Folders that systems put beside a person's own; in lower case."""

_WORD = re.compile(r"[^\W\d_]+")


class Place:
    """What the folders above an image say of it."""

    __slots__ = ("awaits_split", "label", "split")

    def __init__(
        self, awaits_split: bool, split: str | None = None, label: str | None = None
    ) -> None:
        self.awaits_split, self.split, self.label = awaits_split, split, label

    def below(self, name: str) -> Place:
        """Return what is known one folder further down."""
        if self.awaits_split:
            return Place(False, SPLITS.get(name.lower()))
        return self if self.label is not None else Place(False, self.split, name)


def find_splits(folders: Sequence[str], notes: list[str]) -> bool:
    """Tell whether the folders in a root are splits, and note those that are not."""
    named = [name for name in folders if name.lower() in SPLITS]
    # Two of these names are no chance; one beside other folders is a class of its own.
    found = bool(named) and (
        len(named) == len(folders) or len({SPLITS[n.lower()] for n in named}) > 1
    )
    others = [name for name in folders if name not in named]
    if found and others:
        shown = ", ".join(printable(name) for name in others[:5])
        notes.append(f"the folders beside {' and '.join(named)} are in no split: {shown}")
    return found


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name in lower case; none where it begins with the dot.

    >>> suffix_of("a.JPG"), suffix_of(".jpg")
    ('.jpg', '')
    """
    return name[dot:].lower() if (dot := name.rfind(".")) > 0 else ""


def note_left_out(left_out: Counter[str], notes: list[str]) -> None:
    """Say how many files are no images by their suffix."""
    if not left_out:
        return
    # Those of equal number by name: the order of a folder's entries is chance.
    kinds = sorted(left_out.items(), key=lambda kind: (-kind[1], kind[0]))[:5]
    shown = ", ".join(f"{n} {printable(suffix)}" for suffix, n in kinds)
    notes.append(f"left out {left_out.total()} files whose suffix is not an image's: {shown}")


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
        self._root = Place(find_splits(tops, self.notes))

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
