"""The k nearest rows by cosine: every row is looked at, and memory is bounded.

A block of rows becomes float32 once for a whole batch of queries; one matrix product gives
all cosines; what comes near the k-th best so far is kept. In the end, what float32 cannot
tell apart is told apart in float64, so that equal rows tie, and the lower one goes first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe import _machine
from featpipe._threads import Threads
from featpipe.neighbours.rows import QUERIES, Rows, units

Array = NDArray[Any]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_DOUBT = 2.0**-19
"""Cosines that are no further apart may be in any order: float32 has rounded them."""
_NEAR = 2.0**-7
"""Distances below this are computed in float64: little is left of them in float32."""
_SAME = 2.0**-46
"""Distances below this are none: a unit vector rounded to float32 is as far from itself."""
_SPARE = 128
"""Rows beside k that are kept for a query while it is in doubt which are nearest."""
_PAIRS = 2**20


def search(
    rows: Rows, queries: Array | Rows, k: int, pool: Threads | None = None
) -> tuple[Floats, Ints]:
    """Return the k nearest rows of every query by cosine distance, nearest first.

    Parameters
    ----------
    rows : Rows
        m of them.
    queries : ndarray of float, (q, D), or Rows
        Finite, of any length; a vector without a direction is at distance 1 from all.
    k : int
        At least 1; all rows where there are no more.
    pool : Threads, optional
        Threads for blocks of rows. Whoever gives it holds BLAS to one thread.

    Returns
    -------
    distances : ndarray of float64, (q, min(k, m))
        1 - cosine, between 0 and 2; exactly 0 for a row of the query's direction.
    positions : ndarray of int, (q, min(k, m))
        Of equally near rows the lower comes first. Where more than k + 128 rows are within
        4e-6 of the k-th distance, and not equal, any of them may be taken for nearer.
    """
    k = min(k, len(rows))
    distances = np.empty((len(queries), k))
    positions = np.empty((len(queries), k), dtype=np.int64)
    for start in range(0, len(queries) if k else 0, QUERIES):
        part = slice(start, start + QUERIES)
        some = queries.take(part) if isinstance(queries, Rows) else queries[part]
        distances[part], positions[part] = _batch(rows, some, k, pool)
    return distances, positions


def _batch(rows: Rows, queries: Array, k: int, pool: Threads | None) -> tuple[Floats, Ints]:
    exact = units(queries)
    narrow = exact.astype(np.float32)
    step = rows.step(len(queries))
    # Each thread takes the next block: its own come in rising order.
    numbers = count()
    n_blocks = -(-len(rows) // step)
    n_threads = 1 if pool is None else min(n_blocks, _machine.usable_cores())

    def work() -> _Nearest:
        nearest = _Nearest(len(queries), k)
        buffer = rows.buffer(min(step, len(rows)))
        cosines = np.empty((len(queries), min(step, len(rows))), dtype=np.float32)
        while (number := next(numbers)) < n_blocks:
            where = slice(number * step, min((number + 1) * step, len(rows)))
            found = cosines[:, : where.stop - where.start]
            np.matmul(narrow, rows.block(where, buffer).T, out=found)
            np.multiply(found, rows.inverse(where), out=found)
            nearest.offer(found, where.start)
        return nearest

    if pool is None or n_threads == 1:
        found = [work()]
    else:
        tasks = [pool.submit(work) for _ in range(n_threads)]
        found = [task.result() for task in tasks]
    return _settled(found[0].pairs(found[1:]), rows, exact, k)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Queries and rows that may belong together: three arrays of one length."""

    query: Ints
    cosine: NDArray[np.float32]
    row: Ints

    def where(self, kept: Array) -> _Pairs:
        return _Pairs(self.query[kept], self.cosine[kept], self.row[kept])

    @classmethod
    def joined(cls, pairs: list[_Pairs]) -> _Pairs:
        return cls(
            np.concatenate([p.query for p in pairs]),
            np.concatenate([p.cosine for p in pairs]),
            np.concatenate([p.row for p in pairs]),
        )


class _Nearest:
    """The nearest rows so far, for a batch of queries."""

    def __init__(self, n_queries: int, k: int) -> None:
        self._k = k
        nothing = np.empty(0, dtype=np.int64)
        self._pairs = _Pairs(nothing, np.empty(0, dtype=np.float32), nothing)
        self._new: list[_Pairs] = []
        # What a cosine must reach to be looked at.
        self._bar = np.full(n_queries, -np.inf, dtype=np.float32)

    def offer(self, cosines: NDArray[np.float32], first: int) -> None:
        """Look at the cosines of a block of rows, (q, b), that lie above all rows so far."""
        hot = np.flatnonzero(cosines.max(axis=1) >= self._bar)
        if not len(hot):
            return
        values = cosines if len(hot) == len(cosines) else cosines[hot]
        bar = self._bar[hot]
        last = values.shape[1] - self._k
        if last > 0 and np.count_nonzero(values >= bar[:, None]) > self._k * len(hot):
            kth = np.partition(values, last, axis=1)[:, last]
            bar = np.maximum(bar, kth - np.float32(_DOUBT))
        query, row = np.nonzero(values >= bar[:, None])
        self._new.append(_Pairs(hot[query], values[query, row], row + first))
        # Sorting costs more than a bar that is a little low: not before it has doubled.
        if sum(len(pairs.row) for pairs in self._new) > len(self._pairs.row):
            self._merge()

    def pairs(self, others: Iterable[_Nearest] = ()) -> _Pairs:
        """Return what may be among the k nearest, with what other threads have found."""
        self._new += [other.pairs() for other in others]
        self._merge()
        return self._pairs

    def _merge(self) -> None:
        """Keep what may be among the k nearest, and set the bar accordingly."""
        pairs = _Pairs.joined([self._pairs, *self._new])
        self._new = []
        bar, doubt = self._bar, np.float32(_DOUBT)
        pairs = pairs.where(np.argsort(_key(pairs.query, pairs.cosine)))
        rank, _ = _ranks(pairs.query, len(bar))
        kth = np.full(len(bar), -np.inf, dtype=np.float32)
        last = rank == self._k - 1
        kth[pairs.query[last]] = pairs.cosine[last]
        certain = pairs.cosine > (kth + doubt)[pairs.query]
        open_ = pairs.where(~certain & (pairs.cosine >= (kth - doubt)[pairs.query]))
        open_ = open_.where(np.lexsort((open_.row, open_.query)))
        rank, size = _ranks(open_.query, len(bar))
        most = self._k + _SPARE
        self._pairs = _Pairs.joined([pairs.where(certain), open_.where(rank < most)])
        # With as many lower rows in doubt, a higher one must be clearly nearer.
        above = np.nextafter(kth + doubt, np.float32(np.inf))
        self._bar = np.where(size < most, kth - doubt, above)


def _key(query: Ints, cosine: NDArray[np.float32]) -> Ints:
    """Return numbers that sort by query, then by falling cosine, to 2**-28: quicker than two."""
    return (query << 32) + ((2 - cosine) * np.float32(2**28)).astype(np.int64)


def _ranks(group: Ints, n_groups: int) -> tuple[Ints, Ints]:
    """Return the place of every entry in its group, and the sizes; ``group`` is sorted."""
    size = np.bincount(group, minlength=n_groups)
    rank = np.arange(len(group)) - np.repeat(np.cumsum(size) - size, size)
    return rank, size


def _settled(pairs: _Pairs, rows: Rows, exact: Floats, k: int) -> tuple[Floats, Ints]:
    """Return the k nearest, (q, k): where float32 leaves a doubt, by distances in float64."""
    pairs = pairs.where(np.argsort(_key(pairs.query, pairs.cosine)))
    distance = np.clip(1 - pairs.cosine.astype(np.float64), 0, 2)
    rank, _ = _ranks(pairs.query, len(exact))
    close = (np.diff(distance) < _DOUBT) & (rank[1:] > 0)
    doubtful = distance < _NEAR
    doubtful[1:] |= close
    doubtful[:-1] |= close
    at = np.flatnonzero(doubtful)
    for part in _parts(at, max(1, _PAIRS // max(1, rows.dimension))):
        apart = units(rows.take(pairs.row[part]))
        lost = ~apart.any(axis=1)
        apart -= exact[pairs.query[part]]
        # |a - b|² / 2 = 1 - cosine, without the difference of nearly equal numbers.
        distance[part] = np.square(apart).sum(axis=1) / 2
        lost |= ~exact[pairs.query[part]].any(axis=1)
        distance[part[lost]] = 1
    distance[distance < _SAME] = 0
    order = np.lexsort((pairs.row, distance, pairs.query))
    kept = order[_ranks(pairs.query[order], len(exact))[0] < k]
    return distance[kept].reshape(-1, k), pairs.row[kept].reshape(-1, k)


def _parts(at: Ints, size: int) -> Iterator[Ints]:
    for start in range(0, len(at), size):
        yield at[start : start + size]
