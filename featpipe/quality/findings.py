"""What is amiss with the images that a head is about to learn on and be measured on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe._files import printable
from featpipe.labelled import units_of_rows
from featpipe.quality.looks import source_of
from featpipe.quality.near import NearDuplicates, find_near_duplicates
from featpipe.quality.shift import Shift, measure_shift
from featpipe.store import EmbeddingStore
from featpipe.types import ProgressCallback
from featpipe.vectors import StoredVectors

Ints = NDArray[np.int64]
Labels = NDArray[np.object_]

MOST_IMAGES = 20_000
"""In larger stores `fit` does not look for copies: that would take longer than the fit."""
_NOT_LOOKED = "near-duplicates were not looked for, as {}: `featpipe clean` finds them"
_IN_PASSES = _NOT_LOOKED.format("the vectors are read from the store in passes")
TOO_MANY = _NOT_LOOKED.format(f"there are more than {MOST_IMAGES:,} images")
"""What is said of such stores."""
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
    counts : dict
        Images that are copies, and those to measure on that are copies of training images.
    keeps_together : bool
        Whether copies can stay in one fold: not where a class would have too few images then.
    """

    copies: Labels | None = None
    near: NearDuplicates | None = None
    shift: Shift | None = None
    notes: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    keeps_together: bool = True

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
    in_passes: bool = False,
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
    in_passes : bool
        Whether all vectors are too many for memory: then no copies are looked for.
    """
    if in_passes or len(store) > MOST_IMAGES:
        notes = [_IN_PASSES if in_passes else TOO_MANY]
        near, copies, counts, lacking = None, None, {}, None
    else:
        near = find_near_duplicates(store, progress=progress)
        copies = near.groups(store)
        counts = _counts(store, copies, train, held)
        lacking = _class_of_copies(store, copies, train, labels, 3 if held is None else 2)
        notes = [
            *unseen(store, near),
            *_copied(near, counts, lacking, held_name),
            *_two_labels(store, near, labels),
        ]
    shift = None if held is None else _shift(store, train, held, labels, copies, seed)
    notes += _shifted(shift, held_name)
    return Findings(copies, near, shift, tuple(notes), counts, keeps_together=lacking is None)


def _shift(
    store: EmbeddingStore,
    train: Ints,
    held: Ints,
    labels: Labels,
    copies: Labels | None,
    seed: int,
) -> Shift | None:
    used = np.concatenate([train, held])
    units = units_of_rows(store, used, copies)
    side = np.repeat([0, 1], [len(train), len(held)])
    return measure_shift(StoredVectors(store, used), side, units, labels[used], seed=seed)


def _counts(
    store: EmbeddingStore, copies: Labels, train: Ints, held: Ints | None
) -> dict[str, int]:
    """Count images that have a copy of other bytes among those that are used."""
    used = train if held is None else np.concatenate([train, held])
    keys: dict[Any, set[bytes]] = {}
    for row in used.tolist():
        if copies[row] is not None:
            keys.setdefault(copies[row], set()).add(store.keys[row])
    found = {"images": sum(len(keys.get(name, ())) > 1 for name in copies[used])}
    if held is not None:
        learnt = set(copies[train]) - {None}
        equal = {store.keys[row] for row in train.tolist()}
        found["measured_on_with_copy_in_training"] = sum(
            copies[row] in learnt and store.keys[row] not in equal for row in held.tolist()
        )
    return found


def _class_of_copies(
    store: EmbeddingStore, copies: Labels, train: Ints, labels: Labels, least: int
) -> str | None:
    """Return a class that has too few images to hold any out, once copies count as one."""
    apart, together = units_of_rows(store, train), units_of_rows(store, train, copies)
    for name in sorted({str(name) for name in labels[train]}):
        of_class = labels[train] == name
        if len(np.unique(together[of_class])) < least <= len(np.unique(apart[of_class])):
            return name
    return None


def unseen(store: EmbeddingStore, near: NearDuplicates) -> Iterable[str]:
    """Say how many images could not be looked at, and why."""
    if near.n_unseen and source_of(store) is None:
        yield (
            f"the source {printable(store.source)} cannot be opened again: {near.n_unseen:,} "
            "images were not looked at, and copies among them are not found"
        )
    elif near.n_unseen:
        yield (
            f"{near.n_unseen:,} images are gone, have changed since they were embedded, or cannot "
            "be read: copies among them are not found"
        )


def _copied(
    near: NearDuplicates, counts: Mapping[str, int], lacking: str | None, held_name: str
) -> Iterable[str]:
    if counts["images"]:
        kept = (
            "cross-validation keeps copies together"
            if lacking is None
            else f"they are not kept together, as {printable(lacking)} would have too few images"
        )
        yield (
            f"{counts['images']:,} images are resized or re-encoded copies of others "
            f"({near.threshold}): {kept}"
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
    yield (
        f"the images of the split {held_name} differ from those of the training split, beyond "
        "their labels: of two images, one from each, a classifier tells which is which in "
        f"{shift.auc:.0%} of cases ({low:.0%} to {high:.0%}; chance is 50%). They may "
        "come from other cameras, places or patients: the estimate is for images like those of "
        f"the split {held_name}, and cross-validation on the training split may promise too much"
    )
