"""A piece of a source, for one of several processes that share no more than the images.

Every process lists the source by itself and takes its own piece: nothing is agreed upon, so
the listing has to be the same for all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import pyarrow as pa

from featpipe.errors import SourceError
from featpipe.sources.base import Source
from featpipe.types import ImageRef, Shard


def sharded(source: Source, shard: Shard | None) -> Source:
    """Return a piece of a source, or the source itself where there is no shard.

    A source may divide itself (`Source.shard`); the piece of any other are the images from
    position floor((i-1) N / n) of its N to floor(i N / n).
    """
    if shard is None:
        return source
    piece = source.shard(shard.i, shard.n)
    if piece is None:
        return ShardedSource(source, shard)
    piece.piece = shard
    return piece


def require_images(source: Source) -> None:
    """Refuse a source that has listed no image; a piece of one that has some may be empty.

    Raises
    ------
    SourceError
        The message says what else was there.
    """
    if source.piece is None or source.whole == 0:
        raise SourceError(source.nothing_found())


def empty_piece(source: Source, count: int) -> list[str]:
    """Say of a piece without an image that this is no fault; a note, or none."""
    if source.piece is None or count:
        return []
    total = "" if source.whole is None else f": the source lists {source.whole} images"
    return [f"shard {source.piece} is empty{total}"]


class ShardedSource(Source):
    """The images of another source from one position of its listing to another.

    The listing is counted once, when it is first asked for; of each later one no more is
    listed than up to the end of the piece.
    """

    def __init__(self, source: Source, shard: Shard) -> None:
        super().__init__()
        self.name, self.location, self.piece = source.name, source.location, shard
        self._source, self._shard = source, shard

    @cached_property
    def whole(self) -> int:
        """How many images the whole source lists."""
        total = self._source.count()
        # A later listing stops at the end of the piece, and knows less then.
        self.notes = list(self._source.notes)
        return total

    @property
    def readers(self) -> int:
        """As many as the source itself wants."""
        return self._source.readers

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of tables that may hold the groups."""
        return self._source.columns

    def with_groups(self, column: str) -> ShardedSource:
        """Return the same piece with groups from one of its `columns`."""
        return ShardedSource(self._source.with_groups(column), self._shard)

    def nothing_found(self) -> str:
        """Say that the whole listing was empty, and what else was there."""
        return self._source.nothing_found()

    def count(self) -> int:
        """Return how many images the piece lists."""
        begin, end = self._shard.bounds(self.whole)
        return end - begin

    def __iter__(self) -> Iterator[ImageRef]:
        return self._source.between(*self._shard.bounds(self.whole))

    def batches(self) -> Iterator[pa.Table]:
        """List the same in columns."""
        # Where a source has no quicker way, its iteration may leave alone what is not in the piece.
        if type(self._source).batches is Source.batches:
            yield from super().batches()
            return
        begin, end = self._shard.bounds(self.whole)
        position = 0
        for batch in self._source.batches() if begin < end else ():
            part = batch.slice(max(begin - position, 0), max(end - max(position, begin), 0))
            position += len(batch)
            if len(part):
                yield part
            if position >= end:
                return

    def read(self, ref: ImageRef) -> bytes:
        """Return the bytes of one image, from the source itself."""
        return self._source.read(ref)
