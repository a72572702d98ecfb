"""One row of a scoring run, and how a head's probabilities become one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from featpipe.conformal import within
from featpipe.types import Failure

PredictionStatus: TypeAlias = Literal[
    "ok", "uncertain", "unknown", "undecodable", "unreadable", "unscorable"
]
"""``uncertain``: below the threshold; ``unknown``: too unlike the training images. The last three
are failures; ``unscorable`` means that the backbone gave a vector that is not finite."""

ANSWERED = frozenset({"ok", "uncertain", "unknown"})
"""Statuses of images that the head has looked at."""

STATUSES: frozenset[str] = frozenset(get_args(PredictionStatus))
_DECIMALS = 6


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a head says of one image.

    Attributes
    ----------
    path : str
        As the source lists it; bytes that are not UTF-8 stand in it as surrogate escapes.
    status : str
        ``ok``, ``uncertain``, ``unknown``, or why there is no answer.
    reason : str or None
        A sentence for every status other than ``ok``.
    label : str or None
        The most probable class; None where the status is not ``ok``.
    probability : float or None
        That of the most probable class, also where its label is withheld; six decimals.
    top : tuple of (label, probability)
        The most probable classes, best first; as many as were asked for.
    ood_p : float or None
        Share of known images that look as strange as this one; six decimals. None where the head
        cannot tell.
    label_set : tuple of str, or None
        Labels that the image may have, best first, where sets were asked for.
    """

    path: str
    status: PredictionStatus
    reason: str | None = None
    label: str | None = None
    probability: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    ood_p: float | None = None
    label_set: tuple[str, ...] | None = None

    @property
    def set_size(self) -> tuple[int, ...]:
        """How many labels the set has, for a counter: nothing where there is no set."""
        return () if self.label_set is None else (len(self.label_set),)

    @property
    def failed(self) -> bool:
        """Whether the image has no answer at all."""
        return self.status not in ANSWERED


def failed_prediction(path: str, failure: Failure) -> Prediction:
    """Return the row of an image that has no vector."""
    return Prediction(path, failure.status, failure.reason)


def unscorable_prediction(path: str) -> Prediction:
    """Return the row of an image whose vector no head can make sense of."""
    return Prediction(path, "unscorable", "the backbone gave a vector that is not finite")


def decide(
    path: str,
    probabilities: NDArray[np.floating],
    classes: Sequence[str],
    *,
    top_k: int = 0,
    threshold: float | None = None,
    ood_p: float | None = None,
    reject: float | None = None,
) -> Prediction:
    """Turn the probabilities of one image into its row.

    Parameters
    ----------
    probabilities : ndarray of float, (n_classes,)
        Aligned with ``classes``.
    top_k : int
        Classes to list beside the label; no more than there are.
    threshold : float, optional
        Below it the label is withheld and the status is ``uncertain``.
    ood_p : float, optional
        Share of known images that look as strange, where it is known.
    reject : float, optional
        Where ``ood_p`` is below it the label is withheld, and the status is ``unknown``.

    >>> decide("a.jpg", np.array([0.25, 0.75]), ["ant", "bee"], threshold=0.8).status
    'uncertain'
    """
    # Stable, so that of two equal classes the first one wins, as argmax has it.
    order = np.argsort(-probabilities, kind="stable")
    best = int(order[0])
    top = tuple((classes[i], _rounded(probabilities[i])) for i in order[:top_k])
    probability = float(probabilities[best])
    shown, strange = _rounded(probability), None if ood_p is None else _rounded(ood_p)
    if reject is not None and ood_p is not None and ood_p < reject:
        reason = f"it is unlike the training images: {100 * ood_p:.2g} % of them look as strange"
        return Prediction(path, "unknown", reason, None, shown, top, strange)
    if threshold is not None and probability < threshold:
        reason = f"the best probability is below the threshold {threshold:g}"
        return Prediction(path, "uncertain", reason, None, shown, top, strange)
    return Prediction(path, "ok", None, classes[best], shown, top, strange)


def set_of(
    probabilities: NDArray[np.floating], classes: Sequence[str], limits: NDArray[np.floating]
) -> tuple[str, ...]:
    """Return the labels that are no stranger than their limits, best first; there may be none.

    Parameters
    ----------
    limits : ndarray of float, (n_classes,)
        As `featpipe.conformal.Conformal.limits` gives them.

    >>> set_of(np.array([0.25, 0.7, 0.05]), ["ant", "bee", "cat"], np.full(3, 0.8))
    ('bee', 'ant')
    """
    order = np.argsort(-probabilities, kind="stable")
    inside = within(probabilities, limits)
    return tuple(classes[i] for i in order if inside[i])


def _rounded(probability: float | np.floating) -> float:
    return round(float(probability), _DECIMALS)
