"""Bootstrap variances: the same figures on many resamples of the rows, or of their groups.

A resample is a vector of counts, so every figure is a product of the counts with something
that is computed once: no row is copied, no metric is called a thousand times.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from featpipe.metrics.intervals import Pair, rare, reflected, wilson, with_claim

N_RESAMPLES = 1000
_AT_ONCE = 2**24
_CONSISTENT = 200
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
    claimed : ndarray of float, (n,)
        Its variance, if the true class were drawn from the probabilities.
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
    claimed: Floats
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
) -> dict[str, Pair]:
    """Return the 95 % interval of every figure.

    Rows are drawn with replacement, or whole groups of them where ``groups`` (n,) is given:
    rows of one patient are not independent. The variance of the resamples is that of the
    figure; `featpipe.metrics.intervals` has the interval that follows.

    References
    ----------
    Efron, Tibshirani 1993, "An Introduction to the Bootstrap", chapters 6 and 8. Where a share
    is 0 or 1: Clopper, Pearson 1934, "The Use of Confidence or Fiducial Limits", Biometrika 26,
    with the units as trials.
    """
    n = len(terms.true)
    member = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    n_units = int(member.max()) + 1
    drawn = _drawn(terms, member, n_units, n_resamples, seed)
    # Resamples vary by (units - 1) / units of what samples do.
    scale = n_units / max(n_units - 1, 1)
    # Of units of many sizes the large ones decide (Kish 1965, "Survey Sampling", section 11.7).
    worth = n**2 / float(np.square(np.bincount(member)).sum())
    furthest, least = _furthest(terms.true, member), _least(terms)
    intervals = {}
    for name, value in terms.figures(np.ones((1, n))).items():
        figure, variance = float(value[0]), scale * float(drawn[name].var())
        if name == "calibration_error":
            low, high = reflected(figure, drawn[name])
            is_chance = figure <= _by_chance(terms, member, n_units, seed)
            intervals[name] = (0.0 if is_chance else low), high
        elif name == "log_loss":
            claimed = float(terms.claimed.sum()) / n**2
            intervals[name] = rare(figure, with_claim(variance, claimed, worth), worth)
        else:
            variance = max(variance, least[name])
            intervals[name] = _share(figure, variance, worth, furthest[name])
    return intervals


def _drawn(
    terms: Terms, member: Ints, n_units: int, n_resamples: int, seed: int
) -> dict[str, Floats]:
    """Return every figure of every resample."""
    rng = np.random.default_rng(seed)
    block = max(1, min(n_resamples, _AT_ONCE // max(len(member), 1)))
    drawn: dict[str, list[Floats]] = {}
    for start in range(0, n_resamples, block):
        rows = min(block, n_resamples - start)
        units = rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=rows)
        for name, values in terms.figures(units[:, member].astype(np.float64)).items():
            drawn.setdefault(name, []).append(values)
    return {name: np.concatenate(values) for name, values in drawn.items()}


def _by_chance(terms: Terms, member: Ints, n_units: int, seed: int) -> float:
    """Return the calibration error that a calibrated classifier's rows reach, at 97.5 %.

    Labels are right as often as their probabilities say, drawn anew; rows of a unit are drawn
    together, so that no more is taken for an error than what units that are all alike leave.

    References
    ----------
    Bröcker, Smith 2007, "Increasing the Reliability of Reliability Diagrams", Weather and
    Forecasting 22, section 3 (consistency resampling).
    """
    rng = np.random.default_rng(seed)
    n = len(member)
    top = terms.gap + (terms.predicted == terms.true)
    columns = _spread(np.ones(n), terms.bins, terms.n_bins)
    block = max(1, min(_CONSISTENT, _AT_ONCE // max(n, 1)))
    errors = []
    for start in range(0, _CONSISTENT, block):
        chance = rng.random((min(block, _CONSISTENT - start), n_units))[:, member]
        gaps = (top - (chance < top)) @ columns
        errors.append(np.abs(gaps).sum(axis=1) / n)
    return float(np.quantile(np.concatenate(errors), 0.975))


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


def _least(terms: Terms) -> dict[str, float]:
    """Return the variance that every share has at least, whatever the resamples say.

    That of independent rows. A class of few rows that are all right adds nothing to the
    resamples' variance, so that half a right row and half a wrong one are counted with those of
    every class (Jeffreys's prior).
    """
    n = len(terms.true)
    correct = terms.predicted == terms.true
    support = np.bincount(terms.true)
    hits = np.bincount(terms.true[correct], minlength=len(support))[support > 0]
    support = support[support > 0]
    recall = (hits + 0.5) / (support + 1)
    by_class = float(np.sum(recall * (1 - recall) / support)) / len(support) ** 2
    return {
        "accuracy": float(correct.var()) / n,
        "top5_accuracy": 0.0 if terms.top5 is None else float(terms.top5.var()) / n,
        "balanced_accuracy": by_class,
        "macro_f1": by_class,
    }


def _share(figure: float, variance: float, n_units: float, furthest: float) -> Pair:
    """Return Wilson's interval, or the exact one where all is right, or all wrong.

    A head that is right about every image is right about every resample of them, too: the
    bootstrap then claims certainty, the exact binomial interval does not.
    """
    if figure == 1.0:
        return furthest, 1.0
    if figure == 0.0:
        return 0.0, 1.0 - furthest
    if furthest <= _ONE_UNIT:
        return 0.0, 1.0  # one group says nothing of others
    return wilson(figure, variance, n_units)


def _spread(values: Floats, columns: Ints, n_columns: int) -> csr_array:
    """Return the (n, n_columns) array that holds each value in its column."""
    n = len(values)
    return csr_array((values, columns, np.arange(n + 1)), shape=(n, n_columns))
