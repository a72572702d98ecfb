"""Bootstrap intervals: the same figures on many resamples of the rows, or of their groups.

A resample is a vector of counts, so every figure is a product of the counts with something
that is computed once: no row is copied, no metric is called a thousand times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

N_RESAMPLES = 1000
_AT_ONCE = 2**24
_ONE_UNIT = 0.025

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Terms:
    """What every figure is made of, a row a sample.

    Attributes
    ----------
    true, predicted : ndarray of int, (n,)
    loss : ndarray of float, (n,)
        Negative log-likelihood.
    bins : ndarray of int, (n,)
        Calibration bin of the top probability; ``gap`` is that probability minus 1 where the
        label is right.
    top5 : ndarray of float, (n,), or None
        1 where the true class is among the five likeliest.
    """

    true: Ints
    predicted: Ints
    n_classes: int
    loss: Floats
    bins: Ints
    n_bins: int
    gap: Floats
    top5: Floats | None

    def figures(self, counts: Floats) -> dict[str, Floats]:
        """Return every figure for each row of ``counts``, (B, n): how often a sample counts."""
        n, total = len(self.true), counts.sum(axis=1)
        correct = self.predicted == self.true
        ones = np.ones(n)
        support = counts @ _spread(ones, self.true, self.n_classes)
        predicted = counts @ _spread(ones, self.predicted, self.n_classes)
        hits = counts @ _spread(correct.astype(np.float64), self.true, self.n_classes)
        occurs = support > 0
        involved = support + predicted
        f1 = np.divide(2 * hits, involved, out=np.zeros_like(hits), where=involved > 0)
        recall = np.divide(hits, support, out=np.zeros_like(hits), where=occurs)
        gaps = counts @ _spread(self.gap, self.bins, self.n_bins)
        figures = {
            "accuracy": hits.sum(axis=1) / total,
            "balanced_accuracy": recall.sum(axis=1) / occurs.sum(axis=1),
            "macro_f1": (f1 * occurs).sum(axis=1) / occurs.sum(axis=1),
            "log_loss": counts @ self.loss / total,
            "calibration_error": np.abs(gaps).sum(axis=1) / total,
        }
        if self.top5 is not None:
            figures["top5_accuracy"] = counts @ self.top5 / total
        return figures


def confidence_intervals(
    terms: Terms,
    *,
    groups: NDArray[Any] | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return the 95 % percentile interval of every figure.

    Rows are drawn with replacement, or whole groups of them where ``groups`` (n,) is given:
    rows of one patient are not independent.

    References
    ----------
    Efron, Tibshirani 1993, "An Introduction to the Bootstrap", chapters 8 and 13. Where all
    resamples agree on 0 or 1: Clopper, Pearson 1934, "The Use of Confidence or Fiducial
    Limits", Biometrika 26, with the units as trials.
    """
    rng = np.random.default_rng(seed)
    n = len(terms.true)
    member = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    n_units = int(member.max()) + 1
    block = max(1, min(n_resamples, _AT_ONCE // max(n, 1)))
    drawn: dict[str, list[Floats]] = {}
    for start in range(0, n_resamples, block):
        rows = min(block, n_resamples - start)
        units = rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=rows)
        for name, values in terms.figures(units[:, member].astype(np.float64)).items():
            drawn.setdefault(name, []).append(values)
    furthest = _furthest(terms.true, member)
    return {
        name: _interval(np.concatenate(values), furthest.get(name))
        for name, values in drawn.items()
    }


def _furthest(true: Ints, member: Ints) -> dict[str, float]:
    """Return how low a share may be, at 97.5 %, that has been 1 in every unit.

    Means over classes take the mean of the classes' own bounds: one of few units bounds little.
    """
    overall = 0.025 ** (1 / len(np.unique(member)))
    classes = [0.025 ** (1 / len(np.unique(member[true == k]))) for k in np.unique(true)]
    by_class = float(np.mean(classes))
    return {
        "accuracy": overall,
        "top5_accuracy": overall,
        "balanced_accuracy": by_class,
        "macro_f1": by_class,
    }


def _interval(values: Floats, furthest: float | None) -> tuple[float, float]:
    """Return the percentile interval, or the exact one where no resample differs.

    A head that is right about every image is right about every resample of them, too: the
    bootstrap then claims certainty, the exact binomial interval does not.
    """
    low, high = (float(q) for q in np.quantile(values, (0.025, 0.975)))
    if furthest is None:
        return low, high
    if values.min() == values.max() == 1.0:
        return furthest, 1.0
    if values.min() == values.max() == 0.0:
        return 0.0, 1.0 - furthest
    if furthest <= _ONE_UNIT:
        return 0.0, 1.0  # one group says nothing of others
    return low, high


def _spread(values: Floats, columns: Ints, n_columns: int) -> csr_array:
    """Return the (n, n_columns) array that holds each value in its column."""
    n = len(values)
    return csr_array((values, columns, np.arange(n + 1)), shape=(n, n_columns))
