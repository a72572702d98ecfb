"""Images that `clean` has found are moved out of the way; nothing is lost on the way, ever."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from featpipe._files import file_key, fsync_folder, make_folder, printable, show_path, write_error
from featpipe.errors import WriteError
from featpipe.quality.choosing import CHANGED, TAKEN, Choice, choose, obstacle
from featpipe.quality.cleaning import Cleaning, Kind
from featpipe.quality.journal import FILE_NAME, Move, are_apart, flaw, read_moves, write_moves
from featpipe.store import EmbeddingStore
from featpipe.types import Key, Progress, ProgressCallback


@dataclass(frozen=True, slots=True)
class Moved:
    """What `move` has done.

    Attributes
    ----------
    directory : Path
    moves : tuple of Move
        Done, or, in a dry run, still to be done.
    left : mapping of str to int
        Why images that were named are left where they are, and how many.
    splits : mapping of str or None to int
        How many of ``moves`` are of which split; empty where the store has none.
    is_done : bool
        False after a dry run.
    """

    directory: Path
    moves: tuple[Move, ...]
    left: Mapping[str, int]
    splits: Mapping[str | None, int]
    is_done: bool


def move(
    cleaning: Cleaning,
    store: EmbeddingStore,
    directory: str | os.PathLike[str],
    kinds: Iterable[Kind] = TAKEN,
    *,
    dry_run: bool = False,
    progress: ProgressCallback | None = None,
) -> Moved:
    """Move images of some kinds of problems out of the folder that a store was made from.

    They keep their path below ``directory``. ``directory/moved.csv`` (kind, path, from, to) is
    written before the first is moved: `move_back` undoes it. Nothing is overwritten, and an
    image is in at least one of the two places at any moment: on one file system it gets its
    second name before it loses the first, between two it is copied, synced, compared, and
    only then deleted. The store is left as it is; `featpipe.embed` brings it up to date.

    Parameters
    ----------
    cleaning, store, kinds
        As of `choose`, which says what stays.
    directory : path
        Apart from the folder of the images, and from the store.
    dry_run : bool
        Check everything and move nothing.
    progress : callable, optional
        Called with a `Progress`, stage ``checking`` or ``moving``.

    Raises
    ------
    SourceError
        When the images do not come from a folder of this machine, or it is gone.
    WriteError
        When a file of such a name is there already (nothing has been moved then), or the
        operating system refuses to write (``moved.csv`` lists what has been moved).
    """
    choice = choose(cleaning, store, kinds, progress=progress)
    folder = Path(os.path.realpath(directory))
    _require_apart(choice.root, folder)
    lies_here = isinstance(store.path, Path)
    if lies_here and not are_apart(Path(os.path.realpath(store.path)), folder):
        raise WriteError(
            f"cannot move images to {show_path(folder)}: it lies in the store, or around it; give "
            "a folder apart from it"
        )
    moves = [
        Move(problem.kind, problem.path, file, folder / problem.path)
        for problem, file in zip(choice.problems, choice.files(), strict=True)
    ]
    _require_way_back(moves, folder)
    before = dict.fromkeys(read_moves(folder))
    _require_same(choice.root, folder, before)
    half_way = {one for one in moves if not _is_free(one, before, choice.keys[one.path])}
    if dry_run:
        splits = choice.by_split(one.path for one in moves)
        return Moved(folder, tuple(moves), choice.left, splits, is_done=False)
    return _Journey(choice, folder, before, half_way, progress).go(moves)


class _Journey:
    """One call of `move`, once everything is checked."""

    def __init__(
        self,
        choice: Choice,
        folder: Path,
        before: Iterable[Move],
        half_way: Collection[Move],
        progress: ProgressCallback | None,
    ) -> None:
        self._choice, self._folder, self._before = choice, folder, before
        self._half_way, self._progress = half_way, progress

    def go(self, moves: list[Move]) -> Moved:
        left, done = Counter(self._choice.left), list[Move]()
        if not moves:
            return Moved(self._folder, (), dict(left), {}, is_done=True)
        # The list is there before its images are: whatever happens, it can be undone.
        self._note(moves)
        try:
            for number, one in enumerate(moves, 1):
                reason = self._take(one)
                if reason is None:
                    done.append(one)
                else:
                    left[reason] += 1
                if self._progress is not None:
                    self._progress(Progress(number, len(moves), stage="moving"))
        finally:
            self._note([one for one in moves if one.target.exists()])
        splits = self._choice.by_split(one.path for one in done)
        return Moved(self._folder, tuple(done), dict(left), splits, is_done=True)

    def _note(self, moves: list[Move]) -> None:
        write_moves(self._folder, list(dict.fromkeys([*self._before, *moves])))

    def _take(self, one: Move) -> str | None:
        """Move one image; return why it has stayed, where it has."""
        key = self._choice.keys[one.path]
        reason = obstacle(self._choice.root, one.path, key)
        if reason is not None or key is None:
            return reason
        make_folders(one.target.parent)
        is_there = one in self._half_way
        return None if carry(one.source, one.target, key, is_there=is_there) else CHANGED


def carry(source: Path, target: Path, key: Key, *, is_there: bool = False) -> bool:
    """Give a file another place; False where it has changed on the way and stays."""
    try:
        if not is_there and not _put(source, target, key):
            return False
        fsync_folder(target.parent)
        source.unlink()
    except OSError as exc:
        raise write_error(target, exc) from exc
    return True


def _put(source: Path, target: Path, key: Key) -> bool:
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:
        # Another file system, or one that knows no second names.
        return _copy(source, target, key)
    return True


def make_folders(folder: Path) -> None:
    """Make a folder that outlasts a power failure, as what is in it must."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    make_folder(folder)
    for place in missing:
        fsync_folder(place.parent)


def _is_there(target: Path, key: Key) -> bool:
    """Tell whether an image is at a place, and whole."""
    return target.is_file() and not target.is_symlink() and file_key(target) == key


def _copy(source: Path, target: Path, key: Key) -> bool:
    """Copy a file under another name first; the name it is to have is never half a file."""
    handle, temporary = tempfile.mkstemp(prefix=".moving-", suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as copy, source.open("rb") as original:
            shutil.copyfileobj(original, copy, 2**20)
            copy.flush()
            os.fsync(copy.fileno())
        shutil.copystat(source, temporary)
        if file_key(Path(temporary)) != key:
            return False
        _name(temporary, target)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
    return True


def _name(temporary: str, target: Path) -> None:
    """Give a file its name, unless that has been taken meanwhile."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:
        # No second names here: an empty file of ours holds the place.
        os.close(os.open(target, os.O_CREAT | os.O_EXCL))
        try:
            os.replace(temporary, target)
        except OSError:
            target.unlink()
            raise


def _require_apart(root: Path, folder: Path) -> None:
    if not are_apart(root, folder):
        raise WriteError(
            f"cannot move images to {show_path(folder)}: it lies in the folder of the images, or "
            "around it, and they would be found again; give a folder apart from it"
        )


def _require_way_back(moves: Iterable[Move], folder: Path) -> None:
    """Move nothing that `move_back` would refuse."""
    for one in moves:
        if (why := flaw(one, folder)) is not None:
            raise WriteError(
                f"cannot move {printable(one.path)}, as it could not go back ({why}): nothing was "
                "moved"
            )


def _require_same(root: Path, folder: Path, before: Iterable[Move]) -> None:
    """Keep a list to one folder of images: then none in it can lead elsewhere."""
    for one in before:
        if one.root != root:
            raise WriteError(
                f"{show_path(folder)} holds images of another folder ({show_path(one.root)}), and "
                f"{FILE_NAME} leads back to one alone: give another folder"
            )


def _is_free(one: Move, before: Collection[Move], key: Key | None) -> bool:
    """Tell whether an image can go to its place; False where a killed run has put it there.

    Raises
    ------
    WriteError
        When something else is there, or a link is on the way.
    """
    shown = show_path(one.target)
    above = next(place for place in one.target.parents if os.path.lexists(place))
    if os.path.realpath(above) != str(above) or not above.is_dir():
        raise WriteError(
            f"cannot move to {shown}: {show_path(above)} is no folder, or a link; nothing was "
            "moved: give another folder"
        )
    if not os.path.lexists(one.target):
        return True
    if key is not None and one in before and _is_there(one.target, key):
        return False
    raise WriteError(
        f"{shown} is there already, and nothing is overwritten; nothing was moved: give another "
        "folder, or take that file away"
    )
