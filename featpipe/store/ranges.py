"""Vectors of a store in a bucket, fetched by ranges: only what is wanted, many requests at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.errors import StoreError
from featpipe.storage import StorageError, look_at, read_range
from featpipe.store import parts
from featpipe.store.folder import at_once, cannot_read

Ints = NDArray[np.int64]

_GAP_BYTES = 2**17
"""What is fetched in vain rather than asked for apart: some milliseconds of a connection."""
_SHORT = "it has fewer rows than the index says"


@dataclass(frozen=True, slots=True)
class _Run:
    """Rows of one part that are fetched together, from the first to before the last.

    ``at`` says where each that is wanted goes, and ``row`` which it is.
    """

    part: int
    first: int
    last: int
    at: Ints
    row: Ints


def read_rows(
    store: str, shape: parts.PartShape, part: Ints, row: Ints, into: NDArray[Any]
) -> None:
    """Fetch vectors into an array, (m, D).

    Rows of a part that lie near each other come in one request, and a whole part in one;
    sixteen requests are under way at once.

    Parameters
    ----------
    part, row : ndarray of int, (m,)
        Where each vector lies.
    into : ndarray, (m, D)
        Takes them, in its own dtype.

    Raises
    ------
    StoreError
        When a part is damaged or cannot be had; the message names the file.
    """

    def fetch(run: _Run) -> tuple[_Run, NDArray[Any]]:
        return run, _fetched(store, shape, run)

    for run, vectors in at_once(store, fetch, _runs(part, row, shape)):
        into[run.at] = vectors[run.row - run.first]


def _runs(part: Ints, row: Ints, shape: parts.PartShape) -> Iterator[_Run]:
    """Yield the rows that are wanted, those together between which little else lies."""
    order = np.lexsort((row, part))
    parts_, rows = part[order], row[order]
    most = 1 + _GAP_BYTES // shape.row_size
    is_apart = (np.diff(parts_) != 0) | (np.diff(rows) > most)
    bounds = [0, *(np.flatnonzero(is_apart) + 1).tolist(), len(order)]
    for start, end in pairwise(bounds):
        if start < end:
            run = rows[start:end]
            number, first, last = int(parts_[start]), int(run[0]), int(run[-1]) + 1
            yield _Run(number, first, last, order[start:end], run)


def _fetched(store: str, shape: parts.PartShape, run: _Run) -> NDArray[Any]:
    """Return the rows of one run, (last - first, D)."""
    path = str(parts.vectors_path(store, run.part))
    if run.first < 0:
        raise StoreError(parts.damaged(path, _SHORT))
    # The header is as long whatever the number of rows; it comes along with the first of them.
    skipped = len(shape.header(run.last))
    start = skipped + run.first * shape.row_size if run.first else 0
    length = skipped + run.last * shape.row_size - start
    try:
        data = read_range(path, start, length)
    except FileNotFoundError:
        raise StoreError(parts.damaged(path, "the file is missing")) from None
    except OSError as exc:
        if type(exc) is StorageError and _ends_before(path, start + length):
            raise StoreError(parts.damaged(path, _SHORT)) from exc
        raise cannot_read(path, exc) from exc
    if len(data) < length:
        raise StoreError(parts.damaged(path, _SHORT))
    if not run.first:
        parts.check_header(data, path, shape)
    vectors: NDArray[Any] = np.frombuffer(data, shape.dtype, offset=0 if run.first else skipped)
    return vectors.reshape(run.last - run.first, shape.dimension)


def _ends_before(path: str, end: int) -> bool:
    """Tell whether an object is shorter; servers refuse a range that begins after its end."""
    try:
        size = look_at(path).size
    except OSError:
        return False
    return size is not None and size < end
