"""Which of the images that `clean` has found may be taken out, and where their files are."""

from __future__ import annotations

import os
import shlex
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from featpipe._files import file_key, printable
from featpipe.errors import FeatpipeError, SourceError
from featpipe.quality.cleaning import COPIES, KINDS, Cleaning, Kind, Problem
from featpipe.quality.looks import source_of
from featpipe.sources import FolderSource
from featpipe.store import EmbeddingStore
from featpipe.types import Key, Progress, ProgressCallback

TAKEN: tuple[Kind, ...] = ("unreadable", "duplicate", "near-duplicate")
"""What is taken out unless other kinds are named: nothing that a person must judge first."""

GONE = "are gone"
CHANGED = "have changed since they were embedded"
LINKED = "are links, or lie behind one"
UNKNOWN = "could not be read when they were embedded: nothing tells whether they are the same"
OUTSIDE = "lie outside the folder"
JUDGE = "have a copy under another label, which a person must judge (--kind two-labels)"
KEPT = "are copies of nothing else that stays"


@dataclass(frozen=True, slots=True)
class Choice:
    """Images that are to be taken out.

    Attributes
    ----------
    root : Path
        The folder that they lie in, without links.
    problems : tuple of Problem
        One an image, in the order of the store.
    left : mapping of str to int
        Why images that were named are left where they are, and how many.
    keys : mapping of str to bytes
        Contents of all images of the store, by path.
    """

    root: Path
    problems: tuple[Problem, ...]
    left: Mapping[str, int]
    keys: Mapping[str, Key | None] = field(repr=False)

    def files(self) -> tuple[Path, ...]:
        """Return where the images are."""
        return tuple(self.root / problem.path for problem in self.problems)


def choose(
    cleaning: Cleaning,
    store: EmbeddingStore,
    kinds: Iterable[Kind] = TAKEN,
    *,
    progress: ProgressCallback | None = None,
) -> Choice:
    """Choose what is to be taken out of the folder that a store was made from.

    Of images that are copies of one another one stays: those that are listed as copies go,
    unless nothing would be left then; what stays is looked for, too. Where copies have two
    labels, one of them is wrong, and nobody knows which: they stay unless ``two-labels`` is
    among the kinds. Files that are gone, have changed, could not be read, or that a link leads
    to are not chosen.

    Parameters
    ----------
    cleaning : Cleaning
    store : EmbeddingStore
        The one that was looked at.
    kinds : iterable of str
        Of problems; a copy under another label counts as a copy.
    progress : callable, optional
        Called with a `Progress`, stage ``checking``: all files are read.

    Raises
    ------
    SourceError
        When the images do not come from a folder of this machine, or it is gone.
    ValueError
        When there is no such kind.
    """
    wanted = frozenset(kinds)
    if unknown := sorted(wanted - set(KINDS)):
        raise ValueError(f"there is no kind {unknown[0]!r}: the kinds are {', '.join(KINDS)}")
    root = _root(store)
    paths = store.index.paths()
    keys: dict[str, Key | None] = dict(zip(paths, store.index.values("key"), strict=True))

    @cache
    def check(path: str) -> str | None:
        return obstacle(root, path, keys[path])

    named = _Named(cleaning, wanted, paths, check)
    left: Counter[str] = Counter()
    chosen = []
    for done, problem in enumerate(named.problems, 1):
        reason = named.spared.get(problem.path) or check(problem.path)
        if reason is None:
            chosen.append(problem)
        else:
            left[reason] += 1
        if progress is not None:
            progress(Progress(done, len(named.problems), stage="checking"))
    return Choice(root, tuple(chosen), dict(left), keys)


def removal_list(choice: Choice, *, null: bool = False) -> bytes:
    r"""Return the files of a choice as ``xargs rm --`` reads them.

    One a line, quoted where a shell asks for it; with ``null``, as they are and each ended by
    a NUL, for ``xargs -0``.

    Raises
    ------
    FeatpipeError
        When a path has a control character, such as a line break, and ``null`` is not set:
        `xargs` does not read it within quotes.
    """
    files = [str(path) for path in choice.files()]
    if null:
        return b"".join(os.fsencode(path) + b"\0" for path in files)
    for path in files:
        if any(unicodedata.category(c) == "Cc" for c in path):
            raise FeatpipeError(
                f"the path {printable(path)} holds a control character, which a list of lines "
                "cannot hold: separate paths by NUL (--null)"
            )
    return b"".join(os.fsencode(shlex.quote(path)) + b"\n" for path in files)


def _root(store: EmbeddingStore) -> Path:
    source = source_of(store)
    if not isinstance(source, FolderSource):
        where = printable(store.source)
        raise SourceError(
            f"the images of {printable(str(store.path))} do not come from a folder of this machine "
            f"that is still there ({where}): only the files of such a folder are moved or listed "
            "for removal"
        )
    return Path(os.path.realpath(source.root))


class _Named:
    """The images that kinds of problems name, and those of them that are to stay.

    Attributes
    ----------
    problems : list of Problem
        One an image, of the first kind that it is listed under, in the order of the store.
    spared : dict of str to str
        Path to reason.
    """

    def __init__(
        self,
        cleaning: Cleaning,
        kinds: Collection[Kind],
        paths: Sequence[str],
        check: Callable[[str], str | None],
    ) -> None:
        order = {path: number for number, path in enumerate(paths)}
        first: dict[str, Problem] = {}
        for problem in cleaning.problems:
            if problem.kind in kinds and problem.path in order:
                first.setdefault(problem.path, problem)
        self.problems = sorted(first.values(), key=lambda problem: order[problem.path])
        otherwise = {p.path for p in cleaning.problems if p.kind in kinds and p.kind not in COPIES}
        copies = first.keys() - otherwise
        self.spared = {}
        if "two-labels" not in kinds:
            judged = {problem.path for problem in cleaning.of("two-labels")}
            self.spared = dict.fromkeys(copies & judged, JUDGE)
        copies -= self.spared.keys()
        for group in _groups(cleaning):
            going = sorted(group & copies, key=order.__getitem__)
            staying = sorted((group & order.keys()) - copies - otherwise, key=order.__getitem__)
            # What stays must be there, as a file of its own: all else may be its only copy.
            if going and not any(check(path) is None for path in staying):
                there = next((path for path in going if check(path) is None), going[0])
                self.spared[there] = KEPT


def _groups(cleaning: Cleaning) -> list[set[str]]:
    group_of: dict[str, set[str]] = {}
    for problem in cleaning.problems:
        if problem.kind not in COPIES or problem.other is None:
            continue
        mine = group_of.setdefault(problem.path, {problem.path})
        others = group_of.setdefault(problem.other, {problem.other})
        if mine is not others:
            mine |= others
            group_of.update(dict.fromkeys(others, mine))
    return list({id(group): group for group in group_of.values()}.values())


def obstacle(root: Path, path: str, key: Key | None) -> str | None:
    """Say why a file is to be left alone; None where it is the image that was embedded."""
    file = root / path
    if key is None:
        return UNKNOWN
    if not file.is_relative_to(root):
        return OUTSIDE
    try:
        is_regular = stat.S_ISREG(os.lstat(file).st_mode)
        # Behind a link, one file may have two names: both would be called copies of each other.
        if os.path.realpath(file) != str(file):
            return LINKED
        return None if is_regular and file_key(file) == key else CHANGED
    except (FileNotFoundError, NotADirectoryError):
        return GONE
    except (OSError, ValueError):
        return CHANGED
