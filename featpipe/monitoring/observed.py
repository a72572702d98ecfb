"""What was said of images that have come in: classes, probabilities, how strange they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featpipe._files import printable
from featpipe.errors import LabelError
from featpipe.heads import Head
from featpipe.heads.persistence import short_key
from featpipe.labelled import units_of_rows
from featpipe.monitoring.vectors import MOST
from featpipe.reference import DECIMALS
from featpipe.store import EmbeddingStore
from featpipe.vectors import StoredVectors

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Observed:
    """Predictions of some images, whether they were read or have just been made.

    Attributes
    ----------
    name : str
        Where they come from, fit for a message.
    confidence : ndarray of float, (n,)
        Probabilities of the likeliest class.
    counts : ndarray of int, (K,), or None
        Images for which each class was the likeliest; None where labels were withheld.
    ood_p : ndarray of float, (n,), or None
        How many known images look as strange; None where that was not scored.
    vectors : ndarray of float32, (m, D), or None
        Of some of the images; None where only scores are at hand.
    units : ndarray of int, (m,), or None
        Of these images, what belongs together.
    failed : int
        Images without an answer; they are not among the n.
    notes : tuple of str
        What is left out, a sentence each.
    """

    name: str
    confidence: Floats
    counts: Ints | None
    ood_p: Floats | None = None
    vectors: Vectors | None = None
    units: Ints | None = None
    failed: int = 0
    notes: tuple[str, ...] = ()

    @property
    def n_images(self) -> int:
        """Images with an answer."""
        return len(self.confidence)


def observe_store(
    head: Head, store: EmbeddingStore, *, split: str | None = None, seed: int = 0
) -> Observed:
    """Ask a head about the images of a store that it has not learnt on.

    Raises
    ------
    LabelError
        When there is no such split, or nothing but images that the head has learnt on.
    StoreError
        When a vector holds NaN or infinity.
    """
    rows, notes = _new_rows(head, store, split)
    vectors = StoredVectors(store, rows)
    counts = np.zeros(len(head.classes), dtype=np.int64)
    confidence, strange = [], []
    for _, block in vectors.blocks():
        probabilities = head.predict_proba(block)
        counts += np.bincount(probabilities.argmax(axis=1), minlength=len(counts))
        confidence.append(probabilities.max(axis=1).round(DECIMALS))
        if head.novelty is not None:
            strange.append(head.novelty.p_values(block).round(DECIMALS))
    drawn = np.sort(np.random.default_rng(seed).permutation(len(rows))[:MOST])
    return Observed(
        name=printable(str(store.path)) + (f", split {printable(split)}" if split else ""),
        confidence=np.concatenate(confidence),
        counts=counts,
        ood_p=np.concatenate(strange) if strange else None,
        vectors=vectors[drawn],
        units=units_of_rows(store, rows[drawn]),
        notes=notes,
    )


def _new_rows(head: Head, store: EmbeddingStore, split: str | None) -> tuple[Ints, tuple[str, ...]]:
    where = printable(str(store.path))
    rows = np.arange(len(store))
    if split is not None:
        rows = np.flatnonzero(store.splits == split)
        if not len(rows):
            names = ", ".join(sorted({printable(n) for n in store.splits if n})) or "none"
            raise LabelError(
                f"{where} has no image in the split {printable(split)!r} (its splits: {names}): "
                "choose one of them, or leave out --split"
            )
    if not len(rows):
        raise LabelError(f"{where} holds no vector: there is nothing to compare")
    learnt = set(head.report.get("data", {}).get("keys", ()))
    is_new = np.array([short_key(store.keys[row]) not in learnt for row in rows], dtype=bool)
    if not is_new.any():
        raise LabelError(
            f"the head was fitted on all images of {where} that are asked for: give it new ones, "
            "or choose others with --split"
        )
    known = int((~is_new).sum())
    notes = (f"{known:,} images that the head was fitted on are left out",) if known else ()
    return rows[is_new], notes
