"""Reading ahead: bytes that come from far away are asked for before they are needed.

A request to a bucket takes tens of milliseconds, in which a core decodes and embeds several
images; so many requests are under way at one time, in threads of their own beside those that
compute. What has been asked for and not yet used is bounded by number and by bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from threading import Event
from types import TracebackType
from typing import Self, TypeAlias

from featpipe import storage
from featpipe._threads import Task, Threads
from featpipe.errors import SourceError
from featpipe.sources import Source
from featpipe.types import Failure, ImageRef

Bytes: TypeAlias = bytes | Failure
Reading: TypeAlias = Task[Bytes]

_MOST_BYTES = 2**28
_UNKNOWN_BYTES = 2**20
"""What an image counts for whose size is not known."""


class ReadAhead:
    """The readers of one run; use it in a ``with`` statement, inside that of what it serves.

    At its end what has not been read is given up, and nobody waits for a storage that is silent.
    """

    def __init__(self, source: Source) -> None:
        self._source, self._ended = source, Event()
        self.readers = source.readers
        self._threads = Threads(self.readers) if self.readers else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._threads is not None:
            self._threads.close()

    def begin(self, refs: tuple[ImageRef, ...]) -> tuple[Reading, ...] | None:
        """Ask for the bytes of some images; None where who needs them reads for itself."""
        if self._threads is None:
            return None
        return tuple(self._threads.submit(self._read, ref) for ref in refs)

    def of(
        self, batches: Iterator[tuple[tuple[int, ...], tuple[ImageRef, ...]]]
    ) -> Iterator[tuple[tuple[int, ...], tuple[ImageRef, ...], tuple[Reading, ...] | None]]:
        """Yield batches of positions and images with their readings, the next ones begun."""
        waiting: deque[tuple[tuple[int, ...], tuple[ImageRef, ...], tuple[Reading, ...] | None]] = (
            deque()
        )
        count = held = 0
        for positions, refs in batches:
            waiting.append((positions, refs, self.begin(refs)))
            count, held = count + len(refs), held + bytes_ahead(refs)
            while waiting and not self.has_room(count, held):
                first = waiting.popleft()
                count, held = count - len(first[1]), held - bytes_ahead(first[1])
                yield first
        yield from waiting

    def has_room(self, waiting: int, n_bytes: int) -> bool:
        """Tell whether more should be asked for, where so many images and bytes wait."""
        return waiting < 2 * self.readers and n_bytes < _MOST_BYTES

    def _read(self, ref: ImageRef) -> Bytes:
        with storage.until(self._ended):
            return read_bytes(self._source, ref)


def bytes_ahead(refs: tuple[ImageRef, ...]) -> int:
    """Return how many bytes some images are expected to have."""
    return sum(_UNKNOWN_BYTES if ref.size is None else ref.size for ref in refs)


def read_bytes(source: Source, ref: ImageRef) -> Bytes:
    """Return the bytes of one listed image, or why they cannot be had.

    Raises
    ------
    SourceError
        When the storage of all images is silent: the others would fail in the same way.
    """
    if ref.problem is not None:
        return Failure("unreadable", ref.problem)
    try:
        return source.read(ref)
    except MemoryError:
        return Failure("unreadable", "not enough memory to read the file")
    except storage.StorageGoneError as exc:
        raise SourceError(
            f"{exc}: what was finished is kept; run the same command again when it does"
        ) from exc
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        return Failure("unreadable", f"the file cannot be read: {reason}")
