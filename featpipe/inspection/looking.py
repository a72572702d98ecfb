"""From pixels to maps: which method, for which classes, computed in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from featpipe._threads import Threads, single_threads
from featpipe.heads import Head
from featpipe.inspection.activation import Maps, activation_maps, is_mean
from featpipe.inspection.linear import linear_form
from featpipe.inspection.measures import measured
from featpipe.inspection.occlusion import FINE, Patches
from featpipe.inspection.records import Measure, Method
from featpipe.types import Pixels, Vectors

if TYPE_CHECKING:
    from featpipe.backbones.session import Session

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Sight:
    """What a head sees in one picture.

    Attributes
    ----------
    method : str
    vector : ndarray of float32, (D,)
    probabilities : ndarray of float64, (K,)
    classes : ndarray of int, (m,)
        Those that there are maps of.
    measure : str
    scores : ndarray of float64, (m,)
    bias : ndarray of float64, (m,), or None
        As in `featpipe.inspection.ClassMap`.
    values : ndarray of float64, (m, h, w)
    """

    method: Method
    vector: NDArray[np.float32]
    probabilities: Floats
    classes: Ints
    measure: Measure
    scores: Floats
    bias: Floats | None
    values: Floats


class Looker:
    """Looks at pictures with one head and one session.

    Parameters
    ----------
    head : Head
    session : Session
        Of the head's backbone.
    pool : Threads, optional
        Threads for the runs of the backbone.
    batch_size : int, optional
        Images a run; the session's own choice by default.
    patches : Patches, optional
        What is covered where no activation map can be had.
    """

    def __init__(
        self,
        head: Head,
        session: Session,
        pool: Threads | None = None,
        *,
        batch_size: int | None = None,
        patches: Patches = FINE,
    ) -> None:
        self._head, self._session, self._pool = head, session, pool
        self._size = batch_size or session.batch_size
        self._patches = patches
        form = linear_form(head.pipeline)
        self._form = None if form is None else form.compared()

    def look(self, pixels: Pixels, classes: Ints | None = None) -> list[Sight | None]:
        """Return what the head sees in each picture.

        Parameters
        ----------
        pixels : ndarray of uint8, (N, side, side, 3)
        classes : ndarray of int, (N, m), optional
            Which classes to map; the likeliest and the second by default.

        Returns
        -------
        list of Sight or None
            None where the backbone gave a vector that is not finite.

        Raises
        ------
        DeviceError
            When the device fails in the middle of the work.
        """
        blocks = [pixels[i : i + self._size] for i in range(0, len(pixels), self._size)]
        found: list[Sight | None] = []
        # Heads are asked for a few rows at a time: threads of BLAS would cost more than they do.
        with single_threads(1):
            for block, (vectors, maps) in zip(blocks, self._each(self._run, blocks), strict=True):
                at = slice(len(found), len(found) + len(block))
                wanted = None if classes is None else classes[at]
                found += self._sights(block, vectors, maps, wanted)
        return found

    def _run(self, pixels: Pixels) -> tuple[Vectors, Maps | None]:
        if self._form is None or not self._session.backbone.has_feature_map:
            return self._session.run(pixels), None
        vectors, maps = self._session.run_with_maps(pixels)
        is_exact = self._session.precision == "fp32"
        return vectors, maps if is_mean(maps, vectors, is_exact=is_exact) else None

    def _sights(
        self, pixels: Pixels, vectors: Vectors, maps: Maps | None, classes: Ints | None
    ) -> list[Sight | None]:
        sound = np.isfinite(vectors).all(axis=1)
        found: list[Sight | None] = [None] * len(pixels)
        for at in np.flatnonzero(sound).tolist():
            vector = vectors[at : at + 1]
            probabilities = self._head.predict_proba(vector)[0]
            # Stable: of two equal classes the first one wins, as argmax has it.
            order = np.argsort(-probabilities, kind="stable")[:2]
            wanted = order if classes is None else classes[at]
            found[at] = (
                self._covered(pixels[at], vector, probabilities, wanted)
                if maps is None
                else self._mapped(maps[at : at + 1], vector, probabilities, wanted)
            )
        return found

    def _mapped(self, maps: Maps, vector: Vectors, probabilities: Floats, classes: Ints) -> Sight:
        assert self._form is not None
        return Sight(
            method="activation-map",
            vector=vector[0],
            probabilities=probabilities,
            classes=classes,
            measure="logit",
            scores=self._form.scores(vector)[0, classes],
            bias=self._form.bias[classes],
            values=activation_maps(self._form, maps, vector, classes[None])[0],
        )

    def _covered(
        self, pixels: Pixels, vector: Vectors, probabilities: Floats, classes: Ints
    ) -> Sight:
        covered = self._patches.covered(pixels)
        vectors = np.concatenate([vector, *self._each(self._batch, self._batches(covered))])
        # What nothing can be said of has lost nothing.
        vectors = np.where(np.isfinite(vectors).all(axis=1, keepdims=True), vectors, vector)
        measure, found = measured(self._head, vectors)
        values = found[:, classes]
        return Sight(
            method="occlusion",
            vector=vector[0],
            probabilities=probabilities,
            classes=classes,
            measure=measure,
            scores=values[0],
            bias=None,
            values=self._patches.spread((values[:1] - values[1:]).T),
        )

    def _batch(self, pictures: list[Pixels]) -> Vectors:
        return self._session.run(np.stack(pictures))

    def _batches(self, pictures: Iterable[Pixels]) -> list[list[Pixels]]:
        every = list(pictures)
        return [every[i : i + self._size] for i in range(0, len(every), self._size)]

    def _each(self, work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        return map(work, items) if self._pool is None else self._pool.stream(work, items)
