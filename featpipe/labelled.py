"""Rows of a store that have a label, as what classifiers learn on: classes, units, vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featpipe._files import printable
from featpipe.errors import LabelError
from featpipe.model_selection import units_of
from featpipe.store import EmbeddingStore
from featpipe.vectors import finite_vectors

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Labelled:
    """Labels of rows of a store.

    Attributes
    ----------
    y : ndarray of int, (n,)
        Positions in ``classes``.
    classes : tuple of str
    units : ndarray of int, (n,)
        What must not stand on both sides of a cut; see `featpipe.model_selection.units_of`.
    keys : list of bytes
    """

    y: Ints
    classes: tuple[str, ...]
    units: Ints
    keys: list[bytes]


@dataclass(frozen=True, slots=True)
class LabelledRows(Labelled):
    """The same with the vectors, (n, D) float32."""

    X: NDArray[np.float32]


def labelled_rows(store: EmbeddingStore, rows: Ints, target: str | None = None) -> LabelledRows:
    """Return rows of a store as float32 vectors and classes 0 … K-1.

    Raises
    ------
    LabelError
        When they hold one class only.
    StoreError
        When a vector holds NaN or infinity.
    """
    found = labelled(store, rows, target)
    return LabelledRows(
        found.y, found.classes, found.units, found.keys, X=finite_vectors(store, rows)
    )


def labelled(store: EmbeddingStore, rows: Ints, target: str | None = None) -> Labelled:
    """Return the labels of rows as classes 0 … K-1; no vector is read.

    Raises
    ------
    LabelError
        When they hold one class only.
    """
    names = [str(label) for label in store.labels(target)[rows]]
    classes = tuple(sorted(set(names)))
    if len(classes) < 2:
        raise LabelError(
            f"all labelled images of {printable(str(store.path))} to learn on have the label "
            f"{printable(classes[0])}: a classifier needs two classes at least"
        )
    position = {name: k for k, name in enumerate(classes)}
    return Labelled(
        y=np.array([position[name] for name in names], dtype=np.int64),
        classes=classes,
        units=units_of_rows(store, rows),
        keys=[store.keys[i] for i in rows],
    )


def units_of_rows(
    store: EmbeddingStore, rows: Ints, copies: NDArray[np.object_] | None = None
) -> Ints:
    """Return the unit of every row: equal images and those of a group share one.

    ``copies`` names, for every row of the store, the group of copies that it belongs to (None
    where it is none): those share one, too.
    """
    groups = store.groups
    return units_of(
        [store.keys[i] for i in rows],
        None if groups is None else groups[rows],
        None if copies is None else copies[rows],
    )
