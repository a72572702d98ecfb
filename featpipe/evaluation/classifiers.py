"""The classifiers of the protocols, on plain arrays: votes of other rows for every class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from featpipe._threads import single_threads
from featpipe.calibration import as_columns, to_probabilities
from featpipe.evaluation.protocols import TEMPERATURE, Protocol
from featpipe.heads.linear import LOGISTIC
from featpipe.neighbours import Rows, search
from featpipe.solvers.linear import path_scores, solve
from featpipe.solvers.path import Precision

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Vectors = NDArray[np.float32]

_PATH = Precision(1e-5, 0.0)
"""On the way to a choice: no value is left out, and what is reported is fitted more tightly."""
_BLOCK = 512


def logistic_path(
    protocol: Protocol,
    X: Vectors,  # noqa: N803 - scikit-learn's name
    y: Ints,
    others: Vectors,
) -> Iterator[tuple[float, Floats]]:
    """Yield each value of the penalty, and the probabilities, (m, K), that it gives other rows.

    Every value starts from the minimum before. The objective is scikit-learn's: C times the
    summed loss plus half the squared weights; the intercept is not penalised. Two classes have
    one column of weights, more have one each. The vectors are taken as they are.

    Parameters
    ----------
    X : ndarray of float32, (n, D)
    y : ndarray of int, (n,)
        Classes 0 … K-1, each of them met.
    others : ndarray of float32, (m, D)
    """
    loss = LOGISTIC.loss(int(y.max()) + 1)
    values = [protocol.inverse_penalty(value) for value in protocol.values]
    with single_threads(_tasks(X)) as pool:
        path = path_scores(X, y, others, loss, values, precision=_PATH, pool=pool)
        for value, scores in zip(protocol.values, path, strict=True):
            yield value, _probabilities(scores)


def logistic_votes(
    X: Vectors,  # noqa: N803
    y: Ints,
    others: Vectors,
    C: float,  # noqa: N803
) -> Floats:
    """Return the probabilities, (m, K), that one fit gives other rows."""
    with single_threads(_tasks(X)) as pool:
        weights, intercept, _ = solve(X, y, LOGISTIC.loss(int(y.max()) + 1), C, pool)
    return _probabilities(others @ weights + intercept)


def neighbour_votes(
    X: Vectors,  # noqa: N803
    y: Ints,
    others: Vectors,
    numbers: Sequence[int],
    n_classes: int,
) -> list[Floats]:
    """Return for each k the votes, (m, K), of the k rows that are nearest by cosine.

    A row at cosine s weighs exp(s / 0.07); the weights of the k are divided by their sum.

    Parameters
    ----------
    numbers : sequence of int
        No larger than there are rows.

    References
    ----------
    Wu, Xiong, Yu, Lin 2018, "Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination", section 3.4.
    """
    rows = Rows.measured(X)
    with single_threads(rows.tasks(len(others))) as pool:
        distances, positions = search(rows, others, max(numbers), pool)
    # The nearest weighs 1: what all share as a factor changes no share.
    weights = np.exp((distances[:, :1] - distances) / TEMPERATURE)
    return [_shares(weights[:, :k], y[positions[:, :k]], n_classes) for k in numbers]


def _shares(weights: Floats, labels: Ints, n_classes: int) -> Floats:
    cells = labels + n_classes * np.arange(len(labels))[:, None]
    sums = np.bincount(cells.ravel(), weights.ravel(), minlength=len(labels) * n_classes)
    found: Floats = sums.reshape(-1, n_classes) / weights.sum(axis=1, keepdims=True)
    return found


def _probabilities(scores: NDArray[np.floating]) -> Floats:
    return to_probabilities(as_columns(scores[:, 0] if scores.shape[1] == 1 else scores), 1.0)


def _tasks(X: Vectors) -> int:  # noqa: N803
    return -(-len(X) // _BLOCK)
