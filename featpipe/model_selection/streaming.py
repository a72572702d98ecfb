"""Linear heads on rows that do not fit into memory: read anew in every pass.

A sample that fits is cross-validated as any rows are. From its choice of C a path goes upwards,
on a larger part of the rows where there are many, and is followed while rows that are held out
gain by it. All rows come last, with the C to which these two choices lead; each number of rows
begins at the minimum of the one before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from featpipe._threads import Threads, threads
from featpipe.calibration import Temperature, as_columns
from featpipe.errors import LabelError
from featpipe.heads import HeadSpec
from featpipe.heads.linear import LossSolver, put_weights
from featpipe.model_selection.calibrating import calibrate, unit_folds
from featpipe.model_selection.folds import Fold, Ints, make_folds
from featpipe.model_selection.holdout import draw
from featpipe.model_selection.tuning import (
    Candidate,
    Fitted,
    Floats,
    OnFit,
    fit_tuned,
    quiet_and_single,
)
from featpipe.solvers.lbfgs import Found
from featpipe.solvers.losses import Array
from featpipe.solvers.objective import Block
from featpipe.solvers.path import Precision
from featpipe.solvers.streaming import ROWS, StreamedProblem, unread_blocks

SAMPLE, SAMPLE_NUMBERS = 50_000, 2**25
"""Rows and numbers, at most, in the sample that C is chosen on: 128 MiB as float32."""
VALIDATION, MEASURED = 20_000, 50_000
"""Rows, at most, that are held out to watch the fit, and for the estimate."""
_SHARE_WATCHING, _SHARE_MEASURED = 20, 10
"""Of few rows, no more than one in so many is held out for either."""
_FEW = 8
"""Rows up to so many times the sample have no part between it and all."""
_STEP = 10**0.5
_PATH, _LAST = Precision(3e-4, 0.0), Precision(1e-4, 0.0)
_PATIENCE, _CHANGE = 3, 2e-3
"""So many changes in a row of the held-out loss, each less than this share of it, are the end."""
_HOPELESS = 5
"""Points in a row that are worse than the minimum at a smaller C: this C is then given up."""

Vectors = NDArray[np.float32]
OnPass = Callable[[int, str], None]
"""Called after each evaluation with their number, and what to show."""


class Rows(Protocol):
    """Vectors that are read when they are asked for."""

    shape: tuple[int, int]

    def __getitem__(self, positions: Ints) -> Vectors:
        """Return (m, D) float32, finite."""
        ...

    def reading_order(self, positions: Ints) -> Ints:
        """Return positions in the order in which they are best read."""
        ...


@dataclass(frozen=True, slots=True)
class Streamed:
    """A head that was fitted in passes.

    Attributes
    ----------
    fitted : Fitted
    learnt : ndarray of int
        Positions of the rows that had a say in it.
    measured : ndarray of int
        Positions of those that had none; empty where none were asked for.
    n_folds : int
        Of the cross-validation of the sample.
    note : str
        How it went, for people.
    watched : ndarray of int
        Positions of those of ``learnt`` that the weights were not fitted on: they have watched
        the passes, and made the calibrator.
    """

    fitted: Fitted
    learnt: Ints
    measured: Ints
    n_folds: int
    note: str
    watched: Ints


def can_stream(spec: HeadSpec) -> bool:
    """Tell whether a head can be fitted in passes."""
    return isinstance(spec.fast, LossSolver)


def fit_streamed(
    spec: HeadSpec,
    X: Rows,  # noqa: N803
    y: Ints,
    units: Ints,
    classes: Sequence[str],
    *,
    n_splits: int,
    estimate: bool,
    tune: bool = True,
    seed: int = 0,
    calibration: str | None = None,
    on_fit: OnFit | None = None,
    on_pass: OnPass | None = None,
) -> Streamed:
    """Choose C on a sample, fit all rows but those that are held out, in passes over them.

    Parameters
    ----------
    X : Rows, (n, D)
    y : ndarray of int, (n,)
        Classes 0 … K-1.
    units : ndarray of int, (n,)
        What must not stand on both sides of a cut.
    n_splits : int
        Folds of the sample.
    estimate : bool
        Whether rows are kept for an estimate.
    tune : bool
        False fits with the default C.
    calibration : str, optional
        As for `fit_tuned`; chosen on the rows that watch the passes, divided by their units.

    Raises
    ------
    LabelError
        When a class has a single unit.
    """
    n_sample = min(SAMPLE, SAMPLE_NUMBERS // X.shape[1])
    cut = _divided(y, units, n_sample, n_splits, seed, estimate=estimate)
    _refuse_too_few(cut, estimate=estimate)
    folds = make_folds(y[cut.sample], units[cut.sample], n_splits, seed, classes)
    rows = X[cut.sample]
    chosen = fit_tuned(spec, rows, y[cut.sample], folds, tune=tune, seed=seed, on_fit=on_fit)
    with quiet_and_single(), threads() as pool:
        passes = _Passes(spec, X, y, cut, rows, chosen, pool, on_pass or (lambda *_: None))
        fitted = passes.go(seed, tune=tune)
        if calibration is not None:
            held = X.reading_order(cut.held)
            fitted = passes.calibrated(fitted, unit_folds(units[held], n_splits, seed), calibration)
    learnt = np.union1d(cut.fit, cut.held)
    return Streamed(fitted, learnt, cut.measured, len(folds), passes.note(), cut.held)


def _refuse_too_few(cut: _Cut, *, estimate: bool) -> None:
    if estimate and not len(cut.measured):
        raise LabelError(
            "no class has four distinct images or groups, so none can be held out for an estimate: "
            "put some into a split named test, or leave out --stream"
        )
    if not len(cut.held):
        raise LabelError(
            "no class has three distinct images or groups, so none can be held out to watch the "
            "passes: add images, or leave out --stream"
        )


@dataclass(frozen=True, slots=True)
class _Cut:
    """Positions to fit on, a sample and a part of them; held out to watch, and to measure."""

    fit: Ints
    sample: Ints
    part: Ints | None
    held: Ints
    measured: Ints
    n_splits: int

    @property
    def n_validated(self) -> int:
        """Rows that each fold of the sample is fitted on."""
        return len(self.sample) * (self.n_splits - 1) // self.n_splits


def _divided(
    y: Ints, units: Ints, n_sample: int, n_splits: int, seed: int, *, estimate: bool
) -> _Cut:
    def some(of: Ints, n_wanted: int, chance: int, least: int = 1, keep: int = 0) -> Ints:
        return of[draw(y[of], units[of], n_wanted, seed + chance, least=least, keep=keep)]

    everyone = np.arange(len(y))
    n_measured = min(MEASURED, len(y) // _SHARE_MEASURED)
    # Each class keeps a unit to watch and two for the folds.
    measured = some(everyone, n_measured, 0, keep=3) if estimate else everyone[:0]
    learnt = np.setdiff1d(everyone, measured, assume_unique=True)
    held = some(learnt, min(VALIDATION, len(learnt) // _SHARE_WATCHING), 1, keep=2)
    fit = np.setdiff1d(learnt, held, assume_unique=True)
    sample = some(fit, n_sample, 2, least=n_splits)
    part = None
    if len(fit) > _FEW * n_sample:
        part = some(fit, int((len(fit) * n_sample) ** 0.5), 3, least=n_splits)
    return _Cut(fit, sample, part, held, measured, n_splits)


class _Passes:
    """The fit of rows that are read in every pass; see `fit_streamed`."""

    def __init__(
        self,
        spec: HeadSpec,
        X: Rows,  # noqa: N803
        y: Ints,
        cut: _Cut,
        rows: Vectors,
        chosen: Fitted,
        pool: Threads | None,
        tell: OnPass,
    ) -> None:
        self._spec, self._X, self._y, self._cut = spec, X, y, cut
        self._chosen, self._pool, self._tell = chosen, pool, tell
        assert isinstance(spec.fast, LossSolver)
        self._loss = spec.fast.loss(int(y.max()) + 1)
        self._evaluations, self._rows_read, self._settled = 0, 0, False
        self._table: list[Mapping[str, Any]] = []
        self._last: Candidate | None = None
        self._scaler = self._fitted_scaler(rows)
        self._scale = scaling(self._scaler)
        self._sample = self._scale(rows)
        self._held = self._blocks(cut.held)
        self._y_held = np.concatenate([block.y for block in self._held])

    def go(self, seed: int, *, tune: bool) -> Fitted:
        """Return the head of all rows."""
        cut, chosen = self._cut, self._chosen
        C, n = float(chosen.parameters["C"]), len(cut.fit)  # noqa: N806
        W = _moved(chosen.pipeline, self._scaler)  # noqa: N806
        if tune:
            first = cut.fit if cut.part is None else cut.part
            of_sample = C, cut.n_validated
            C, W = self._path(first, W, C * cut.n_validated / len(first))  # noqa: N806
            C = _rounded(_extrapolated(of_sample, (C, len(first)), n))  # noqa: N806
        if not tune or cut.part is not None:
            W = self._minimum(self._problem(cut.fit), W, C, _LAST)  # noqa: N806
        parameters = {**chosen.parameters, "C": C}
        judged = self._judged(W, parameters, len(cut.fit))
        pipeline = self._spec.pipeline(parameters, seed)
        pipeline.steps[0] = (pipeline.steps[0][0], self._scaler)
        W = W.astype(np.float64)  # noqa: N806
        put_weights(pipeline[-1], W[:-1], W[-1], self._evaluations)
        self._last = judged
        table = (*chosen.table, *self._table)
        return Fitted(pipeline, Temperature(judged.temperature), parameters, table)

    def calibrated(self, fitted: Fitted, folds: Sequence[Fold], method: str) -> Fitted:
        """Return a head with the calibrator that is chosen on the rows that are held out."""
        assert self._last is not None
        assert self._last.scores is not None
        found = calibrate(self._last.scores, self._y_held, folds, method)
        return replace(fitted, calibrator=found.calibrator, calibration=found.report)

    def note(self) -> str:
        """Say how it went."""
        cut = self._cut
        part = "" if cut.part is None else f", then on {len(cut.part):,}"
        end = "had settled" if self._settled else "was that of the minimum"
        passes = self._rows_read / len(cut.fit)
        return (
            f"C was chosen on {len(cut.sample):,} images{part}; {len(cut.fit):,} were fitted on, "
            f"in {passes:.1f} passes, until the loss of {len(cut.held):,} that are held out {end}"
        )

    def _path(self, part: Ints, W: Array, C: float) -> tuple[float, Array]:  # noqa: N803
        """Raise C while the rows that are held out gain; return the last that they gained by."""
        problem = self._problem(part)
        kept, lowest = (C, W, False), np.inf
        # Classes that are told apart without a mistake gain for ever, and ever less.
        highest = max(float(parameters["C"]) for parameters in self._spec.grid)
        while np.isinf(lowest) or highest >= C:
            C = _rounded(C)  # noqa: N806
            W = self._minimum(problem, W, C, _PATH, lowest)  # noqa: N806
            loss = self._judged(W, {"C": C}, len(part)).loss
            if loss >= lowest:
                break
            kept, lowest = (C, W, self._settled), loss
            C *= _STEP  # noqa: N806
        C, W, self._settled = kept  # noqa: N806
        return C, W

    def _minimum(
        self,
        problem: StreamedProblem,
        W: Array,  # noqa: N803
        C: float,  # noqa: N803
        precision: Precision,
        lowest: float = np.inf,
    ) -> Array:
        watch = _Watch(lambda found: self._shown(found, problem), lowest)
        found = problem.minimum(W, C, precision=precision, watch=watch)
        self._evaluations += found.steps
        self._rows_read += found.steps * problem.objective.n_rows
        self._settled = watch.settled
        minimum: Array = found.W[0]
        return minimum

    def _shown(self, found: Found, problem: StreamedProblem) -> float:
        """Tell the held-out loss of a point, and return it."""
        loss = Candidate.judged({}, self._scores(found.W[0]), self._y_held).loss
        n = problem.objective.n_rows
        self._tell(self._evaluations + found.steps, f"{n:,} images, held-out loss {loss:.4f}")
        return loss

    def _judged(self, W: Array, parameters: Mapping[str, Any], n: int) -> Candidate:  # noqa: N803
        candidate = Candidate.judged(parameters, self._scores(W), self._y_held)
        self._table.append(
            {
                "parameters": dict(parameters),
                "accuracy": candidate.accuracy,
                "log_loss": candidate.loss,
                "images": n,
            }
        )
        return candidate

    def _scores(self, W: Array) -> Floats:  # noqa: N803
        """Return the scores of the rows that are held out, (m, K)."""
        run = map if self._pool is None else self._pool.map
        found = np.concatenate(list(run(lambda b: b.X[:] @ W[:-1] + W[-1], self._held)))
        return as_columns(found[:, 0] if found.shape[1] == 1 else found)

    def _problem(self, part: Ints) -> StreamedProblem:
        return StreamedProblem(
            self._blocks(part),
            self._sample,
            self._y[self._cut.sample],
            self._loss,
            int(self._y.max()) + 1,
            self._pool,
        )

    def _blocks(self, part: Ints) -> list[Block]:
        ordered = self._X.reading_order(part)
        read = lambda at: self._scale(self._X[at])  # noqa: E731
        return unread_blocks(read, ordered, self._y[ordered], self._X.shape[1])

    def _fitted_scaler(self, rows: Vectors) -> Any:
        """Fit the scaling in one pass; one that changes every row for itself needs none."""
        scaler = self._spec.scaler()
        if not isinstance(scaler, StandardScaler):
            return scaler.fit(rows)
        ordered = self._X.reading_order(self._cut.fit)
        parts = [ordered[i : i + ROWS] for i in range(0, len(ordered), ROWS)]
        read = self._X.__getitem__
        blocks = self._pool.stream(read, parts) if self._pool else map(read, parts)
        for block in blocks:
            scaler.partial_fit(block)
        self._rows_read += len(ordered)
        return scaler


class _Watch:
    """Ends a search when the loss of rows that are held out no longer changes.

    A loss that rises is no reason to stop: what is looked for is the minimum at one C, and C
    is chosen by minima. Points before it may be better, and would be the fit of no known C.
    """

    def __init__(self, loss: Callable[[Found], float], lowest: float) -> None:
        self._loss, self._lowest = loss, lowest
        self._losses: list[float] = []
        self.settled = False

    def __call__(self, found: Found) -> bool:
        """Whether the last few changes were small, or there is nothing to be won."""
        self._losses.append(self._loss(found))
        last = np.array(self._losses[-_PATIENCE - 1 :])
        small = np.abs(np.diff(last)) <= _CHANGE * last[-1]
        self.settled = len(small) == _PATIENCE and bool(small.all())
        recent = self._losses[1:][-_HOPELESS:]
        return self.settled or (len(recent) == _HOPELESS and min(recent) > self._lowest)


def scaling(scaler: Any) -> Callable[[Vectors], Vectors]:
    """Return what a fitted scaler does to rows."""
    if not isinstance(scaler, StandardScaler):
        transform: Callable[[Vectors], Vectors] = scaler.transform
        return transform
    mean, deviation = scaler.mean_.astype(np.float32), scaler.scale_.astype(np.float32)

    def standardise(rows: Vectors) -> Vectors:
        centred: Vectors = rows - mean
        centred /= deviation
        return centred

    return standardise


def _moved(pipeline: Pipeline, scaler: Any) -> Array:
    """Return weights, (D + 1, K), that say behind another scaling what they say in a pipeline."""
    weights, intercept = pipeline[-1].coef_.T, np.atleast_1d(pipeline[-1].intercept_)
    if isinstance(scaler, StandardScaler):
        own = pipeline[0]
        raw = weights / own.scale_[:, None]
        intercept = intercept + (scaler.mean_ - own.mean_) @ raw
        weights = raw * scaler.scale_[:, None]
    return np.vstack([weights, intercept])


def _extrapolated(of_few: tuple[float, int], of_more: tuple[float, int], n: int) -> float:
    """Follow the best C from few rows by way of more to n: as a power of their number.

    The power lies between 0, where C is a prior that data outweigh, and -1, where the weight of
    the mean loss is kept.
    """
    (few, n_few), (more, n_more) = of_few, of_more
    power = np.log(more / few) / np.log(n_more / n_few) if n_more > n_few else -1.0
    return float(more * (n / n_more) ** np.clip(power, -1, 0))


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
