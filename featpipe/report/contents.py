"""What a report shows, gathered from a head, the store it was fitted on, and their images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe._files import printable
from featpipe._machine import available_memory
from featpipe.errors import FeatpipeError, LabelError
from featpipe.estimation import Estimate, estimate_nested, estimate_on, estimate_on_split
from featpipe.evaluation.learning_curve import LearningCurve, learning_curve
from featpipe.evaluation.measure import require_same_backbone
from featpipe.heads import Head, head_spec
from featpipe.heads.persistence import short_key
from featpipe.labelled import labelled_rows, units_of_rows
from featpipe.model_selection import make_folds, streams
from featpipe.quality import Findings, inspect
from featpipe.quality.mislabelled import suspect_labels, suspects_of
from featpipe.report.map import EmbeddingMap, embedding_map
from featpipe.splits import Division, divide
from featpipe.store import EmbeddingStore
from featpipe.training import Trained
from featpipe.types import Progress, ProgressCallback
from featpipe.vectors import StoredVectors

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Labels = NDArray[np.object_]

MOST_MISTAKES, MOST_SUSPECTS, MOST_PAIRS = 24, 24, 16
_NEAREST = 3
_MOST_JUDGED = 50_000
"""Measured images beyond which those with pictures and curves are drawn from them."""
_MOST_LEARNT = 20_000
"""Training images beyond which no labels are judged and no curve is drawn: both fit again."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """An image that the head is wrong about, and the training images nearest to it.

    ``nearest`` holds (row, cosine).
    """

    row: int
    given: int
    predicted: int
    probability: float
    given_probability: float
    nearest: tuple[tuple[int, float], ...]


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
    division : Division
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
    def target(self) -> str | None:
        """Label column."""
        target: str | None = self.head.report.get("target")
        return target

    @property
    def labels(self) -> Labels:
        """Label of every row of the store."""
        return self.store.labels(self.target)


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
        self._target: str | None = head.report.get("target")
        self._seed = int(head.report.get("seed", 0))
        self._folds = max(2, int(head.report.get("folds", 5)))
        self._labels = store.labels(self._target)
        self._division = divide(store, self._labels)
        self._learnt = set(head.report.get("data", {}).get("keys", ()))
        # What was said of other images is not true of these.
        is_own = all(short_key(store.keys[row]) in self._learnt for row in self._division.train)
        self._notes = list(head.report.get("notes", ())) if is_own else []

    def go(self) -> Contents:
        estimate, quality = self._measured()
        rows, y, probabilities = self._judged(estimate)
        every = [self._division.train, estimate.rows]
        return Contents(
            head=self._head,
            store=self._store,
            division=self._division,
            estimate=estimate,
            rows=rows,
            y=y,
            probabilities=probabilities,
            quality=quality,
            mistakes=tuple(self._mistakes(rows, y, probabilities, quality)),
            suspects=tuple(self._suspects(estimate, rows, y, probabilities, quality)),
            curve=self._curve(quality),
            map=embedding_map(self._store, np.unique(np.concatenate(every)), self._seed),
            notes=tuple(dict.fromkeys(self._notes)),
        )

    def _measured(self) -> tuple[Estimate, Findings]:
        if self._trained is not None:
            return self._trained.estimate, self._trained.quality
        division = self._division
        quality = inspect(
            self._store,
            division.train,
            division.held,
            self._labels,
            held_name=division.held_name,
            in_passes=self._is_large(),
            seed=self._seed,
            progress=self._progress,
        )
        estimate = self._estimate(quality)
        self._notes += [*division.notes, *quality.notes, *estimate.notes]
        return estimate, quality

    def _estimate(self, quality: Findings) -> Estimate:
        """Measure as `fit` did: on the split, on what was not learnt, or nested."""
        head, store, division, copies = self._head, self._store, self._division, quality.copies
        if division.held is not None:
            return estimate_on_split(
                head,
                store,
                division.train,
                division.held,
                division.held_name,
                self._target,
                self._seed,
                copies,
            )
        known = np.array([label in set(head.classes) for label in self._labels], dtype=bool)
        is_new = np.array([short_key(key) not in self._learnt for key in store.keys], dtype=bool)
        unseen = np.flatnonzero(known & is_new)
        if self._learnt and len(unseen):
            method = f"{len(unseen):,} images that were not learnt on"
            return estimate_on(head, store, unseen, method, self._target, self._seed, copies)
        rows = labelled_rows(store, division.train, self._target)
        if rows.classes != head.classes:
            raise LabelError(
                f"{printable(str(store.path))} has other labels than the head: fit one on it, or "
                "name the store that it was fitted on"
            )
        units = units_of_rows(store, division.train, copies if quality.keeps_together else None)
        return estimate_nested(
            head_spec(head.name),
            store,
            division.train,
            replace(rows, units=units),
            quality,
            cv=self._folds,
            tune=len(head.report.get("tuning", ())) != 1,
            seed=self._seed,
            calibration=_asked(head),
            on_fit=self._tell("estimating"),
        )

    def _is_large(self) -> bool:
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

    def _mistakes(
        self, rows: Ints, y: Ints, probabilities: Floats, quality: Findings
    ) -> Iterator[Mistake]:
        predicted = probabilities.argmax(axis=1)
        wrong = np.flatnonzero(predicted != y)
        at = np.arange(len(y))
        margin = probabilities[at, predicted] - probabilities[at, y]
        worst = wrong[np.argsort(-margin[wrong], kind="stable")][:MOST_MISTAKES]
        nearest = self._nearest(rows[worst], quality)
        for i, near in zip(worst.tolist(), nearest, strict=True):
            yield Mistake(
                row=int(rows[i]),
                given=int(y[i]),
                predicted=int(predicted[i]),
                probability=float(probabilities[i, predicted[i]]),
                given_probability=float(probabilities[i, y[i]]),
                nearest=near,
            )

    def _nearest(self, rows: Ints, quality: Findings) -> list[tuple[tuple[int, float], ...]]:
        """Return the training images nearest to each of some images, but none equal to it."""
        if not len(rows):
            return []
        train = self._division.train
        queries = _normalised(self._store.read(rows))
        cosines = np.concatenate(
            [
                _normalised(vectors) @ queries.T
                for _, vectors in StoredVectors(self._store, train).blocks()
            ]
        )
        both = np.concatenate([train, rows])
        units = units_of_rows(self._store, both, quality.copies)
        found = []
        for at in range(len(rows)):
            own = cosines[:, at].copy()
            own[units[: len(train)] == units[len(train) + at]] = -np.inf
            order = np.argsort(-own, kind="stable")[:_NEAREST]
            found.append(tuple((int(train[i]), float(own[i])) for i in order if own[i] > -np.inf))
        return found

    def _suspects(
        self, estimate: Estimate, rows: Ints, y: Ints, probabilities: Floats, quality: Findings
    ) -> list[Suspect]:
        """Judge the labels of all images that were used, each by a head that has not seen it."""
        classes = self._head.classes
        found = list(_named(suspects_of(probabilities, y), rows, y, classes))
        if estimate.probabilities is None:
            found += self._training_suspects(quality)
        found.sort(key=lambda suspect: (suspect.confidence, suspect.row))
        return found[:MOST_SUSPECTS]

    def _training_suspects(self, quality: Findings) -> list[Suspect]:
        train = self._division.train
        if len(train) > _MOST_LEARNT or self._is_large():
            return []
        rows = labelled_rows(self._store, train, self._target)
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
        if any(label not in position for label in self._labels[rows]):
            return None
        y = np.array([position[label] for label in self._labels[rows]], dtype=np.int64)
        copies = quality.copies if quality.keeps_together else None
        units = units_of_rows(self._store, rows, copies)
        try:
            folds = (
                make_folds(y, units, self._folds, self._seed, self._head.classes)
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


def _asked(head: Head) -> str:
    """Return the calibration that `fit` was asked for: auto is what compares several."""
    found = head.report.get("calibration", {})
    return str(found.get("method", "temperature")) if len(found.get("log_loss", ())) < 2 else "auto"


def _named(found: Any, rows: Ints, y: Ints, classes: tuple[str, ...]) -> Iterator[Suspect]:
    for at, suggested, confidence in zip(
        found.rows.tolist(), found.suggested.tolist(), found.confidence.tolist(), strict=True
    ):
        yield Suspect(int(rows[at]), classes[int(y[at])], classes[suggested], confidence)


def _normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: NDArray[np.float32] = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return found
