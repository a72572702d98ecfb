"""`fit`: from a store to a head, with an estimate of how good it is on images not seen."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe._files import printable
from featpipe._machine import available_memory
from featpipe.baselines import Baselines, compare_with_baselines
from featpipe.conformal import Conformal, fit_conformal
from featpipe.errors import HeadError, LabelError
from featpipe.estimation import Estimate, estimate_nested, estimate_on, estimate_on_split
from featpipe.heads import Head, HeadSpec, head_spec
from featpipe.heads.persistence import data_digest, short_key
from featpipe.labelled import Labelled, LabelledRows, labelled, labelled_rows, units_of_rows
from featpipe.model_selection import (
    METHODS,
    Fitted,
    Unseen,
    fit_streamed,
    fit_tuned,
    make_folds,
    said,
    streams,
    unseen_by_folds,
    unseen_by_head,
)
from featpipe.ood import Novelty, fit_novelty
from featpipe.quality import Findings, inspect
from featpipe.reference import Reference, reference_of
from featpipe.splits import Division, divide
from featpipe.store import EmbeddingStore, label_conflicts, repeated_keys
from featpipe.types import Progress, ProgressCallback
from featpipe.vectors import StoredVectors

Ints = NDArray[np.int64]
_log = logging.getLogger("featpipe.training")


@dataclass(frozen=True, slots=True)
class FitOptions:
    """Parameters of `fit` beside store and head, by the same names."""

    target: str | None = None
    cv: int = 5
    tune: bool = True
    seed: int = 0
    stream: bool | None = None
    calibration: str = "auto"
    check: bool = True
    baselines: bool | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """A head, and what it was measured on; `Head.report` holds the figures alone."""

    head: Head
    estimate: Estimate
    quality: Findings
    baselines: Baselines | None


@dataclass(frozen=True, slots=True)
class _Learnt:
    """What was fitted, on which of the rows, and with how many folds; what may be measured."""

    fitted: Fitted
    rows: Ints
    n_folds: int
    conformal: Conformal
    reference: Reference
    in_passes: bool = False
    held: Ints | None = None

    @classmethod
    def of(cls, fitted: Fitted, rows: Ints, n_folds: int, unseen: Unseen, **how: Any) -> _Learnt:
        """Keep of what was said of unseen images what a head carries: of many that is little."""
        conformal = fit_conformal(unseen.probabilities, unseen.y, unseen.units)
        reference = reference_of(unseen.probabilities)
        return cls(replace(fitted, scores=None), rows, n_folds, conformal, reference, **how)


def fit(
    store: EmbeddingStore | str | os.PathLike[str],
    head: str = "logreg",
    *,
    target: str | None = None,
    cv: int = 5,
    tune: bool = True,
    seed: int = 0,
    stream: bool | None = None,
    calibration: str = "auto",
    check: bool = True,
    baselines: bool | None = None,
    progress: ProgressCallback | None = None,
) -> Head:
    """Learn a classifier on the vectors of a store, and measure it.

    Parameters are tuned by stratified cross-validation on the training split alone: the
    images of the split ``train``, or all where there are no splits. Images of one group, equal
    images, and resized or re-encoded copies of one image stay in one fold. The estimate comes
    from the split ``test``, or else ``val``, which is looked at once, at the end; without either,
    from nested cross-validation. It is in `Head.metrics`, with 95 % intervals.

    Vectors that are too many for memory are read from the store in each pass over them, by
    logreg and svm: parameters are then chosen on a sample, and without a split the estimate
    comes from images that are held out once; see docs/heads.md.

    Parameters
    ----------
    store : EmbeddingStore or path
    head : str
        logreg, svm, svm-rbf, knn, ridge, lda or centroid.
    target : str, optional
        Label column, where there are several.
    cv : int
        Folds, at least 2; fewer are used where a class has fewer images.
    tune : bool
        False takes the head's default parameters.
    seed : int
        Of folds, solvers and bootstrap: the same data and seed give the same head.
    stream : bool, optional
        Whether vectors are read in each pass. Default: where four times their size as float32
        is more than the memory that the process may still take.
    calibration : str
        How scores become probabilities: temperature, sigmoid, isotonic or none; auto compares the
        first three on held-out scores, and ``report["calibration"]`` has what came of it.
    check : bool
        Whether copies are looked for, and differences between the splits; what is found is in
        ``report["quality"]`` and in the notes. The images are opened for it, once.
    baselines : bool, optional
        Whether the same head is measured without transfer, too: on raw pixels, and on the
        vectors of a backbone with random weights, on about 400 images of each side. It is
        in ``report["baselines"]``. The images are opened for it, once. Default: as ``check``.
    progress : callable, optional
        Called with a `Progress` after each fit, or each pass.

    Raises
    ------
    LabelError
        When there are no labels, one class only, or too few images in a class.
    StoreError
        When a vector holds NaN or infinity; the message names the image.
    HeadError
        When there is no head of that name, or it cannot be fitted on so many vectors.

    Examples
    --------
    >>> head = fit("embeddings/photos-efficientnet_lite0", "svm")   # doctest: +SKIP
    >>> head.metrics["accuracy"]                                    # doctest: +SKIP
    0.94
    """
    options = FitOptions(target, cv, tune, seed, stream, calibration, check, baselines)
    return train(store, head, options, progress=progress).head


def train(
    store: EmbeddingStore | str | os.PathLike[str],
    head: str = "logreg",
    options: FitOptions | None = None,
    *,
    progress: ProgressCallback | None = None,
) -> Trained:
    """Do what `fit` does, and return beside the head what a report of it shows."""
    options = options or FitOptions()
    spec = head_spec(head)
    if options.cv < 2:
        raise LabelError(f"cross-validation needs 2 folds at least, not {options.cv}: raise --cv")
    if options.calibration not in METHODS:
        raise HeadError(
            f"there is no calibration {printable(options.calibration)!r}: there are "
            f"{', '.join(METHODS)}"
        )
    opened = store if isinstance(store, EmbeddingStore) else EmbeddingStore.open(store)
    return _Training(opened, spec, options, progress).go()


class _Training:
    """One call of `fit`: the rows of the splits, and what is to be said of them."""

    def __init__(
        self,
        store: EmbeddingStore,
        spec: HeadSpec,
        options: FitOptions,
        progress: ProgressCallback | None,
    ) -> None:
        self._store, self._spec, self._options = store, spec, options
        self._progress = progress
        self._labels = store.labels(options.target)
        self._quality = Findings()
        self._notes: list[str] = []

    def go(self) -> Trained:
        division = divide(self._store, self._labels)
        self._notes += division.notes
        rows, found = self._learn(division)
        head = Head(
            name=self._spec.name,
            classes=rows.classes,
            pipeline=found.fitted.pipeline,
            calibrator=found.fitted.calibrator,
            backbone=self._store.card,
            parameters=found.fitted.parameters,
            class_counts=tuple(np.bincount(rows.y[found.rows]).tolist()),
            conformal=found.conformal,
            reference=found.reference,
        )
        head = replace(head, novelty=self._novelty(division.train, rows, found))
        estimate = self._estimate(head, division, rows, found)
        self._notes += estimate.notes
        baselines = self._compare(division)
        head = replace(head, report=self._report(rows, found, estimate, baselines))
        return Trained(head, estimate, self._quality, baselines)

    def _learn(self, division: Division) -> tuple[Labelled, _Learnt]:
        """Look for what may be amiss, then fit: at once, or in passes over the store."""
        train = division.train
        shape = len(train), self._store.dimension
        if streams(self._spec, *shape, available_memory(), self._options.stream):
            self._notes.append(said(*shape))
            _log.info(said(*shape))
            few = labelled(self._store, train, self._options.target)
            self._look(division, in_passes=True)
            few = replace(few, units=self._units(train))
            return few, self._in_passes(few, train, estimate=division.held is None)
        rows = labelled_rows(self._store, train, self._options.target)
        self._look(division)
        rows = replace(rows, units=self._units(train))
        return rows, self._at_once(rows)

    def _novelty(self, train: Ints, rows: Labelled, found: _Learnt) -> Novelty | None:
        """Look at some thousand vectors once more for what strange ones are told by."""
        learnt = found.rows
        return fit_novelty(
            StoredVectors(self._store, train[learnt]),
            rows.y[learnt],
            rows.units[learnt],
            n_classes=len(rows.classes),
            seed=self._options.seed,
        )

    def _estimate(self, head: Head, division: Division, rows: Labelled, found: _Learnt) -> Estimate:
        train, options, copies = division.train, self._options, self._quality.copies
        if division.held is not None:
            return estimate_on_split(
                head,
                self._store,
                train,
                division.held,
                division.held_name,
                options.target,
                options.seed,
                copies,
            )
        if found.held is not None:
            method = f"{len(found.held):,} images held out, not used before"
            held = train[found.held]
            return estimate_on(
                head, self._store, held, method, options.target, options.seed, copies
            )
        assert isinstance(rows, LabelledRows)
        return estimate_nested(
            self._spec,
            self._store,
            train,
            rows,
            self._quality,
            cv=options.cv,
            tune=options.tune,
            seed=options.seed,
            calibration=options.calibration,
            on_fit=self._tell("estimating"),
        )

    def _compare(self, division: Division) -> Baselines | None:
        asked = self._options.baselines
        if not (self._options.check if asked is None else asked):
            return None
        found = compare_with_baselines(
            self._spec,
            self._store,
            division,
            target=self._options.target,
            copies=self._quality.copies if self._quality.keeps_together else None,
            cv=self._options.cv,
            seed=self._options.seed,
            progress=self._progress,
        )
        if isinstance(found, str):
            self._notes.append(found)
            return None
        if found.verdict != "transfer":
            self._notes.append(found.words)
        return found

    def _at_once(self, rows: LabelledRows) -> _Learnt:
        folds = make_folds(rows.y, rows.units, self._options.cv, self._options.seed, rows.classes)
        self._say_fewer(len(folds))
        fitted = fit_tuned(
            self._spec,
            rows.X,
            rows.y,
            folds,
            tune=self._options.tune,
            seed=self._options.seed,
            calibration=self._options.calibration,
            on_fit=self._tell("tuning"),
        )
        unseen = unseen_by_folds(
            self._spec,
            fitted,
            rows.X,
            rows.y,
            rows.units,
            rows.classes,
            n_splits=self._options.cv,
            seed=self._options.seed,
        )
        return _Learnt.of(fitted, np.arange(len(rows.y)), len(folds), unseen)

    def _in_passes(self, rows: Labelled, train: Ints, *, estimate: bool) -> _Learnt:
        vectors = StoredVectors(self._store, train)
        found = fit_streamed(
            self._spec,
            vectors,
            rows.y,
            rows.units,
            rows.classes,
            n_splits=self._options.cv,
            estimate=estimate,
            tune=self._options.tune,
            seed=self._options.seed,
            calibration=self._options.calibration,
            on_fit=self._tell("tuning"),
            on_pass=self._tell_pass,
        )
        self._say_fewer(found.n_folds)
        self._notes.append(found.note)
        if estimate:
            self._say_unmeasured(rows, found.measured)
        held = found.measured if estimate else None
        unseen = unseen_by_head(found.fitted, vectors, rows.y, rows.units, found.watched)
        return _Learnt.of(
            found.fitted, found.learnt, found.n_folds, unseen, in_passes=True, held=held
        )

    def _say_unmeasured(self, rows: Labelled, measured: Ints) -> None:
        lacking = np.setdiff1d(rows.y, rows.y[measured])
        if len(lacking):
            shown = ", ".join(printable(rows.classes[k]) for k in lacking[:5])
            self._notes.append(
                f"the estimate says nothing of {len(lacking)} classes ({shown}), which have too "
                "few distinct images or groups to hold any of them out"
            )

    def _report(
        self, rows: Labelled, found: _Learnt, estimate: Estimate, baselines: Baselines | None
    ) -> Mapping[str, Any]:
        keys = [rows.keys[i] for i in found.rows]
        names = [rows.classes[k] for k in rows.y[found.rows]]
        return {
            "estimate": estimate.to_json(),
            "baselines": None if baselines is None else baselines.to_json(),
            "tuning": [dict(entry) for entry in found.fitted.table],
            "calibration": found.fitted.calibration,
            "folds": found.n_folds,
            "options": {**asdict(self._options), "stream": found.in_passes},
            "seed": self._options.seed,
            "target": self._options.target,
            "notes": self._notes,
            "quality": self._quality.to_json() if self._options.check else None,
            "data": {
                "store": str(self._store.path),
                "source": self._store.source,
                "images": len(keys),
                "digest": data_digest(keys, names),
                "keys": sorted({short_key(key) for key in keys}),
            },
        }

    def _say_fewer(self, n_folds: int) -> None:
        if n_folds < self._options.cv:
            self._notes.append(
                f"{n_folds} folds instead of {self._options.cv}: the smallest class has no more "
                "distinct images or groups"
            )

    def _look(self, division: Division, *, in_passes: bool = False) -> None:
        """Find out, before any figure is known, what may make it untrue."""
        self._say_two_labels(division.train)
        if self._options.check:
            self._quality = inspect(
                self._store,
                division.train,
                division.held,
                self._labels,
                held_name=division.held_name,
                in_passes=in_passes,
                seed=self._options.seed,
                progress=self._progress,
            )
            self._notes += self._quality.notes

    def _units(self, rows: Ints) -> Ints:
        quality = self._quality
        return units_of_rows(self._store, rows, quality.copies if quality.keeps_together else None)

    def _say_two_labels(self, train: Ints) -> None:
        store = self._store
        suspects = train[repeated_keys([store.keys[i] for i in train])]
        rows = ((store.keys[i], store.paths[i], self._labels[i]) for i in suspects)
        for conflict in label_conflicts(rows):
            self._notes.append(conflict)

    def _tell(self, stage: str) -> Any:
        if self._progress is None:
            return None
        callback = self._progress
        return lambda done, total: callback(Progress(done, total, stage=stage))

    def _tell_pass(self, done: int, note: str) -> None:
        if self._progress is not None:
            self._progress(Progress(done, None, stage="passes", note=note))
