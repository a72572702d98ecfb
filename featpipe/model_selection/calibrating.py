"""Which calibrator makes probabilities of held-out scores: the simplest that others do not beat.

The scores are divided once more: a calibrator is fitted on those of all folds but one, and
measured on that one. So what is said of calibration is never said of rows that it was fitted on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.calibration import (
    Calibrator,
    Temperature,
    fit_isotonic,
    fit_sigmoid,
    fit_temperature,
    to_probabilities,
)
from featpipe.metrics import expected_calibration_error, reliability
from featpipe.model_selection.folds import Fold, Ints

Floats = NDArray[np.float64]

METHODS = ("auto", "temperature", "sigmoid", "isotonic", "none")
"""What may be asked for."""
ISOTONIC_ROWS = 500
"""Held-out rows of every class that isotonic maps are tried with: with fewer they overfit."""
MOST_SCORES = 2**22
"""Held-out scores that others than a temperature are tried with, rows times classes: 32 MiB."""
_SMALLEST = float(np.finfo(np.float64).eps)

_FITS: Mapping[str, Callable[[Floats, Ints], Calibrator]] = {
    "temperature": lambda scores, y: Temperature(fit_temperature(scores, y)),
    "sigmoid": fit_sigmoid,
    "isotonic": fit_isotonic,
    "none": lambda *_: Temperature(1.0),
}
"""Every way, the simplest of those that `auto` compares first."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """A calibrator, and how good its probabilities are on rows that it was not fitted on.

    Attributes
    ----------
    calibrator : Calibrator
        Fitted on all held-out scores.
    report : mapping
        Plain values: method, log loss of each that was considered, and calibration error, log
        loss and reliability before (softmax of the scores as they are) and after.
    """

    calibrator: Calibrator
    report: Mapping[str, Any]


def calibrate(scores: Floats, y: Ints, folds: Sequence[Fold], method: str = "auto") -> Calibration:
    """Choose a calibrator by the log loss of folds that it was not fitted on; fit it on all.

    A temperature is taken unless sigmoids are better by more than one standard error of the
    difference, row by row; isotonic maps have to beat in this way what was taken before them, and
    are tried where every class has 500 rows. With more than 4,194,304 scores, rows times classes,
    the temperature is taken without a comparison.

    Parameters
    ----------
    scores : ndarray of float, (n, K)
        Of every row, by a classifier that was not fitted on it.
    y : ndarray of int, (n,)
        Classes 0 … K-1.
    folds : sequence of (others, held out)
        Every row is held out once; no unit stands on both sides.
    method : str
        One of `METHODS`; all but auto are taken without a comparison.

    References
    ----------
    Breiman, Friedman, Olshen, Stone 1984, "Classification and Regression Trees", section 3.4.3
    (the simplest within one standard error). Guo et al. 2017, "On Calibration of Modern Neural
    Networks", sections 2 and 4.
    """
    considered = _considered(scores, y, method)
    found = {name: _held_out(_FITS[name], scores, y, folds) for name in considered}
    losses = {name: row_losses(p, y) for name, p in found.items()}
    chosen = _simplest(losses)
    report = {
        "method": chosen,
        "log_loss": {name: float(loss.mean()) for name, loss in losses.items()},
        "before": figures(to_probabilities(scores, 1.0), y),
        "after": figures(found[chosen], y),
    }
    return Calibration(_FITS[chosen](scores, y), report)


def _considered(scores: Floats, y: Ints, method: str) -> list[str]:
    if method != "auto":
        return [method]
    if scores.size > MOST_SCORES:
        return ["temperature"]
    enough = int(np.bincount(y).min()) >= ISOTONIC_ROWS
    return ["temperature", "sigmoid", *(["isotonic"] if enough else [])]


def _held_out(
    fit: Callable[[Floats, Ints], Calibrator], scores: Floats, y: Ints, folds: Sequence[Fold]
) -> Floats:
    """Return probabilities of every row by a calibrator that was fitted without its fold."""
    probabilities = np.zeros_like(scores)
    for others, held in folds:
        probabilities[held] = fit(scores[others], y[others]).probabilities(scores[held])
    return probabilities


def _simplest(losses: Mapping[str, Floats]) -> str:
    names = list(losses)
    chosen = names[0]
    for name in names[1:]:
        gain = losses[chosen] - losses[name]
        if gain.mean() > gain.std() / math.sqrt(len(gain)):
            chosen = name
    return chosen


def row_losses(probabilities: Floats, y: Ints) -> Floats:
    """Return the negative log-likelihood of each row, as `featpipe.metrics` has it."""
    own = probabilities[np.arange(len(y)), y]
    losses: Floats = -np.log(np.clip(own, _SMALLEST, 1.0))
    return losses


def figures(probabilities: Floats, y: Ints) -> dict[str, Any]:
    """Return calibration error, log loss and reliability in plain values."""
    names = ("edges", "confidence", "accuracy", "share")
    found = reliability(y, probabilities)
    return {
        "calibration_error": expected_calibration_error(y, probabilities),
        "log_loss": float(row_losses(probabilities, y).mean()),
        "reliability": {name: v.tolist() for name, v in zip(names, found, strict=True)},
    }


def unit_folds(units: Ints, n_splits: int, seed: int) -> list[Fold]:
    """Return folds of whole units, drawn at random; a class may be absent from a side."""
    numbers, member = np.unique(units, return_inverse=True)
    n_splits = max(2, min(n_splits, len(numbers)))
    parts = np.random.default_rng(seed).permutation(len(numbers)) % n_splits
    of_row = parts[member]
    return [(np.flatnonzero(of_row != k), np.flatnonzero(of_row == k)) for k in range(n_splits)]
