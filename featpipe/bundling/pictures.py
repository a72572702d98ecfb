"""Pictures to verify a bundle on: the user's, the training images, or those that came along."""

from __future__ import annotations

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
    """Return up to 48 pictures of a source, spread over its listing.

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
    source = _fitted_on(head) if images is None else open_source(images)
    if source is None:
        photos = tuple(whole_photographs())
        return Pictures("photographs that come with featpipe", None, photos)
    refs = list(source)
    if not refs and images is not None:
        raise SourceError(source.nothing_found())
    found = tuple(_decoded(source, refs[:: max(1, len(refs) // MOST)]))
    if found:
        return Pictures(f"pictures of {printable(source.name)}", source, found)
    if images is not None:
        raise SourceError(
            f"no image in {printable(source.location)} can be decoded: give others with --images"
        )
    return Pictures("photographs that come with featpipe", None, tuple(whole_photographs()))


def _fitted_on(head: Head) -> Source | None:
    path = head.report.get("data", {}).get("store")
    try:
        return source_of(EmbeddingStore.open(path)) if isinstance(path, str) else None
    except (StoreError, OSError):
        return None


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
