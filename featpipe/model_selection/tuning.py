"""Choosing a head's parameters by cross-validation, and estimates that tuning cannot flatter."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgWarning
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import Pipeline
from threadpoolctl import threadpool_limits

from featpipe._threads import Threads, threads
from featpipe.calibration import Calibrator, Temperature, fit_temperature, log_losses
from featpipe.heads import HeadSpec
from featpipe.heads.registry import class_scores
from featpipe.model_selection.calibrating import calibrate
from featpipe.model_selection.folds import Fold, Ints, make_folds

Floats = NDArray[np.float64]
OnFit = Callable[[int, int], None]
"""Called with the number of fits that are done, and of all."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A tuned and fitted head, not yet bound to labels and backbone.

    Attributes
    ----------
    pipeline : Pipeline
        Fitted on all rows.
    calibrator : Calibrator
        Fitted on held-out scores.
    parameters : mapping
    table : tuple of mappings
        For each set of parameters: held-out accuracy and log loss, with a temperature.
    calibration : mapping
        How the calibrator was chosen, and what it does; empty where none was asked for.
    scores : ndarray of float, (n, K), or None
        Of every row by a head that was fitted without its fold, where they are at hand.
    """

    pipeline: Pipeline
    calibrator: Calibrator
    parameters: Mapping[str, Any]
    table: tuple[Mapping[str, Any], ...]
    calibration: Mapping[str, Any] = field(default_factory=dict)
    scores: Floats | None = None


def fit_tuned(
    spec: HeadSpec,
    X: NDArray[np.float32],  # noqa: N803 - scikit-learn's name
    y: Ints,
    folds: Sequence[Fold],
    *,
    tune: bool = True,
    seed: int = 0,
    calibration: str | None = None,
    on_fit: OnFit | None = None,
) -> Fitted:
    """Choose parameters by the log loss of held-out, calibrated scores; fit on all rows.

    Log loss, unlike accuracy, tells apart parameters that make the same few mistakes. Every
    set of parameters is judged with its own temperature, so that a head with large margins is
    not taken for an overconfident one. Of equally good ones the first, the simplest, is taken.

    Parameters
    ----------
    X : ndarray of float32, (n, D)
    y : ndarray of int, (n,)
        Classes 0 … K-1.
    folds : sequence of (fit, held out)
    tune : bool
        False fits the default parameters alone; the folds then serve the temperature.
    calibration : str, optional
        How held-out scores of the chosen parameters become probabilities: one of
        `featpipe.model_selection.calibrating.METHODS`. Without it the temperature is kept.
    """
    if tune:
        grid = [parameters for parameters in spec.grid if _feasible(parameters, folds)]
    else:
        grid = [_reduced(spec.default, folds)]
    with quiet_and_single(), threads() as pool:
        if spec.fast is None:
            candidates = _each_alone(spec, X, y, folds, grid, seed, pool, on_fit)
        else:
            candidates = _along_the_grid(spec, X, y, folds, grid, pool, on_fit)
        best = _best(candidates)
        pipeline = spec.fit(best.parameters, X, y, seed, pool)
    table = tuple(
        {"parameters": dict(c.parameters), "accuracy": c.accuracy, "log_loss": c.loss}
        for c in candidates
    )
    if calibration is None:
        return Fitted(pipeline, Temperature(best.temperature), best.parameters, table)
    assert best.scores is not None
    chosen = calibrate(best.scores, y, folds, calibration)
    return Fitted(pipeline, chosen.calibrator, best.parameters, table, chosen.report, best.scores)


def held_out_scores(
    spec: HeadSpec,
    parameters: Mapping[str, Any],
    X: NDArray[np.float32],  # noqa: N803
    y: Ints,
    folds: Sequence[Fold],
    *,
    seed: int = 0,
) -> Floats:
    """Return the scores, (n, K), of every row by a head that was fitted without its fold."""
    with quiet_and_single(), threads() as pool:
        if spec.fast is None:
            candidates = _each_alone(spec, X, y, folds, [parameters], seed, pool, None)
        else:
            candidates = _along_the_grid(spec, X, y, folds, [parameters], pool, None)
    scores = candidates[0].scores
    assert scores is not None
    return scores


def nested_probabilities(
    spec: HeadSpec,
    X: NDArray[np.float32],  # noqa: N803
    y: Ints,
    units: Ints,
    *,
    n_splits: int,
    classes: Sequence[str],
    tune: bool = True,
    seed: int = 0,
    calibration: str | None = None,
    on_fit: OnFit | None = None,
) -> Floats:
    """Return held-out probabilities, (n, K), of heads that were tuned without the row's fold.

    The calibrator is chosen without it, too, where ``calibration`` asks for a choice.

    References
    ----------
    Varma, Simon 2006, "Bias in Error Estimation When Using Cross-Validation for Model
    Selection", BMC Bioinformatics 7:91.

    Raises
    ------
    LabelError
        When a class has fewer than three units: one to hold out, two to tune on.
    """
    outer = make_folds(y, units, n_splits, seed, classes, least=2)
    # The temperature that tuning has found anyway is not measured here.
    chosen_by = None if calibration == "temperature" else calibration
    options: dict[str, Any] = {"tune": tune, "seed": seed, "calibration": chosen_by}
    probabilities = np.zeros((len(y), len(classes)))
    for number, (fit, held) in enumerate(outer):
        inner = make_folds(y[fit], units[fit], n_splits, seed, classes)
        report = _shifted(on_fit, number, len(outer))
        fitted = fit_tuned(spec, X[fit], y[fit], inner, on_fit=report, **options)
        scores = class_scores(fitted.pipeline, X[held])
        probabilities[held] = fitted.calibrator.probabilities(scores)
    return probabilities


def _shifted(on_fit: OnFit | None, number: int, of: int) -> OnFit | None:
    if on_fit is None:
        return None
    return lambda done, total: on_fit(number * total + done, of * total)


def _feasible(parameters: Mapping[str, Any], folds: Sequence[Fold]) -> bool:
    """Tell whether the smallest fitting side has as many rows as neighbours are asked for."""
    return bool(parameters.get("n_neighbors", 1) <= _fewest(folds))


def _reduced(parameters: Mapping[str, Any], folds: Sequence[Fold]) -> Mapping[str, Any]:
    """Ask for no more neighbours than the smallest fitting side has rows."""
    if _feasible(parameters, folds):
        return parameters
    return {**parameters, "n_neighbors": _fewest(folds)}


def _fewest(folds: Sequence[Fold]) -> int:
    return min(len(fit) for fit, _ in folds)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A set of parameters, and how it did on rows that were held out.

    The scores themselves, (n, K), are kept of the best one alone.
    """

    parameters: Mapping[str, Any]
    temperature: float
    losses: Floats
    accuracy: float
    scores: Floats | None = None

    @property
    def loss(self) -> float:
        """Mean of the losses."""
        return float(self.losses.mean())

    @classmethod
    def judged(cls, parameters: Mapping[str, Any], scores: Floats, y: Ints) -> Self:
        """Give scores their own temperature, and measure them."""
        temperature = fit_temperature(scores, y)
        losses = log_losses(scores, y, temperature)
        accuracy = float(np.mean(scores.argmax(axis=1) == y))
        return cls(parameters, temperature, losses, accuracy, scores)


def _best(candidates: Sequence[Candidate]) -> Candidate:
    return min(candidates, key=lambda candidate: candidate.loss)


def _lightened(candidates: Sequence[Candidate]) -> list[Candidate]:
    best = _best(candidates)
    return [c if c is best or c.scores is None else replace(c, scores=None) for c in candidates]


def _each_alone(
    spec: HeadSpec,
    X: NDArray[np.float32],  # noqa: N803
    y: Ints,
    folds: Sequence[Fold],
    grid: Sequence[Mapping[str, Any]],
    seed: int,
    pool: Threads | None,
    on_fit: OnFit | None,
) -> list[Candidate]:
    """Fit every set of parameters on every fold.

    Threads, not processes: the solvers let go of the interpreter, and nothing is copied.
    """
    n_classes = int(y.max()) + 1
    scores = [np.zeros((len(y), n_classes)) for _ in grid]
    tasks = [(number, fold) for fold in folds for number in range(len(grid))]

    def one(task: tuple[int, Fold]) -> tuple[int, Ints, Floats]:
        number, (fit, held) = task
        pipeline = spec.pipeline(grid[number], seed).fit(X[fit], y[fit])
        return number, held, class_scores(pipeline, X[held])

    run = pool.map if pool else map
    for done, (number, held, values) in enumerate(run(one, tasks), start=1):
        scores[number][held] = values
        if on_fit is not None:
            on_fit(done, len(tasks))
    return [Candidate.judged(p, s, y) for p, s in zip(grid, scores, strict=True)]


def _along_the_grid(
    spec: HeadSpec,
    X: NDArray[np.float32],  # noqa: N803
    y: Ints,
    folds: Sequence[Fold],
    grid: Sequence[Mapping[str, Any]],
    pool: Threads | None,
    on_fit: OnFit | None,
) -> list[Candidate]:
    """Fit all folds at once, one set of parameters after the other, and end where it pays."""
    solver = spec.fast
    assert solver is not None
    candidates: list[Candidate] = []
    total = len(grid) * len(folds)
    report = on_fit or (lambda *_: None)
    path = solver.path(spec.scaler(), X, y, folds, grid, pool)
    # The solver, too, may see that the rest of a grid changes nothing.
    for parameters, scores in zip(grid, path, strict=False):
        candidates = _lightened([*candidates, Candidate.judged(parameters, scores, y)])
        for done in range(len(folds)):
            report((len(candidates) - 1) * len(folds) + done + 1, total)
        if solver.rising and _has_risen(candidates):
            break
    if len(candidates) < len(grid):
        report(total, total)
    return candidates


def _has_risen(candidates: Sequence[Candidate]) -> bool:
    """Tell whether the last two values are both clearly worse than the best before them.

    Clearly is two standard errors of the difference, row by row: as C grows beyond the best
    the loss only rises, or stays where it is.
    """
    if len(candidates) < 3:
        return False
    best = min(candidates[:-2], key=lambda candidate: candidate.loss)
    worse = [candidate.losses - best.losses for candidate in candidates[-2:]]
    return all(d.mean() > 2 * d.std() / math.sqrt(len(d)) for d in worse)


@contextmanager
def quiet_and_single() -> Iterator[None]:
    """One thread a fit, and no word of solvers that stop early at the ends of a grid.

    Pools of BLAS and OpenMP inside parallel fits cost up to twenty times the time.
    """
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        # At the least alpha: what such weights are worth, held-out rows say.
        warnings.simplefilter("ignore", LinAlgWarning)
        yield
