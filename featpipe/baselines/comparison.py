"""The same head without transfer, on the same images; and by how much transfer leads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featpipe.baselines.features import NAMES, features
from featpipe.errors import FeatpipeError
from featpipe.heads import HeadSpec
from featpipe.heads.registry import class_scores
from featpipe.labelled import labelled, units_of_rows
from featpipe.metrics import compute_metrics, paired_difference
from featpipe.model_selection import fit_tuned, make_folds, nested_probabilities
from featpipe.model_selection.holdout import draw
from featpipe.splits import Division
from featpipe.store import EmbeddingStore
from featpipe.types import ProgressCallback
from featpipe.vectors import finite_vectors

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Labels = NDArray[np.object_]
Verdict: TypeAlias = Literal["transfer", "no transfer", "negative transfer"]

MOST_IMAGES = 400
"""About so many images of each side are taken: a difference that matters shows in them."""
_LEAST_OF_CLASS = 4
_MAJORITY = "commonest label"
_GONE = "the images cannot be opened again"
_CANNOT = "the baselines were not measured: {}"


@dataclass(frozen=True, slots=True)
class Baseline:
    """What the head reaches without transfer, and what transfer adds to that.

    Attributes
    ----------
    name : str
    accuracy : float
        A share; ``interval_95`` is its interval.
    lead : float
        Points of accuracy that transfer has more, on the same images; ``lead_95`` is the 95 %
        interval of a paired bootstrap.
    """

    name: str
    accuracy: float
    interval_95: tuple[float, float]
    lead: float
    lead_95: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "name": self.name,
            "accuracy": self.accuracy,
            "interval_95": list(self.interval_95),
            "lead": self.lead,
            "lead_95": list(self.lead_95),
        }


@dataclass(frozen=True, slots=True)
class Baselines:
    """Baselines of one head on one store.

    Attributes
    ----------
    learnt, measured : int
        Images that all of them learnt on, and were measured on.
    accuracy : float
        Of the head on the backbone's vectors, with these images.
    baselines : tuple of Baseline
    notes : tuple of str
    """

    learnt: int
    measured: int
    accuracy: float
    interval_95: tuple[float, float]
    baselines: tuple[Baseline, ...]
    notes: tuple[str, ...] = ()

    @property
    def best(self) -> Baseline:
        """The baseline that transfer has to beat."""
        return max(self.baselines, key=lambda baseline: baseline.accuracy)

    @property
    def verdict(self) -> Verdict:
        """Whether transfer leads over the best baseline by more than chance."""
        low, high = self.best.lead_95
        return "transfer" if low > 0 else "negative transfer" if high < 0 else "no transfer"

    @property
    def words(self) -> str:
        """The verdict as a sentence, and what to try."""
        best = self.best
        low, high = best.lead_95
        by = f"{abs(best.lead):.1f} points"
        range_ = f"({low:.1f} to {high:.1f})"
        over = f"{best.name}, the best baseline ({100 * best.accuracy:.1f} %)"
        if self.verdict == "transfer":
            return f"transfer leads by {by} {range_} over {over}"
        if self.verdict == "negative transfer":
            return (
                f"negative transfer: {by} {range_} behind {over}: this backbone hides what tells "
                "the classes apart; try another one, or a larger input size"
            )
        return (
            f"no transfer: the lead of {best.lead:.1f} points {range_} over {over} may be chance: "
            "look at the labels (`featpipe clean`), try another backbone, or add images"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as they stand in a head's report."""
        return {
            "verdict": self.verdict,
            "words": self.words,
            "learnt_on": self.learnt,
            "measured_on": self.measured,
            "accuracy": self.accuracy,
            "interval_95": list(self.interval_95),
            "baselines": [baseline.to_json() for baseline in self.baselines],
            "notes": list(self.notes),
        }


def compare_with_baselines(
    spec: HeadSpec,
    store: EmbeddingStore,
    division: Division,
    *,
    target: str | None = None,
    copies: Labels | None = None,
    cv: int = 5,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Baselines | str:
    """Measure a kind of head on vectors, on raw pixels, and with random weights.

    All learn on the same images and are measured on the same others, tuned alike: on the held
    split, or by nested cross-validation where there is none. Of many images about 400 of each
    side are drawn, by class and by unit, four units of every class at least.

    Parameters
    ----------
    copies : ndarray of object, (len(store),), or None
        Group of copies of every row of the store; copies stay in one fold.

    Returns
    -------
    Baselines, or str
        Why they could not be measured: the images are gone, a class has too few of them.

    References
    ----------
    Kornblith, Shlens, Le 2019, "Do Better ImageNet Models Transfer Better?", CVPR, section 4.5,
    and Raghu, Zhang, Kleinberg, Bengio 2019, "Transfusion", NeurIPS, for networks of random
    weights as what transfer is measured against.
    """
    job = _Job(spec, store, division, target, copies, cv, seed)
    try:
        return job.go(progress)
    except FeatpipeError as exc:
        return _CANNOT.format(exc)


class _Job:
    """One call of `compare_with_baselines`."""

    def __init__(
        self,
        spec: HeadSpec,
        store: EmbeddingStore,
        division: Division,
        target: str | None,
        copies: Labels | None,
        cv: int,
        seed: int,
    ) -> None:
        self._spec, self._store, self._target = spec, store, target
        self._copies, self._cv, self._seed = copies, cv, seed
        self._labels = store.labels(target)
        self._learn = self._drawn(division.train)
        held = division.held
        if held is not None:
            known = set(self._labels[self._learn])
            held = self._drawn(held[[label in known for label in self._labels[held]]])
        self._held = held

    def go(self, progress: ProgressCallback | None) -> Baselines | str:
        vectors, notes = self._vectors(progress)
        if not vectors:
            return _CANNOT.format("; ".join(notes))
        before = self._sides()
        self._keep(vectors.values())
        if any(2 * now < was for now, was in zip(self._sides(), before, strict=True)):
            return _CANNOT.format(_GONE)
        learnt = labelled(self._store, self._learn, self._target)
        rows = self._learn if self._held is None else self._held
        units = units_of_rows(self._store, rows, self._copies)
        y = self._classes(rows, learnt.classes)
        transfer = self._right(self._stored, y)
        right = {name: self._right(_taker(found), y) for name, found in vectors.items()}
        majority = int(np.bincount(learnt.y).argmax())
        right = {_MAJORITY: y == majority, **right}
        return Baselines(
            learnt=len(self._learn),
            measured=len(rows),
            accuracy=float(transfer.mean()),
            interval_95=_interval(transfer, units, self._seed),
            baselines=tuple(self._baselines(transfer, right, units)),
            notes=tuple(notes),
        )

    def _drawn(self, rows: Ints) -> Ints:
        """Draw rows by class and by unit, about as many as are needed, in their order."""
        if len(rows) <= MOST_IMAGES:
            return rows
        units = units_of_rows(self._store, rows, self._copies)
        y = np.unique(self._labels[rows].astype(str), return_inverse=True)[1]
        return rows[draw(y, units, MOST_IMAGES, self._seed, least=_LEAST_OF_CLASS)]

    def _vectors(
        self, progress: ProgressCallback | None
    ) -> tuple[dict[str, dict[int, NDArray[np.float32]]], list[str]]:
        rows = self._learn if self._held is None else np.concatenate([self._learn, self._held])
        vectors, notes = {}, list[str]()
        for name in NAMES:
            try:
                found = features(self._store, rows, name, progress)
            except FeatpipeError as exc:
                notes.append(f"{name} were not measured: {exc}")
                continue
            if len(found) < len(rows) / 2:
                notes.append(_GONE)
                break
            vectors[name] = found
        return vectors, notes

    def _sides(self) -> tuple[int, ...]:
        return (len(self._learn),) if self._held is None else (len(self._learn), len(self._held))

    def _keep(self, vectors: Any) -> None:
        """Leave out images that a baseline has no vector of: all are measured on the same."""
        common = np.array(sorted(set.intersection(*(set(found) for found in vectors))), np.int64)
        self._learn = self._learn[np.isin(self._learn, common)]
        if self._held is not None:
            held = self._held[np.isin(self._held, common)]
            known = set(self._labels[self._learn])
            self._held = held[
                np.array([label in known for label in self._labels[held]], dtype=bool)
            ]

    def _classes(self, rows: Ints, classes: tuple[str, ...]) -> Ints:
        position = {name: k for k, name in enumerate(classes)}
        return np.array([position[str(label)] for label in self._labels[rows]], dtype=np.int64)

    def _stored(self, rows: Ints) -> NDArray[np.float32]:
        return finite_vectors(self._store, rows)

    def _right(self, vectors: Any, y: Ints) -> Flags:
        """Return which images the head is right about that it has not learnt on."""
        learnt = labelled(self._store, self._learn, self._target)
        units = units_of_rows(self._store, self._learn, self._copies)
        X = vectors(self._learn)  # noqa: N806 - scikit-learn's name
        if self._held is None:
            found = nested_probabilities(
                self._spec,
                X,
                learnt.y,
                units,
                n_splits=self._cv,
                classes=learnt.classes,
                seed=self._seed,
            ).argmax(axis=1)
        else:
            folds = make_folds(learnt.y, units, self._cv, self._seed, learnt.classes)
            fitted = fit_tuned(self._spec, X, learnt.y, folds, seed=self._seed)
            found = class_scores(fitted.pipeline, vectors(self._held)).argmax(axis=1)
        right: Flags = found == y
        return right

    def _baselines(
        self, transfer: Flags, right: dict[str, Flags], units: Ints
    ) -> Iterator[Baseline]:
        for name, flags in right.items():
            lead, interval = paired_difference(flags, transfer, units, seed=self._seed)
            yield Baseline(
                name=name,
                accuracy=float(flags.mean()),
                interval_95=_interval(flags, units, self._seed),
                lead=lead,
                lead_95=interval,
            )


def _interval(right: Flags, units: Ints, seed: int) -> tuple[float, float]:
    """Return the 95 % interval of an accuracy, by the same rules as all others."""
    sides = np.column_stack([right, ~right]).astype(np.float64)
    none = np.zeros(len(right), dtype=np.int64)
    metrics = compute_metrics(none, sides, ("right", "wrong"), majority=0, groups=units, seed=seed)
    return metrics.intervals["accuracy"]


def _taker(found: dict[int, NDArray[np.float32]]) -> Any:
    return lambda rows: np.stack([found[row] for row in rows.tolist()])
