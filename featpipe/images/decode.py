"""Decode, resize and crop one image; whatever is wrong with it becomes a `Failure`.

The reference is ``torchvision``'s: ``Image.open(f).convert("RGB")``, resize with
antialiasing, centre crop. Two things are done differently, because a person would expect
it: EXIF orientation is applied, and 16-bit grey is scaled to 8 bits where PIL would clip it.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

from featpipe._files import printable
from featpipe.images.geometry import crop_box, resized_size, stored_box, swaps_sides, turn_upright
from featpipe.images.resize import resize_box, resize_version
from featpipe.types import Failure, Pixels, ResizeRule

MAX_PIXELS = 178_956_970
"""More pixels than this are refused before they are decoded (512 MiB as RGB); Pillow's limit."""

_WANTED = {"JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "TGA"}
# Some builds of Pillow lack a format; asking them for it would fail.
Image.init()
FORMATS = tuple(sorted(_WANTED & set(Image.OPEN)))
"""What is decoded. Others are not tried: Pillow hands PostScript to an interpreter."""

_ORIENTATION = 0x0112
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Decoded:
    """One image, ready for the backbone.

    Attributes
    ----------
    pixels : ndarray of uint8, (crop, crop, 3)
        RGB.
    width, height : int
        Size of the picture as it stands upright in the file, in pixels.
    """

    pixels: Pixels
    width: int
    height: int


def decode_image(data: bytes, rule: ResizeRule) -> Decoded | Failure:
    """Decode the bytes of an image file into the square that a backbone reads.

    JPEG files are decoded at a reduced scale where at least twice the target is left: that
    keeps the vectors (cosine ≥ 0.999 to a full decode) and saves most of the time on large
    photographs. Of animations and multi-page files the first frame is taken; transparency
    is dropped, as ``convert("RGB")`` drops it.

    Returns
    -------
    Decoded or Failure
        Never raises for anything that the bytes may hold.
    """
    return _opened(data, lambda image: _decode_opened(image, rule))


def thumbnail(data: bytes, width: int, height: int) -> Image.Image | Failure:
    """Return an image file as a small picture for people: upright, RGB, whole.

    Parameters
    ----------
    width, height : int
        What it may have at most, in pixels; it is never enlarged.

    Returns
    -------
    PIL image or Failure
        Never raises for anything that the bytes may hold.
    """
    return _opened(data, lambda image: _small(image, width, height))


def whole_picture(data: bytes) -> Pixels | Failure:
    """Return an image file as its pixels: upright, RGB, at full size, uint8 (H, W, 3).

    What a program that hands pictures to a bundle should do; see docs/bundle.md. Never raises
    for anything that the bytes may hold.
    """
    return _opened(data, _whole)


def square_of(picture: Pixels, rule: ResizeRule) -> Pixels:
    """Return the square that a backbone reads of a picture, uint8 (H, W, 3) → (crop, crop, 3)."""
    image = Image.fromarray(picture)
    box = crop_box(image.width, image.height, rule)
    return np.asarray(resize_box(image, box, rule.crop, rule.interpolation))


def _opened(data: bytes, use: Callable[[Image.Image], _Result | Failure]) -> _Result | Failure:
    """Open bytes and use what is in them; whatever is wrong with them becomes a `Failure`."""
    if not data:
        return Failure("undecodable", "the file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return use(image)
    except UnidentifiedImageError:
        return Failure("undecodable", _not_an_image(data))
    except Image.DecompressionBombError:
        return Failure("undecodable", _too_large())
    except MemoryError:
        return Failure("unreadable", "not enough memory to decode the image")
    # Pillow's decoders meet hostile bytes with any exception (struct.error, IndexError,
    # SyntaxError …); each of them means the same: this file holds no usable image.
    except Exception as exc:  # noqa: BLE001
        return Failure("undecodable", _reason(exc))


def decoder_versions() -> dict[str, str]:
    """Return what, beside the rule, decides the bits of a picture's pixels."""
    return {"decoder": f"pillow {PIL.__version__}", "resize": resize_version()}


def image_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height in pixels, upright, without decoding; None if there are none."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if swaps_sides(image.getexif().get(_ORIENTATION, 1)) and image.format != "TIFF":
                return height, width
            return width, height
    # As in `decode_image`: hostile bytes may bring any exception.
    except Exception:  # noqa: BLE001
        return None


def _decode_opened(image: Image.Image, rule: ResizeRule) -> Decoded | Failure:
    stored_width, stored_height = image.size
    if stored_width * stored_height > MAX_PIXELS:
        return Failure("undecodable", _too_large(stored_width, stored_height))
    if image.format == "JPEG":
        twice = [2 * side for side in resized_size(stored_width, stored_height, rule)]
        image.draft(None, (twice[0], twice[1]))
    image.load()
    scale_x, scale_y = _scale(stored_width, image.width), _scale(stored_height, image.height)
    # Asked for only now: Pillow turns a TIFF by itself while loading and then drops the tag.
    orientation = image.getexif().get(_ORIENTATION, 1)
    if scale_x == scale_y == 1:
        stored_width, stored_height = image.size
    width, height = stored_width, stored_height
    if swaps_sides(orientation):
        width, height = height, width
    box = stored_box(crop_box(width, height, rule), stored_width, stored_height, orientation)
    colours = _eight_bits(image)
    if isinstance(colours, Failure):
        return colours
    stored = (box[0] / scale_x, box[1] / scale_y, box[2] / scale_x, box[3] / scale_y)
    square = resize_box(colours, stored, rule.crop, rule.interpolation)
    upright = turn_upright(square, orientation)
    # Converting what is RGB already would copy it.
    rgb = upright if upright.mode == "RGB" else upright.convert("RGB")
    return Decoded(np.asarray(rgb), width, height)


def _whole(image: Image.Image) -> Pixels | Failure:
    if image.width * image.height > MAX_PIXELS:
        return Failure("undecodable", _too_large(*image.size))
    image.load()
    orientation = image.getexif().get(_ORIENTATION, 1)
    colours = _eight_bits(image)
    if isinstance(colours, Failure):
        return colours
    return np.asarray(turn_upright(colours, orientation).convert("RGB"))


def _small(image: Image.Image, width: int, height: int) -> Image.Image | Failure:
    if image.width * image.height > MAX_PIXELS:
        return Failure("undecodable", _too_large(*image.size))
    longer = max(width, height)
    image.draft(None, (2 * longer, 2 * longer))
    image.load()
    orientation = image.getexif().get(_ORIENTATION, 1)
    colours = _eight_bits(image)
    if isinstance(colours, Failure):
        return colours
    size = (height, width) if swaps_sides(orientation) else (width, height)
    colours.thumbnail(size, Image.Resampling.LANCZOS)
    return turn_upright(colours, orientation).convert("RGB")


def _scale(full: int, drafted: int) -> int:
    """Return the factor 1, 2, 4 or 8 by which ``draft`` has reduced a side (rounded up)."""
    return next((s for s in (1, 2, 4, 8) if -(-full // s) == drafted), 1)


def _eight_bits(image: Image.Image) -> Image.Image | Failure:
    """Give the image 8 bits a channel: RGB, or L, which becomes RGB after the resize."""
    if image.mode in {"RGB", "L"}:
        return image
    if image.mode == "F":
        return Failure(
            "undecodable", "its pixels are floating-point numbers: save it with 8 or 16 bits"
        )
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            return Failure(
                "undecodable", "its pixels have 32 bits: save it with 8 or 16 bits a channel"
            )
        return Image.fromarray((values.astype(np.uint32) // 257).astype(np.uint8))
    # Pillow warns of transparency that `convert` drops; dropping it is what is meant here.
    image.info.pop("transparency", None)
    return image.convert("L" if image.mode == "1" else "RGB")


def _too_large(width: int = 0, height: int = 0) -> str:
    size = f"{width} × {height} pixels are" if width else "its size in pixels is"
    return f"{size} more than the {MAX_PIXELS:,} that featpipe decodes: make it smaller"


def _not_an_image(data: bytes) -> str:
    if not any(data[:64]):
        return "not an image: the file begins with zeros"
    return "not an image in a format that can be read"


def _reason(error: Exception) -> str:
    text = printable(" ".join(str(error).split())) or type(error).__name__
    if "truncated" in text.lower():
        return f"the image is cut short ({text})"
    return f"the image is damaged ({text})"
