"""`few_shot_curve`: how good a head is that learns on a few images of every class."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from featpipe._files import printable
from featpipe.calibration import to_probabilities
from featpipe.errors import LabelError
from featpipe.evaluation.figures import NAMES, Figures, Interval, interval, share
from featpipe.evaluation.parts import Parts, held_out, overlaps, parts_of, ranks
from featpipe.heads import HeadSpec, head_spec
from featpipe.heads.registry import class_scores
from featpipe.labelled import units_of_rows
from featpipe.model_selection.tuning import quiet_and_single
from featpipe.store import EmbeddingStore, label_conflicts, repeated_keys
from featpipe.types import Progress, ProgressCallback
from featpipe.vectors import finite_vectors

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_HELD_OUT = 0.5
"""Part of the images that is measured on where no split is for it: shots leave many to spare."""
_LEVEL = 0.975


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over several draws of training images; all are measured on the same images.

    Attributes
    ----------
    mean : float
    deviation : float or None
        Standard deviation of one draw; None for a single one.
    interval : (float, float) or None
        95 % interval of the mean, by Student's t, cut at 0 and 1. It covers other draws of
        training images, not other images to measure on: of these the interval of each draw
        speaks.
    """

    mean: float
    deviation: float | None
    interval: Interval | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return mean, deviation and interval of some values.

        >>> Spread.of([0.5, 0.6, 0.7]).mean
        0.6
        """
        n, mean = len(values), float(np.mean(values))
        if n < 2:
            return cls(mean, None, None)
        deviation = float(np.std(values, ddof=1))
        half = float(stdtrit(n - 1, _LEVEL)) * deviation / math.sqrt(n)
        return cls(mean, deviation, (max(0.0, mean - half), min(1.0, mean + half)))

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "mean": self.mean,
            "standard_deviation": self.deviation,
            "interval_95_of_the_mean": None if self.interval is None else list(self.interval),
        }


@dataclass(frozen=True, slots=True)
class Shots:
    """What came of one number of images a class.

    Attributes
    ----------
    shots : int
        Images of every class, or all that it has.
    images : int
        Training images of one draw.
    draws : tuple of Figures
        In the order in which they were drawn.
    """

    shots: int
    images: int
    draws: tuple[Figures, ...]

    @property
    def accuracy(self) -> Spread:
        """Share of all measured images, over the draws."""
        return Spread.of([draw.accuracy for draw in self.draws])

    @property
    def mean_per_class_accuracy(self) -> Spread:
        """Mean of the classes' own shares, over the draws."""
        return Spread.of([draw.mean_per_class_accuracy for draw in self.draws])

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "shots": self.shots,
            "images": self.images,
            **{name: getattr(self, name).to_json() for name in NAMES},
            "draws": [draw.to_json() for draw in self.draws],
        }


@dataclass(frozen=True, slots=True)
class FewShotCurve:
    """What `few_shot_curve` has measured.

    Attributes
    ----------
    head : str
    store : str
        Where it lies.
    backbone : str
    split : str or None
        The split that was measured on; None where images were held out for it.
    classes : tuple of str
    n_pool, n_measured : int
        Images that shots were drawn from, and that were measured on.
    points : tuple of Shots
        With a rising number of shots.
    target : str or None
    seed : int
    notes : tuple of str
    """

    head: str
    store: str
    backbone: str
    split: str | None
    classes: tuple[str, ...]
    n_pool: int
    n_measured: int
    points: tuple[Shots, ...]
    target: str | None
    seed: int
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        shown = ", ".join(f"{p.shots}: {p.accuracy.mean:.3f}" for p in self.points)
        return f"FewShotCurve({self.head}, {self.n_measured} images, accuracy {shown})"

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``featpipe probe --shots … --json`` prints them."""
        return {
            "protocol": "few-shot",
            "head": self.head,
            "store": self.store,
            "backbone": self.backbone,
            "target": self.target,
            "seed": self.seed,
            "split": self.split,
            "classes": list(self.classes),
            "images": {"pool": self.n_pool, "measured": self.n_measured},
            "points": [point.to_json() for point in self.points],
            "notes": list(self.notes),
        }

    def table(self) -> str:
        """Return the curve laid out for a person: a row a number of shots."""
        n_draws = len(self.points[0].draws)
        where = "held-out images" if self.split is None else f"images of the split {self.split}"
        what = f"{self.head} on {printable(self.backbone)}: {len(self.classes)} classes"
        counts, spread = f"{'shots':>5} {'images':>7}", f"{'deviation':>9}  95 % interval"
        lines = [
            f"{what}, {n_draws} draws, measured on {self.n_measured:,} {where}",
            "",
            f"{counts}  {'accuracy':>8} {spread:<28}{'mean per class':>14} {spread}",
        ]
        for point in self.points:
            accuracy, by_class = point.accuracy, point.mean_per_class_accuracy
            lines.append(
                f"{point.shots:>5} {point.images:>7}  {share(accuracy.mean):>8} "
                f"{share(accuracy.deviation):>9}  {interval(accuracy.interval):<17}"
                f"{share(by_class.mean):>14} {share(by_class.deviation):>9}  "
                f"{interval(by_class.interval)}"
            )
        lines += ["", "intervals: of the mean, over draws of training images; --json has each draw"]
        return "\n".join(lines)


def few_shot_curve(
    store: EmbeddingStore | str | os.PathLike[str],
    head: str = "logreg",
    *,
    shots: Sequence[int] = (1, 2, 5, 10),
    repeats: int = 5,
    target: str | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> FewShotCurve:
    """Measure heads that learn on a few images of every class, drawn several times.

    The images of a draw with fewer shots are the first of those with more. Equal images of a
    class count once; those under two labels count for both, and a note names them. A class with
    fewer images than shots gives all it has. The head has its default parameters, as
    `featpipe.fit` with ``tune=False``: a few images are no ground to choose on.

    The split ``test`` is measured, or else ``val``; without either, a half of the images, drawn
    once by class, equal ones and those of a group together.

    Parameters
    ----------
    store : EmbeddingStore or path
    head : str
        logreg, svm, svm-rbf, knn, ridge, lda or centroid.
    shots : sequence of int
        Numbers of images a class, at least 1.
    repeats : int
        Draws, at least 1; from 2 on there is an interval.
    target : str, optional
        Label column, where there are several.
    seed : int
        Of the draws and the bootstrap.
    progress : callable, optional
        Called with a `Progress` after each fit.

    Raises
    ------
    LabelError
        When there are too few classes or images, or numbers that are below 1.
    HeadError
        When there is no head of that name.
    StoreError
        When a vector holds NaN or infinity; the message names the image.

    Examples
    --------
    >>> few_shot_curve("embeddings/photos-efficientnet_lite0", shots=[1, 5])  # doctest: +SKIP
    FewShotCurve(logreg, 153 images, accuracy 1: 0.812, 5: 0.921)
    """
    spec = head_spec(head)
    numbers = sorted(set(shots))
    if not numbers or numbers[0] < 1 or repeats < 1:
        raise LabelError(
            f"a few-shot curve needs 1 image a class and 1 draw at least, not shots {list(shots)} "
            f"and {repeats} draws"
        )
    opened = store if isinstance(store, EmbeddingStore) else EmbeddingStore.open(store)
    parts = parts_of(opened, target)
    pool, measured, notes = _divided(opened, parts, seed)
    sizes = np.bincount(parts.y[pool], minlength=len(parts.classes))
    notes += list(_short(sizes, numbers[-1], parts.classes))
    curve = _Curve(opened, spec, parts, pool, measured, numbers, repeats, seed, progress)
    return FewShotCurve(
        head=spec.name,
        store=str(opened.path),
        backbone=str(opened.card["name"]),
        split=parts.split,
        classes=parts.classes,
        n_pool=len(pool),
        n_measured=len(measured),
        points=tuple(curve.points()),
        target=target,
        seed=seed,
        notes=(*parts.notes, *notes),
    )


def shots_of(y: Ints, shots: Sequence[int], seed: int, draw: int) -> list[Ints]:
    """Return for each number of shots the positions that one draw takes, in rising order.

    Parameters
    ----------
    y : ndarray of int, (n,)
        Classes 0 … K-1.
    draw : int
        Number of the draw, from 0.

    Examples
    --------
    >>> [len(taken) for taken in shots_of(np.array([0, 0, 0, 1]), [1, 2], seed=0, draw=0)]
    [2, 3]
    """
    place = ranks(y, (seed, draw))
    return [np.flatnonzero(place < number) for number in shots]


def _divided(store: EmbeddingStore, parts: Parts, seed: int) -> tuple[Ints, Ints, list[str]]:
    """Return the rows to draw shots from, each image of a class once, and those to measure."""
    train, measured, notes = parts.train, parts.measured, []
    if parts.split is None:
        measured = held_out(store, train, parts.y[train], int(_HELD_OUT * len(train)), seed)
        if not len(measured):
            raise LabelError(
                f"{printable(str(store.path))} has {len(train)} labelled images and no split to "
                "measure on: too few to hold some of every class out; add images"
            )
        train = np.setdiff1d(train, measured)
        notes.append(
            f"there is no split to measure on: {len(measured)} images are held out for it, by "
            f"class ({100 * _HELD_OUT:.0f} %)"
        )
    if len(parts.val):
        notes.append(f"{len(parts.val)} images of the split val are not used")
    notes += overlaps(store, train, measured)[1]
    keys = [store.keys[i] for i in train]
    if not len(repeated_keys(keys)):
        return train, measured, notes
    names = [parts.classes[k] for k in parts.y[train]]
    notes += label_conflicts(zip(keys, (store.paths[i] for i in train), names, strict=True))
    # Under two labels it counts for both: a class may have no other image.
    first = {image: at for at, image in reversed(list(enumerate(zip(keys, names, strict=True))))}
    return train[sorted(first.values())], measured, notes


def _short(sizes: Ints, most: int, classes: Sequence[str]) -> Iterator[str]:
    few = [printable(name) for name, size in zip(classes, sizes, strict=True) if size < most]
    if few:
        shown = ", ".join(few[:5])
        yield (
            f"{len(few)} classes ({shown}) have fewer than {most} distinct images, "
            f"{sizes.min()} at the least: there a draw takes all of them"
        )


class _Curve:
    """Fits and measures every draw of one call."""

    def __init__(
        self,
        store: EmbeddingStore,
        spec: HeadSpec,
        parts: Parts,
        pool: Ints,
        measured: Ints,
        shots: Sequence[int],
        repeats: int,
        seed: int,
        progress: ProgressCallback | None,
    ) -> None:
        self._spec, self._classes = spec, parts.classes
        self._y, self._true = parts.y[pool], parts.y[measured]
        self._X = finite_vectors(store, pool)
        self._others = finite_vectors(store, measured)
        self._units = units_of_rows(store, measured)
        self._shots, self._repeats, self._seed = shots, repeats, seed
        self._progress, self._done = progress, 0

    def points(self) -> Iterator[Shots]:
        draws = [shots_of(self._y, self._shots, self._seed, n) for n in range(self._repeats)]
        for number, taken in zip(self._shots, zip(*draws, strict=True), strict=True):
            yield Shots(number, len(taken[0]), tuple(self._measured(rows) for rows in taken))

    def _measured(self, rows: Ints) -> Figures:
        parameters = dict(self._spec.default)
        if "n_neighbors" in parameters:
            parameters["n_neighbors"] = min(parameters["n_neighbors"], len(rows))
        with quiet_and_single():
            pipeline = self._spec.fit(parameters, self._X[rows], self._y[rows], self._seed)
            scores = class_scores(pipeline, self._others)
        self._tell()
        votes = to_probabilities(scores, 1.0)
        return Figures.measured(self._true, votes, self._classes, self._units, self._seed)

    def _tell(self) -> None:
        self._done += 1
        if self._progress is not None:
            total = len(self._shots) * self._repeats
            self._progress(Progress(self._done, total, stage="few shots"))
