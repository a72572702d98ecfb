"""The file of training vectors beside a head, which strange images are told by.

As with `featpipe.heads.rowfile` its name is the digest of its contents, and it is never changed.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.heads.entries import NoveltyEntry
from featpipe.heads.record import damaged
from featpipe.heads.rowfile import map_array, write_array
from featpipe.ood import Novelty

_NEAR_ONE = 1e-3


def novelty_path(folder: Path, digest: str) -> Path:
    """Return the path of the file whose rows have that digest."""
    return folder / f"novelty-{digest}.npy"


def is_novelty_file(name: str) -> bool:
    """Tell whether a file in a head's folder is one of those.

    >>> is_novelty_file("novelty-0123456789abcdef0123456789abcdef.npy"), is_novelty_file("a.npy")
    (True, False)
    """
    return re.fullmatch(r"novelty-[0-9a-f]{32}\.npy", name) is not None


def write_novelty(folder: Path, novelty: Novelty | None) -> NoveltyEntry | None:
    """Write the rows, if there are any; return what the record says of them.

    Raises
    ------
    WriteError
        When the operating system refuses to write.
    """
    if novelty is None:
        return None
    digest = novelty.rows_digest
    rows = write_array(novelty_path(folder, digest), novelty.rows, digest)
    return NoveltyEntry.of(novelty, rows)


def remove_other_novelties(folder: Path, entry: NoveltyEntry | None) -> None:
    """Remove the files of former heads."""
    kept = None if entry is None else novelty_path(folder, entry.rows.digest).name
    for path in folder.iterdir():
        if is_novelty_file(path.name) and path.name != kept:
            with suppress(OSError):
                path.unlink()


def read_novelty(folder: Path, entry: NoveltyEntry) -> Novelty:
    """Read what `write_novelty` has written, and look at every number.

    Raises
    ------
    FileNotFoundError
        When there is no such file (another head may just have been saved).
    HeadError
        When it is not the file that the record describes, or its numbers are no unit vectors.
    """
    path = novelty_path(folder, entry.rows.digest)
    rows = np.array(map_array(path, entry.rows))
    if not _have_length_one(rows):
        raise damaged(path, "it holds what is no vector of length 1")
    novelty = Novelty(rows, entry.counts, np.array(entry.calibration))
    if novelty.rows_digest != entry.rows.digest:
        raise damaged(path, "its contents are not those that were written")
    if novelty.digest != entry.contents:
        raise damaged(folder / "head.json", "its field 'novelty' is not what was written")
    return novelty


def _have_length_one(rows: NDArray[Any]) -> bool:
    """Tell whether all rows are finite and of length 1; a vector of zeros has stayed as it was."""
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.sqrt(np.einsum("md,md->m", rows, rows))
    return bool(((np.abs(lengths - 1) < _NEAR_ONE) | (lengths == 0)).all())
