"""What names say: which files are images, and what the folders above one say of it."""

from __future__ import annotations

from collections import Counter

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


class Place:
    """What the folders above an image say of it.

    Parameters
    ----------
    awaits_split : bool
        Whether the next folder's name is that of a split.
    """

    __slots__ = ("awaits_split", "label", "split")

    def __init__(
        self, awaits_split: bool, split: str | None = None, label: str | None = None
    ) -> None:
        self.awaits_split, self.split, self.label = awaits_split, split, label

    def below(self, name: str) -> Place:
        """Return what is known in a folder of this name, which stands here."""
        if self.awaits_split:
            return Place(False, SPLITS.get(name.lower()))
        return self if self.label is not None else Place(False, self.split, name)


def root_place(folders: list[str], notes: list[str]) -> Place:
    """Tell whether the folders in the root are splits, and note those that are not."""
    named = [name for name in folders if name.lower() in SPLITS]
    # Two of these names are no chance; one beside other folders is a class of its own.
    found = bool(named) and (named == folders or len({SPLITS[n.lower()] for n in named}) > 1)
    others = [name for name in folders if name not in named]
    if found and others:
        shown = ", ".join(printable(name) for name in others[:5])
        notes.append(f"the folders beside {' and '.join(named)} are in no split: {shown}")
    return Place(found)


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
    shown = ", ".join(f"{n} {suffix}" for suffix, n in kinds)
    notes.append(f"left out {left_out.total()} files whose suffix is not an image's: {shown}")
