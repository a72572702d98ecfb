"""Which heads there are: the scaling before them, the estimator, and what is tried for it.

The scaling is part of the head, and was chosen by measurement: `docs/heads.md` has the
table, ``benchmarks/heads.py`` makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import SVC, LinearSVC

from featpipe._files import printable
from featpipe._threads import Threads
from featpipe.calibration import as_columns
from featpipe.errors import HeadError
from featpipe.heads.centroid import CosineCentroid
from featpipe.heads.discriminant import ShrunkDiscriminant
from featpipe.heads.linear import HINGE, LOGISTIC, RIDGE, Solver
from featpipe.heads.neighbours import NEIGHBOURS, CosineNeighbours, vote_scores

Parameters = Mapping[str, Any]
_CELLS = 2**25


@dataclass(frozen=True, slots=True)
class HeadSpec:
    """One kind of head.

    Attributes
    ----------
    name : str
        As on the command line.
    title : str
        For people.
    scaler : callable
        Makes the transformer before the estimator.
    estimator : callable
        Takes parameters and a seed, makes the estimator.
    grid : tuple of mappings
        What tuning tries, simplest model first: of equally good ones the first is taken.
    default : mapping
        What is used without tuning.
    solver : Solver, optional
        A faster way to the same.
    copies : int
        How many times the vectors, as float32, are in memory at a time while they are learnt
        on, at most.
    """

    name: str
    title: str
    scaler: Callable[[], Any]
    estimator: Callable[[Parameters, int], Any]
    grid: tuple[Parameters, ...]
    default: Parameters
    solver: Solver | None = None
    copies: int = 2

    def pipeline(self, parameters: Parameters, seed: int) -> Pipeline:
        """Return the unfitted pipeline of scaling and estimator."""
        return Pipeline([("scale", self.scaler()), ("head", self.estimator(parameters, seed))])

    @property
    def fast(self) -> Solver | None:
        """The solver, where there is one that knows this head's scaling."""
        return self.solver if self.solver and self.solver.serves(self.scaler()) else None

    def fit(
        self,
        parameters: Parameters,
        X: NDArray[np.float32],  # noqa: N803
        y: NDArray[np.int64],
        seed: int,
        pool: Threads | None = None,
    ) -> Pipeline:
        """Return the fitted pipeline; classes are 0 … K-1."""
        pipeline = self.pipeline(parameters, seed)
        return self.fast.fit(pipeline, X, y, pool) if self.fast else pipeline.fit(X, y)


def class_scores(pipeline: Pipeline, X: NDArray[Any]) -> NDArray[np.float64]:  # noqa: N803
    """Return one score a class, (n, K) float64: the highest is the label.

    Neighbours have no margin: their score is the logarithm of the (smoothed) share of votes.
    """
    estimator = pipeline[-1]
    # Heads that were fitted before there was an estimator of our own have scikit-learn's.
    if isinstance(estimator, CosineNeighbours | KNeighborsClassifier):
        return vote_scores(pipeline.predict_proba(X), estimator.n_neighbors)
    # A kernel machine makes a column for every pair of classes first: a few rows at a time.
    n_classes = len(estimator.classes_)
    step = max(1, _CELLS // n_classes**2) if isinstance(estimator, SVC) else max(len(X), 1)
    blocks = [X[start : start + step] for start in range(0, max(len(X), 1), step)]
    return np.concatenate([as_columns(pipeline.decision_function(block)) for block in blocks])


def _powers(low: float, high: float, per_decade: int = 2) -> list[float]:
    """Return powers of ten from 10**low to 10**high, ``per_decade`` to each factor of ten."""
    steps = round((high - low) * per_decade)
    return [float(f"{10 ** (low + i / per_decade):.3g}") for i in range(steps + 1)]


def _grid(name: str, values: list[Any]) -> tuple[Parameters, ...]:
    return tuple({name: value} for value in values)


_SPECS = (
    HeadSpec(
        "logreg",
        "logistic regression",
        StandardScaler,
        lambda p, _: LogisticRegression(C=p["C"], max_iter=2000),
        _grid("C", _powers(-4.5, 3)),
        {"C": 0.1},
        LOGISTIC,
        copies=4,  # as float32, standardised or scaled, by fold, and a block's
    ),
    HeadSpec(
        "svm",
        "linear support vector machine",
        Normalizer,
        # The primal solver: the dual one is slow at large C, and draws from one stream of chance
        # for all threads, so that parallel fits of one seed differ.
        lambda p, _: LinearSVC(C=p["C"], dual=False, tol=1e-3),
        _grid("C", _powers(-2.5, 2)),
        {"C": 3.16},
        HINGE,
        copies=4,  # as float32, standardised or scaled, by fold, and a block's
    ),
    HeadSpec(
        "svm-rbf",
        "support vector machine with a Gaussian kernel",
        Normalizer,
        lambda p, _: SVC(C=p["C"], gamma=p["gamma"], decision_function_shape="ovr"),
        tuple({"C": c, "gamma": g} for g in (0.3, 1.0, 3.0) for c in (1.0, 10.0, 100.0)),
        {"C": 10.0, "gamma": 1.0},
    ),
    HeadSpec(
        "knn",
        "nearest neighbours by cosine",
        Normalizer,
        lambda p, _: CosineNeighbours(p["n_neighbors"]),
        _grid("n_neighbors", [100, 50, 30, 20, 15, 10, 7, 5, 3, 1]),
        {"n_neighbors": 10},
        NEIGHBOURS,
    ),
    HeadSpec(
        "ridge",
        "ridge classifier",
        Normalizer,
        lambda p, _: RidgeClassifier(alpha=p["alpha"]),
        _grid("alpha", _powers(-3, 2)[::-1]),
        {"alpha": 1.0},
        RIDGE,
        copies=6,  # float64 takes two, and its products are made from columns side by side
    ),
    HeadSpec(
        "lda",
        "linear discriminant analysis",
        StandardScaler,
        lambda p, _: ShrunkDiscriminant(p["shrinkage"]),
        _grid("shrinkage", [0.9, 0.7, 0.4, 0.1]),
        {"shrinkage": 0.5},
    ),
    HeadSpec(
        "centroid",
        "nearest class mean by cosine",
        Normalizer,
        lambda _p, _s: CosineCentroid(),
        ({},),
        {},
    ),
)

HEADS: Mapping[str, HeadSpec] = {spec.name: spec for spec in _SPECS}
"""Every head by name."""


def head_spec(name: str) -> HeadSpec:
    """Return the head of that name.

    Raises
    ------
    HeadError
        When there is none; the message has the nearest name.
    """
    if name in HEADS:
        return HEADS[name]
    near = get_close_matches(name.lower(), HEADS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise HeadError(f"there is no head {printable(name)!r}: {hint}there are {', '.join(HEADS)}")
