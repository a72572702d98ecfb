"""The demo's picture: confusion matrix with example crops, accuracies, the new images.

Drawn with Pillow alone: the demo runs on the base installation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from featpipe._files import atomic_file
from featpipe.demo.result import Accuracy, Answer, DemoResult, NewImage

WIDTH, HEIGHT = 1500, 1060
_MARGIN = 40
_CELL, _NAMES = 84, 190
_TOP = 190
_HEAD_STEP = 148
_INK, _FAINT, _LINE = "#1b1f24", "#6a737d", "#d5dae0"
_RIGHT, _WRONG, _RAW = "#2f6db5", "#c8501e", "#a9b2bc"
_BARS_LEFT = _MARGIN + _NAMES + 8 * _CELL + 70


def draw_picture(result: DemoResult, path: Path) -> None:
    """Draw ``result`` into the PNG file ``path``.

    Raises
    ------
    WriteError
        When the operating system refuses to write.
    """
    canvas = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(canvas)
    _title(draw, result)
    _matrix(canvas, draw, result)
    _bars(draw, result)
    _new_images(canvas, draw, result.new)
    with atomic_file(path) as file:
        canvas.save(file, "PNG", optimize=True)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _text(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int = 18,
    *,
    fill: str = _INK,
    anchor: str = "lm",
) -> None:
    draw.text(at, text, fill=fill, font=_font(size), anchor=anchor)


def _title(draw: ImageDraw.ImageDraw, result: DemoResult) -> None:
    right = sum(answer.truth == answer.label for answer in result.answers)
    title = f"{right} of {len(result.answers)} held-out images named rightly"
    _text(draw, (_MARGIN, 48), title, 34)
    learnt = result.images - len(result.answers)
    words = (
        f"{result.comparisons[0].head} on {result.backbone}, learnt from {learnt} images. "
        "Rows: what it is. Columns: what the head says, with an example of each mistake."
    )
    _text(draw, (_MARGIN, 92), words, 18, fill=_FAINT)


def _matrix(canvas: Image.Image, draw: ImageDraw.ImageDraw, result: DemoResult) -> None:
    counts = result.confusion()
    left = _MARGIN + _NAMES
    for number, name in enumerate(result.classes):
        middle = _CELL * number + _CELL // 2
        _text(draw, (left + middle, _TOP - 18), name, 17, anchor="mm")
        _text(draw, (left - _CELL - 8, _TOP + middle), name, 19, anchor="rm")
        example = next(a.path for a in result.answers if a.truth == name)
        _paste(canvas, example, (left - _CELL + 4, _TOP + _CELL * number + 4), _CELL - 12)
    for row, truth in enumerate(result.classes):
        for column, label in enumerate(result.classes):
            corner = (left + column * _CELL, _TOP + row * _CELL)
            wrong = [a for a in result.answers if (a.truth, a.label) == (truth, label)]
            share = counts[row, column] / max(int(counts[row].sum()), 1)
            if row == column:
                _right_cell(draw, corner, int(counts[row, column]), float(share))
            else:
                _wrong_cell(canvas, draw, corner, wrong)


def _cell_box(corner: tuple[int, int]) -> tuple[int, int, int, int]:
    return corner[0] + 1, corner[1] + 1, corner[0] + _CELL - 2, corner[1] + _CELL - 2


def _right_cell(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], count: int, share: float
) -> None:
    strength = 0.15 + 0.85 * share
    colour = tuple(round(255 + (c - 255) * strength) for c in (47, 109, 181))
    draw.rectangle(_cell_box(corner), fill=(colour[0], colour[1], colour[2]))
    middle = (corner[0] + _CELL / 2, corner[1] + _CELL / 2)
    _text(draw, middle, str(count), 26, fill="white" if share > 0.4 else _INK, anchor="mm")


def _wrong_cell(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    wrong: Sequence[Answer],
) -> None:
    """Show one of the mistakes in a frame, and how many there are; a dot where there is none."""
    if not wrong:
        draw.rectangle(_cell_box(corner), fill="#f4f6f8")
        return
    draw.rectangle(_cell_box(corner), fill=_WRONG)
    _paste(canvas, wrong[0].path, (corner[0] + 5, corner[1] + 5), _CELL - 11)
    x, y = corner[0] + _CELL - 16, corner[1] + 15
    draw.ellipse((x - 13, y - 13, x + 13, y + 13), fill=_WRONG)
    _text(draw, (x, y), str(len(wrong)), 17, fill="white", anchor="mm")


def _bars(draw: ImageDraw.ImageDraw, result: DemoResult) -> None:
    _text(draw, (_BARS_LEFT, _TOP - 18), "accuracy, 95 % interval", 20)
    y = _TOP + 28
    for comparison in result.comparisons:
        _text(draw, (_BARS_LEFT, y), comparison.head, 20)
        _bar(draw, y + 34, comparison.vectors, _RIGHT)
        _bar(draw, y + 80, comparison.raw_pixels, _RAW)
        y += _HEAD_STEP
    x = _BARS_LEFT + _bar_length() * result.chance
    for number in range(len(result.comparisons)):
        start = _TOP + 28 + _HEAD_STEP * number
        draw.line((x, start + 18, x, start + 98), fill=_INK, width=1)
    draw.line((_BARS_LEFT, y - 22, _BARS_LEFT + 16, y - 22), fill=_INK, width=1)
    _text(
        draw,
        (_BARS_LEFT + 26, y - 22),
        f"always the most frequent class: {100 * result.chance:.1f} %",
        18,
    )
    for colour, words in ((_RIGHT, result.backbone), (_RAW, "raw pixels, 32 by 32")):
        y += 30
        draw.rectangle((_BARS_LEFT, y - 8, _BARS_LEFT + 16, y + 8), fill=colour)
        _text(draw, (_BARS_LEFT + 26, y), words, 18)


def _bar_length() -> int:
    """Pixels that stand for 100 %; the figure stands to the right of them."""
    return WIDTH - _MARGIN - _BARS_LEFT - 90


def _bar(draw: ImageDraw.ImageDraw, y: int, accuracy: Accuracy, colour: str) -> None:
    length, left = _bar_length(), _BARS_LEFT
    draw.rectangle((left, y - 14, left + length, y + 14), fill="#f4f6f8")
    draw.rectangle((left, y - 14, left + length * accuracy.value, y + 14), fill=colour)
    low, high = left + length * accuracy.low, left + length * accuracy.high
    draw.line((low, y, high, y), fill=_INK, width=2)
    for x in (low, high):
        draw.line((x, y - 6, x, y + 6), fill=_INK, width=2)
    _text(draw, (WIDTH - _MARGIN, y), f"{100 * accuracy.value:.1f} %", 20, anchor="rm")


def _new_images(canvas: Image.Image, draw: ImageDraw.ImageDraw, new: Sequence[NewImage]) -> None:
    """Draw a strip of the new images with the label and its probability below each."""
    top = _TOP + 8 * _CELL + 28
    draw.line((_MARGIN, top - 14, WIDTH - _MARGIN, top - 14), fill=_LINE, width=1)
    _text(draw, (_MARGIN, top + 40), "new images", 20)
    _text(draw, (_MARGIN, top + 68), "predictions.csv", 16, fill=_FAINT)
    step = (WIDTH - 2 * _MARGIN - _NAMES) // 8
    for number, image in enumerate(new[:8]):
        left = _MARGIN + _NAMES + number * step
        _paste(canvas, image.path, (left, top), 96)
        words = f"{image.label} {100 * image.probability:.0f} %"
        _text(draw, (left + 48, top + 116), words, 17, anchor="mm")


def _paste(canvas: Image.Image, path: Path, corner: tuple[int, int], side: int) -> None:
    with Image.open(path) as image:
        square = image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
    canvas.paste(square, corner)
