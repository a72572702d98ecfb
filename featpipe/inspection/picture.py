"""An explanation as one PNG: a row an image, for those who look without a browser."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image, ImageDraw

from featpipe._files import atomic_file
from featpipe.errors import FeatpipeError
from featpipe.inspection import colours
from featpipe.inspection.records import ClassMap, Explained, Explanation, Neighbour, Seen
from featpipe.inspection.words import methods, percent, signed, sum_words
from featpipe.quality.sheet import draw_text, require_png

MOST_ROWS = 50
"""A picture of more rows than this is opened by few programs."""
WIDTH = 1336
_MARGIN, _GAP = 24, 16
_SIDE, _NEAR = 260, 144
_HEAD, _ROW, _FAILED = 118, 402, 74
_PAPER, _INK, _FAINT, _LINE, _TILE = "#ffffff", "#1c2128", "#57606a", "#d3d9e0", "#e7ebef"


def draw_explanation(explanation: Explanation, path: str | os.PathLike[str]) -> Path:
    """Draw what a head sees into a PNG file, fifty images at most.

    Beside each picture, as the backbone sees it, lie the maps of the predicted class and of the
    runner-up, in the same colours, and the nearest training images.

    Raises
    ------
    FeatpipeError
        When the name does not end in ``.png``, or there are more images than fit.
    WriteError
        When the operating system refuses to write.
    """
    target = Path(path)
    require_png(target)
    if len(explanation.images) > MOST_ROWS:
        raise FeatpipeError(
            f"{len(explanation.images)} images do not fit on one picture, {MOST_ROWS} do: name "
            "fewer, or give a name that ends in .html"
        )
    heights = [_FAILED if image.seen is None else _ROW for image in explanation.images]
    canvas = Image.new("RGB", (WIDTH, _HEAD + sum(heights) + _MARGIN), _PAPER)
    sheet = _Sheet(canvas)
    sheet.head(explanation)
    top = _HEAD
    for image, height in zip(explanation.images, heights, strict=True):
        sheet.row(image, top)
        top += height
    with atomic_file(target) as file:
        canvas.save(file, "PNG")
    return target


class _Sheet:
    """The canvas, and how things are drawn on it."""

    def __init__(self, canvas: Image.Image) -> None:
        self._canvas, self._draw = canvas, ImageDraw.Draw(canvas)

    def head(self, explanation: Explanation) -> None:
        title = f"what {explanation.head} on {explanation.backbone} looks at"
        self._text((_MARGIN, 38), title, 26)
        legend = [
            f"orange speaks for a class, blue against it; by {words}"
            for words in methods(explanation)
        ]
        lines = [*legend, *explanation.notes]
        for number, line in enumerate(lines[:2]):
            at = (_MARGIN, 70 + 22 * number)
            self._text(at, line, 15, fill=_FAINT, within=WIDTH - 2 * _MARGIN)

    def row(self, image: Explained, top: int) -> None:
        self._draw.line([(_MARGIN, top), (WIDTH - _MARGIN, top)], fill=_LINE)
        seen = image.seen
        if seen is None:
            self._text((_MARGIN, top + 24), image.path, 17, within=WIDTH - 2 * _MARGIN)
            self._text((_MARGIN, top + 50), f"{image.status}: {image.reason}", 15, fill=_FAINT)
            return
        first, second = seen.predicted, seen.runner_up
        words = (
            f"{first.label} {percent(first.probability)}, then {second.label} "
            f"{percent(second.probability)}"
        )
        self._text((_MARGIN, top + 24), words, 19, within=WIDTH / 2)
        self._text((WIDTH / 2 + 40, top + 24), image.path, 15, fill=_FAINT, within=WIDTH / 2 - 64)
        left, over = _MARGIN, top + 46
        picture = Image.fromarray(seen.pixels).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        self._canvas.paste(picture, (left, over))
        self._text((left, over + _SIDE + 16), "as the backbone sees it", 14, fill=_FAINT)
        for shown in (first, second):
            left += _SIDE + _GAP
            self._map(seen, shown, left, over)
        self._bar(seen, _MARGIN + _SIDE + _GAP, over + _SIDE + 50)
        for number, near in enumerate(seen.nearest[:3]):
            self._near(near, left + _SIDE + _GAP + number * (_NEAR + 8), over)

    def _map(self, seen: Seen, shown: ClassMap, left: int, top: int) -> None:
        over = colours.layer(shown.values, seen.limit, _SIDE)
        self._canvas.paste(colours.laid_over(seen.pixels, over), (left, top))
        self._text((left, top + _SIDE + 16), f"for {shown.label}", 14, within=_SIDE)
        self._text((left, top + _SIDE + 35), sum_words(shown), 13, fill=_FAINT, within=_SIDE)

    def _bar(self, seen: Seen, left: int, top: int) -> None:
        width = 2 * _SIDE + _GAP
        self._canvas.paste(colours.bar(width, 10), (left, top))
        limit = seen.limit
        for at, value, anchor in ((0.0, -limit, "lm"), (0.5, 0.0, "mm"), (1.0, limit, "rm")):
            x = left + at * width
            self._draw.line([(x, top + 10), (x, top + 14)], fill=_FAINT)
            words = {0.0: f"{signed(value)} against", 0.5: "0", 1.0: f"for {signed(value)}"}[at]
            self._text((x, top + 23), words, 13, fill=_FAINT, anchor=anchor)

    def _near(self, near: Neighbour, left: int, top: int) -> None:
        if near.pixels is None:
            self._draw.rectangle((left, top, left + _NEAR - 1, top + _NEAR - 1), fill=_TILE)
            middle = (left + _NEAR / 2, top + _NEAR / 2)
            self._text(middle, "gone or changed", 14, fill=_FAINT, anchor="mm")
        else:
            self._canvas.paste(Image.fromarray(near.pixels), (left, top))
        self._text((left, top + _NEAR + 14), near.label, 15, within=_NEAR)
        self._text((left, top + _NEAR + 33), f"cosine {near.cosine:.2f}", 13, fill=_FAINT)
        self._text((left, top + _NEAR + 51), near.path, 12, fill=_FAINT, within=_NEAR)

    def _text(
        self,
        at: tuple[float, float],
        text: str,
        size: int,
        *,
        fill: str = _INK,
        anchor: str = "lm",
        within: float = WIDTH,
    ) -> None:
        draw_text(self._draw, at, text, size, fill=fill, anchor=anchor, within=within)
