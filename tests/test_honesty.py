"""Labels at random: a nested estimate stays at chance, what tuning has chosen does not.

``benchmarks/honesty.py`` does the same with more deals, more heads, and vectors of photographs.
"""

from __future__ import annotations

import numpy as np
import pytest

from featpipe.heads import HEADS
from featpipe.model_selection import fit_tuned, make_folds, nested_probabilities

DEALS, ROWS, CLASSES = 40, 60, ["a", "b"]


@pytest.mark.parametrize("head", ["knn", "ridge"])
def test_random_labels_are_not_learnt_by_nested_estimates(head: str) -> None:
    """Forty deals of equally many labels: within four binomial standard errors of one half.

    The best of the table, measured on the same rows, is further than that above it; the log loss
    of what was chosen is below that of knowing nothing, and the nested one is above.
    """
    nested, best, chosen_loss, nested_loss = [], [], [], []
    units = np.arange(ROWS)
    for seed in range(DEALS):
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(ROWS, 20)).astype(np.float32)
        y = rng.permutation(np.arange(ROWS) % 2)
        found = fit_tuned(HEADS[head], X, y, make_folds(y, units, 3, seed, CLASSES), seed=seed)
        best.append(max(entry["accuracy"] for entry in found.table))
        chosen_loss.append(min(entry["log_loss"] for entry in found.table))
        p = nested_probabilities(
            HEADS[head], X, y, units, n_splits=3, classes=CLASSES, seed=seed, calibration="auto"
        )
        nested.append(np.mean(p.argmax(axis=1) == y))
        nested_loss.append(-np.log(p[units, y]).mean())
    error = 0.5 / (DEALS * ROWS) ** 0.5
    assert abs(np.mean(nested) - 0.5) < 4 * error
    assert np.mean(best) > 0.5 + 4 * error
    assert np.mean(chosen_loss) < np.log(2) < np.mean(nested_loss)


def test_what_can_be_learnt_is_not_estimated_as_chance() -> None:
    """The same estimate where a class has a mean of its own: the test above could fail."""
    rng = np.random.default_rng(0)
    y, units = np.arange(ROWS) % 2, np.arange(ROWS)
    X = (rng.normal(size=(ROWS, 20)) + y[:, None]).astype(np.float32)
    p = nested_probabilities(
        HEADS["svm"], X, y, units, n_splits=3, classes=CLASSES, calibration="auto"
    )
    assert np.mean(p.argmax(axis=1) == y) > 0.85
