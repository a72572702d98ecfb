"""What a report shows, gathered from a head, the store it was fitted on, and their images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe._machine import available_memory
from featpipe.errors import FeatpipeError, LabelError
from featpipe.estimation import Estimate, estimate_nested, estimate_on, estimate_on_split
from featpipe.evaluation import evaluate
from featpipe.evaluation.learning_curve import LearningCurve, learning_curve
from featpipe.evaluation.measure import require_same_backbone
from featpipe.heads import Head, head_spec
from featpipe.heads.persistence import short_key
from featpipe.labelled import labelled_rows, units_of_rows
from featpipe.model_selection import make_folds, streams
from featpipe.quality import Findings, inspect
from featpipe.quality.mislabelled import suspect_labels, suspects_of
from featpipe.report.map import EmbeddingMap, embedding_map
from featpipe.report.mistakes import Mistake, worst_mistakes
from featpipe.report.recorded import Recorded, read_record
from featpipe.splits import Division, divide
from featpipe.store import EmbeddingStore
from featpipe.training import Trained
from featpipe.types import Progress, ProgressCallback
from featpipe.vectors import StoredVectors

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Labels = NDArray[np.object_]

MOST_SUSPECTS, MOST_PAIRS = 24, 16
_MOST_JUDGED = 50_000
"""Measured images beyond which those with pictures and curves are drawn from them."""
_MOST_LEARNT = 20_000
"""Training images beyond which no labels are judged and no curve is drawn: both fit again."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """An image whose label may be wrong."""

    row: int
    given: str
    suggested: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Contents:
    """Everything on the page, without its form.

    Attributes
    ----------
    head : Head
    store : EmbeddingStore
    record : Recorded
        What the head says of its own fit.
    is_own : bool
        Whether the store's training images are those that the head has learnt on.
    division : Division
        Of another store: images that the head has learnt on, and those that are measured on.
    estimate : Estimate
    rows, y, probabilities : ndarray, (n,), (n,) and (n, K)
        Of the images that were measured on, or of 50,000 of them.
    quality : Findings
    mistakes : tuple of Mistake
        The surest first.
    suspects : tuple of Suspect
        The likeliest first.
    curve : LearningCurve or None
    map : EmbeddingMap
    notes : tuple of str
        What a person should know first.
    """

    head: Head
    store: EmbeddingStore
    record: Recorded
    is_own: bool
    division: Division
    estimate: Estimate
    rows: Ints
    y: Ints
    probabilities: Floats
    quality: Findings
    mistakes: tuple[Mistake, ...]
    suspects: tuple[Suspect, ...]
    curve: LearningCurve | None
    map: EmbeddingMap
    notes: tuple[str, ...]

    @property
    def labels(self) -> Labels:
        """Label of every row of the store."""
        return self.store.labels(self.record.target)


def gather(
    head: Head,
    store: EmbeddingStore,
    trained: Trained | None = None,
    progress: ProgressCallback | None = None,
) -> Contents:
    """Gather what the report of a head shows.

    Parameters
    ----------
    head : Head
    store : EmbeddingStore
        The one that it was fitted on, or another of the same backbone.
    trained : Trained, optional
        What `featpipe.training.train` gave; without it the estimate is made again.

    Raises
    ------
    FingerprintError
        When head and store come from different backbones.
    HeadError
        When what the head says of its fit cannot be read.
    LabelError
        When there is no labelled image to measure on.
    """
    require_same_backbone(head, store)
    return _Gathering(head, store, trained, progress).go()


class _Gathering:
    """One call of `gather`."""

    def __init__(
        self,
        head: Head,
        store: EmbeddingStore,
        trained: Trained | None,
        progress: ProgressCallback | None,
    ) -> None:
        self._head, self._store, self._progress = head, store, progress
        self._trained = trained
        self._record = read_record(head)
        self._seed = self._record.seed
        self._labels = store.labels(self._record.target)
        self._is_own = trained is not None or self._was_fitted_here()
        self._notes = list(self._record.notes) if self._is_own else []

    def go(self) -> Contents:
        division, estimate, quality = self._measured()
        self._division = division
        rows, y, probabilities = self._judged(estimate)
        every = [division.train, estimate.rows]
        return Contents(
            head=self._head,
            store=self._store,
            record=self._record,
            is_own=self._is_own,
            division=division,
            estimate=estimate,
            rows=rows,
            y=y,
            probabilities=probabilities,
            quality=quality,
            mistakes=tuple(
                worst_mistakes(self._store, division.train, rows, y, probabilities, quality.copies)
            ),
            suspects=tuple(self._suspects(estimate, rows, y, probabilities, quality)),
            curve=self._curve(quality) if self._is_own else None,
            map=embedding_map(self._store, np.unique(np.concatenate(every)), self._seed),
            notes=tuple(dict.fromkeys(self._notes)),
        )

    def _was_fitted_here(self) -> bool:
        """Tell whether the store's training images are those that the head has learnt on."""
        try:
            train = divide(self._store, self._labels).train
        except LabelError:
            return False
        keys = {short_key(self._store.keys[row]) for row in train}
        # In passes some are held out for the estimate.
        some = self._record.in_passes and bool(self._record.keys)
        return keys >= self._record.keys if some else keys == self._record.keys

    def _measured(self) -> tuple[Division, Estimate, Findings]:
        if not self._is_own:
            return self._elsewhere()
        division = divide(self._store, self._labels)
        if self._trained is not None:
            return division, self._trained.estimate, self._trained.quality
        quality = Findings()
        if self._record.check:
            quality = inspect(
                self._store,
                division.train,
                division.held,
                self._labels,
                held_name=division.held_name,
                in_passes=self._record.in_passes,
                seed=self._seed,
                progress=self._progress,
            )
        estimate = self._estimate(division, quality)
        self._notes += [*division.notes, *quality.notes, *estimate.notes]
        return division, estimate, quality

    def _elsewhere(self) -> tuple[Division, Estimate, Findings]:
        """Measure as `evaluate` does, on a store that the head was not fitted on."""
        found = evaluate(
            self._head,
            self._store,
            target=self._record.target,
            seed=self._seed,
            progress=self._progress,
        )
        at = {path: row for row, path in enumerate(self._store.paths)}
        rows = np.array([at[path] for path in found.paths], dtype=np.int64)
        self._notes += found.notes
        learnt = [short_key(key) in self._record.keys for key in self._store.keys]
        labelled = [label is not None for label in self._labels]
        train = np.flatnonzero(np.array(learnt) & np.array(labelled))
        name = found.split or ""
        estimate = Estimate(
            method=f"the split {name}" if name else "all labelled images of the store",
            metrics=found.metrics,
            rest=found.rest,
            without="without_training_images" if found.rest else "",
            rows=rows,
        )
        return Division(train, rows, name, ()), estimate, Findings()

    def _estimate(self, division: Division, quality: Findings) -> Estimate:
        """Measure as `fit` did: on the split, on what was held out, or nested."""
        head, store, record, copies = self._head, self._store, self._record, quality.copies
        if division.held is not None:
            return estimate_on_split(
                head,
                store,
                division.train,
                division.held,
                division.held_name,
                record.target,
                self._seed,
                copies,
            )
        if record.in_passes:
            learnt = record.keys
            held = [row for row in division.train if short_key(store.keys[row]) not in learnt]
            rows = np.array(held, dtype=np.int64)
            method = f"{len(rows):,} images held out, not used before"
            return estimate_on(head, store, rows, method, record.target, self._seed, copies)
        rows_of = labelled_rows(store, division.train, record.target)
        units = units_of_rows(store, division.train, copies if quality.keeps_together else None)
        return estimate_nested(
            head_spec(head.name),
            store,
            division.train,
            replace(rows_of, units=units),
            quality,
            cv=record.cv,
            tune=record.tune,
            seed=self._seed,
            calibration=record.calibration,
            on_fit=self._tell("estimating"),
        )

    def _is_large(self) -> bool:
        if self._record.in_passes:
            return True
        spec, shape = head_spec(self._head.name), (len(self._division.train), self._store.dimension)
        try:
            return streams(spec, *shape, available_memory(), None)
        except FeatpipeError:
            return True

    def _judged(self, estimate: Estimate) -> tuple[Ints, Ints, Floats]:
        rows, at = estimate.rows, np.arange(len(estimate.rows))
        if len(rows) > _MOST_JUDGED:
            rng = np.random.default_rng(self._seed)
            at = np.sort(rng.choice(len(rows), _MOST_JUDGED, replace=False))
            rows = rows[at]
            self._notes.append(
                f"curves, mistakes and labels below are of {_MOST_JUDGED:,} of the images that "
                "were measured on, drawn at random"
            )
        position = {name: k for k, name in enumerate(self._head.classes)}
        y = np.array([position[label] for label in self._labels[rows]], dtype=np.int64)
        if estimate.probabilities is not None:
            return rows, y, estimate.probabilities[at]
        blocks = StoredVectors(self._store, rows).blocks()
        return rows, y, np.concatenate([self._head.predict_proba(v) for _, v in blocks])

    def _suspects(
        self, estimate: Estimate, rows: Ints, y: Ints, probabilities: Floats, quality: Findings
    ) -> list[Suspect]:
        """Judge the labels of all images that were used, each by a head that has not seen it."""
        # On another store the head may have learnt on some of what is measured on.
        new = ~np.isin(rows, self._division.train) | (estimate.probabilities is not None)
        judged = suspects_of(probabilities[new], y[new])
        found = list(_named(judged, rows[new], y[new], self._head.classes))
        if self._is_own and estimate.probabilities is None:
            found += self._training_suspects(quality)
        found.sort(key=lambda suspect: (suspect.confidence, suspect.row))
        return found[:MOST_SUSPECTS]

    def _training_suspects(self, quality: Findings) -> list[Suspect]:
        train = self._division.train
        if len(train) > _MOST_LEARNT or self._is_large():
            return []
        rows = labelled_rows(self._store, train, self._record.target)
        units = units_of_rows(self._store, train, quality.copies)
        try:
            found = suspect_labels(
                head_spec("ridge"),
                rows.X,
                rows.y,
                units,
                rows.classes,
                seed=self._seed,
                on_fit=self._tell("judging labels"),
            )
        except LabelError as exc:
            self._notes.append(f"labels were not judged: {exc}")
            return []
        return list(_named(found, train, rows.y, rows.classes))

    def _curve(self, quality: Findings) -> LearningCurve | None:
        train, held = self._division.train, self._division.held
        if len(train) > _MOST_LEARNT or self._is_large():
            return None
        position = {name: k for k, name in enumerate(self._head.classes)}
        if held is not None:
            held = held[[label in position for label in self._labels[held]]]
        rows = train if held is None else np.concatenate([train, held])
        # A head has scores of what it has learnt alone: columns would mean other classes.
        if set(self._labels[train]) != set(position):
            return None
        y = np.array([position[label] for label in self._labels[rows]], dtype=np.int64)
        copies = quality.copies if quality.keeps_together else None
        units = units_of_rows(self._store, rows, copies)
        try:
            folds = (
                make_folds(y, units, self._record.cv, self._seed, self._head.classes)
                if held is None
                else [(np.arange(len(train)), np.arange(len(train), len(rows)))]
            )
        except LabelError:
            return None
        return learning_curve(
            head_spec(self._head.name),
            self._head.parameters,
            StoredVectors(self._store, rows)[np.arange(len(rows))],
            y,
            units,
            folds,
            seed=self._seed,
            on_fit=self._tell("learning curve"),
        )

    def _tell(self, stage: str) -> Any:
        callback = self._progress
        if callback is None:
            return None
        return lambda done, total: callback(Progress(done, total, stage=stage))


def _named(found: Any, rows: Ints, y: Ints, classes: tuple[str, ...]) -> Iterator[Suspect]:
    for at, suggested, confidence in zip(
        found.rows.tolist(), found.suggested.tolist(), found.confidence.tolist(), strict=True
    ):
        yield Suspect(int(rows[at]), classes[int(y[at])], classes[suggested], confidence)
