"""Where the vector of every content lies, in 16 bytes a key and no object for any of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from featpipe._files import KEY_BYTES
from featpipe.types import Key

Words = NDArray[np.uint64]
"""Keys as two words each, (n, 2)."""


def words(keys: bytes | bytearray) -> Words:
    """Return keys that stand one after the other as an array, without a copy."""
    return np.frombuffer(keys, dtype=np.uint64).reshape(-1, KEY_BYTES // 8)


def by_key(keys: Words) -> NDArray[np.int64]:
    """Return the order of keys by their words; equal ones stay in the order in which they stand."""
    at = np.argsort(keys[:, 0])
    first = keys[at, 0]
    is_tied = np.zeros(len(at) + 1, dtype=bool)
    is_tied[1:-1] = first[1:] == first[:-1]
    tied = np.flatnonzero(is_tied[1:] | is_tied[:-1])
    # Few share half of a key but those that share all of it.
    among = at[tied]
    at[tied] = among[np.lexsort((among, keys[among, 1], keys[among, 0]))]
    return at


def firsts(keys: Words) -> NDArray[np.bool_]:
    """Tell of every key whether none before it is equal."""
    is_first = np.ones(len(keys), dtype=bool)
    rows = repeating(keys[:, 0])
    at = rows[by_key(keys[rows])]
    is_first[at[1:]] = ~_follow_equals(keys, at)
    return is_first


def repeating(halves: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return the rows of the halves of keys that stand there more than once, in order."""
    ordered = np.sort(halves)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(repeated):
        return np.empty(0, dtype=np.int64)
    # Not `isin`, which would sort all of them again: those that are repeated are few.
    nearest = repeated[np.minimum(np.searchsorted(repeated, halves), len(repeated) - 1)]
    return np.flatnonzero(nearest == halves)


def positions(keys: Words, held: Words, order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for every key where it stands in ``held``, or -1; of equal ones the first in order.

    Parameters
    ----------
    keys, held : ndarray of uint64, (n, 2) and (m, 2)
    order : ndarray of int, (l,)
        Positions in ``held``, in the order of `by_key`.
    """
    found = np.full(len(keys), -1, dtype=np.int64)
    if not len(order):
        return found
    # Sorted, neighbours look at neighbours: several times as quick for many.
    pending = np.argsort(keys[:, 0])
    halves = held[order, 0]
    at = np.searchsorted(halves, keys[pending, 0])
    while len(pending):
        is_inside = at < len(order)
        pending, at = pending[is_inside], at[is_inside]
        meets = halves[at] == keys[pending, 0]
        pending, at = pending[meets], at[meets]
        is_equal = held[order[at], 1] == keys[pending, 1]
        found[pending[is_equal]] = order[at[is_equal]]
        pending, at = pending[~is_equal], at[~is_equal] + 1
    return found


def _follow_equals(keys: Words, at: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Tell of every key of an order but the first whether it equals the one before it."""
    equal = np.ones(max(len(at) - 1, 0), dtype=bool)
    for word in keys.T:
        ordered = word[at]
        equal &= ordered[1:] == ordered[:-1]
    return equal


def by_part(part: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield every part's number, and the positions where it stands; one pass over all."""
    order = np.argsort(part, kind="stable")
    for at in np.split(order, np.flatnonzero(np.diff(part[order])) + 1):
        if len(at):
            yield int(part[at[0]]), at


def holds(known: Words, key: Key) -> bool:
    """Tell whether a key is among those that `Places.known` has given."""
    first, second = np.frombuffer(key, dtype=np.uint64)
    begin = int(np.searchsorted(known[0], first))
    end = int(np.searchsorted(known[0], first, side="right"))
    return bool((known[1, begin:end] == second).any())


class Places(Mapping[Key, tuple[int, int]]):
    """Part and row of every key: those of the finished parts as arrays, later ones as a dict.

    Where two parts hold one key, the later one counts; they come in the order of their numbers.

    Parameters
    ----------
    parts : iterable of (int, bytes)
        Number and keys of every finished part; the keys in the order of its rows.
    """

    def __init__(self, parts: Iterable[tuple[int, bytes]] = ()) -> None:
        numbers, ends, data = list[int](), [0], bytearray()
        for number, keys in parts:
            data += keys
            numbers.append(number)
            ends.append(len(data) // KEY_BYTES)
        self._words = words(data)
        self._numbers = np.array(numbers, dtype=np.int64)
        self._starts, self._ends = np.array(ends[:-1], dtype=np.int64), np.array(ends[1:])
        self._order: NDArray[np.int64] | None = None
        self._halves = np.empty(0, dtype=np.uint64)
        self._added: dict[Key, tuple[int, int]] = {}

    def __getitem__(self, key: Key) -> tuple[int, int]:
        place = self._added.get(key) or self._find(key)
        if place is None:
            raise KeyError(key)
        return place

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes) and (key in self._added or self._find(key) is not None)

    def __setitem__(self, key: Key, place: tuple[int, int]) -> None:
        self._added[key] = place

    def __len__(self) -> int:
        # The order takes three times as long: it is not made for a number alone.
        finished = firsts(self._words).sum() if self._order is None else len(self._order)
        return int(finished) + sum(self._find(key) is None for key in self._added)

    def __iter__(self) -> Iterator[Key]:
        for position in np.sort(self._by_key()).tolist():
            key = self._words[position].tobytes()
            if key not in self._added:
                yield key
        yield from self._added

    def are_at(
        self, keys: Words, part: NDArray[np.integer], row: NDArray[np.integer]
    ) -> NDArray[np.bool_]:
        """Tell for every key whether its vector lies in that row of that finished part.

        Nothing is searched for: rows of an index that is up to date need one look each.
        """
        if not len(self._words):
            return np.zeros(len(keys), dtype=bool)
        at = np.minimum(np.searchsorted(self._numbers, part), len(self._numbers) - 1)
        position = self._starts[at] + row
        right = (self._numbers[at] == part) & (row >= 0) & (position < self._ends[at])
        found = self._words[np.where(right, position, 0)]
        return np.asarray(right & (found == keys).all(axis=1), dtype=bool)

    def find(self, keys: Words) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return part and row of every key, (n,) each; -1 where it is not held."""
        at = positions(keys, self._words, self._by_key())
        part, row = (np.full(len(keys), -1, dtype=np.int64) for _ in range(2))
        is_held = at >= 0
        if is_held.any():
            number = np.searchsorted(self._ends, at[is_held], side="right")
            part[is_held] = self._numbers[number]
            row[is_held] = at[is_held] - self._starts[number]
        if self._added:
            added = words(b"".join(self._added))
            places = np.array(list(self._added.values()), dtype=np.int64)
            at = positions(keys, added, by_key(added))
            part[at >= 0], row[at >= 0] = places[at[at >= 0]].T
        return part, row

    def known(self) -> Words:
        """Return the keys of the finished parts, (2, n), each once: what `holds` looks through."""
        return np.ascontiguousarray(self._words[self._by_key()].T)

    def _find(self, key: Key) -> tuple[int, int] | None:
        if not len(self._words):
            return None
        order = self._by_key()
        first, second = np.frombuffer(key, dtype=np.uint64)
        i = int(np.searchsorted(self._halves, first))
        while i < len(order) and self._halves[i] == first:
            if self._words[order[i], 1] == second:
                part = int(np.searchsorted(self._ends, order[i], side="right"))
                return int(self._numbers[part]), int(order[i] - self._starts[part])
            i += 1
        return None

    def _by_key(self) -> NDArray[np.int64]:
        """Return where the different keys stand, in the order of `by_key`; made when asked for."""
        if self._order is None:
            at = by_key(self._words)
            # Of equal keys the last is the later part's.
            is_last = np.ones(len(at), dtype=bool)
            is_last[:-1] = ~_follow_equals(self._words, at)
            self._order = at[is_last]
            self._halves = self._words[self._order, 0]
        return self._order
