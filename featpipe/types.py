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
class Shard:
    """The ``i``-th of ``n`` contiguous pieces of a listing, counted from 1.

    >>> Shard.parse("2/4"), str(Shard(2, 4)), Shard(2, 4).bounds(10)
    (Shard(i=2, n=4), '2/4', (2, 5))

    Raises
    ------
    ValueError
        Where ``i`` does not lie between 1 and ``n``.
    """

    i: int
    n: int

    def __post_init__(self) -> None:
        if not 1 <= self.i <= self.n:
            raise ValueError(f"there is no shard {self}: in i/n, i goes from 1 to n")

    def __str__(self) -> str:
        return f"{self.i}/{self.n}"

    @classmethod
    def parse(cls, text: Shard | str) -> Shard:
        """Read ``i/n``, such as ``2/4``; raise ValueError for all else."""
        if isinstance(text, Shard):
            return text
        i, stroke, n = text.partition("/")
        # Not `isdigit` alone: it holds for digits of other scripts and for exponents.
        if not (stroke and i.isascii() and n.isascii() and i.isdigit() and n.isdigit()):
            raise ValueError(f"a shard is given as i/n, such as 2/4, not as {text!r}")
        if max(len(i), len(n)) > 9:
            raise ValueError(f"a shard is one of at most 999999999, not {text!r}")
        return cls(int(i), int(n))

    def bounds(self, total: int) -> tuple[int, int]:
        """Return where the piece begins and ends in a listing of ``total`` images.

        The pieces of one ``n`` cover every listing, none twice, and differ by one image at most.
        """
        return (self.i - 1) * total // self.n, self.i * total // self.n


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
