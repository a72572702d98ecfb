"""How alike two images must be to count as copies: measured on copies of the user's own images."""

from __future__ import annotations

import io
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from featpipe._files import content_key
from featpipe.backbones import Backbone, list_backbones, load_backbone
from featpipe.errors import FeatpipeError, StoreError, WriteError
from featpipe.images import decode_image
from featpipe.quality.looks import bytes_of, differing_bits, first_rows, look, source_of
from featpipe.sources import Source
from featpipe.store import EmbeddingStore
from featpipe.types import Failure

FILE_NAME = "copies.json"
_LARGEST_FILE = 2**16
_SAMPLE, _LEAST = 24, 6
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_SMALLEST_SIDE, _MOST_PIXELS = 96, 2**26
_LEAST_CONTRAST = 8.0
_COPIES = ((1.0, 50), (0.7, 80), (0.4, 70))
"""Scale and JPEG quality of the copies that are made."""
_SHARE = 0.1
_SLACK, _MOST_BITS = 2, 6
_FLOOR = 0.5
"""Below this cosine nothing is called a copy, whatever the copies show."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """From where on two images count as copies of one.

    Attributes
    ----------
    cosine : float
        Of their vectors, at least.
    bits : int
        In which their perceptual hashes may differ, at most, of 63.
    copies : int
        Re-encoded copies that it was measured on; 0 where none could be made.
    """

    cosine: float
    bits: int
    copies: int

    def __str__(self) -> str:
        how = (
            f"as {self.copies} re-encoded copies of these images show"
            if self.copies
            else "not measured on these images"
        )
        return f"cosine ≥ {self.cosine:.2f} and at most {self.bits} of 63 bits apart, {how}"


DEFAULT = Threshold(0.85, 4, 0)
"""Between what copies show and what other photographs do, on photographs and built-in backbone."""


def threshold_for(
    store: EmbeddingStore, models_dir: str | os.PathLike[str] | None = None
) -> Threshold:
    """Measure how alike re-encoded copies of some images of a store are, once for its images.

    24 images, drawn by their contents, are written as JPEG with quality 50, and at 0.7 and 0.4
    of their size (quality 80 and 70). Of every image the copy counts that is least like it: the
    threshold is what nine in ten images reach, 0.5 at least; hashes may differ in two bits more
    than those of nine in ten do, six at most. Where fewer than six images can be had (they
    are gone, too small or blank), or the backbone is not here, it is `DEFAULT`.
    """
    rows = np.unique(first_rows(store)).tolist()
    sample = sorted(rows, key=store.keys.__getitem__)[: 2 * _SAMPLE]
    known = _read(store, _digest(store, sample))
    if known is not None:
        return known
    # By its name among the files that are here: nothing is exported, no path is followed.
    path = list_backbones(models_dir).get(str(store.card["name"]).replace("/", "-"))
    source = source_of(store)
    if path is None or source is None:
        return DEFAULT
    try:
        backbone = load_backbone(path)
        if backbone.fingerprint != store.fingerprint:
            return DEFAULT
        found = _measured(store, source, sample, backbone)
    except (FeatpipeError, OSError):
        return DEFAULT
    if found.copies:
        content = {"sample": _digest(store, sample), **asdict(found)}
        with suppress(WriteError), store.folder.written(FILE_NAME) as file:
            file.write(json.dumps(content).encode())
    return found


def _digest(store: EmbeddingStore, sample: list[int]) -> str:
    """Return what changes with the backbone, the images, and how copies are made of them."""
    made = repr((store.fingerprint, _COPIES, _SHARE, _SLACK, _MOST_BITS, _FLOOR)).encode()
    return content_key(made + b"".join(store.keys[row] for row in sample)).hex()


def _measured(
    store: EmbeddingStore, source: Source, sample: list[int], backbone: Backbone
) -> Threshold:
    session = backbone.open_session("cpu", "fp32")
    cosines, bits = list[float](), list[int]()
    for row in sample:
        data = bytes_of(source, store.paths[row], store.keys[row])
        copies = [] if data is None else _copies(data)
        if data is None or not copies:
            continue
        squares = [decode_image(copy, backbone.card.resize) for copy in copies]
        pixels = [s.pixels for s in squares if not isinstance(s, Failure)]
        looks = [seen for seen in map(look, (data, *copies)) if seen is not None]
        if len(pixels) < len(copies) or len(looks) <= len(copies):
            continue
        vectors = session.run(np.stack(pixels))
        cosines.append(float(_cosines(store.read(np.array([row])), vectors).min()))
        hashes = np.array([seen[0] for seen in looks], np.uint64)
        bits.append(int(differing_bits(hashes[:1], hashes[1:]).max()))
        if len(cosines) == _SAMPLE:
            break
    if len(cosines) < _LEAST:
        return DEFAULT
    # Rounded towards more copies: what a person is shown is what is used.
    cosine = max(_FLOOR, float(np.floor(100 * np.quantile(cosines, _SHARE)) / 100))
    most = int(np.ceil(np.quantile(bits, 1 - _SHARE))) + _SLACK
    return Threshold(cosine, min(most, _MOST_BITS), len(cosines) * len(_COPIES))


def _copies(data: bytes) -> list[bytes]:
    """Write an ordinary photograph again in several ways; none of what is no such thing."""
    seen = look(data)
    if seen is None or seen[2] < _LEAST_CONTRAST:
        return []
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as opened:
            is_ordinary = opened.mode in {"RGB", "L"} and min(opened.size) >= _SMALLEST_SIDE
            if not is_ordinary or opened.width * opened.height > _MOST_PIXELS:
                return []
            image = ImageOps.exif_transpose(opened).convert("RGB")
        return [_copy(image, scale, quality) for scale, quality in _COPIES]
    # Pillow meets odd bytes and odd sizes with any exception; they make no copy.
    except Exception:  # noqa: BLE001
        return []


def _copy(image: Image.Image, scale: float, quality: int) -> bytes:
    size = max(1, round(scale * image.width)), max(1, round(scale * image.height))
    copy = image if scale == 1 else image.resize(size, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    copy.save(file, "JPEG", quality=quality)
    return file.getvalue()


def _cosines(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: NDArray[Any] = (a * b).sum(axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny)
    return cosines


def _read(store: EmbeddingStore, digest: str) -> Threshold | None:
    """Return what was measured on the same images before, as far as it can be true."""
    try:
        with store.folder.opened(FILE_NAME) as file:
            if file.size() > _LARGEST_FILE:
                return None
            content = json.loads(file.read())
        found = Threshold(float(content["cosine"]), int(content["bits"]), int(content["copies"]))
        if content["sample"] != digest:
            return None
    except (StoreError, OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    is_possible = _FLOOR <= found.cosine <= 1 and 0 <= found.bits <= _MOST_BITS
    return found if is_possible and found.copies > 0 else None
