"""How good a classifier's probabilities and labels are, on labelled rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.metrics.bootstrap import Terms, confidence_intervals

N_BINS = 15
"""Bins of the calibration error; Guo et al. 2017 use 15."""
_SMALLEST = float(np.finfo(np.float64).eps)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """Figures of one class; precision is 0 where the class was never predicted."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class Metrics:
    """Figures of a classifier on ``n_samples`` labelled rows.

    Attributes
    ----------
    accuracy, balanced_accuracy, macro_f1 : float
        Shares, 0 to 1. The latter two are means over the classes that occur.
    log_loss : float
        Mean negative log-likelihood, natural logarithm.
    calibration_error : float
        Expected calibration error of the top label, 15 bins (Naeini et al. 2015).
    top5_accuracy : float or None
        None with five classes or fewer, where it says nothing.
    per_class : tuple of ClassMetrics
    confusion : tuple of tuples of int
        Rows are true classes, columns predicted ones.
    majority : tuple of (str, float)
        The class that the training rows hold most of, and the accuracy of always saying it.
    intervals : dict
        95 % interval of each figure, from a bootstrap's variance.
    """

    n_samples: int
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    log_loss: float
    calibration_error: float
    top5_accuracy: float | None
    per_class: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    majority: tuple[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` turns them back."""
        names = ("n_samples", "accuracy", "balanced_accuracy", "macro_f1", "log_loss")
        return {
            **{name: getattr(self, name) for name in names},
            "calibration_error": self.calibration_error,
            "top5_accuracy": self.top5_accuracy,
            "intervals_95": {name: list(pair) for name, pair in self.intervals.items()},
            "majority_class": {"label": self.majority[0], "accuracy": self.majority[1]},
            "per_class": [
                {
                    "label": c.label,
                    "precision": c.precision,
                    "recall": c.recall,
                    "f1": c.f1,
                    "support": c.support,
                }
                for c in self.per_class
            ],
            "confusion_matrix": [list(row) for row in self.confusion],
        }


def compute_metrics(
    y: Ints,
    probabilities: Floats,
    classes: Sequence[str],
    *,
    majority: int,
    groups: NDArray[Any] | None = None,
    seed: int = 0,
) -> Metrics:
    """Measure probabilities against true classes.

    Parameters
    ----------
    y : ndarray of int, (n,)
        True classes, as positions in ``classes``; n is at least 1.
    probabilities : ndarray of float, (n, K)
        Rows that sum to 1. The predicted class is the first of the largest.
    majority : int
        Position of the class that the training rows hold most of.
    groups : ndarray, (n,), optional
        Rows of one group are drawn together by the bootstrap.
    seed : int
        Of the bootstrap.

    References
    ----------
    Naeini, Cooper, Hauskrecht 2015, "Obtaining Well Calibrated Probabilities Using Bayesian
    Binning", AAAI, equation 3 (expected calibration error). Efron, Tibshirani 1993, "An
    Introduction to the Bootstrap", chapter 6 (variances).
    """
    blocks = [(y, probabilities)]
    return metrics_of_blocks(blocks, classes, majority=majority, groups=groups, seed=seed)


def metrics_of_blocks(
    blocks: Iterable[tuple[Ints, Floats]],
    classes: Sequence[str],
    *,
    majority: int,
    groups: NDArray[Any] | None = None,
    seed: int = 0,
) -> Metrics:
    """Do what `compute_metrics` does, without all probabilities at a time.

    Parameters
    ----------
    blocks : iterable of (y, probabilities)
        Some rows each; ``groups`` are those of all rows, one block after the other.
    """
    terms = _joined([_terms(y, probabilities, len(classes)) for y, probabilities in blocks])
    y, n = terms.true, len(terms.true)
    figures = terms.figures(np.ones((1, n)))
    confusion = np.bincount(y * len(classes) + terms.predicted, minlength=len(classes) ** 2)
    confusion = confusion.reshape(len(classes), len(classes))
    values = {name: float(value[0]) for name, value in figures.items()}
    top5 = values.pop("top5_accuracy") if "top5_accuracy" in values else None
    return Metrics(
        n_samples=n,
        **values,
        top5_accuracy=top5,
        per_class=_per_class(confusion, classes),
        confusion=tuple(tuple(int(n) for n in row) for row in confusion),
        majority=(classes[majority], float(np.mean(y == majority))),
        intervals=confidence_intervals(terms, groups=groups, seed=seed),
    )


def expected_calibration_error(y: Ints, probabilities: Floats, n_bins: int = N_BINS) -> float:
    """Return the mean gap between confidence and accuracy (Naeini et al. 2015, equation 3).

    >>> expected_calibration_error(np.array([0, 0]), np.array([[0.75, 0.25], [0.75, 0.25]]))
    0.25
    """
    _, confidence, accuracy, share = reliability(y, probabilities, n_bins)
    return float(np.sum(share * np.abs(confidence - accuracy)))


def reliability(
    y: Ints, probabilities: Floats, n_bins: int = N_BINS
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return what a reliability diagram shows, each (n_bins,).

    Returns
    -------
    edges, confidence, accuracy, share
        Lower edge of each bin of the top probability; mean top probability, share of correct
        labels and share of all rows in it (0 where it is empty).
    """
    bins, top, correct = _binned(y, probabilities, n_bins)
    counts = np.bincount(bins, minlength=n_bins)
    filled = np.maximum(counts, 1)
    return (
        np.arange(n_bins) / n_bins,
        np.bincount(bins, top, n_bins) / filled,
        np.bincount(bins, correct, n_bins) / filled,
        counts / len(y),
    )


def _binned(y: Ints, probabilities: Floats, n_bins: int) -> tuple[Ints, Floats, Floats]:
    top = probabilities.max(axis=1)
    bins = np.minimum((top * n_bins).astype(np.int64), n_bins - 1)
    return bins, top, (probabilities.argmax(axis=1) == y).astype(np.float64)


def _terms(y: Ints, probabilities: Floats, n_classes: int) -> Terms:
    bins, top, correct = _binned(y, probabilities, N_BINS)
    losses = -np.log(np.clip(probabilities, _SMALLEST, 1.0))
    mean = (probabilities * losses).sum(axis=1)
    top5 = None
    if n_classes > 5:
        # Of equal probabilities the earlier class counts as the higher, as in `argmax`.
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
        top5 = (order == y[:, None]).any(axis=1).astype(np.float64)
    return Terms(
        true=y,
        predicted=probabilities.argmax(axis=1),
        n_classes=n_classes,
        loss=losses[np.arange(len(y)), y],
        claimed=(probabilities * (losses - mean[:, None]) ** 2).sum(axis=1),
        bins=bins,
        n_bins=N_BINS,
        gap=top - correct,
        top5=top5,
    )


def _joined(parts: Sequence[Terms]) -> Terms:
    if len(parts) == 1:
        return parts[0]

    def column(name: str) -> Any:
        return np.concatenate([getattr(part, name) for part in parts])

    return replace(
        parts[0],
        **{name: column(name) for name in ("true", "predicted", "loss", "claimed", "bins", "gap")},
        top5=None if parts[0].top5 is None else column("top5"),
    )


def _per_class(confusion: Ints, classes: Sequence[str]) -> tuple[ClassMetrics, ...]:
    hits, support = np.diag(confusion), confusion.sum(axis=1)
    predicted = confusion.sum(axis=0)
    return tuple(
        ClassMetrics(
            label,
            precision=float(hits[i] / predicted[i]) if predicted[i] else 0.0,
            recall=float(hits[i] / support[i]) if support[i] else 0.0,
            f1=float(2 * hits[i] / (support[i] + predicted[i]))
            if support[i] + predicted[i]
            else 0.0,
            support=int(support[i]),
        )
        for i, label in enumerate(classes)
    )
