"""What an import is asked for, what it hands from stage to stage, and what it tells at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featpipe.backbones.card import BackboneCard, Triple
from featpipe.types import Interpolation

Layout: TypeAlias = Literal["nchw", "nhwc"]
Arrays: TypeAlias = Mapping[str, NDArray[Any]]
"""Tensors of one run, by name."""

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
RAW_MEAN: Triple = (0.0, 0.0, 0.0)
RAW_STD: Triple = (1 / 255, 1 / 255, 1 / 255)
"""With ``RAW_MEAN``: the numbers 0 to 255 as they are."""


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """How a foreign ONNX file becomes a backbone; None leaves it to the file, or to a default.

    Attributes
    ----------
    name : str or None
        Name of the backbone. Default: the file's.
    output : str or None
        The tensor that becomes the embedding: (N, D), or a map that is averaged over space.
        Default: what the classifier reads.
    size : int or None
        Side of the square that is read, in pixels, where the file leaves it open.
    resize : int or None
        Shorter side before the central crop. Default: size / 0.875.
    mean, std : tuple of three floats, or None
        Of R, G, B on the scale 0 to 1, as torchvision has them. Default: ImageNet's.
    layout : "nchw", "nhwc" or None
        Order of the input's axes, where its shape does not tell.
    interpolation : str
        Of the resize.
    bgr : bool
        The file reads B, G, R. ``mean`` and ``std`` stay in the order R, G, B.
    weights, license : str or None
        For the card: where the weights come from, and under which licence.
    models_dir : path or None
        Folder that is written into.
    replace : bool
        Whether a backbone of that name may be overwritten.
    """

    name: str | None = None
    output: str | None = None
    size: int | None = None
    resize: int | None = None
    mean: Triple | None = None
    std: Triple | None = None
    layout: Layout | None = None
    interpolation: Interpolation = "bilinear"
    bgr: bool = False
    weights: str | None = None
    license: str | None = None
    models_dir: Path | None = None
    replace: bool = False


@dataclass(frozen=True, slots=True)
class Reads:
    """What the foreign file reads: its one input, and what is to be put into it.

    Attributes
    ----------
    name : str
        Name of the input.
    layout : "nchw" or "nhwc"
        Order of its axes.
    size : int
        Height and width.
    dtype : numpy dtype
        uint8, float16 or float32.
    batch : int or None
        The number of images that it must be given; None: any.
    mean, std : tuple of three floats
        Normalisation of R, G, B on the scale 0 to 1.
    bgr : bool
        Whether the channels are reversed.
    """

    name: str
    layout: Layout
    size: int
    dtype: np.dtype[Any]
    batch: int | None
    mean: Triple
    std: Triple
    bgr: bool

    @property
    def is_raw(self) -> bool:
        """Whether pixels go in as they are."""
        return self.dtype == np.uint8


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of the foreign file that becomes an output of the backbone.

    Attributes
    ----------
    name : str
        Its name in the foreign file.
    layout : "vector", "nchw" or "nhwc"
        What its axes are: (N, D), with any further axes of length one, or a map.
    scale, zero_point : ndarray or None
        How its integers become numbers, where it is quantised.
    """

    name: str
    layout: Literal["vector", "nchw", "nhwc"]
    scale: NDArray[Any] | None = None
    zero_point: NDArray[Any] | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """The embedding in the foreign file, the map before its pooling, and how it was found."""

    embedding: Part
    feature_map: Part | None
    dimension: int
    why: str


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import has done.

    Attributes
    ----------
    card : BackboneCard
        As it stands in the file.
    path : Path
        The file that was written.
    embedding : str
        Which tensor the embedding is, how long, and why: for a person.
    feature_map : str or None
        Which tensor the map before pooling is; None where there is none.
    cosine : float
        The worst agreement with the foreign file, over all images, batches and outputs.
    notes : tuple of str
        What was assumed, and how to say otherwise; whole sentences without the full stop.
    """

    card: BackboneCard
    path: Path
    embedding: str
    feature_map: str | None
    cosine: float
    notes: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return {
            "path": str(self.path),
            "card": self.card.to_json(),
            "embedding": self.embedding,
            "feature_map": self.feature_map,
            "cosine": self.cosine,
            "notes": list(self.notes),
        }
