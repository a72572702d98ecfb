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
from itertools import count
from pathlib import Path

from featpipe._files import file_key, printable
from featpipe.errors import FeatpipeError, SourceError
from featpipe.quality.cleaning import COPIES, KINDS, Cleaning, Kind, Problem
from featpipe.quality.copies import Copies, part
from featpipe.quality.looks import source_of
from featpipe.sources import FolderSource
from featpipe.store import EmbeddingStore
from featpipe.types import Key, Progress, ProgressCallback

TAKEN: tuple[Kind, ...] = ("unreadable", "duplicate", "near-duplicate")
"""What is taken out unless other kinds are named: nothing that a person must judge first."""

SPLITS = ("train", "val", "test")
"""From what is learnt on to what is measured on at the very end."""

GONE = "are gone"
CHANGED = "have changed since they were embedded"
LINKED = "are links, or lie behind one"
UNKNOWN = "could not be read when they were embedded: nothing tells whether they are the same"
OUTSIDE = "lie outside the folder"


@dataclass(frozen=True, slots=True)
class Choice:
    """Images that are to be taken out.

    Attributes
    ----------
    root : Path
        The folder that they lie in, without links.
    problems : tuple of Problem
        One an image, in the order of the store; the ``other`` of a copy stays.
    left : mapping of str to int
        Why images that were named are left where they are, and how many.
    splits, keys : mapping of str to str, mapping of str to bytes
        Splits (None: in none) and contents of all images of the store, by path.
    """

    root: Path
    problems: tuple[Problem, ...]
    left: Mapping[str, int]
    splits: Mapping[str, str | None] = field(repr=False)
    keys: Mapping[str, Key | None] = field(repr=False)

    def by_split(self, paths: Iterable[str]) -> dict[str | None, int]:
        """Count images by split, those in none last; nothing where the store has no splits."""
        if not any(self.splits.values()):
            return {}
        found = Counter(self.splits[path] for path in paths)
        return {name: found[name] for name in (*SPLITS, None) if found[name]}

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

    A copy goes only if an image stays that it is a copy of itself: a copy of a copy may be
    unlike the first, and then it stays. What stays is looked for, too: rather one with a label,
    then one to learn on (so that what it would be measured on goes, and with it the leak), then
    the first of the store. Where copies have two
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
    copies = Copies(cleaning.problems, wanted, keys, _labels(cleaning, store))
    alone = _not_as_copies(cleaning, wanted, keys)
    to_check = copies.images.keys() | alone.keys()
    checked = count(1)

    @cache
    def check(path: str) -> str | None:
        reason = obstacle(root, path, keys[path])
        if progress is not None:
            progress(Progress(next(checked), len(to_check), stage="checking"))
        return reason

    order = sorted(copies.images, key=_rank(cleaning, store, paths))
    parting = part(copies, order, alone.keys(), check)
    reasons = parting.spared | {path: reason for path in alone if (reason := check(path))}
    going = {path: one for path, one in alone.items() if path not in reasons} | parting.going
    chosen = tuple(going[path] for path in paths if path in going)
    left = Counter(reasons[path] for path in paths if path in reasons)
    splits = dict(zip(paths, store.index.values("split"), strict=True))
    return Choice(root, chosen, dict(left), splits, keys)


def _labels(cleaning: Cleaning, store: EmbeddingStore) -> dict[str, str | None]:
    labels = store.labels(cleaning.target).tolist()
    given = (None if label is None else str(label) for label in labels)
    return dict(zip(store.paths, given, strict=True))


def _rank(
    cleaning: Cleaning, store: EmbeddingStore, paths: Sequence[str]
) -> Callable[[str], tuple[int, int, int]]:
    """Return what orders copies: which of them stays rather."""
    columns = [cleaning.target] if cleaning.target else store.label_columns
    labels = Counter[str]()
    for column in columns:
        given = zip(store.paths, store.labels(column).tolist(), strict=True)
        labels.update(path for path, label in given if label is not None)
    splits = dict(zip(store.paths, store.splits.tolist(), strict=True))
    # As in `featpipe.splits`: without a split train the images of no split are learnt on.
    used = SPLITS if "train" in splits.values() else (None, *SPLITS)
    places = {name: number for number, name in enumerate(used)}
    position = {path: number for number, path in enumerate(paths)}
    return lambda path: (-labels[path], places.get(splits[path], len(used)), position[path])


def _not_as_copies(
    cleaning: Cleaning, kinds: Collection[Kind], paths: Collection[str]
) -> dict[str, Problem]:
    """Return what goes whatever else stays: one problem an image, of the first kind."""
    first: dict[str, Problem] = {}
    for problem in cleaning.problems:
        if problem.kind in kinds and problem.kind not in COPIES and problem.path in paths:
            first.setdefault(problem.path, problem)
    return first


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
