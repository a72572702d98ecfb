"""Small pictures of the images, as data in the page; and one sheet of many smaller ones."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from featpipe._threads import threads
from featpipe.images import decode_image
from featpipe.quality.looks import bytes_of, source_of
from featpipe.store import EmbeddingStore
from featpipe.types import Failure, Pixels, Progress, ProgressCallback, ResizeRule

SIDE, SPRITE = 144, 40
COLUMNS = 100
_QUALITY, _SPRITE_QUALITY = 72, 55
_AT_ONCE = 32


def pictures(store: EmbeddingStore, rows: Sequence[int]) -> dict[int, str]:
    """Return a data URL of the middle square of every image that can be opened, by row."""
    found = {}
    for row, pixels in _squares(store, sorted(set(rows)), SIDE, None, ""):
        found[row] = _data_url(Image.fromarray(pixels), _QUALITY)
    return found


def sprite_sheet(
    store: EmbeddingStore, rows: Sequence[int], progress: ProgressCallback | None = None
) -> tuple[str, list[bool]] | None:
    """Return a data URL of one sheet with a square of 40 pixels for every row, 100 side by side.

    Returns
    -------
    str, list of bool
        The sheet, and which of the rows are on it; None where no image can be opened.
    """
    lines = -(-len(rows) // COLUMNS)
    width = min(len(rows), COLUMNS) * SPRITE
    sheet = np.zeros((lines * SPRITE, width, 3), dtype=np.uint8)
    place = {row: at for at, row in enumerate(rows)}
    there = [False] * len(rows)
    for row, pixels in _squares(store, rows, SPRITE, progress, "thumbnails"):
        at = place[row]
        y, x = SPRITE * (at // COLUMNS), SPRITE * (at % COLUMNS)
        sheet[y : y + SPRITE, x : x + SPRITE] = pixels
        there[at] = True
    if not any(there):
        return None
    return _data_url(Image.fromarray(sheet), _SPRITE_QUALITY), there


def _squares(
    store: EmbeddingStore,
    rows: Sequence[int],
    side: int,
    progress: ProgressCallback | None,
    stage: str,
) -> Iterator[tuple[int, Pixels]]:
    source = source_of(store)
    if source is None or not len(rows):
        return
    rule = ResizeRule(side, side, "bilinear")
    paths, keys = store.paths, store.keys

    def work(some: Sequence[int]) -> list[tuple[int, Pixels]]:
        found = []
        for row in some:
            data = bytes_of(source, paths[row], keys[row])
            decoded = None if data is None else decode_image(data, rule)
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


def _data_url(image: Image.Image, quality: int) -> str:
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")
