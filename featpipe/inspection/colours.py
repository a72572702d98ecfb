"""Evidence as colour: orange speaks for, blue against, and where there is none the photo is seen.

The scale runs in Oklab along two straight lines from a light grey to a blue and an orange of the
same lightness: equal steps of evidence are equal steps for the eye, and the two hues stay apart
for every common kind of colour blindness. On a picture the scale is the more opaque the further
from zero, over a grey copy of the photograph, whose own colours would be taken for evidence.

References
----------
Ottosson 2020, "A perceptual color space for image processing" (Oklab).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from featpipe.inspection.peaks import peak_of
from featpipe.types import Pixels

Floats = NDArray[np.float64]

STEPS = 255
"""Colours of the scale; the middle one stands for zero."""
OUTLINE = 0.5
"""The outline runs where the evidence is half of its maximum."""
_MATTERS = 0.25
_SMALL = 200
_OPAQUE, _RISE = 0.85, 0.7

# Ottosson's matrices: from Oklab to the cube roots of cone responses, from these to linear RGB.
_TO_ROOTS = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)
_MIDDLE = (0.95, 0.0, 0.0)
_LIGHTNESS, _CHROMA = 0.69, 0.15
BLUE, ORANGE = 255.0, 53.0


def oklab_to_rgb(colours: Floats) -> Floats:
    """Return sRGB, (n, 3) between 0 and 1 where the colour can be shown, of L, a, b, (n, 3)."""
    linear = np.power(colours @ _TO_ROOTS.T, 3) @ _TO_RGB.T
    low = linear <= 0.0031308
    found: Floats = np.where(
        low, 12.92 * linear, 1.055 * np.power(np.maximum(linear, 0.0031308), 1 / 2.4) - 0.055
    )
    return found


@cache
def scale() -> Pixels:
    """Return the colours of the scale, (255, 3) uint8: from -1 through 0 to 1."""
    at = np.linspace(-1, 1, STEPS)
    ends = np.array([end(BLUE), end(ORANGE)])
    middle = np.array(_MIDDLE)
    lab = middle + np.abs(at)[:, None] * (ends[(at > 0).astype(int)] - middle)
    found: Pixels = np.round(255 * oklab_to_rgb(lab)).clip(0, 255).astype(np.uint8)
    found.flags.writeable = False
    return found


def end(hue: float) -> tuple[float, float, float]:
    """Return an end of the scale, L, a, b, by its hue in degrees."""
    angle = np.radians(hue)
    return _LIGHTNESS, float(_CHROMA * np.cos(angle)), float(_CHROMA * np.sin(angle))


def enlarged(values: Floats, side: int) -> Floats:
    """Return a map, (side, side), drawn out between the middles of its cells, never beyond."""
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR), dtype=np.float64)


def layer(values: Floats, limit: float, side: int) -> Image.Image:
    """Return a map as a picture to lay over a photograph.

    Parameters
    ----------
    values : ndarray of float64, (h, w)
    limit : float
        Evidence that has the last colour of the scale, and is the most opaque.
    side : int
        Pixels.

    Returns
    -------
    PIL image, RGBA
        With an outline around what is above half of the maximum, and a cross at the maximum,
        unless that is small beside the limit.
    """
    large = enlarged(values, side)
    share = np.clip(large / limit, -1, 1) if limit > 0 else np.zeros_like(large)
    place = np.round((share + 1) / 2 * (STEPS - 1)).astype(int)
    rgba = np.empty((side, side, 4), dtype=np.uint8)
    rgba[..., :3] = scale()[place]
    rgba[..., 3] = np.round(255 * _OPAQUE * np.abs(share) ** _RISE)
    most = float(values.max())
    matters = most > 0 and most >= _MATTERS * limit
    if matters:
        _outline(rgba, large >= OUTLINE * most)
    picture = Image.fromarray(rgba)
    if matters:
        row, column = peak_of(values)
        middle = column * side / values.shape[1], row * side / values.shape[0]
        _cross(picture, middle, max(3.0, side / 40))
    return picture


def laid_over(pixels: Pixels, over: Image.Image) -> Image.Image:
    """Return a photograph in grey with a layer over it, RGB; as large as the layer."""
    grey = Image.fromarray(pixels).convert("L").resize(over.size, Image.Resampling.LANCZOS)
    picture = grey.convert("RGBA")
    picture.alpha_composite(over)
    return picture.convert("RGB")


def bar(width: int, height: int) -> Image.Image:
    """Return the scale as it looks over a mid grey, from left (against) to right (for)."""
    at = np.linspace(-1, 1, width)
    colours = scale()[np.round((at + 1) / 2 * (STEPS - 1)).astype(int)].astype(np.float64)
    opaque = _OPAQUE * np.abs(at)[:, None] ** _RISE
    row = np.round(128 * (1 - opaque) + colours * opaque).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(row, (height, width, 3)).copy())


def _outline(rgba: NDArray[Any], inside: NDArray[np.bool_]) -> None:
    """Draw the edge of a region: a white line within a dark one, seen on every ground."""
    mask = Image.fromarray(inside.astype(np.uint8) * 255)

    def grown(pixels: int) -> NDArray[np.bool_]:
        kind = ImageFilter.MaxFilter if pixels > 0 else ImageFilter.MinFilter
        return np.asarray(mask.filter(kind(2 * abs(pixels) + 1))) > 0 if pixels else inside

    # A small picture has no room for three pixels of white.
    outer, inner = (0, -1) if len(rgba) < _SMALL else (1, -1)
    rgba[grown(outer + 1) & ~grown(inner - 1)] = (20, 20, 20, 150)
    rgba[grown(outer) & ~grown(inner)] = (255, 255, 255, 255)


def _cross(picture: Image.Image, middle: tuple[float, float], arm: float) -> None:
    draw = ImageDraw.Draw(picture)
    x, y = middle
    for width, colour in ((5, (20, 20, 20, 255)), (2, (255, 255, 255, 255))):
        draw.line((x - arm, y, x + arm, y), fill=colour, width=width)
        draw.line((x, y - arm, x, y + arm), fill=colour, width=width)
