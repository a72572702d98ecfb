"""The reference's antialiased resize, of a box alone, and with SIMD where a package has it.

Pillow resizes a photograph along its rows first, then down its columns, and rounds to 8 bits
in between; the order can be seen where a filter overshoots black or white. Given a box it
may take the other order (since 13, where columns shrink more than twice as much as rows), and
``cykooz.resizer``, which has the same filters, always does. So the passes are asked for one
by one.
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
    left, top = box[0], box[1]
    right, bottom = min(box[2], float(image.width)), min(box[3], float(image.height))
    reach = math.ceil(_WIDEST * max(1.0, (bottom - top) / side)) + 1
    first, last = max(0, math.floor(top) - reach), min(image.height, math.ceil(bottom) + reach)
    height = last - first
    down = (0.0, top - first, float(side), bottom - first)
    if simd is None or interpolation not in _SIMD_FILTERS:
        method = FILTERS[interpolation]
        # With all its rows an image is not resized down its columns.
        rows = image.crop((0, first, image.width, last))
        narrow = rows.resize((side, height), method, box=(left, 0, right, height))
        return narrow.resize((side, side), method, box=down)
    narrow = _one_pass(image, (side, height), (left, first, right, last), interpolation)
    return _one_pass(narrow, (side, side), down, interpolation)


def _one_pass(
    image: Image.Image, size: tuple[int, int], box: Box, interpolation: Interpolation
) -> Image.Image:
    """Resize a box along rows or columns; across them it has the size that it is to have."""
    left, top, right, bottom = box
    resized = Image.new(image.mode, size)
    options = simd.ResizeOptions(
        resize_alg=simd.ResizeAlg.convolution(simd.FilterType[_SIMD_FILTERS[interpolation]]),
        crop_box=simd.CropBox(left, top, right - left, bottom - top),
    )
    _resizer().resize_pil(image, resized, options)
    return resized


def short_weights() -> bool:
    """Tell whether the resize here rounds its weights to 16 bits; Pillow's own has more."""
    return simd is not None


def resize_version() -> str:
    """Return what does the resizing, and its version."""
    if simd is None:
        return f"pillow {PIL.__version__}"
    try:
        return f"cykooz.resizer {version('cykooz.resizer')}"
    except PackageNotFoundError:  # Programs that are packed whole leave such records out.
        return "cykooz.resizer of unknown version"


def _resizer() -> Any:
    if not hasattr(_own, "resizer"):
        _own.resizer = simd.Resizer()
    return _own.resizer
