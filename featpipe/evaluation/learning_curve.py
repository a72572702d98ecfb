"""Would more labels help? The same head, learnt on ever fewer of the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.heads import HeadSpec
from featpipe.heads.registry import class_scores
from featpipe.metrics import paired_difference
from featpipe.model_selection import Fold, quiet_and_single

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_HALVINGS = 5
_DRAWS = 4
_LEAST_OF_CLASS = 2


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Accuracy after learning on ``images`` of the images, over ``draws`` draws of them.

    ``mean``, ``low`` and ``high`` are shares: the mean, the worst and the best draw.
    """

    images: int
    draws: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """Accuracy by the number of images that were learnt on.

    Attributes
    ----------
    points : tuple of CurvePoint
        From few images to all.
    gain : float
        Points of accuracy that the second half of the images has brought; ``gain_95`` is the 95 %
        interval of a paired bootstrap.
    """

    points: tuple[CurvePoint, ...]
    gain: float
    gain_95: tuple[float, float]

    @property
    def words(self) -> str:
        """What the last doubling says of the next one."""
        low, high = self.gain_95
        half, full = self.points[-2].images, self.points[-1].images
        seen = f"from {half:,} to {full:,} images brought {self.gain:+.1f} points"
        range_ = f"({low:+.1f} to {high:+.1f})"
        if low > 0:
            return (
                f"more labels would probably help: going {seen} {range_}; twice as many again "
                "may bring about as much, or a little less"
            )
        if high < 1:
            return f"more labels of this kind would hardly help: going {seen} {range_}"
        return f"more labels may help or not, these images cannot tell: going {seen} {range_}"


def learning_curve(
    spec: HeadSpec,
    parameters: Any,
    X: NDArray[np.float32],  # noqa: N803 - scikit-learn's name
    y: Ints,
    units: Ints,
    folds: list[Fold],
    *,
    seed: int = 0,
    on_fit: Callable[[int, int], None] | None = None,
) -> LearningCurve | None:
    """Fit a head on halves, quarters … of the images; None where there are too few to halve.

    Images are drawn by class and by unit, four times for every size; the parameters are those
    that were chosen for all of them.

    Parameters
    ----------
    parameters : mapping
        Of the head.
    X : ndarray of float32, (n, D)
    y, units : ndarray of int, (n,)
        Classes 0 … K-1, and what is drawn as one.
    folds : list of (fit, held out)
        One, for a held split, or those of cross-validation: positions in ``X``.

    References
    ----------
    Cortes, Jackel, Solla, Vapnik, Denker 1993, "Learning Curves: Asymptotic Values and Rate of
    Convergence", NIPS 6, for what such curves are worth.
    """
    shares = list(_shares(y, units, folds))
    if len(shares) < 2:
        return None
    total, done = sum(_draws(share) * len(folds) for share in shares), 0

    def one(share: float, draw: int) -> tuple[Floats, int]:
        """Return which held-out rows one draw of a share is right about, and its size."""
        nonlocal done
        rng, hits, images = np.random.default_rng([seed, draw]), [], 0
        for fit, held in folds:
            chosen = fit if share == 1 else _drawn(fit, y, units, share, rng)
            images = max(images, len(chosen))
            pipeline = spec.fit(_fitting(parameters, len(chosen)), X[chosen], y[chosen], seed)
            hits.append(class_scores(pipeline, X[held]).argmax(axis=1) == y[held])
            done += 1
            if on_fit is not None:
                on_fit(done, total)
        return np.concatenate(hits).astype(np.float64), images

    with quiet_and_single():
        runs = [[one(share, draw) for draw in range(_draws(share))] for share in shares]
    half, full = (np.mean([hits for hits, _ in runs[at]], axis=0) for at in (-2, -1))
    measured = np.concatenate([held for _, held in folds])
    gain, interval = paired_difference(half, full, units[measured], seed=seed)
    return LearningCurve(tuple(_point(run) for run in runs), gain, interval)


def _point(runs: list[tuple[Floats, int]]) -> CurvePoint:
    means = [float(hits.mean()) for hits, _ in runs]
    return CurvePoint(
        images=max(images for _, images in runs),
        draws=len(runs),
        mean=float(np.mean(means)),
        low=min(means),
        high=max(means),
    )


def _draws(share: float) -> int:
    return 1 if share == 1 else _DRAWS


def _fitting(parameters: Any, n: int) -> Any:
    """Ask for no more neighbours than there are images."""
    if parameters.get("n_neighbors", 1) <= n:
        return parameters
    return {**parameters, "n_neighbors": n}


def _shares(y: Ints, units: Ints, folds: list[Fold]) -> Iterator[float]:
    """Yield shares of the images, few first, as long as every class keeps a few units."""
    fewest = min(
        len(np.unique(units[fit][y[fit] == k])) for fit, _ in folds for k in np.unique(y[fit])
    )
    for halvings in range(_HALVINGS, -1, -1):
        share = 0.5**halvings
        if halvings == 0 or fewest * share >= _LEAST_OF_CLASS:
            yield share


def _drawn(fit: Ints, y: Ints, units: Ints, share: float, rng: np.random.Generator) -> Ints:
    """Draw a share of the units of every class: smaller draws of one seed lie in larger ones."""
    kept = []
    for k in np.unique(y[fit]):
        rows = fit[y[fit] == k]
        names = rng.permutation(np.unique(units[rows]))
        chosen = names[: max(_LEAST_OF_CLASS, round(share * len(names)))]
        kept.append(rows[np.isin(units[rows], chosen)])
    return np.sort(np.concatenate(kept))
