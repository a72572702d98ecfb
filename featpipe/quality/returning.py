"""Images that were moved out of the way go back to where they were."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from featpipe._files import file_key, show_path, write_error
from featpipe.errors import WriteError
from featpipe.quality.choosing import GONE, LINKED
from featpipe.quality.journal import FILE_NAME, Move, read_moves, write_moves
from featpipe.quality.moving import carry, make_folders
from featpipe.types import Progress, ProgressCallback

TAKEN_PLACE = "would take the place of other files"
CHANGED_ON_THE_WAY = "have changed while they were moved"
BEHIND_LINK = "would go to a place behind a link, or below a file"


@dataclass(frozen=True, slots=True)
class Returned:
    """What `move_back` has done.

    Attributes
    ----------
    directory : Path
        Where the images were.
    root : Path or None
        Where they have gone; None where the list has no rows.
    moves : tuple of Move
        Undone, or, in a dry run, still to be undone.
    left : mapping of str to int
        Why other images stay in ``directory``, or at least in its list, and how many.
    is_done : bool
        False after a dry run.
    """

    directory: Path
    root: Path | None
    moves: tuple[Move, ...]
    left: Mapping[str, int]
    is_done: bool


def move_back(
    directory: str | os.PathLike[str],
    *,
    dry_run: bool = False,
    progress: ProgressCallback | None = None,
) -> Returned:
    """Undo `move`: bring what ``directory/moved.csv`` lists back to where it was.

    Nothing is overwritten, and an image is in at least one of the two places at any moment.
    After an interruption the same call goes on. What cannot go back stays, and in the list.
    The list may come from a stranger: all rows must lead to images of one folder, from the same
    path below ``directory``, or nothing is moved.

    Parameters
    ----------
    directory : path
        The one that was given to `move`.
    dry_run : bool
        Check everything and move nothing.
    progress : callable, optional
        Called with a `Progress`, stage ``moving``.

    Raises
    ------
    WriteError
        When there is no such list, a row of it is not as `move` writes it, or the operating
        system refuses to write.
    """
    folder = Path(os.path.realpath(directory))
    if not (folder / FILE_NAME).exists():
        raise WriteError(f"there is no list of moved images at {show_path(folder / FILE_NAME)}")
    moves = read_moves(folder)
    root = moves[0].root if moves else None
    done, left, settled = list[Move](), Counter[str](), set[Move]()
    try:
        for number, one in enumerate(moves, 1):
            reason = _obstacle(one)
            if reason is not None:
                left[reason] += 1
            elif not os.path.lexists(one.target):
                settled.add(one)
            elif dry_run or _return(one):
                done.append(one)
                settled.add(one)
            else:
                left[CHANGED_ON_THE_WAY] += 1
            if progress is not None:
                progress(Progress(number, len(moves), stage="moving"))
    finally:
        if settled and not dry_run:
            write_moves(folder, [one for one in moves if one not in settled])
    return Returned(folder, root, tuple(done), dict(left), is_done=not dry_run)


def _obstacle(one: Move) -> str | None:
    try:
        return _find_obstacle(one)
    except OSError as exc:
        raise write_error(one.source, exc) from exc


def _find_obstacle(one: Move) -> str | None:
    """Say why an image cannot go back; None also where it has gone back before."""
    above = next(place for place in one.source.parents if os.path.lexists(place))
    if os.path.realpath(above) != str(above) or not above.is_dir():
        return BEHIND_LINK
    is_back = _is_file(one.source)
    if not os.path.lexists(one.target):
        return None if is_back else GONE
    if not _is_file(one.target):
        return LINKED
    if not os.path.lexists(one.source) or (is_back and _are_equal(one)):
        return None
    return TAKEN_PLACE


def _is_file(place: Path) -> bool:
    """Tell whether there is a regular file, and no link on the way."""
    return os.path.realpath(place) == str(place) and place.is_file()


def _are_equal(one: Move) -> bool:
    """Tell whether a killed run has left an image in both places."""
    if one.source.samefile(one.target):
        # One name that two mounts show is no second name: it would be gone from both.
        return one.source.stat().st_nlink > 1
    same_size = one.source.stat().st_size == one.target.stat().st_size
    return same_size and file_key(one.source) == file_key(one.target)


def _return(one: Move) -> bool:
    make_folders(one.source.parent)
    is_there = os.path.lexists(one.source)
    try:
        key = file_key(one.target)
    except OSError as exc:
        raise write_error(one.source, exc) from exc
    return carry(one.target, one.source, key, is_there=is_there)
