"""Images to calibrate with, and others to check the result on, out of one source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from featpipe._files import content_key, printable
from featpipe.errors import SourceError
from featpipe.images import decode_image
from featpipe.sources import Source
from featpipe.types import Failure, ImageRef, Key, Pixels, Progress, ProgressCallback, ResizeRule

FEWEST = 20
"""With fewer images, ranges and figures are chance."""
ENOUGH = 80
"""With fewer images than this a note says so."""
_MOST_HELD = 64


@dataclass(frozen=True, slots=True)
class Sample:
    """Images of one source, without order and without doubles.

    Attributes
    ----------
    source : str
        Short name of the source.
    calibrate, held : ndarray of uint8, (N, H, W, 3)
        To observe activations on, and to measure on: no image is in both.
    failures : tuple of (str, str)
        Path and reason of each image that could not be used.
    notes : tuple of str
    """

    source: str
    calibrate: Pixels
    held: Pixels
    failures: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


def draw_sample(
    source: Source,
    rule: ResizeRule,
    n_images: int,
    *,
    progress: ProgressCallback | None = None,
    seed: int = 0,
) -> Sample:
    """Draw and decode images: up to ``n_images`` to calibrate, and a quarter of that, 64 at most.

    Parameters
    ----------
    source : Source
        From `featpipe.sources.open_source`.
    rule : ResizeRule
        How the backbone wants its images.
    n_images : int
        20 at least. Where the source has fewer, a fifth of them is held out.
    seed : int
        Of the order: the same source and seed give the same images.

    Raises
    ------
    SourceError
        When there are fewer than 20 different images that can be decoded.
    """
    refs = list(source)
    if not refs:
        raise SourceError(source.nothing_found())
    order = np.random.default_rng(seed).permutation(len(refs))
    n_held = min(_MOST_HELD, n_images // 4)
    most = min(n_images + n_held, len(refs))
    failures: list[tuple[str, str]] = []
    images = np.empty((most, rule.crop, rule.crop, 3), np.uint8)
    found = 0
    for pixels in _decoded(source, (refs[i] for i in order), rule, failures):
        images[found] = pixels
        found += 1
        if progress is not None:
            progress(Progress(found, most, failed=len(failures), stage="reading"))
        if found == most:
            break
    if found < FEWEST:
        raise SourceError(_too_few(source, len(refs), found, failures))
    n_held = min(n_held, found // 5)
    return Sample(
        source.name,
        images[n_held:found],
        images[:n_held],
        tuple(failures),
        tuple(_notes(found)),
    )


def _decoded(
    source: Source,
    refs: Iterable[ImageRef],
    rule: ResizeRule,
    failures: list[tuple[str, str]],
) -> Iterator[Pixels]:
    seen: set[Key] = set()
    for ref in refs:
        data = _read(source, ref)
        if isinstance(data, bytes):
            key = content_key(data)
            if key in seen:
                continue
            seen.add(key)
            decoded = decode_image(data, rule)
            if not isinstance(decoded, Failure):
                yield decoded.pixels
                continue
            data = decoded.reason
        failures.append((ref.path, data))


def _read(source: Source, ref: ImageRef) -> bytes | str:
    """Return the bytes of an image, or why there are none."""
    if ref.problem is not None:
        return ref.problem
    try:
        return source.read(ref)
    except (OSError, ValueError) as exc:
        return f"the file cannot be read: {getattr(exc, 'strerror', None) or exc}"


def _too_few(source: Source, listed: int, found: int, failures: list[tuple[str, str]]) -> str:
    first = f" (first: {printable(failures[0][0])}: {failures[0][1]})" if failures else ""
    return (
        f"{printable(source.location)} has {found} different images that can be used, of "
        f"{listed} that are listed, and quantisation needs {FEWEST}{first}: give a folder with "
        "more images of the kind that will be embedded"
    )


def _notes(found: int) -> Iterator[str]:
    if found < ENOUGH:
        yield (
            f"{found} images are few to calibrate with: with {ENOUGH} or more the ranges are "
            "more certain, and so are the figures"
        )
