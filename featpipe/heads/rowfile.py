"""The rows of nearest neighbours: a plain ``.npy`` file beside the head's model.

It is memory-mapped, so that a million vectors neither travel through an archive nor lie in
memory twice. Its name is the digest of its contents: a file of rows is never changed, and a
record finds its own, whatever else is being saved there.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from featpipe._files import atomic_file, printable
from featpipe.errors import HeadError
from featpipe.heads.arrays import blocks, title
from featpipe.heads.entries import RowsEntry
from featpipe.heads.neighbours import CosineNeighbours
from featpipe.heads.record import damaged
from featpipe.neighbours import Rows

Array = NDArray[Any]


def rows_path(folder: Path, digest: str) -> Path:
    """Return the path of the rows with that digest."""
    return folder / f"rows-{digest}.npy"


def is_rows_file(name: str) -> bool:
    """Tell whether a file in a head's folder is one of rows.

    >>> is_rows_file("rows-0123456789abcdef0123456789abcdef.npy"), is_rows_file("rows.npy")
    (True, False)
    """
    return re.fullmatch(r"rows-[0-9a-f]{32}\.npy", name) is not None


def without_rows(pipeline: Pipeline) -> Pipeline:
    """Return what of a fitted pipeline goes into the model file; the pipeline stays as it is."""
    if not isinstance(pipeline[-1], CosineNeighbours):
        return pipeline
    bare = copy(pipeline[-1])
    for name in CosineNeighbours.kept_apart:
        delattr(bare, name)
    return Pipeline([*pipeline.steps[:-1], (pipeline.steps[-1][0], bare)])


def write_rows(folder: Path, pipeline: Pipeline) -> RowsEntry | None:
    """Write the rows that a pipeline has, if any, a block at a time.

    Raises
    ------
    WriteError
        When the operating system refuses to write.
    """
    estimator = pipeline[-1]
    if not isinstance(estimator, CosineNeighbours):
        return None
    digest = estimator.rows_digest()
    return write_array(rows_path(folder, digest), estimator.rows_, digest)


def write_array(path: Path, rows: Array, digest: str) -> RowsEntry:
    """Write rows, (n, D), into a file of their own, a block at a time.

    Raises
    ------
    WriteError
        When the operating system refuses to write.
    """
    n, dimension = rows.shape
    if not _lies_at(rows, path):
        header = {"descr": rows.dtype.str, "fortran_order": False, "shape": rows.shape}
        with atomic_file(path) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for block in blocks(rows):
                file.write(np.ascontiguousarray(block).data.cast("B"))
    return RowsEntry(path.stat().st_size, digest, str(rows.dtype), (n, dimension))


def _lies_at(rows: Array, path: Path) -> bool:
    """Tell whether rows are the map of a file already: a head that is saved where it came from."""
    # Windows does not replace what is mapped.
    name = getattr(rows, "filename", None)
    return name is not None and path.exists() and os.path.samefile(name, path)


def remove_other_rows(folder: Path, entry: RowsEntry | None) -> None:
    """Remove the rows of former heads; who has them mapped keeps them."""
    kept = None if entry is None else rows_path(folder, entry.digest).name
    for path in folder.iterdir():
        if is_rows_file(path.name) and path.name != kept:
            with suppress(OSError):  # Windows does not remove what is mapped
                path.unlink()


def map_rows(folder: Path, entry: RowsEntry) -> Array:
    """Map a head's rows, read-only; see `map_array`."""
    return map_array(rows_path(folder, entry.digest), entry)


def map_array(path: Path, entry: RowsEntry) -> Array:
    """Map a file of rows, read-only, once size, dtype and shape are those of the record.

    Raises
    ------
    FileNotFoundError
        When there is no such file (another head may just have been saved).
    HeadError
        When it is not the file that the record describes.
    """
    try:
        found = path.stat()
        as_said = stat.S_ISREG(found.st_mode) and found.st_size == entry.n_bytes
        array = np.lib.format.open_memmap(path, mode="r") if as_said else None
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise HeadError(f"cannot read {printable(str(path))}: {exc.strerror or exc}") from exc
    # A header is text, and a hostile one may fail in any way.
    except Exception as exc:
        raise damaged(path, "it is not a whole NumPy array") from exc
    if array is None:
        raise damaged(path, "it is not the file that head.json describes")
    if not array.flags.c_contiguous or (str(array.dtype), array.shape) != (
        entry.dtype,
        entry.shape,
    ):
        raise damaged(path, f"it holds {array.dtype} {array.shape}")
    return array


def attach_rows(folder: Path, estimator: CosineNeighbours, rows: Array, entry: RowsEntry) -> None:
    """Give an estimator its rows, after one look at every number, a block at a time.

    Raises
    ------
    HeadError
        When they are not those that were written, or not finite.
    """
    path = rows_path(folder, entry.digest)
    digest = hashlib.blake2b(title("rows", rows), digest_size=16)
    flaw = None
    try:
        norms = Rows.measured(rows, look=lambda block: digest.update(block.data)).norms
    except ValueError:
        flaw = "it holds NaN or infinity"
    if digest.hexdigest() != entry.digest:
        flaw = "its contents are not those that were written"
    if flaw is not None:
        raise damaged(path, flaw)
    estimator.rows_, estimator.norms_, estimator.rows_digest_ = rows, norms, entry.digest
