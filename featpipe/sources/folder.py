"""A folder of images; class folders give the labels, split folders above them the splits."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from featpipe._columns import BLOCK_ROWS, LISTED, constant_column, path_column, text_column
from featpipe._files import printable
from featpipe.errors import SourceError
from featpipe.sources.base import NOT_REGULAR, LocalSource, is_regular
from featpipe.sources.places import (
    IMAGE_SUFFIXES,
    NOT_OURS,
    OWN_RECORDS,
    Place,
    find_splits,
    note_left_out,
    suffix_of,
)
from featpipe.types import ImageRef

_DEEPEST = 100


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
        for shelf in self._shelves():
            yield from shelf.refs()

    def batches(self) -> Iterator[pa.Table]:
        """List the same in columns, folder by folder."""
        for shelf in self._shelves():
            yield shelf.table()

    def _shelves(self) -> Iterator[_Shelf]:
        self.notes.clear()
        left_out: Counter[str] = Counter()
        try:
            content = _Content(self.root)
        except OSError as exc:
            raise SourceError(
                f"cannot open the folder {printable(str(self.root))}: {exc.strerror or exc}"
            ) from exc
        has_splits = find_splits([folder.name for folder in content.folders], self.notes)
        root_id = _identity(os.stat(self.root))
        yield from self._walk(content, "", (root_id,), Place(has_splits), left_out)
        note_left_out(left_out, self.notes)

    def _walk(
        self,
        content: _Content,
        prefix: str,
        above: tuple[tuple[int, int], ...],
        place: Place,
        left_out: Counter[str],
    ) -> Iterator[_Shelf]:
        left_out.update(content.left_out)
        begin = 0
        for folder in content.folders:
            end = content.before(folder.name)
            yield from content.shelves(begin, end, prefix, place)
            begin = end
            below = place.below(folder.name)
            yield from self._enter(folder, prefix + folder.name, above, below, left_out)
        yield from content.shelves(begin, len(content.order), prefix, place)

    def _enter(
        self,
        folder: os.DirEntry[str],
        path: str,
        above: tuple[tuple[int, int], ...],
        place: Place,
        left_out: Counter[str],
    ) -> Iterator[_Shelf]:
        try:
            identity = _identity(folder.stat())
            if identity in above:
                self.notes.append(
                    f"did not follow {printable(path)}: it links back to a folder above"
                )
                return
            content = _Content(folder.path) if len(above) <= _DEEPEST else None
        except OSError as exc:
            problem = f"the folder cannot be opened: {exc.strerror or exc}"
            yield _Shelf([path], [None], [None], place, [problem])
            return
        if content is None:
            problem = f"the folder lies more than {_DEEPEST} folders deep and is not opened"
            yield _Shelf([path], [None], [None], place, [problem])
        elif not content.is_our_own:
            yield from self._walk(content, path + "/", (*above, identity), place, left_out)


class _Shelf:
    """Images that stand one after the other in one folder."""

    __slots__ = ("mtimes", "paths", "place", "problems", "sizes")

    def __init__(
        self,
        paths: list[str],
        sizes: list[int | None],
        mtimes: list[int | None],
        place: Place,
        problems: list[str | None] | None,
    ) -> None:
        self.paths, self.sizes, self.mtimes = paths, sizes, mtimes
        self.place, self.problems = place, problems

    def refs(self) -> Iterator[ImageRef]:
        label, split = self.place.label, self.place.split
        problems = self.problems or [None] * len(self.paths)
        columns = zip(self.paths, self.sizes, self.mtimes, problems, strict=True)
        for path, size, mtime_ns, problem in columns:
            yield ImageRef(path, size, mtime_ns, label, split, problem=problem)

    def table(self) -> pa.Table:
        count = len(self.paths)
        none = pa.nulls(count, pa.string())
        columns = [
            path_column(self.paths),
            pa.array(self.sizes, pa.int64()),
            pa.array(self.mtimes, pa.int64()),
            constant_column(self.place.label, count),
            constant_column(self.place.split, count),
            none,
            none if self.problems is None else text_column(self.problems),
        ]
        return pa.table(columns, schema=LISTED)


class _Content:
    """What lies in one folder: looked at entry by entry, as a folder may hold a million."""

    def __init__(self, folder: str | Path) -> None:
        self.folders: list[os.DirEntry[str]] = []
        self.left_out: Counter[str] = Counter()
        self.is_our_own = False
        self._names: list[str] = []
        self._sizes, self._mtimes = array("q"), array("q")
        self._problems: dict[int, str] = {}
        with os.scandir(folder) as entries:
            self._sort_out(entries)
        self.folders.sort(key=lambda entry: entry.name)
        self.order = sorted(range(len(self._names)), key=self._names.__getitem__)

    def _sort_out(self, entries: Iterable[os.DirEntry[str]]) -> None:
        # The one loop that every file of a re-run goes through: what is usual comes first.
        names, sizes, mtimes = self._names, self._sizes, self._mtimes
        for entry in entries:
            name = entry.name
            if name[0] == ".":
                continue
            suffix = suffix_of(name)
            if suffix in IMAGE_SUFFIXES and not _is_folder(entry):
                size, mtime_ns, problem = _look_at(entry)
                names.append(name)
                sizes.append(size)
                mtimes.append(mtime_ns)
                if problem is not None:
                    self._problems[len(names) - 1] = problem
            elif name.lower() not in NOT_OURS:
                self._add_other(entry, suffix)

    def _add_other(self, entry: os.DirEntry[str], suffix: str) -> None:
        if entry.name in OWN_RECORDS:
            self.is_our_own = True
        if _is_folder(entry):
            self.folders.append(entry)
        else:
            self.left_out[suffix or "without suffix"] += 1

    def before(self, name: str) -> int:
        """Return how many images stand before that name."""
        return bisect_left(self.order, name, key=self._names.__getitem__)

    def shelves(self, begin: int, end: int, prefix: str, place: Place) -> Iterator[_Shelf]:
        """Yield the images from ``begin`` to ``end`` in the order of their names."""
        for start in range(begin, end, BLOCK_ROWS):
            order = self.order[start : min(start + BLOCK_ROWS, end)]
            sizes: list[int | None] = [self._sizes[i] for i in order]
            mtimes: list[int | None] = [self._mtimes[i] for i in order]
            problems = [self._problems.get(i) for i in order] if self._problems else None
            for at, problem in enumerate(problems or ()):
                if problem is not None:
                    sizes[at] = mtimes[at] = None
            yield _Shelf([prefix + self._names[i] for i in order], sizes, mtimes, place, problems)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Tell whether an entry is a folder; a link that cannot be followed is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def _look_at(entry: os.DirEntry[str]) -> tuple[int, int, str | None]:
    """Return size and time of change of a file; zeros, and the problem, where there is one."""
    try:
        stat = entry.stat()
    except OSError as exc:
        problem = exc.strerror or str(exc)
        if entry.is_symlink():
            problem = f"the link leads nowhere ({problem})"
        return 0, 0, problem
    if not is_regular(stat):
        return 0, 0, NOT_REGULAR
    return stat.st_size, stat.st_mtime_ns, None
