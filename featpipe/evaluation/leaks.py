"""Images that are measured on, and that the head has learnt on, or copies of which it has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featpipe._files import printable
from featpipe.heads import Head
from featpipe.heads.persistence import short_key
from featpipe.store import EmbeddingStore
from featpipe.types import ProgressCallback

Ints = NDArray[np.int64]
Labels = NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class Leaks:
    """What of the images that are measured on was learnt on.

    Attributes
    ----------
    equal, copied : ndarray of bool, (n,)
        Whether an image was learnt on, or a resized or re-encoded copy of it.
    copies : ndarray of object, (len(store),), or None
        Group of copies of every row of the store, where somebody has looked.
    said : tuple of str
        What else a person should know: of shared groups, and of copies that were not found.
    """

    equal: NDArray[np.bool_]
    copied: NDArray[np.bool_]
    copies: Labels | None
    said: tuple[str, ...] = ()

    @property
    def notes(self) -> Iterator[str]:
        """Yield what a person should know, a sentence each."""
        n, equal, copied = len(self.equal), int(self.equal.sum()), int(self.copied.sum())
        if equal == n:
            yield (
                "the head was fitted on these images: the figures are too good; its estimate for "
                "new ones is what `featpipe fit` printed"
            )
            return
        beside = "the figures are too good"
        if equal:
            yield f"the head was fitted on {equal} of these {n} images: {beside}"
        if copied:
            yield (
                f"{copied} of these {n} images are resized or re-encoded copies of images that "
                f"the head was fitted on: {beside}"
            )
        yield from self.said


def find_leaks(
    head: Head,
    store: EmbeddingStore,
    rows: Ints,
    *,
    check: bool = True,
    progress: ProgressCallback | None = None,
) -> Leaks:
    """Compare what is measured on with what was learnt on, as far as that is in the store.

    Parameters
    ----------
    rows : ndarray of int, (n,)
        Rows of the store to measure on.
    check : bool
        Whether copies are looked for; never in stores of more than 20,000 images.
    """
    learnt = set(head.report.get("data", {}).get("keys", ()))
    is_learnt = np.array([short_key(key) in learnt for key in store.keys], dtype=bool)
    equal = is_learnt[rows]
    nothing = np.zeros(len(rows), dtype=bool)
    if not is_learnt.any() or equal.all():
        return Leaks(equal, nothing, None)
    # Who measures without looking for copies needs no decoder of images.
    from featpipe.quality import find_near_duplicates  # noqa: PLC0415
    from featpipe.quality.findings import MOST_IMAGES, TOO_MANY, unseen  # noqa: PLC0415

    said = list(_shared_groups(store, is_learnt, rows[~equal]))
    if not check or len(store) > MOST_IMAGES:
        return Leaks(equal, nothing, None, (*said, *([TOO_MANY] if check else [])))
    near = find_near_duplicates(store, progress=progress)
    copies = near.groups(store)
    groups = set(copies[is_learnt]) - {None}
    copied = np.array([copies[row] in groups for row in rows], dtype=bool) & ~equal
    return Leaks(equal, copied, copies, (*said, *unseen(store, near)))


def _shared_groups(
    store: EmbeddingStore, is_learnt: NDArray[np.bool_], rows: Ints
) -> Iterator[str]:
    if store.groups is None:
        return
    shared = set(store.groups[rows]) & (set(store.groups[is_learnt]) - {None})
    if shared:
        yield (
            f"{len(shared)} groups, such as {printable(min(shared))}, have other images that the "
            "head was fitted on: the figures are too good for new groups"
        )
