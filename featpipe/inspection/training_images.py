"""The images that a head was fitted on: found again, and asked which look like a new one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from featpipe._files import printable
from featpipe.errors import FeatpipeError, LabelError, StoreError
from featpipe.evaluation.measure import require_same_backbone
from featpipe.heads import Head
from featpipe.heads.persistence import short_key
from featpipe.inspection.nearest import N_NEAREST, nearest_rows
from featpipe.inspection.records import Neighbour
from featpipe.inspection.squares import squares
from featpipe.store import EmbeddingStore
from featpipe.types import Key, Vectors

Ints = NDArray[np.int64]

SIDE = 144
"""Pixels of a neighbour's picture."""
_REMEDY = "name a store that has them with --store"


class TrainingImages:
    """Rows of a store that a head has learnt on, each content once.

    Raises
    ------
    FingerprintError
        When head and store come from different backbones.
    StoreError
        When the store has none of the images that the head was fitted on.
    """

    def __init__(self, head: Head, store: EmbeddingStore) -> None:
        require_same_backbone(head, store)
        keys = _keys(head)
        learnt = np.array([short_key(key) in keys for key in store.keys], dtype=bool)
        self._rows = _once(store, np.flatnonzero(learnt))
        if not len(self._rows):
            raise StoreError(
                f"{printable(str(store.path))} holds none of the images that the head was fitted "
                f"on: {_REMEDY}"
            )
        self._store = store
        self._keys = np.array([store.keys[row] for row in self._rows], dtype=object)
        self._labels = _labels(head, store)

    @classmethod
    def of(cls, head: Head, store: str | os.PathLike[str] | EmbeddingStore | None) -> Self | str:
        """Return the images, or a sentence on why there are none.

        Parameters
        ----------
        store : EmbeddingStore or path, optional
            Where they are; by default the store that the head's record names.

        Raises
        ------
        FeatpipeError
            When a store that was asked for cannot be used.
        """
        if store is not None:
            opened = store if isinstance(store, EmbeddingStore) else EmbeddingStore.open(store)
            return cls(head, opened)
        place = _data(head).get("store")
        if not isinstance(place, str):
            return (
                f"no training images: the head does not say which store it was fitted on; {_REMEDY}"
            )
        try:
            return cls(head, EmbeddingStore.open(place))
        except (FeatpipeError, OSError, ValueError) as exc:
            reason = str(exc).removesuffix(f": {_REMEDY}")
            return f"no training images: {printable(reason)}; {_REMEDY}"

    def near(
        self, vectors: Vectors, keys: Sequence[Key], k: int = N_NEAREST
    ) -> list[tuple[Neighbour, ...]]:
        """Return the nearest images to each vector; none of the same content as the image itself.

        Parameters
        ----------
        vectors : ndarray of float32, (n, D)
        keys : sequence of bytes, (n,)
            Content keys of the images that the vectors belong to.
        """
        same = [np.asarray(self._keys == key) for key in keys]
        found = nearest_rows(self._store, self._rows, vectors, same, k)
        rows = sorted({row for near in found for row, _ in near})
        pixels = dict(squares(self._store, rows, SIDE))
        return [
            tuple(
                Neighbour(
                    path=self._store.paths[row],
                    label=str(self._labels[row]),
                    cosine=cosine,
                    pixels=pixels.get(row),
                )
                for row, cosine in near
            )
            for near in found
        ]


def _once(store: EmbeddingStore, rows: Ints) -> Ints:
    """Return one row for each content: the one in the training split, where there is one."""
    found: dict[Key, int] = {}
    for row in [*rows[store.splits[rows] == "train"].tolist(), *rows.tolist()]:
        found.setdefault(store.keys[row], row)
    return np.array(sorted(found.values()), dtype=np.int64)


def _data(head: Head) -> Mapping[str, Any]:
    """Return what the head's record says of its data; it may have been edited."""
    data = head.report.get("data")
    return data if isinstance(data, Mapping) else {}


def _keys(head: Head) -> frozenset[str]:
    keys = _data(head).get("keys")
    return frozenset(str(key) for key in keys) if isinstance(keys, list | tuple) else frozenset()


def _labels(head: Head, store: EmbeddingStore) -> NDArray[np.object_]:
    target = head.report.get("target")
    try:
        labels = store.labels(target if isinstance(target, str) else None)
    except LabelError:
        labels = np.full(len(store), None, dtype=object)
    return np.array(["" if label is None else label for label in labels], dtype=object)
