"""The reference's antialiased resize, of a box alone, and with SIMD where a package has it.

Pillow resizes a photograph along its rows first, then down its columns, and rounds to 8 bits
in between; the order can be seen where a filter overshoots black or white. Given a box it
may take the other order (since 13, where columns shrink more than twice as much as rows).
So the passes are asked for one by one. ``cykooz.resizer`` has the same filters and works
down the columns first: the box is turned on its side before, and back after.
"""

from __future__ import annotations

import math
import threading
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import PIL
from PIL import Image

from featpipe.images.geometry import Box
from featpipe.types import Interpolation

try:
    import cykooz_resizer as simd
except ImportError:  # There is no wheel for this platform: Pillow's own resize does the same.
    simd = None

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_SIMD_FILTERS = {"bilinear": "bilinear", "bicubic": "catmull_rom", "lanczos": "lanczos3"}
_WIDEST = 3.0
"""Radius of the widest filter (Lanczos), in pixels of the target."""

_TURN = Image.Transpose.TRANSPOSE
# A resizer keeps its buffers between calls and belongs to one thread.
_own = threading.local()


def resize_box(
    image: Image.Image, box: Box, side: int, interpolation: Interpolation
) -> Image.Image:
    """Return the ``side`` × ``side`` pixels that a box of an image becomes.

    Parameters
    ----------
    image : PIL image
        Of mode RGB or L.
    box : (left, top, right, bottom)
        In pixels of ``image``, fractional. The filter looks beyond it where it needs to.
    """
    area, (left, top, right, bottom) = _cut(image, box, side)
    if simd is None or interpolation not in _SIMD_FILTERS:
        method, rows = FILTERS[interpolation], area.height
        narrow = area.resize((side, rows), method, box=(left, 0, right, rows))
        return narrow.resize((side, side), method, box=(0, top, side, bottom))
    turned = area.transpose(_TURN)
    square = Image.new(image.mode, (side, side))
    options = simd.ResizeOptions(
        resize_alg=simd.ResizeAlg.convolution(simd.FilterType[_SIMD_FILTERS[interpolation]]),
        crop_box=simd.CropBox(top, left, bottom - top, right - left),
    )
    _resizer().resize_pil(turned, square, options)
    return square.transpose(_TURN)


def resize_version() -> str:
    """Return what does the resizing, and its version."""
    if simd is None:
        return f"pillow {PIL.__version__}"
    try:
        return f"cykooz.resizer {version('cykooz.resizer')}"
    except PackageNotFoundError:  # Programs that are packed whole leave such records out.
        return "cykooz.resizer of unknown version"


def _cut(image: Image.Image, box: Box, side: int) -> tuple[Image.Image, Box]:
    """Cut out what the filter will look at; return it, and the box within it."""
    left, top, right, bottom = box
    across = math.ceil(_WIDEST * max(1.0, (right - left) / side)) + 1
    down = math.ceil(_WIDEST * max(1.0, (bottom - top) / side)) + 1
    x, y = max(0, math.floor(left) - across), max(0, math.floor(top) - down)
    far_x = min(image.width, math.ceil(right) + across)
    far_y = min(image.height, math.ceil(bottom) + down)
    if (x, y, far_x, far_y) != (0, 0, image.width, image.height):
        image = image.crop((x, y, far_x, far_y))
    return image, (
        left - x,
        top - y,
        min(right - x, float(image.width)),
        min(bottom - y, float(image.height)),
    )


def _resizer() -> Any:
    if not hasattr(_own, "resizer"):
        _own.resizer = simd.Resizer()
    return _own.resizer
