"""The worst mistakes of a head, each with the training images that look most like it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featpipe.inspection.nearest import nearest_rows
from featpipe.labelled import units_of_rows
from featpipe.store import EmbeddingStore

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Labels = NDArray[np.object_]

MOST_MISTAKES = 24


@dataclass(frozen=True, slots=True)
class Mistake:
    """An image that the head is wrong about, and the training images nearest to it.

    Attributes
    ----------
    row : int
        Of the store.
    given, predicted : int
        Its class, and what the head says.
    probability, given_probability : float
        Of what the head says, and of its class.
    nearest : tuple of (int, float)
        Rows and cosines, the nearest first.
    """

    row: int
    given: int
    predicted: int
    probability: float
    given_probability: float
    nearest: tuple[tuple[int, float], ...]


def worst_mistakes(
    store: EmbeddingStore,
    train: Ints,
    rows: Ints,
    y: Ints,
    probabilities: Floats,
    copies: Labels | None,
) -> Iterator[Mistake]:
    """Yield the mistakes that the head was surest about, the worst first.

    Parameters
    ----------
    train : ndarray of int
        Rows of the store that were learnt on.
    rows, y, probabilities : ndarray, (n,), (n,) and (n, K)
        What was measured on.
    copies : ndarray of object, (len(store),), or None
        Group of copies of every row: no copy of an image stands beside it.
    """
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != y)
    at = np.arange(len(y))
    margin = probabilities[at, predicted] - probabilities[at, y]
    worst = wrong[np.argsort(-margin[wrong], kind="stable")][:MOST_MISTAKES]
    nearest = _nearest(store, train, rows[worst], copies)
    for i, near in zip(worst.tolist(), nearest, strict=True):
        yield Mistake(
            row=int(rows[i]),
            given=int(y[i]),
            predicted=int(predicted[i]),
            probability=float(probabilities[i, predicted[i]]),
            given_probability=float(probabilities[i, y[i]]),
            nearest=near,
        )


def _nearest(
    store: EmbeddingStore, train: Ints, rows: Ints, copies: Labels | None
) -> list[tuple[tuple[int, float], ...]]:
    """Return the training images nearest to each of some images; none of the same unit."""
    if not len(rows) or not len(train):
        return [()] * len(rows)
    units = units_of_rows(store, np.concatenate([train, rows]), copies)
    same = [units[: len(train)] == unit for unit in units[len(train) :].tolist()]
    return nearest_rows(store, train, store.read(rows), same)
