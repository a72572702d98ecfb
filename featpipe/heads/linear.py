"""How the linear heads are tuned and fitted: featpipe's solvers, scikit-learn's estimators.

The minimum is that of scikit-learn's estimator; what is kept is that estimator, with the
weights that it would have found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler

from featpipe._threads import Threads
from featpipe.calibration import as_columns
from featpipe.solvers.linear import held_out_path, solve
from featpipe.solvers.losses import Logistic, Loss, Softmax, SquaredHinge
from featpipe.solvers.ridge import held_out_ridge

Array = NDArray[Any]
Ints = NDArray[np.int64]
Fold = tuple[Ints, Ints]
Grid = Sequence[Mapping[str, Any]]


class Solver(Protocol):
    """A faster way to what a head's pipeline computes."""

    @property
    def rising(self) -> bool:
        """Whether the grid may be left once its later values are clearly worse."""
        ...

    def serves(self, scaler: Any) -> bool:
        """Tell whether it knows how to work behind this scaling."""
        ...

    def path(
        self,
        scaler: Any,
        X: Array,  # noqa: N803
        y: Ints,
        folds: Sequence[Fold],
        grid: Grid,
        pool: Threads | None,
    ) -> Iterator[Array]:
        """Yield, for one set of parameters after the other, held-out scores, (n, K)."""
        ...

    def fit(self, pipeline: Pipeline, X: Array, y: Ints, pool: Threads | None) -> Pipeline:  # noqa: N803
        """Fit a pipeline of scaling and estimator, and return it."""
        ...


@dataclass(frozen=True, slots=True)
class LossSolver:
    """Logistic regression, or the support vector machine: C and a loss.

    Attributes
    ----------
    loss : callable
        Takes the number of classes.
    """

    loss: Callable[[int], Loss]
    rising: bool = True

    def serves(self, scaler: Any) -> bool:
        """Whether it standardises, or changes every row for itself."""
        return isinstance(scaler, StandardScaler | Normalizer | FunctionTransformer)

    def path(
        self,
        scaler: Any,
        X: Array,  # noqa: N803
        y: Ints,
        folds: Sequence[Fold],
        grid: Grid,
        pool: Threads | None,
    ) -> Iterator[Array]:
        """Yield held-out scores for each C: all folds at once, each C from the one before."""
        standardise = isinstance(scaler, StandardScaler)
        # Any other scaling is one of rows, and knows nothing of a fold.
        rows = X if standardise else scaler.fit_transform(X)
        values = [parameters["C"] for parameters in grid]
        loss = self.loss(int(y.max()) + 1)
        path = held_out_path(rows, y, folds, loss, values, standardise=standardise, pool=pool)
        for scores in path:
            yield as_columns(scores[:, 0] if scores.shape[1] == 1 else scores)

    def fit(self, pipeline: Pipeline, X: Array, y: Ints, pool: Threads | None) -> Pipeline:  # noqa: N803
        """Fit the scaling, find the minimum, and put it into the estimator."""
        rows = pipeline[0].fit_transform(X)
        loss = self.loss(int(y.max()) + 1)
        weights, intercept, steps = solve(rows, y, loss, pipeline[-1].C, pool)
        put_weights(pipeline[-1], weights, intercept, steps)
        return pipeline


def put_weights(head: Any, weights: Array, intercept: Array, steps: int) -> None:
    """Give an estimator the weights, (D, K), and intercepts, (K,), that it would have found."""
    head.classes_ = np.arange(max(weights.shape[1], 2))
    head.coef_ = np.ascontiguousarray(weights.T)
    head.intercept_ = intercept
    head.n_features_in_ = len(weights)
    # scikit-learn has an array in one and a number in the other.
    head.n_iter_ = (
        np.array([steps], dtype=np.int32) if isinstance(head, LogisticRegression) else steps
    )


@dataclass(frozen=True, slots=True)
class RidgeSolver:
    """Ridge regression on class indicators: one product of rows a fold for all penalties."""

    rising: bool = False

    def serves(self, scaler: Any) -> bool:
        """Whether it changes every row for itself: the folds share products of rows."""
        return isinstance(scaler, Normalizer | FunctionTransformer)

    def path(
        self,
        scaler: Any,
        X: Array,  # noqa: N803
        y: Ints,
        folds: Sequence[Fold],
        grid: Grid,
        pool: Threads | None,
    ) -> Iterator[Array]:
        """Yield held-out scores for each alpha."""
        alphas = [parameters["alpha"] for parameters in grid]
        for scores in held_out_ridge(scaler.fit_transform(X), y, folds, alphas, pool):
            yield as_columns(scores[:, 1]) if scores.shape[1] == 2 else scores

    def fit(self, pipeline: Pipeline, X: Array, y: Ints, pool: Threads | None) -> Pipeline:  # noqa: ARG002, N803
        """Let scikit-learn solve its one system of equations."""
        return pipeline.fit(X, y)


LOGISTIC = LossSolver(lambda n_classes: Softmax() if n_classes > 2 else Logistic())
HINGE = LossSolver(lambda _: SquaredHinge())
RIDGE = RidgeSolver()
