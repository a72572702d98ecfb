"""What a head said of its own images, as if they were new: what others are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featpipe.calibration.reading import numbers

Floats = NDArray[np.float64]

MOST = 1000
"""Quantiles that are kept, at most."""
DECIMALS = 6
"""Of a probability, as `featpipe score` writes it."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Predictions of images that the head had not learnt on, in short.

    Attributes
    ----------
    counts : tuple of int
        Images for which each class was the likeliest.
    confidence : tuple of float
        Probabilities of the likeliest class, ascending; of many images the quantiles.
    """

    counts: tuple[int, ...]
    confidence: tuple[float, ...]

    @property
    def n_images(self) -> int:
        """Images that were predicted."""
        return sum(self.counts)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``head.json`` holds them."""
        return {"counts": list(self.counts), "confidence": list(self.confidence)}

    @classmethod
    def read(cls, value: Any, n_classes: int) -> Self | None:
        """Return it from what `to_json` gave, or None where anything is amiss."""
        if not isinstance(value, Mapping):
            return None
        counts, confidence = value.get("counts"), numbers(value.get("confidence"))
        if not isinstance(counts, list) or len(counts) != n_classes or confidence is None:
            return None
        if not all(_is_count(count) for count in counts):
            return None
        ordered = all(a <= b for a, b in pairwise(confidence))
        if not (ordered and 1 <= len(confidence) <= min(MOST, sum(counts))):
            return None
        return cls(tuple(counts), confidence) if 0 <= confidence[0] <= confidence[-1] <= 1 else None


def reference_of(probabilities: Floats) -> Reference:
    """Return the reference that probabilities, (n, K), of images not learnt on make."""
    labels = probabilities.argmax(axis=1)
    ordered = np.sort(probabilities.max(axis=1).round(DECIMALS).clip(0, 1))
    n = len(ordered)
    if n > MOST:
        ordered = ordered[((np.arange(MOST) + 0.5) * n / MOST).astype(np.int64)]
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    return Reference(tuple(counts.tolist()), tuple(ordered.tolist()))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
