"""Parts of files that are kept in memory while their images are read, one after the other."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class Pieces:
    """Recently used pieces: each loaded once, whichever thread asks first; bounded in size.

    Locks alone, and those written in C: see `featpipe._threads`.

    Parameters
    ----------
    most : int
        What they may take together, in the unit of their sizes; the last two stay in any case.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._found: OrderedDict[Hashable, _Piece] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel empty."""
        return Pieces, (self._most,)

    def get(self, key: Hashable, load: Callable[[], tuple[Any, int]]) -> Any:
        """Return a piece; ``load`` gives it and its size where it is not there.

        What ``load`` raises reaches who called; the next one tries again.
        """
        with self._lock:
            piece = self._found.setdefault(key, _Piece())
            self._found.move_to_end(key)
        with piece.lock:
            if piece.size is None:
                try:
                    piece.value, piece.size = load()
                except BaseException:
                    self.drop(key)
                    raise
                self._forget()
        return piece.value

    def peek(self, key: Hashable) -> Any:
        """Return a piece if it is there, else None."""
        with self._lock:
            piece = self._found.get(key)
        return None if piece is None else piece.value

    def drop(self, key: Hashable) -> None:
        """Forget a piece."""
        with self._lock:
            self._found.pop(key, None)

    @property
    def size(self) -> int:
        """What the pieces take together."""
        return sum(piece.size or 0 for piece in self._found.values())

    def _forget(self) -> None:
        with self._lock:
            total = self.size
            for key in list(self._found)[:-2]:
                if total <= self._most:
                    return
                total -= self._found.pop(key).size or 0


class _Piece:
    __slots__ = ("lock", "size", "value")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.value: Any = None
        self.size: int | None = None
