"""What is known of why a head says what it says: plain records, one an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featpipe._files import escape_path
from featpipe.errors import EXIT_OK, EXIT_SOME_FAILED
from featpipe.images import Box
from featpipe.types import Pixels

Method: TypeAlias = Literal["activation-map", "occlusion"]
Floats = NDArray[np.float64]

Measure: TypeAlias = Literal["logit", "log-odds", "cosine margin", "mean margin"]
"""What a map is about: the head's own score; the log-odds that its scores give; by how much the
nearest training images of a class are nearer than those of any other; the mean margin of a class
over the others."""

TITLES: Mapping[Method, str] = {"activation-map": "activation map", "occlusion": "occlusion"}
MEANING: Mapping[Measure, str] = {
    "logit": (
        "activation map (exact: its cells and the bias add up to the head's score of the class)"
    ),
    "log-odds": (
        "occlusion (a cell is what the log-odds of the class lose while patches over it are "
        "covered)"
    ),
    "cosine margin": (
        "occlusion (a cell is what is lost, while patches over it are covered, of the lead in "
        "cosine that the class's nearest training images have over any other's)"
    ),
    "mean margin": (
        "occlusion (a cell is what the class's mean margin over the others loses while patches "
        "over it are covered)"
    ),
}


@dataclass(frozen=True, slots=True)
class ClassMap:
    """What speaks for one class, and against it, place by place.

    Attributes
    ----------
    label : str
    probability : float
        Calibrated, as `featpipe.score` gives it.
    measure : str
        "logit" for an activation map; by occlusion "log-odds", or "cosine margin" and "mean
        margin" where the head counts votes; see `featpipe.inspection.measures`.
    score : float
        The measure for the whole picture. A logit is the head's score of the class, less the mean
        of all classes'; of two classes the decision value.
    bias : float or None
        What an activation map and ``score`` differ by; None by occlusion.
    values : ndarray of float64, (h, w)
        Positive where the picture speaks for the class.
    peak : (float, float)
        Where it is largest, x and y, in pixels of the original picture, upright; see
        `featpipe.inspection.peaks.peak_of`.
    """

    label: str
    probability: float
    measure: Measure
    score: float
    bias: float | None
    values: Floats
    peak: tuple[float, float]

    @property
    def total(self) -> float:
        """The sum of the map; with ``bias`` it is ``score``."""
        return float(self.values.sum())

    def to_json(self) -> dict[str, Any]:
        """Return it in plain values."""
        return {
            "label": self.label,
            "probability": round(self.probability, 6),
            "measure": self.measure,
            "score": round(self.score, 6),
            "bias": None if self.bias is None else round(self.bias, 6),
            "sum": round(self.total, 6),
            "peak": [round(at, 1) for at in self.peak],
            "map": [[round(value, 6) for value in row] for row in self.values.tolist()],
        }


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A training image that looks like the one that is explained, to the backbone.

    Attributes
    ----------
    path : str
        As the store lists it.
    label : str
    cosine : float
    pixels : ndarray of uint8, (side, side, 3), or None
        Its middle square; None where the file is gone or has changed.
    """

    path: str
    label: str
    cosine: float
    pixels: Pixels | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it in plain values, without its pixels."""
        return {
            "path": escape_path(self.path),
            "label": self.label,
            "cosine": round(self.cosine, 6),
        }


@dataclass(frozen=True, slots=True)
class Seen:
    """What a head sees in one image.

    Attributes
    ----------
    pixels : ndarray of uint8, (side, side, 3)
        What the backbone was given.
    width, height : int
        Size of the original picture, upright.
    box : (left, top, right, bottom)
        Which part of the original ``pixels`` shows.
    method : str
        "activation-map" or "occlusion".
    predicted, runner_up : ClassMap
        The likeliest class, and the second.
    nearest : tuple of Neighbour
        Training images, the nearest first.
    """

    pixels: Pixels
    width: int
    height: int
    box: Box
    method: Method
    predicted: ClassMap
    runner_up: ClassMap
    nearest: tuple[Neighbour, ...] = ()

    @property
    def limit(self) -> float:
        """The largest number of both maps without its sign; what colours are scaled to."""
        return max(float(np.abs(m.values).max()) for m in (self.predicted, self.runner_up))

    def to_json(self) -> dict[str, Any]:
        """Return it in plain values."""
        return {
            "method": self.method,
            "size": [self.width, self.height],
            "crop": [round(side, 1) for side in self.box],
            "predicted": self.predicted.to_json(),
            "runner_up": self.runner_up.to_json(),
            "nearest": [near.to_json() for near in self.nearest],
        }


@dataclass(frozen=True, slots=True)
class Explained:
    """One image, and what the head sees in it, or why nothing.

    Attributes
    ----------
    path : str
        As the source lists it.
    status : str
        ``ok``, or ``undecodable``, ``unreadable``, ``unscorable``.
    reason : str or None
        Why there is nothing to see.
    seen : Seen or None
        None where the status is not ``ok``.
    """

    path: str
    status: str
    reason: str | None = None
    seen: Seen | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it in plain values."""
        value: dict[str, Any] = {"path": escape_path(self.path), "status": self.status}
        return {**value, **({"reason": self.reason} if self.seen is None else self.seen.to_json())}


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a head sees in some images.

    Attributes
    ----------
    head, backbone : str
        Their names.
    classes : tuple of str
    images : tuple of Explained
        In the order in which they were given.
    device : str
        One line: which provider ran, and why.
    notes : tuple of str
        What a person should know, a sentence each.
    """

    head: str
    backbone: str
    classes: tuple[str, ...]
    images: tuple[Explained, ...]
    device: str
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> int:
        """How many images there is nothing to be said of."""
        return sum(image.seen is None for image in self.images)

    @property
    def exit_code(self) -> int:
        """0, or 3 where some images failed."""
        return EXIT_SOME_FAILED if self.failed else EXIT_OK

    def to_json(self) -> dict[str, Any]:
        """Return it in plain values."""
        return {
            "head": self.head,
            "backbone": self.backbone,
            "classes": list(self.classes),
            "device": self.device,
            "notes": list(self.notes),
            "images": [image.to_json() for image in self.images],
        }
