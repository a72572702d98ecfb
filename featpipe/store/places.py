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
        self._sorted: tuple[NDArray[np.uint64], NDArray[np.int64]] | None = None
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
        return len(self._by_key()[1]) + sum(self._find(key) is None for key in self._added)

    def __iter__(self) -> Iterator[Key]:
        _, at = self._by_key()
        for position in np.sort(at).tolist():
            key = self._words[position].tobytes()
            if key not in self._added:
                yield key
        yield from self._added

    def are_at(
        self, keys: Words, part: NDArray[np.int32], row: NDArray[np.int32]
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

    def known(self) -> Words:
        """Return the keys of the finished parts, (2, n), each once: what `holds` looks through."""
        firsts, at = self._by_key()
        return np.stack([firsts, self._words[at, 1]])

    def _find(self, key: Key) -> tuple[int, int] | None:
        if not len(self._words):
            return None
        firsts, at = self._by_key()
        first, second = np.frombuffer(key, dtype=np.uint64)
        i = int(np.searchsorted(firsts, first))
        while i < len(firsts) and firsts[i] == first:
            if self._words[at[i], 1] == second:
                part = int(np.searchsorted(self._ends, at[i], side="right"))
                return int(self._numbers[part]), int(at[i] - self._starts[part])
            i += 1
        return None

    def _by_key(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Return the first words, sorted, and where they stand; made when first asked for."""
        if self._sorted is None:
            at = np.lexsort((self._words[:, 1], self._words[:, 0]))
            ordered = self._words[at]
            # Equal keys keep their order in the sort: the last of them is the later part's.
            last = np.ones(len(at), dtype=bool)
            last[:-1] = (ordered[1:] != ordered[:-1]).any(axis=1)
            self._sorted = np.ascontiguousarray(ordered[last, 0]), at[last]
        return self._sorted
