"""A calibrator's plain values, every one checked before it is believed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from featpipe.calibration.isotonic import MOST_KNOTS, Isotonic
from featpipe.calibration.sigmoid import Sigmoid
from featpipe.calibration.temperature import Temperature


class Calibrator(Protocol):
    """What makes probabilities of scores."""

    @property
    def method(self) -> str:
        """Name of the kind."""
        ...

    @property
    def temperature(self) -> float:
        """What scores are divided by first."""
        ...

    def probabilities(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (n, K) for scores (n, K); rows sum to 1."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        ...


def read_calibrator(value: Any, n_classes: int) -> Calibrator | None:
    """Return the calibrator that ``to_json`` has described, or None where anything is amiss.

    Parameters
    ----------
    value : object
        From a file that may come from anybody: nothing is taken for granted.
    n_classes : int
        K, at least 2.
    """
    if not isinstance(value, Mapping) or not _is_positive(value.get("temperature")):
        return None
    reader = _READERS.get(str(value.get("method")))
    n_maps = n_classes if n_classes > 2 else 1
    return None if reader is None else reader(float(value["temperature"]), value, n_maps)


def _sigmoid(temperature: float, value: Mapping[str, Any], n_maps: int) -> Sigmoid | None:
    slopes, intercepts = (numbers(value.get(name)) for name in ("slopes", "intercepts"))
    if slopes is None or intercepts is None or not len(slopes) == len(intercepts) == n_maps:
        return None
    return Sigmoid(temperature, slopes, intercepts) if min(slopes) >= 0 else None


def _isotonic(temperature: float, value: Mapping[str, Any], n_maps: int) -> Isotonic | None:
    maps = _maps(value.get("odds"), value.get("values"), n_maps)
    return None if maps is None else Isotonic(temperature, *maps)


_READERS: Mapping[str, Callable[[float, Mapping[str, Any], int], Calibrator | None]] = {
    "temperature": lambda temperature, *_: Temperature(temperature),
    "sigmoid": _sigmoid,
    "isotonic": _isotonic,
}


def _maps(
    odds: Any, values: Any, n_maps: int
) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]] | None:
    if not all(isinstance(side, list) and len(side) == n_maps for side in (odds, values)):
        return None
    found: list[tuple[tuple[float, ...], tuple[float, ...]]] = []
    for at, level in zip(odds, values, strict=True):
        knots, heights = numbers(at), numbers(level)
        if knots is None or heights is None or not _is_rising(knots, heights):
            return None
        found.append((knots, heights))
    return tuple(knots for knots, _ in found), tuple(heights for _, heights in found)


def _is_rising(knots: tuple[float, ...], heights: tuple[float, ...]) -> bool:
    return (
        1 <= len(knots) == len(heights) <= MOST_KNOTS
        and all(a < b for a, b in pairwise(knots))
        and all(a <= b for a, b in pairwise(heights))
        and heights[0] > 0
        and heights[-1] < 1
    )


def numbers(value: Any) -> tuple[float, ...] | None:
    """Return a list of finite numbers, or None where it is anything else."""
    if not isinstance(value, list) or not all(is_number(entry) for entry in value):
        return None
    return tuple(float(entry) for entry in value)


def is_number(value: Any) -> bool:
    """Tell whether a plain value is a finite number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of four hundred digits
        return False


def _is_positive(value: Any) -> bool:
    return is_number(value) and value > 0
