"""How good a head is on images it has not seen: what `fit` measures, and what a report shows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe._files import printable
from featpipe.heads import Head, HeadSpec
from featpipe.labelled import LabelledRows, units_of_rows
from featpipe.metrics import Metrics, compute_metrics, metrics_of_blocks
from featpipe.model_selection import OnFit, nested_probabilities
from featpipe.quality import Findings
from featpipe.store import EmbeddingStore
from featpipe.vectors import StoredVectors

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Labels = NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class Estimate:
    """What was measured, on which images, and how.

    Attributes
    ----------
    method : str
        In words.
    metrics : Metrics
    rest : Metrics or None
        The same without copies, where there are any and other images are left.
    without : str
        Which copies: ``without_training_images`` or ``without_copies``; empty where none is.
    rows : ndarray of int, (n,)
        Rows of the store that were measured on.
    probabilities : ndarray of float, (n, K), or None
        None where the head itself gives them, as it has not learnt on these rows.
    notes : tuple of str
    """

    method: str
    metrics: Metrics
    rest: Metrics | None
    without: str
    rows: Ints
    probabilities: Floats | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as they stand in a head's report."""
        found = {"method": self.method, **self.metrics.to_json()}
        if self.without:
            found[self.without] = None if self.rest is None else self.rest.to_json()
        return found


def estimate_on(
    head: Head,
    store: EmbeddingStore,
    rows: Ints,
    method: str,
    target: str | None,
    seed: int,
    copies: Labels | None = None,
) -> Estimate:
    """Measure a head on rows that it has not learnt on, and whose labels it knows."""
    metrics = _measured(head, store, rows, target, seed, copies)
    return Estimate(method, metrics, None, "", rows)


def estimate_on_split(
    head: Head,
    store: EmbeddingStore,
    train: Ints,
    held: Ints,
    held_name: str,
    target: str | None,
    seed: int,
    copies: Labels | None,
) -> Estimate:
    """Measure a head on a split; beside it, on the images that equal or copy no training image.

    Parameters
    ----------
    copies : ndarray of object, (len(store),), or None
        Group of copies of every row of the store, where somebody has looked.
    """
    labels, classes = store.labels(target), set(head.classes)
    known = held[[label in classes for label in labels[held]]]
    notes = [*_unknown(labels[held], classes), *_shared_groups(store, train, held)]
    learnt_keys = {store.keys[i] for i in train}
    is_twin = np.array([store.keys[i] in learnt_keys for i in known], dtype=bool)
    if is_twin.any():
        notes.append(
            f"{is_twin.sum()} images of the split that is measured on are in the training split, "
            "too: the estimate without them stands beside it"
        )
    if copies is not None:
        learnt = set(copies[train]) - {None}
        is_twin |= np.array([copies[i] in learnt for i in known], dtype=bool)
    rest = known[~is_twin]
    without = "without_training_images" if is_twin.any() else ""
    return Estimate(
        method=f"the split {held_name}, not used before",
        metrics=_measured(head, store, known, target, seed, copies),
        rest=_measured(head, store, rest, target, seed, copies) if without and len(rest) else None,
        without=without,
        rows=known,
        notes=tuple(notes),
    )


def estimate_nested(
    spec: HeadSpec,
    store: EmbeddingStore,
    train: Ints,
    rows: LabelledRows,
    quality: Findings,
    *,
    cv: int,
    tune: bool = True,
    seed: int = 0,
    calibration: str = "auto",
    on_fit: OnFit | None = None,
) -> Estimate:
    """Measure a kind of head by nested cross-validation; beside it, with one of each copy.

    Parameters
    ----------
    train : ndarray of int
        Rows of the store, of which ``rows`` holds vectors, classes and units.
    """
    probabilities = nested_probabilities(
        spec,
        rows.X,
        rows.y,
        rows.units,
        n_splits=cv,
        classes=rows.classes,
        tune=tune,
        seed=seed,
        calibration=calibration,
        on_fit=on_fit,
    )
    majority = int(np.bincount(rows.y).argmax())

    def figures(at: Ints) -> Metrics:
        return compute_metrics(
            rows.y[at],
            probabilities[at],
            rows.classes,
            majority=majority,
            groups=rows.units[at],
            seed=seed,
        )

    everywhere = np.arange(len(rows.y))
    copied = _surplus(store, train, quality.copies)
    return Estimate(
        method="nested cross-validation",
        metrics=figures(everywhere),
        rest=figures(np.setdiff1d(everywhere, copied)) if len(copied) else None,
        without="without_copies" if len(copied) else "",
        rows=train,
        probabilities=probabilities,
    )


def _measured(
    head: Head,
    store: EmbeddingStore,
    rows: Ints,
    target: str | None,
    seed: int,
    copies: Labels | None,
) -> Metrics:
    position = {name: k for k, name in enumerate(head.classes)}
    y = np.array([position[label] for label in store.labels(target)[rows]], dtype=np.int64)
    blocks = StoredVectors(store, rows).blocks()
    return metrics_of_blocks(
        ((y[at], head.predict_proba(vectors)) for at, vectors in blocks),
        head.classes,
        majority=int(np.argmax(head.class_counts)),
        groups=units_of_rows(store, rows, copies),
        seed=seed,
    )


def _unknown(labels: Labels, classes: set[str]) -> Iterator[str]:
    unknown = sorted({str(label) for label in labels} - classes)
    if unknown:
        count = sum(label not in classes for label in labels)
        yield (
            f"{count} images have labels that the training split lacks "
            f"({', '.join(printable(name) for name in unknown[:5])}) and are left out of the "
            "estimate"
        )


def _shared_groups(store: EmbeddingStore, train: Ints, held: Ints) -> Iterator[str]:
    groups = store.groups
    if groups is None:
        return
    shared = set(groups[held]) & (set(groups[train]) - {None})
    if shared:
        yield (
            f"{len(shared)} groups, such as {printable(min(shared))}, have images in the "
            "training split and in the one that is measured on: the estimate is too good for "
            "new groups"
        )


def _surplus(store: EmbeddingStore, train: Ints, copies: Labels | None) -> Ints:
    """Return the positions of images that equal, or are copies of, one that stands before."""
    if copies is None:
        return np.empty(0, dtype=np.int64)
    seen: set[Any] = set()
    found = []
    for at, row in enumerate(train.tolist()):
        name = store.keys[row] if copies[row] is None else copies[row]
        if name in seen:
            found.append(at)
        seen.add(name)
    return np.array(found, dtype=np.int64)
