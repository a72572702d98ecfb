"""Where the crop lies: the arithmetic of resize and centre crop, and of EXIF's eight turns.

The numbers are those of torchvision's ``Resize(int)`` and ``CenterCrop`` on PIL images, so
that the pixels are too. Instead of resizing the whole image and cutting the crop out of it,
`crop_box` tells which part of the source the crop is made from: resizing that part alone
gives the same pixels (Pillow's filter looks beyond the box where it needs to).
"""

from __future__ import annotations

from typing import TypeAlias

from PIL import Image

from featpipe.types import ResizeRule

Box: TypeAlias = tuple[float, float, float, float]

# EXIF 2.32, tag 0x0112: how to turn the stored pixels so that the picture stands upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def resized_size(width: int, height: int, rule: ResizeRule) -> tuple[int, int]:
    """Return the size of the whole image after the resize, before the crop.

    >>> resized_size(500, 375, ResizeRule(resize=256, crop=224))
    (341, 256)
    >>> resized_size(500, 375, ResizeRule(resize=256, crop=224, squash=True))
    (256, 256)
    """
    shorter = rule.resize
    if rule.squash:
        return shorter, shorter
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def crop_box(width: int, height: int, rule: ResizeRule) -> Box:
    """Return the box (left, top, right, bottom) of the source that the crop is made from.

    Coordinates are pixels of an upright ``width`` × ``height`` image, and fractional.
    """
    new_width, new_height = resized_size(width, height, rule)
    left = round((new_width - rule.crop) / 2.0)
    top = round((new_height - rule.crop) / 2.0)
    across, down = width / new_width, height / new_height
    return (
        left * across,
        top * down,
        min((left + rule.crop) * across, float(width)),
        min((top + rule.crop) * down, float(height)),
    )


def swaps_sides(orientation: int) -> bool:
    """Tell whether an EXIF orientation exchanges width and height."""
    return orientation in {5, 6, 7, 8}


def stored_box(box: Box, width: int, height: int, orientation: int) -> Box:
    """Carry a box of the upright picture over to the stored pixels, ``width`` × ``height``."""
    left, top, right, bottom = box
    if swaps_sides(orientation):
        left, top, right, bottom = top, left, bottom, right
    if orientation in {2, 3, 7, 8}:
        left, right = width - right, width - left
    if orientation in {3, 4, 6, 7}:
        top, bottom = height - bottom, height - top
    return left, top, right, bottom


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn stored pixels so that the picture stands upright."""
    method = _TURNS.get(orientation)
    return image if method is None else image.transpose(method)
