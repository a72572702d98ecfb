"""A folder of images; class folders give the labels, split folders above them the splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from featpipe._files import printable
from featpipe.errors import SourceError
from featpipe.sources.base import NOT_REGULAR, LocalSource, is_regular
from featpipe.types import ImageRef

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

_OWN_RECORDS = {"store.json", "head.json"}
"""A folder that holds one of these was written by featpipe: nobody means its files."""
_DEEPEST = 100
_NOT_OURS = {"__macosx", "@eadir", "$recycle.bin", "system volume information"}


class FolderSource(LocalSource):
    """Every image below a folder, in the order of its names, depth first.

    ``root/ants/1.jpg`` has the label ``ants``; so has ``root/ants/sub/1.jpg``. Where the
    folders in ``root`` have the names of splits (train, training, val, valid, validation,
    test, testing; upper or lower case) they give the split, and the class folders stand below
    them: all folders, or two different ones among others, which are in no split then. Images
    in ``root`` itself have no label. Files are listed by suffix; hidden ones and featpipe's own
    stores and heads are not. Links are followed, and a loop of them is cut.

    Raises
    ------
    SourceError
        When the folder cannot be opened, while listing it.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.location = str(root.resolve())
        self.name = root.resolve().name or "root"

    def __iter__(self) -> Iterator[ImageRef]:
        self.notes.clear()
        left_out: Counter[str] = Counter()
        try:
            entries = _sorted_entries(self.root)
        except OSError as exc:
            raise SourceError(
                f"cannot open the folder {printable(str(self.root))}: {exc.strerror or exc}"
            ) from exc
        has_splits = self._find_splits([e.name for e in entries if _is_folder(e)])
        root_id = _identity(os.stat(self.root))
        yield from self._walk(entries, "", (root_id,), _Place(has_splits), left_out)
        if left_out:
            kinds = ", ".join(f"{n} {suffix}" for suffix, n in left_out.most_common(5))
            self.notes.append(
                f"left out {sum(left_out.values())} files whose suffix is not an image's: {kinds}"
            )

    def _find_splits(self, folders: list[str]) -> bool:
        """Tell whether the folders in the root are splits, and note those that are not."""
        named = [name for name in folders if name.lower() in SPLITS]
        # Two of these names are no chance; one beside other folders is a class of its own.
        found = bool(named) and (named == folders or len({SPLITS[n.lower()] for n in named}) > 1)
        others = [name for name in folders if name not in named]
        if found and others:
            shown = ", ".join(printable(name) for name in others[:5])
            self.notes.append(f"the folders beside {' and '.join(named)} are in no split: {shown}")
        return found

    def _walk(
        self,
        entries: list[os.DirEntry[str]],
        prefix: str,
        above: tuple[tuple[int, int], ...],
        place: _Place,
        left_out: Counter[str],
    ) -> Iterator[ImageRef]:
        for entry in entries:
            path = prefix + entry.name
            if _is_folder(entry):
                yield from self._enter(entry, path, above, place.below(entry.name), left_out)
            elif (suffix := os.path.splitext(entry.name)[1].lower()) in IMAGE_SUFFIXES:
                yield _listed(entry, path, place)
            else:
                left_out[suffix or "without suffix"] += 1

    def _enter(
        self,
        folder: os.DirEntry[str],
        path: str,
        above: tuple[tuple[int, int], ...],
        place: _Place,
        left_out: Counter[str],
    ) -> Iterator[ImageRef]:
        try:
            identity = _identity(folder.stat())
            if identity in above:
                self.notes.append(
                    f"did not follow {printable(path)}: it links back to a folder above"
                )
                return
            entries = _sorted_entries(folder.path) if len(above) <= _DEEPEST else None
        except OSError as exc:
            problem = f"the folder cannot be opened: {exc.strerror or exc}"
            yield ImageRef(path, label=place.label, split=place.split, problem=problem)
            return
        if entries is None:
            problem = f"the folder lies more than {_DEEPEST} folders deep and is not opened"
            yield ImageRef(path, label=place.label, split=place.split, problem=problem)
            return
        if any(entry.name in _OWN_RECORDS for entry in entries):
            return
        yield from self._walk(entries, path + "/", (*above, identity), place, left_out)


class _Place:
    """What the folders above an image say of it."""

    __slots__ = ("awaits_split", "label", "split")

    def __init__(
        self, awaits_split: bool, split: str | None = None, label: str | None = None
    ) -> None:
        self.awaits_split, self.split, self.label = awaits_split, split, label

    def below(self, name: str) -> _Place:
        if self.awaits_split:
            return _Place(False, SPLITS.get(name.lower()))
        return self if self.label is not None else _Place(False, self.split, name)


def _sorted_entries(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(
            (e for e in entries if e.name[0] != "." and e.name.lower() not in _NOT_OURS),
            key=lambda e: e.name,
        )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a folder; a link that cannot be followed is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def _listed(entry: os.DirEntry[str], path: str, place: _Place) -> ImageRef:
    try:
        stat = entry.stat()
    except OSError as exc:
        problem = exc.strerror or str(exc)
        if entry.is_symlink():
            problem = f"the link leads nowhere ({problem})"
        return ImageRef(path, label=place.label, split=place.split, problem=problem)
    if not is_regular(stat):
        return ImageRef(path, label=place.label, split=place.split, problem=NOT_REGULAR)
    return ImageRef(path, stat.st_size, stat.st_mtime_ns, place.label, place.split)
