"""The images of a store as small squares, where they are still there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from featpipe._threads import threads
from featpipe.images import decode_image
from featpipe.quality.looks import bytes_of, source_of
from featpipe.store import EmbeddingStore
from featpipe.types import Failure, Pixels, Progress, ProgressCallback, ResizeRule

_AT_ONCE = 32


def squares(
    store: EmbeddingStore,
    rows: Sequence[int],
    rule: ResizeRule | int,
    progress: ProgressCallback | None = None,
    stage: str = "",
) -> Iterator[tuple[int, Pixels]]:
    """Yield a square of every image that can be opened, and its row.

    Parameters
    ----------
    rows : sequence of int
    rule : ResizeRule or int
        How the square is cut out; a number of pixels: the middle square, as large.
    progress : callable, optional
        Called with a `Progress` of this ``stage`` now and then.

    Yields
    ------
    int, ndarray of uint8 (side, side, 3)
        An image that is gone, has changed or cannot be decoded is left out.
    """
    source = source_of(store)
    if source is None or not len(rows):
        return
    cut = ResizeRule(rule, rule, "bilinear") if isinstance(rule, int) else rule
    paths, keys = store.paths, store.keys

    def work(some: Sequence[int]) -> list[tuple[int, Pixels]]:
        found = []
        for row in some:
            data = bytes_of(source, paths[row], keys[row])
            decoded = None if data is None else decode_image(data, cut)
            if decoded is not None and not isinstance(decoded, Failure):
                found.append((row, decoded.pixels))
        return found

    blocks = [rows[i : i + _AT_ONCE] for i in range(0, len(rows), _AT_ONCE)]
    done = 0
    with threads(len(blocks)) as pool:
        for block, part in zip(
            blocks, map(work, blocks) if pool is None else pool.stream(work, blocks), strict=True
        ):
            yield from part
            done += len(block)
            if progress is not None:
                progress(Progress(done, len(rows), stage=stage))
