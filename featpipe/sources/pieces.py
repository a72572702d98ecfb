"""Parts of files that are kept in memory while their images are read, one after the other."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any


class Pieces:
    """Recently used pieces: loaded once, whichever thread asks first; bounded in bytes.

    Parameters
    ----------
    most_bytes : int
        What they may take together; the last two stay whatever their size.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._found: OrderedDict[Hashable, Future[Any]] = OrderedDict()
        self._sizes: dict[Hashable, int] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, load: Callable[[], tuple[Any, int]]) -> Any:
        """Return a piece; ``load`` gives it and its size in bytes where it is not there.

        What ``load`` raises reaches all who wait for it, and the next one tries again.
        """
        with self._lock:
            future = self._found.get(key)
            is_mine = future is None
            if future is None:
                future = self._found[key] = Future()
            self._found.move_to_end(key)
        if is_mine:
            self._load(key, future, load)
        return future.result()

    def _load(
        self, key: Hashable, future: Future[Any], load: Callable[[], tuple[Any, int]]
    ) -> None:
        try:
            piece, size = load()
        except BaseException as exc:  # noqa: BLE001 - those who wait must not wait for ever
            with self._lock:
                del self._found[key]
            future.set_exception(exc)
            return
        future.set_result(piece)
        with self._lock:
            self._sizes[key] = size
            self._forget()

    def _forget(self) -> None:
        total = sum(self._sizes.values())
        for key in [key for key in self._found if key in self._sizes]:
            if total <= self._most_bytes or len(self._sizes) <= 2:
                return
            total -= self._sizes.pop(key)
            del self._found[key]
