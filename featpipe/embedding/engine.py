"""Threads that run to completion: each reads, hashes, decodes and embeds a small batch.

As many threads as cores, all on one session whose calls use one thread each, so that no pool
waits for another. Reading, decoding and inference overlap because different batches are at
different stages. Batches leave in the order in which they came, and never more than a few
are under way: memory does not grow with the number of images.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from featpipe._files import content_key
from featpipe._threads import Task, Threads
from featpipe.backbones import Backbone, usable_cores
from featpipe.embedding.ahead import Bytes, ReadAhead, Reading, bytes_ahead, read_bytes
from featpipe.images import decode_image, image_size
from featpipe.sources import Source
from featpipe.types import Failure, ImageRef, Key, Vectors

if TYPE_CHECKING:
    from featpipe.backbones.session import Session

Wanted: TypeAlias = Callable[[Key], bool]


@dataclass(frozen=True, slots=True)
class EmbeddedBatch:
    """What became of some images, in the order in which they were given.

    Attributes
    ----------
    refs : tuple of ImageRef
    keys : tuple of bytes or None
        Content keys; None where the file could not be read.
    shapes : tuple of (width, height) or None
        Pixels, upright; None where the image could not be read or decoded.
    failures : tuple of Failure or None
    rows : tuple of int or None
        Row of ``vectors`` that belongs to the image; None where it failed or nobody wanted
        its vector.
    vectors : ndarray of float32, (k, D)
    """

    refs: tuple[ImageRef, ...]
    keys: tuple[Key | None, ...]
    shapes: tuple[tuple[int, int] | None, ...]
    failures: tuple[Failure | None, ...]
    rows: tuple[int | None, ...]
    vectors: Vectors


def stream(
    source: Source,
    refs: Iterable[ImageRef],
    backbone: Backbone,
    session: Session,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    wanted: Wanted | None = None,
    total: int | None = None,
) -> Generator[EmbeddedBatch, None, None]:
    """Embed images as they come, in order, with bounded memory.

    Parameters
    ----------
    source, refs
        What to read, and from where; ``refs`` may be endless.
    batch_size : int, optional
        Images a call of the backbone; the session's own choice by default.
    workers : int, optional
        Threads; one a core that this process may use by default.
    wanted : callable, optional
        Asked once for each content key, from any thread, before the image is decoded; where
        it says no, the image has neither vector nor failure.
    total : int, optional
        How many images there are, where that is known: then the last batches are no burden
        for one thread while the others have nothing to do.

    Yields
    ------
    EmbeddedBatch
        An image that cannot be read or decoded is a `Failure` in it, never an exception.
    """
    count = workers or usable_cores()
    size = batch_size or _even_size(session, total, count)
    embedder = Embedder(source, backbone, session, wanted)
    iterator = iter(refs)
    pending: deque[tuple[Task[EmbeddedBatch], int]] = deque()
    held = 0
    # Left on Ctrl-C and by a caller who stops early, too: nothing more is begun.
    needed = count if total is None else max(1, min(count, -(-total // size)))
    with Threads(needed) as pool, ReadAhead(source) as ahead:
        while True:
            while (len(pending) < 2 * needed + 1 or ahead.has_room(len(pending) * size, held)) and (
                batch := tuple(islice(iterator, size))
            ):
                task = pool.submit(embedder, batch, ahead.begin(batch))
                pending.append((task, bytes_ahead(batch)))
                held += pending[-1][1]
            if not pending:
                return
            task, n_bytes = pending.popleft()
            held -= n_bytes
            yield task.result()


def _even_size(session: Session, total: int | None, count: int) -> int:
    """Return images a call; of ten images on two threads five, not eight and two.

    A device of its own, one call at a time, gains nothing by smaller batches.
    """
    size = session.batch_size
    if not total or not session.uses_cores:
        return size
    rounds = -(-total // (size * count))
    return -(-total // (rounds * count))


class Embedder:
    """Takes one batch through all stages: the work, which does not know where it is done.

    Threads share one, as it holds no state of its own; workers on other machines have one each.
    ``wanted`` is as in `stream`.
    """

    def __init__(
        self, source: Source, backbone: Backbone, session: Session, wanted: Wanted | None = None
    ) -> None:
        self._source, self._session = source, session
        self._rule, self._dimension = backbone.card.resize, backbone.dimension
        self._wanted = wanted

    def __call__(
        self, refs: tuple[ImageRef, ...], readings: tuple[Reading, ...] | None = None
    ) -> EmbeddedBatch:
        """Embed one batch; an image that fails is a record, never an exception.

        ``readings`` give the bytes, where they have been asked for before.
        """
        side = self._rule.crop
        pixels = np.empty((len(refs), side, side, 3), dtype=np.uint8)
        keys: list[Key | None] = []
        shapes: list[tuple[int, int] | None] = []
        failures: list[Failure | None] = []
        rows: list[int | None] = []
        filled = 0
        for at, ref in enumerate(refs):
            data = read_bytes(self._source, ref) if readings is None else readings[at].result()
            key, shape, failure, used = self._load(data, pixels[filled])
            keys.append(key)
            shapes.append(shape)
            failures.append(failure)
            rows.append(filled if used else None)
            filled += used
        vectors = self._session.run(pixels[:filled]) if filled else self._nothing()
        return EmbeddedBatch(
            refs, tuple(keys), tuple(shapes), tuple(failures), tuple(rows), vectors
        )

    def _load(
        self, data: Bytes, out: np.ndarray
    ) -> tuple[Key | None, tuple[int, int] | None, Failure | None, bool]:
        """Decode one image into ``out``: key, shape, failure, and whether ``out`` was filled."""
        if isinstance(data, Failure):
            return None, None, data, False
        key = content_key(data)
        if self._wanted is not None and not self._wanted(key):
            return key, image_size(data), None, False
        decoded = decode_image(data, self._rule)
        if isinstance(decoded, Failure):
            return key, None, decoded, False
        out[...] = decoded.pixels
        return key, (decoded.width, decoded.height), None, True

    def _nothing(self) -> Vectors:
        return np.empty((0, self._dimension), dtype=np.float32)
