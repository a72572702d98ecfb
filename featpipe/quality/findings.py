"""What is amiss with the images that a head is about to learn on and be measured on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe._files import printable
from featpipe.model_selection import units_of
from featpipe.quality.near import NearDuplicates, find_near_duplicates
from featpipe.quality.shift import Shift, measure_shift
from featpipe.store import EmbeddingStore
from featpipe.types import ProgressCallback
from featpipe.vectors import StoredVectors

Ints = NDArray[np.int64]
Labels = NDArray[np.object_]

MOST_IMAGES = 20_000
"""In larger stores `fit` does not look for copies: that would take longer than the fit."""
_TOO_MANY = (
    f"near-duplicates were not looked for, as there are more than {MOST_IMAGES:,} images: "
    "`featpipe clean` finds them"
)
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Findings:
    """Copies and differences among the images of a store.

    Attributes
    ----------
    copies : ndarray of object, (n,), or None
        For every row of the store, of which image it is a copy; None where of none.
    near : NearDuplicates or None
        None where nobody has looked.
    shift : Shift or None
        Between the images to learn on and those to measure on, where these are a split.
    notes : tuple of str
        What a person should know, a sentence each.
    """

    copies: Labels | None = None
    near: NearDuplicates | None = None
    shift: Shift | None = None
    notes: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as they stand in a head's report."""
        found: dict[str, Any] = {"shift": None if self.shift is None else self.shift.to_json()}
        if self.near is not None:
            threshold = self.near.threshold
            found["near_duplicates"] = {
                **self.counts,
                "pairs": len(self.near),
                "cosine": threshold.cosine,
                "bits": threshold.bits,
                "calibrated_on": threshold.copies,
                "not_looked_at": self.near.n_unseen,
            }
        return found


def inspect(
    store: EmbeddingStore,
    train: Ints,
    held: Ints | None,
    labels: Labels,
    *,
    held_name: str = "",
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Findings:
    """Look for copies among images, and for differences between two splits of them.

    Parameters
    ----------
    train, held : ndarray of int
        Rows of the store to learn on, and to measure on where there is a split for that.
    labels : ndarray of object, (len(store),)
    held_name : str
        Of that split.
    """
    if len(store) > MOST_IMAGES:
        notes = [_TOO_MANY]
        near, copies, counts = None, None, {}
    else:
        near = find_near_duplicates(store, progress=progress)
        copies, counts = near.groups(len(store)), _counts(near, train, held)
        notes = [
            *_unseen(near),
            *_copied(near, counts, held_name),
            *_two_labels(store, near, labels),
        ]
    shift = None if held is None else _shift(store, train, held, labels, copies, seed)
    return Findings(copies, near, shift, (*notes, *_shifted(shift, held_name)), counts)


def _shift(
    store: EmbeddingStore,
    train: Ints,
    held: Ints,
    labels: Labels,
    copies: Labels | None,
    seed: int,
) -> Shift | None:
    used = np.concatenate([train, held])
    groups = None if store.groups is None else store.groups[used]
    of = None if copies is None else copies[used]
    units = units_of([store.keys[i] for i in used], groups, of)
    side = np.repeat([0, 1], [len(train), len(held)])
    return measure_shift(StoredVectors(store, used), side, units, labels[used], seed=seed)


def _counts(near: NearDuplicates, train: Ints, held: Ints | None) -> dict[str, int]:
    """Count images that have a copy among those that are used, and such pairs across splits."""
    used = train if held is None else np.concatenate([train, held])
    pairs = near.pairs[np.isin(near.pairs, used).all(axis=1)]
    found = {"images": len(np.unique(pairs))}
    if held is not None:
        is_held = np.isin(pairs, held)
        across = pairs[is_held[:, 0] != is_held[:, 1]]
        found["measured_on_with_copy_in_training"] = len(np.intersect1d(across, held))
    return found


def _unseen(near: NearDuplicates) -> Iterable[str]:
    if near.n_unseen:
        yield (
            f"{near.n_unseen:,} images are gone or have changed since they were embedded: copies "
            "among them are not found"
        )


def _copied(near: NearDuplicates, counts: Mapping[str, int], held_name: str) -> Iterable[str]:
    if counts["images"]:
        yield (
            f"{counts['images']:,} images are resized or re-encoded copies of others "
            f"({near.threshold}): cross-validation keeps copies together"
        )
    if across := counts.get("measured_on_with_copy_in_training"):
        yield (
            f"{across:,} images of the split {held_name} have such a copy in the training split: "
            "the estimate without them stands beside it"
        )


def _two_labels(store: EmbeddingStore, near: NearDuplicates, labels: Labels) -> Iterable[str]:
    clashes = [
        (i, j)
        for i, j in near.pairs.tolist()
        if labels[i] is not None and labels[j] is not None and labels[i] != labels[j]
    ]
    if clashes:
        pairs = [f"{_named(store, labels, i)} ≈ {_named(store, labels, j)}" for i, j in clashes]
        more = f" and {len(pairs) - _SHOWN} more" if len(pairs) > _SHOWN else ""
        yield f"copies under two labels: {'; '.join(pairs[:_SHOWN])}{more}: correct one label"


def _named(store: EmbeddingStore, labels: Labels, row: int) -> str:
    return f"{printable(store.paths[row])} ({printable(str(labels[row]))})"


def _shifted(shift: Shift | None, held_name: str) -> Iterable[str]:
    if shift is None or not shift.is_clear:
        return
    low, high = shift.interval_95
    most = max(shift.per_class.items(), key=lambda item: item[1], default=None)
    classes = "" if most is None else f", most of all in {printable(most[0])} ({most[1]:.2f})"
    yield (
        f"the images of the split {held_name} differ from those of the training split, beyond "
        "their labels: of two images, one from each, a classifier tells which is which in "
        f"{shift.auc:.0%} of cases ({low:.0%} to {high:.0%}; chance is 50%){classes}. They may "
        "come from other cameras, places or patients: the estimate is for images like those of "
        f"the split {held_name}, and cross-validation on the training split would promise too much"
    )
