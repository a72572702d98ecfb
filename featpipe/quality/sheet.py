"""What `clean` has found as one picture: a contact sheet, a section a kind of problem."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from featpipe._files import atomic_file, printable
from featpipe.errors import FeatpipeError
from featpipe.images import thumbnail
from featpipe.quality.cleaning import COPIES, KINDS, MEANING, Cleaning, Kind, Problem
from featpipe.quality.looks import bytes_of, source_of
from featpipe.sources import Source
from featpipe.store import EmbeddingStore
from featpipe.types import Failure, Key, Progress, ProgressCallback

MOST = 24
"""Pictures of a kind, at most: a copy and what it is a copy of are two."""
WIDTH = 1368
_MARGIN, _GAP, _COLUMNS = 36, 18, 6
_SIDE, _TALL = 201, 164
_LINES, _BELOW = 20, 18
_HEAD, _TITLE, _FOOT = 118, 64, 34
_INK, _FAINT, _LINE, _TILE = "#1b1f24", "#6a737d", "#d5dae0", "#eceff2"
_PAPER, _FRAME = "white", "#f6f7f9"
_DOTS = "…"
_INSTEAD = str.maketrans(
    {
        "≥": ">=",
        "×": "x",
        "\N{MINUS SIGN}": "-",
        "ß": "ss",
        "ø": "o",
        "Ø": "O",
        "æ": "ae",
        "Æ": "Ae",
    }
)


@dataclass(frozen=True, slots=True)
class _Section:
    """Problems of one kind: how many there are, and those that are shown."""

    kind: Kind
    count: int
    shown: tuple[Problem, ...]

    @property
    def across(self) -> int:
        """Columns that one problem takes."""
        return 2 if self.kind in COPIES else 1

    @property
    def row(self) -> int:
        """Height in pixels of one row of pictures with the text below."""
        return _TALL + (4 - self.across) * _LINES + _BELOW

    @property
    def height(self) -> int:
        """Height in pixels, title included."""
        rows = -(-len(self.shown) * self.across // _COLUMNS)
        more = _FOOT if self.count > len(self.shown) else 0
        return _TITLE + rows * self.row + more


def draw_sheet(
    cleaning: Cleaning,
    store: EmbeddingStore,
    path: str | os.PathLike[str],
    *,
    progress: ProgressCallback | None = None,
) -> Path:
    """Draw what `clean` has found in a store into a PNG file.

    Each kind of problem has its title and its count, and shows 24 pictures at most, with
    path and detail below; copies stand beside the image that they are copies of. Where an
    image is gone, has changed or cannot be decoded there is a grey tile. One image is in memory
    at a time, and the sheet has 1368 × 11,000 pixels at most.

    Parameters
    ----------
    cleaning : Cleaning
    store : EmbeddingStore
        The one that was looked at.
    path : path
        Its name ends in ``.png``.
    progress : callable, optional
        Called with a `Progress`, stage ``drawing``.

    Raises
    ------
    FeatpipeError
        When the name ends in anything else.
    WriteError
        When the operating system refuses to write.
    """
    target = Path(path)
    require_png(target)
    sections = list(_sections(cleaning))
    height = _HEAD + sum(section.height for section in sections) + _MARGIN
    canvas = Image.new("RGB", (WIDTH, height), _PAPER)
    sheet = _Sheet(canvas, _Pictures(store))
    sheet.head(cleaning)
    top, done, total = _HEAD, 0, sum(len(section.shown) for section in sections)
    for section in sections:
        for _ in sheet.draw(section, top):
            done += 1
            if progress is not None:
                progress(Progress(done, total, stage="drawing"))
        top += section.height
    with atomic_file(target) as file:
        canvas.save(file, "PNG")
    return target


def require_png(path: Path) -> None:
    """Raise `FeatpipeError` unless a name ends in ``.png``."""
    if path.suffix.lower() != ".png":
        raise FeatpipeError(f"cannot draw {printable(str(path))}: give a name that ends in .png")


def shorten(text: str, width: float, measure: Callable[[str], float]) -> str:
    """Cut the middle out of a text until it is no wider than ``width``.

    >>> shorten("train/ants/0013035.jpg", 12, len)
    'train/…5.jpg'
    >>> shorten("a.jpg", 12, len)
    'a.jpg'
    """
    if measure(text) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        kept = (low + high + 1) // 2
        low, high = (kept, high) if measure(_cut(text, kept)) <= width else (low, kept - 1)
    return _cut(text, low)


def _cut(text: str, kept: int) -> str:
    front = (kept + 1) // 2
    return text[:front] + _DOTS + text[len(text) - (kept - front) :]


def _sections(cleaning: Cleaning) -> Iterator[_Section]:
    for kind in KINDS:
        found = cleaning.of(kind)
        if found:
            most = MOST // 2 if kind in COPIES else MOST
            yield _Section(kind, len(found), found[:most])


class _Pictures:
    """Images of a store as pictures of a tile's size, or a word on why there is none."""

    def __init__(self, store: EmbeddingStore) -> None:
        self._source: Source | None = source_of(store)
        self._keys: dict[str, Key | None] = dict(
            zip(store.index.paths(), store.index.values("key"), strict=True)
        )

    def picture(self, path: str) -> Image.Image | str:
        key = self._keys.get(path)
        if self._source is None:
            return "the source is gone"
        if key is None:
            return "cannot be read"
        data = bytes_of(self._source, path, key)
        if data is None:
            return "gone or changed"
        found = thumbnail(data, _SIDE, _TALL)
        return "cannot be decoded" if isinstance(found, Failure) else found


class _Sheet:
    """The canvas, and how things are drawn on it."""

    def __init__(self, canvas: Image.Image, pictures: _Pictures) -> None:
        self._canvas, self._pictures = canvas, pictures
        self._draw = ImageDraw.Draw(canvas)

    def head(self, cleaning: Cleaning) -> None:
        n = len({problem.path for problem in cleaning.problems})
        title = f"{n:,} of {cleaning.images:,} images to look at" if n else "nothing found amiss"
        self._text((_MARGIN, 46), title, 30)
        within = WIDTH - 2 * _MARGIN
        self._text((_MARGIN, 82), cleaning.store, 16, fill=_FAINT, within=within)
        self._text((_MARGIN, 104), f"copies: {cleaning.threshold}", 16, fill=_FAINT, within=within)

    def draw(self, section: _Section, top: int) -> Iterator[Problem]:
        """Draw one section; yields each problem when it stands there."""
        self._draw.line([(_MARGIN, top + 18), (WIDTH - _MARGIN, top + 18)], fill=_LINE)
        title = f"{section.kind}: {section.count:,}"
        self._text((_MARGIN, top + 42), title, 21)
        after = _MARGIN + _font(21).getlength(title) + 14
        self._text((after, top + 43), MEANING[section.kind], 16, fill=_FAINT)
        for number, problem in enumerate(section.shown):
            row, column = divmod(number * section.across, _COLUMNS)
            left = _MARGIN + column * (_SIDE + _GAP)
            self._problem(problem, section, left, top + _TITLE + row * section.row)
            yield problem
        if section.count > len(section.shown):
            more = f"and {section.count - len(section.shown):,} more"
            self._text((_MARGIN, top + section.height - _FOOT + 4), more, 16, fill=_FAINT)

    def _problem(self, problem: Problem, section: _Section, left: int, top: int) -> None:
        self._tile(problem.path, left, top)
        lines = [top + _TALL + 14 + number * _LINES for number in range(3)]
        self._text((left, lines[0]), problem.path, 13, within=_SIDE)
        label = problem.label or ""
        if section.across == 1:
            self._text((left, lines[1]), label or problem.detail, 13, fill=_FAINT, within=_SIDE)
            if label:
                self._text((left, lines[2]), problem.detail, 13, fill=_FAINT, within=_SIDE)
            return
        beside = left + _SIDE + 6
        if problem.other is not None:
            self._tile(problem.other, beside, top)
            self._text((beside, lines[0]), problem.other, 13, fill=_FAINT, within=_SIDE)
        detail = problem.detail
        if label and section.kind != "two-labels":
            detail = f"{label}: {detail}"
        self._text((left, lines[1]), detail, 13, fill=_FAINT, within=2 * _SIDE + 6)

    def _tile(self, path: str, left: int, top: int) -> None:
        found = self._pictures.picture(path)
        box = [(left, top), (left + _SIDE - 1, top + _TALL - 1)]
        if isinstance(found, str):
            self._draw.rectangle(box, fill=_TILE)
            middle = (left + _SIDE / 2, top + _TALL / 2)
            self._text(middle, found, 15, fill=_FAINT, anchor="mm")
            return
        self._draw.rectangle(box, fill=_FRAME)
        at = left + (_SIDE - found.width) // 2, top + (_TALL - found.height) // 2
        self._canvas.paste(found, at)

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


def draw_text(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int,
    *,
    fill: str,
    anchor: str = "lm",
    within: float,
) -> None:
    """Write a line that may come from outside, cut to ``within`` pixels."""
    letters = _font(size)
    shown = shorten(_in_latin(printable(text)), within, letters.getlength)
    draw.text(at, shown, fill=fill, font=letters, anchor=anchor)


def _in_latin(text: str) -> str:
    """Write a text with the letters that Pillow's font has, as far as there are any.

    Other scripts stay as they are: the font draws a box for each letter.
    """
    parts = unicodedata.normalize("NFKD", text.translate(_INSTEAD))
    return "".join(c for c in parts if not unicodedata.combining(c))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
