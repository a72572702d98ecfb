"""The two figures that probes report, with their intervals, and how they are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featpipe.metrics import compute_metrics

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Interval = tuple[float, float]

NAMES = ("accuracy", "mean_per_class_accuracy")


@dataclass(frozen=True, slots=True)
class Figures:
    """How many of some images are labelled correctly.

    Attributes
    ----------
    n_samples : int
    accuracy : float
        Share of all images: top-1.
    mean_per_class_accuracy : float
        Mean over the classes that occur of each one's share.
    intervals : dict
        95 % bootstrap interval of both, over images, equal ones and those of a group together.
    """

    n_samples: int
    accuracy: float
    mean_per_class_accuracy: float
    intervals: dict[str, Interval]

    @classmethod
    def measured(
        cls, y: Ints, votes: Floats, classes: Sequence[str], units: Ints | None, seed: int
    ) -> Self:
        """Measure which class has the highest of the votes, (n, K); rows sum to 1."""
        # `majority` concerns a figure that is not taken over.
        found = compute_metrics(y, votes, classes, majority=0, groups=units, seed=seed)
        return cls(
            found.n_samples,
            found.accuracy,
            found.balanced_accuracy,
            {
                "accuracy": found.intervals["accuracy"],
                "mean_per_class_accuracy": found.intervals["balanced_accuracy"],
            },
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "n_samples": self.n_samples,
            "accuracy": self.accuracy,
            "mean_per_class_accuracy": self.mean_per_class_accuracy,
            "intervals_95": {name: list(pair) for name, pair in self.intervals.items()},
        }


def share(value: float | None) -> str:
    """Return a share as per cent; a dash where there is none.

    >>> share(0.9375)
    '93.8 %'
    """
    return "-" if value is None else f"{100 * value:.1f} %"


def interval(pair: Interval | None) -> str:
    """Return an interval as per cent; a dash where there is none.

    >>> interval((0.5, 0.75))
    '50.0 to 75.0 %'
    """
    return "-" if pair is None else f"{100 * pair[0]:.1f} to {100 * pair[1]:.1f} %"
