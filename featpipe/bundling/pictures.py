"""Pictures to verify a bundle on: the user's, the training images, or those that came along."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from featpipe._files import printable
from featpipe.backbones.gate import whole_photographs
from featpipe.errors import SourceError, StoreError
from featpipe.heads import Head
from featpipe.images import whole_picture
from featpipe.quality.looks import source_of
from featpipe.sources import Source, SourceLike, open_source
from featpipe.store import EmbeddingStore
from featpipe.types import Failure, ImageRef, Pixels

MOST = 48
_TRIED = 4 * MOST
_MOST_PIXELS = 2**26


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures at full size, and where they come from.

    Attributes
    ----------
    origin : str
        For people.
    source : Source or None
        None for the photographs that come with featpipe.
    pictures : tuple of ndarray of uint8, (H, W, 3)
        Upright, RGB.
    """

    origin: str
    source: Source | None
    pictures: tuple[Pixels, ...]


def draw_pictures(head: Head, images: SourceLike | None) -> Pictures:
    """Return up to 48 pictures of a source, drawn from all of its listing.

    Parameters
    ----------
    images : source, optional
        By default the images that the head was fitted on, where they still are, and else the
        photographs that come with featpipe.

    Raises
    ------
    SourceError
        When the source that was named has no image that can be decoded.
    """
    if images is None:
        photos = "photographs that come with featpipe"
        return _fitted_on(head) or Pictures(photos, None, tuple(whole_photographs()))
    source = open_source(images)
    refs = _spread(source)
    if not refs:
        raise SourceError(source.nothing_found())
    found = _pictures(source, refs)
    if found is None:
        raise SourceError(
            f"no image in {printable(source.location)} can be decoded: give others with --images"
        )
    return found


def _fitted_on(head: Head) -> Pictures | None:
    path = head.report.get("data", {}).get("store")
    try:
        source = source_of(EmbeddingStore.open(path)) if isinstance(path, str) else None
        return None if source is None else _pictures(source, _spread(source))
    # A path that has been edited may be no path at all: that is a ValueError.
    except (StoreError, SourceError, OSError, ValueError):
        return None


def _pictures(source: Source, refs: list[ImageRef]) -> Pictures | None:
    found = tuple(_decoded(source, refs))
    return Pictures(f"pictures of {printable(source.name)}", source, found) if found else None


def _spread(source: Source) -> list[ImageRef]:
    """Return images of all parts of a listing, in an order whose beginning is of all parts, too.

    Drawn in one pass by Vitter's algorithm R (1985), with the same draws every time.
    """
    draw = random.Random(0)  # noqa: S311 - a sample, no secret
    drawn: list[ImageRef] = []
    for i, ref in enumerate(source):
        if i < _TRIED:
            drawn.append(ref)
        elif (place := draw.randrange(i + 1)) < _TRIED:
            drawn[place] = ref
    draw.shuffle(drawn)
    return drawn


def _decoded(source: Source, refs: list[ImageRef]) -> Iterator[Pixels]:
    left, pixels = MOST, _MOST_PIXELS
    for ref in refs:
        picture = _picture(source, ref)
        if picture is None:
            continue
        left, pixels = left - 1, pixels - picture.shape[0] * picture.shape[1]
        yield picture
        if not left or pixels < 0:
            return


def _picture(source: Source, ref: ImageRef) -> Pixels | None:
    if ref.problem is not None:
        return None
    try:
        found = whole_picture(source.read(ref))
    except (OSError, ValueError, MemoryError):
        return None
    return None if isinstance(found, Failure) else found
