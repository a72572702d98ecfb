"""``moved.csv``: where images were, and where they are now."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path, PurePath

from featpipe._files import (
    atomic_file,
    escape_path,
    guard_cell,
    read_regular,
    show_path,
    unescape_path,
    unguard_cell,
)
from featpipe.errors import WriteError
from featpipe.sources import IMAGE_SUFFIXES

FILE_NAME = "moved.csv"
_MOST_BYTES = 2**31
_HEADER = ("kind", "path", "from", "to")


@dataclass(frozen=True, slots=True)
class Move:
    """One image, where it was and where it is now; a row of ``moved.csv``."""

    kind: str
    path: str
    source: Path
    target: Path

    @property
    def root(self) -> Path:
        """The folder that the image was taken from: what stands before ``path``."""
        return self.source.parents[len(PurePath(self.path).parts) - 1]

    def cells(self) -> list[str]:
        """Return the row; paths are escaped as in a store, and for spreadsheets."""
        paths = self.path, str(self.source), str(self.target)
        return [self.kind, *(guard_cell(escape_path(path)) for path in paths)]


def read_moves(folder: Path) -> list[Move]:
    """Return what was moved before; nothing where there is no list.

    Raises
    ------
    WriteError
        When the file is something else, or a row of it leads elsewhere than `move` would.
    """
    path = folder / FILE_NAME
    try:
        # Not opened as it is: a pipe would be waited for.
        text = (read_regular(path, _MOST_BYTES) or b"").decode()
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, csv.Error):
        rows = []
    if not rows or tuple(rows[0]) != _HEADER or any(len(row) != len(_HEADER) for row in rows):
        raise WriteError(
            f"{show_path(path)} is no list of moved images: give another folder, or take that "
            "file away"
        )
    found = []
    for kind, *cells in rows[1:]:
        path_, source, target = (unescape_path(unguard_cell(cell)) for cell in cells)
        found.append(Move(kind, path_, Path(source), Path(target)))
        _require_sound(found[-1], found[0], folder, len(found) + 1)
    return found


def _require_sound(one: Move, first: Move, folder: Path, number: int) -> None:
    """Refuse a row that `move` would not have written: the list may come from a stranger."""
    why = flaw(one, folder) or (
        f"it comes from {show_path(one.root)}, the rows above from {show_path(first.root)}"
        if one.root != first.root
        else None
    )
    if why is not None:
        raise WriteError(
            f"row {number} of {show_path(folder / FILE_NAME)} is not as featpipe writes it "
            f"({why}): nothing was moved; give another folder, or mend the list"
        )


def flaw(one: Move, folder: Path) -> str | None:
    """Say in what a row is not as `move` writes it into the list of a folder."""
    path = PurePath(one.path)
    if not _is_listed(one.path):
        return "its path is not that of an image within a folder"
    if not _is_plain(one.source):
        return "where it comes from is no absolute path"
    if one.source.parts[-len(path.parts) :] != path.parts:
        return "where it comes from does not end in its path"
    if one.target != folder / path:
        return f"where it went is not its path below {show_path(folder)}"
    if not are_apart(one.root, folder):
        return "it comes from the folder that it went to, or from one around it"
    return None


def _is_listed(path: str) -> bool:
    """Tell whether a source could list a path below its folder: no hidden file, none else."""
    parts = PurePath(path).parts
    return (
        bool(parts)
        and str(PurePath(path)) == path
        and "\0" not in path
        and not any(part.startswith((".", os.sep)) for part in parts)
        and os.path.splitext(path)[1].lower() in IMAGE_SUFFIXES
    )


def _is_plain(place: Path) -> bool:
    text = str(place)
    return place.is_absolute() and os.path.normpath(text) == text and "\0" not in text


def are_apart(one: Path, other: Path) -> bool:
    """Tell whether neither of two folders lies in the other, nor is it."""
    return not (one.is_relative_to(other) or other.is_relative_to(one))


def write_moves(folder: Path, moves: list[Move]) -> None:
    """Replace the list."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    writer.writerows(one.cells() for one in moves)
    with atomic_file(folder / FILE_NAME) as file:
        file.write(text.getvalue().encode("utf-8", "backslashreplace"))
