"""The records that travel between the stages; none of them knows where it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    # The command line needs these records, and none of NumPy, to print its help.
    import numpy as np
    from numpy.typing import NDArray

Pixels: TypeAlias = "NDArray[np.uint8]"
"""Images, uint8, RGB: (H, W, 3) for one, (N, H, W, 3) for a batch."""

Vectors: TypeAlias = "NDArray[np.float32]"
"""Embeddings, float32, (N, D)."""

Key: TypeAlias = bytes
"""BLAKE2b-128 of a file's bytes: 16 bytes that stand for its content."""

Status: TypeAlias = Literal["ok", "undecodable", "unreadable"]
"""``undecodable`` depends on the bytes alone and is remembered; ``unreadable`` is tried again."""

Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True, slots=True)
class ResizeRule:
    """How an image becomes the square that a backbone reads.

    The shorter side is resized to ``resize`` pixels (the longer one to
    ``int(resize * long / short)``, as torchvision's ``Resize`` does), with ``interpolation``
    and antialiasing; then the central ``crop`` × ``crop`` pixels are cut out. With ``squash``
    both sides become ``resize`` pixels, whatever the image's shape.
    """

    resize: int
    crop: int
    interpolation: Interpolation = "bicubic"
    antialias: bool = True
    squash: bool = False


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One image as its source lists it, before anything of it is read.

    ``path`` is relative to the source's root where there is one, with ``/`` between its
    parts; bytes that are not UTF-8 stand in it as Python's surrogate escapes.
    ``size`` (bytes) and ``mtime_ns`` are None where the file could not be looked at:
    ``problem`` then says why. ``version`` is an opaque text that changes with the bytes, where
    whoever keeps them tells one: a bucket's ETag, the size and time of an archive; where there
    is one it decides, and size and time do not.
    """

    path: str
    size: int | None = None
    mtime_ns: int | None = None
    label: str | None = None
    split: str | None = None
    group: str | None = None
    labels: Mapping[str, str | None] = field(default_factory=dict)
    problem: str | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one image has no vector: the status for its row, and a sentence."""

    status: Status
    reason: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is; what the command line draws, and a callback may use.

    ``done`` counts every image that needs no more work, ``reused`` those of them that
    needed no inference, ``failed`` those that have no vector. ``note`` is a figure to be shown
    beside them, such as the loss after a pass.
    """

    done: int
    total: int | None
    reused: int = 0
    failed: int = 0
    stage: str = "embedding"
    note: str = ""


ProgressCallback: TypeAlias = Callable[[Progress], None]
