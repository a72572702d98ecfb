"""Which images of a store a probe learns on, chooses on and measures on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featpipe._files import printable
from featpipe.errors import LabelError
from featpipe.labelled import units_of_rows
from featpipe.model_selection.holdout import draw
from featpipe.splits import divide
from featpipe.store import EmbeddingStore

Ints = NDArray[np.int64]
_NONE = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Parts:
    """Rows of a store by what they serve; all have a label.

    Attributes
    ----------
    train, val, measured : ndarray of int
        Rows; ``val`` is empty where the store has none to spare. What is measured on has no
        label that is not learnt.
    split : str or None
        The split that is measured on; None where there is none yet.
    classes : tuple of str
        Labels of ``train``, sorted.
    y : ndarray of int, (n,)
        For every row of the store its position in ``classes``, or -1.
    notes : tuple of str
    """

    train: Ints
    val: Ints
    measured: Ints
    split: str | None
    classes: tuple[str, ...]
    y: Ints
    notes: tuple[str, ...]


def parts_of(store: EmbeddingStore, target: str | None) -> Parts:
    """Divide the labelled images of a store by its splits.

    ``test`` is measured on, or else ``val``, as by `featpipe.fit` and `featpipe.evaluate`:
    many sets have a split of that name that is theirs to report on. It then validates nothing.

    Raises
    ------
    LabelError
        When there is nothing to learn on, one class only, or nothing to measure.
    """
    labels = store.labels(target)
    division = divide(store, labels, uses_val=True)
    train, split, notes = division.train, division.held_name or None, list(division.notes)
    classes = tuple(sorted({str(label) for label in labels[train]}))
    if len(classes) < 2:
        raise LabelError(
            f"all labelled images of {printable(str(store.path))} to learn on have the label "
            f"{printable(classes[0])}: a probe needs two classes at least"
        )
    position = {name: k for k, name in enumerate(classes)}
    y = np.array([position.get(label, -1) for label in labels], dtype=np.int64)
    if split == "val":
        notes.append("there is no split test: the split val is measured on, and chooses nothing")
    measured = _NONE if division.held is None else _known(division.held, y, labels, notes)
    val = _NONE
    if split == "test":
        labelled = np.array([label is not None for label in labels], dtype=bool)
        val = _known(np.flatnonzero(labelled & (store.splits == "val")), y, labels, notes)
    return Parts(train, val, measured, split, classes, y, tuple(notes))


def overlaps(store: EmbeddingStore, learnt: Ints, measured: Ints) -> tuple[Ints, list[str]]:
    """Return the measured rows that are learnt, too, by their bytes; and what is to be said."""
    keys = {store.keys[i] for i in learnt}
    twins = np.array([i for i in measured if store.keys[i] in keys], dtype=np.int64)
    notes = []
    if len(twins):
        notes.append(
            f"{len(twins)} of the {len(measured)} images that are measured on are among the "
            "training images, too: the figures are too good"
        )
    groups = store.groups
    if groups is not None:
        shared = ({groups[i] for i in measured} & {groups[i] for i in learnt}) - {None}
        if shared:
            notes.append(
                f"{len(shared)} groups, such as {printable(min(shared))}, have images among the "
                "training images and those that are measured on: the figures are too good for new "
                "groups"
            )
    return twins, notes


def held_out(store: EmbeddingStore, rows: Ints, y: Ints, n_wanted: int, seed: int) -> Ints:
    """Return some of the rows, stratified: exactly so many, or whole units, about so many.

    Every class keeps an image, or a unit, among the others.

    Parameters
    ----------
    rows : ndarray of int, (n,)
        Of the store.
    y : ndarray of int, (n,)
        Classes of these rows.
    """
    units = units_of_rows(store, rows)
    if len(np.unique(units)) == len(rows):
        return rows[stratified(y, n_wanted, seed, keep=1)]
    return rows[draw(y, units, n_wanted, seed, keep=1)]


def stratified(y: Ints, n_wanted: int, seed: int, *, least: int = 0, keep: int = 0) -> Ints:
    """Return positions of ``n_wanted`` rows, every class in its share, in rising order.

    What the shares leave over goes to the classes with the largest remainders.

    Parameters
    ----------
    y : ndarray of int, (n,)
        Classes 0 … K-1.
    least : int
        Rows that are drawn of every class that has them.
    keep : int
        Rows of every class that are left; this goes before ``least``. There may be fewer rows
        than are wanted, where that is too many to keep.

    Examples
    --------
    >>> stratified(np.array([0, 0, 0, 0, 1, 1]), 3, seed=0)
    array([2, 3, 4])
    """
    counts = np.bincount(y)
    ideal = counts * (n_wanted / len(y))
    most = np.maximum(counts - keep, 0)
    # A share that is whole but for rounding is whole.
    taken = np.minimum(np.maximum(np.floor(ideal + 1e-9).astype(np.int64), least), most)
    while taken.sum() < n_wanted and (taken < most).any():
        taken[np.argmax(np.where(taken < most, ideal - taken, -np.inf))] += 1
    while taken.sum() > n_wanted and (taken > least).any():
        taken[np.argmin(np.where(taken > least, ideal - taken, np.inf))] -= 1
    return np.flatnonzero(ranks(y, seed) < taken[y])


def ranks(y: Ints, seed: int | tuple[int, ...]) -> Ints:
    """Return the place of every row in a random order of its class: 0 is drawn first."""
    order = np.lexsort((np.random.default_rng(seed).random(len(y)), y))
    counts = np.bincount(y)
    found = np.empty(len(y), dtype=np.int64)
    found[order] = np.arange(len(y)) - np.repeat(np.cumsum(counts) - counts, counts)
    return found


def _known(rows: Ints, y: Ints, labels: NDArray[np.object_], notes: list[str]) -> Ints:
    unknown = sorted({str(labels[i]) for i in rows[y[rows] < 0]})
    if unknown:
        shown = ", ".join(printable(name) for name in unknown[:5])
        notes.append(
            f"{(y[rows] < 0).sum()} images have labels that the training images lack ({shown}) "
            "and are left out"
        )
    return rows[y[rows] >= 0]
