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
from PIL import Image

from featpipe._files import atomic_file
from featpipe.backbones import Backbone, load_backbone
from featpipe.errors import FeatpipeError, WriteError
from featpipe.images import decode_image
from featpipe.quality.looks import bytes_of, differing_bits, look, source_of
from featpipe.store import EmbeddingStore
from featpipe.types import Failure

FILE_NAME = "copies.json"
_SAMPLE = 24
_COPIES = ((1.0, 50), (0.7, 80), (0.4, 70))
"""Scale and JPEG quality of the copies that are made."""
_SHARE = 0.02
_SLACK, _MOST_BITS = 2, 8
_BATCH = 8


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
    """Measure how alike re-encoded copies of some images of a store are, once for each store.

    24 images, drawn by their contents, are written as JPEG with quality 50, and at 0.7 and 0.4 of
    their size. The cosine that all but 2 % of the copies reach is the
    threshold, and two bits more than as many of them differ in. Where the images or the
    backbone cannot be had it is `DEFAULT`.
    """
    known = _read(store)
    if known is not None:
        return known
    try:
        backbone = load_backbone(str(store.card["name"]), models_dir)
    except (FeatpipeError, OSError):
        return DEFAULT
    if backbone.fingerprint != store.fingerprint:
        return DEFAULT
    found = _measured(store, backbone)
    if found.copies:
        with suppress(WriteError), atomic_file(store.path / FILE_NAME) as file:
            content = {"fingerprint": store.fingerprint, **asdict(found)}
            file.write(json.dumps(content).encode())
    return found


def _measured(store: EmbeddingStore, backbone: Backbone) -> Threshold:
    rows, files, bits = [], list[bytes](), list[int]()
    for row, data in _sample(store):
        own = look(data)
        for copy in _copies(data) if own is not None else ():
            other = look(copy)
            assert own is not None
            if other is not None:
                rows.append(row)
                files.append(copy)
                hashes = np.array([own[0]], np.uint64), np.array([other[0]], np.uint64)
                bits.append(int(differing_bits(*hashes)[0]))
    if not rows:
        return DEFAULT
    cosines = _cosines(store.read(np.array(rows)), _vectors(files, backbone))
    # Rounded towards more copies: what a person is shown is what is used.
    cosine = np.floor(100 * np.quantile(cosines, _SHARE)) / 100
    most = int(np.ceil(np.quantile(bits, 1 - _SHARE)))
    return Threshold(float(cosine), min(most + _SLACK, _MOST_BITS), len(rows))


def _sample(store: EmbeddingStore) -> list[tuple[int, bytes]]:
    """Return rows and files: the same ones for the same contents, whatever their order."""
    source = source_of(store)
    found: list[tuple[int, bytes]] = []
    if source is None:
        return found
    first = {key: row for row, key in enumerate(store.keys)}
    for key in sorted(first)[: 2 * _SAMPLE]:
        data = bytes_of(source, store.paths[first[key]], key)
        if data is not None:
            found.append((first[key], data))
        if len(found) == _SAMPLE:
            break
    return found


def _copies(data: bytes) -> list[bytes]:
    try:
        with Image.open(io.BytesIO(data)) as opened:
            image = opened.convert("RGB")
            exif = opened.getexif()
    # It was decoded before; whatever is odd about it, it gives no copy.
    except Exception:  # noqa: BLE001
        return []
    found = []
    for scale, quality in _COPIES:
        size = max(1, round(scale * image.width)), max(1, round(scale * image.height))
        copy = image if scale == 1 else image.resize(size, Image.Resampling.LANCZOS)
        file = io.BytesIO()
        copy.save(file, "JPEG", quality=quality, exif=exif)
        found.append(file.getvalue())
    return found


def _vectors(files: list[bytes], backbone: Backbone) -> NDArray[np.float32]:
    session = backbone.open_session("cpu", "fp32")
    squares = [decode_image(data, backbone.card.resize) for data in files]
    pixels = np.stack([s.pixels for s in squares if not isinstance(s, Failure)])
    return np.concatenate(
        [session.run(pixels[i : i + _BATCH]) for i in range(0, len(pixels), _BATCH)]
    )


def _cosines(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines: NDArray[Any] = (a * b).sum(axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny)
    return cosines


def _read(store: EmbeddingStore) -> Threshold | None:
    try:
        content = json.loads((store.path / FILE_NAME).read_bytes())
        found = Threshold(float(content["cosine"]), int(content["bits"]), int(content["copies"]))
        is_ours = content["fingerprint"] == store.fingerprint and found.copies > 0
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if is_ours and -1 <= found.cosine <= 1 and 0 <= found.bits <= 63 else None
