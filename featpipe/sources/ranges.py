"""Bytes out of a large file behind an address: small neighbours are fetched together."""

from __future__ import annotations

import threading
from collections import deque

from featpipe.sources.pieces import Pieces
from featpipe.storage import read_range

BLOCK = 2**20
_SMALL = BLOCK // 4
_RECENT = 2 * 32
"""Blocks that are remembered: twice as many as threads read far away at one time."""


class Ranges:
    """Reads ranges of one file, from many threads.

    Where small images are read in the order in which they lie there, whole blocks of a mebibyte
    are fetched, each once; what is read here and there is fetched by itself.

    Parameters
    ----------
    place : str
        An address.
    pieces : Pieces
        Keeps the blocks, those of many files together.
    """

    def __init__(self, place: str, pieces: Pieces) -> None:
        self._place, self._pieces = place, pieces
        self._recent: deque[int] = deque(maxlen=_RECENT)
        self._lock = threading.Lock()

    def read(self, start: int, length: int, version: str | None) -> bytes:
        """Return a range; fewer bytes at the end of the file.

        Raises
        ------
        OSError
            As of `featpipe.storage.read_range`.
        """
        blocks = range(start // BLOCK, -(-(start + length) // BLOCK))
        if length > _SMALL or not self._goes_on(blocks):
            return read_range(self._place, start, length)
        data = b"".join(self._block(at, version) for at in blocks)
        begin = start - blocks.start * BLOCK
        return data[begin : begin + length]

    def _goes_on(self, blocks: range) -> bool:
        """Tell whether something was read just before here."""
        with self._lock:
            known = blocks.start in self._recent or blocks.start - 1 in self._recent
            self._recent.extend(at for at in blocks if at not in self._recent)
        return known

    def _block(self, at: int, version: str | None) -> bytes:
        def load() -> tuple[bytes, int]:
            data = read_range(self._place, at * BLOCK, BLOCK)
            return data, len(data)

        block: bytes = self._pieces.get((self._place, version, at), load)
        return block
