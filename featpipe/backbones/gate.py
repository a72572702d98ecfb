"""Two ways to compute the same vectors are compared here, on photographs or what looks like them.

Flat noise and constant pictures hide errors that photographs show (saturated activations,
asymmetric padding, wrong normalisation). `photographs` are real ones, for the files that
featpipe writes; `realistic_images` have their statistics, and cost no decoding, for the check
of a device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featpipe.types import Pixels, Vectors

Embed: TypeAlias = Callable[[Pixels], Vectors]

EXPORT_COSINE = 0.99999
"""What an exported file must reach against its source framework."""
DEVICE_COSINE = 0.999
"""What a provider must reach against the CPU's."""


_PHOTOS = Path(__file__).parent / "photos"


def photographs(n: int, size: int) -> Pixels:
    """Return ``n`` squares of real photographs; the same ones for the same arguments.

    Seven photographs come with featpipe. More squares than these are other parts of them,
    every second one mirrored, so that no two are alike.

    Returns
    -------
    ndarray of uint8, (n, size, size, 3)
    """
    opened = _opened_photographs()
    return np.stack([_square(opened[i % len(opened)], i // len(opened), size) for i in range(n)])


def whole_photographs() -> list[Pixels]:
    """Return the photographs that come with featpipe, uint8 (H, W, 3) each, of several sizes."""
    return [np.asarray(photo) for photo in _opened_photographs()]


@lru_cache(maxsize=1)
def _opened_photographs() -> tuple[Image.Image, ...]:
    return tuple(Image.open(path).convert("RGB") for path in sorted(_PHOTOS.glob("*.jpg")))


def _square(photo: Image.Image, part: int, size: int) -> Pixels:
    """Cut a square out of a photograph: the largest in the middle, or a smaller one elsewhere."""
    rng = np.random.default_rng(part)
    side = min(photo.size) * (1.0 if part == 0 else rng.uniform(0.5, 0.9))
    across, down = (0.5, 0.5) if part == 0 else rng.random(2)
    left, top = across * (photo.width - side), down * (photo.height - side)
    box = (left, top, left + side, top + side)
    pixels: Pixels = np.asarray(photo.resize((size, size), Image.Resampling.BICUBIC, box=box))
    return pixels[:, ::-1] if part % 2 else pixels


def realistic_images(n: int, size: int, seed: int = 0) -> Pixels:
    """Return images with the statistics of photographs; the same ones for the same ``seed``.

    Each is a sum of 1/f noise (the spectrum of natural scenes: Field 1987), a few shapes
    with hard edges and one gradient of light, with its own contrast and colour.

    Returns
    -------
    ndarray of uint8, (n, size, size, 3)
    """
    return np.stack([_image(np.random.default_rng((seed, index)), size) for index in range(n)])


def _image(rng: np.random.Generator, size: int) -> Pixels:
    colours = _mix_channels(np.stack([_one_over_f(rng, size) for _ in range(3)], axis=-1), rng)
    across, down = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size))
    for _ in range(int(rng.integers(2, 7))):
        colours[_shape(rng, across, down)] += rng.normal(0, 0.8, 3)
    angle = rng.uniform(0, 2 * np.pi)
    light = rng.uniform(0, 1.0) * (across * np.cos(angle) + down * np.sin(angle))
    level, contrast = rng.uniform(90, 160), rng.uniform(25, 60)
    values = level + contrast * (colours + light[..., None])
    pixels: Pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return pixels


def _one_over_f(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    frequencies = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    spectrum = np.fft.rfft2(rng.normal(size=(size, size)))
    noise = np.fft.irfft2(spectrum / np.maximum(frequencies, 1 / size), s=(size, size))
    scaled: NDArray[np.float64] = (noise - noise.mean()) / (noise.std() or 1.0)
    return scaled


def _mix_channels(noise: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Make the channels mostly one brightness: colours of photographs are correlated."""
    saturation = rng.uniform(0.1, 0.6)
    return noise[..., :1] * (1 - saturation) + noise * saturation


def _shape(
    rng: np.random.Generator, across: NDArray[np.float64], down: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return a mask: a disc, or one side of an edge, somewhere in the picture."""
    x, y = rng.uniform(-1, 1, 2)
    if rng.random() < 0.5:
        disc: NDArray[np.bool_] = np.hypot(across - x, down - y) < rng.uniform(0.1, 0.7)
        return disc
    angle = rng.uniform(0, 2 * np.pi)
    edge: NDArray[np.bool_] = (across - x) * np.cos(angle) + (down - y) * np.sin(angle) > 0
    return edge


def compare(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Return the smallest cosine between rows of two arrays of one shape, length included.

    For each row a and b, 2ab / (aa + bb): the cosine where both are equally long, and less
    where they are not, so that a wrong scale does not pass. More than two dimensions are
    flattened to rows. Anything that is not finite counts as -1.

    Raises
    ------
    ValueError
        When the shapes differ.

    >>> compare(np.array([[3, 4]], np.float32), np.array([[4, 3]], np.float32))
    0.96
    >>> compare(np.array([[3, 4]], np.float32), np.array([[6, 8]], np.float32))
    0.8
    """
    if expected.shape != found.shape:
        raise ValueError(f"shapes differ: {expected.shape} and {found.shape}")
    if len(expected) == 0:
        return 1.0
    a = expected.reshape(len(expected), -1).astype(np.float64)
    b = found.reshape(len(found), -1).astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return -1.0
    scale = (a * a).sum(axis=1) + (b * b).sum(axis=1)
    products = 2 * (a * b).sum(axis=1)
    # Two rows of zeros are equal.
    return float(np.where(scale > 0, products / np.where(scale > 0, scale, 1), 1.0).min())


def verify(reference: Embed, candidate: Embed, size: int, *, batches: tuple[int, ...]) -> float:
    """Return the smallest cosine between two ways to embed, over batches of these sizes.

    A candidate that gives another shape counts as -1: a batch size that is burnt into a
    graph shows here.
    """
    worst = 1.0
    for seed, batch in enumerate(batches):
        images = realistic_images(batch, size, seed)
        expected, found = reference(images), candidate(images)
        worst = min(worst, compare(expected, found) if expected.shape == found.shape else -1.0)
    return worst
