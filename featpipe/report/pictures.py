"""Small pictures of the images, as data in the page; and one sheet of many smaller ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from featpipe.inspection.squares import squares
from featpipe.pages import data_url
from featpipe.store import EmbeddingStore
from featpipe.types import ProgressCallback

SIDE, SPRITE = 144, 40
COLUMNS = 100
_QUALITY, _SPRITE_QUALITY = 72, 55


def pictures(store: EmbeddingStore, rows: Sequence[int]) -> dict[int, str]:
    """Return a data URL of the middle square of every image that can be opened, by row."""
    found = {}
    for row, pixels in squares(store, sorted(set(rows)), SIDE):
        found[row] = data_url(Image.fromarray(pixels), _QUALITY)
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
    for row, pixels in squares(store, rows, SPRITE, progress, "thumbnails"):
        at = place[row]
        y, x = SPRITE * (at // COLUMNS), SPRITE * (at % COLUMNS)
        sheet[y : y + SPRITE, x : x + SPRITE] = pixels
        there[at] = True
    if not any(there):
        return None
    return data_url(Image.fromarray(sheet), _SPRITE_QUALITY), there
