"""`probe`: a store's vectors, measured by a protocol of the literature."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from featpipe._files import printable
from featpipe._machine import available_memory
from featpipe.errors import HeadError, LabelError
from featpipe.evaluation.classifiers import logistic_path, logistic_votes, neighbour_votes
from featpipe.evaluation.figures import Figures
from featpipe.evaluation.parts import held_out, overlaps, parts_of, stratified
from featpipe.evaluation.probed import Probe
from featpipe.evaluation.protocols import Protocol, protocol_named
from featpipe.labelled import units_of_rows
from featpipe.model_selection.capacity import gigabytes
from featpipe.store import EmbeddingStore
from featpipe.types import Progress, ProgressCallback
from featpipe.vectors import finite_vectors

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Vectors = NDArray[np.float32]

_COPIES = 4
"""Times the vectors to learn on, as float32, that are in memory: once more as float64."""


def probe(
    store: EmbeddingStore | str | os.PathLike[str],
    protocol: str = "kornblith",
    *,
    target: str | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Probe:
    """Measure a store's vectors by a protocol of the literature; no head is saved.

    What the protocol chooses, it chooses on the split ``val``, or on a part of the training
    images where there is none; then it learns on both. The split ``test`` is measured once, and
    chooses nothing. Without it the split ``val`` is measured, and a part of the training images
    chooses.

    Parameters
    ----------
    store : EmbeddingStore or path
    protocol : str
        kornblith, dinov2-knn, dinov2-logreg or vtab1k; see `featpipe.evaluation.protocols` for
        the papers, and docs/protocols.md for what differs from them.
    target : str, optional
        Label column, where there are several.
    seed : int
        Of what is drawn, and of the bootstrap.
    progress : callable, optional
        Called with a `Progress` after each value that is tried.

    Raises
    ------
    FeatpipeError
        When there is no protocol of that name.
    LabelError
        When there is no split to measure on, or too few images to learn or to choose on.
    HeadError
        When the vectors do not fit into memory.
    StoreError
        When a vector holds NaN or infinity; the message names the image.

    Examples
    --------
    >>> probe("embeddings/photos-efficientnet_lite0", "dinov2-knn").accuracy  # doctest: +SKIP
    0.94
    """
    chosen = protocol_named(protocol)
    opened = store if isinstance(store, EmbeddingStore) else EmbeddingStore.open(store)
    return _Probing(opened, chosen, target, seed, progress).go()


class _Probing:
    """One call of `probe`."""

    def __init__(
        self,
        store: EmbeddingStore,
        protocol: Protocol,
        target: str | None,
        seed: int,
        progress: ProgressCallback | None,
    ) -> None:
        self._store, self._protocol, self._target = store, protocol, target
        self._seed, self._progress = seed, progress
        self._parts = parts_of(store, target)
        self._notes = list(self._parts.notes)
        if self._parts.split is None:
            raise LabelError(_nothing_to_measure(store, protocol))

    def go(self) -> Probe:
        parts, protocol, notes = self._parts, self._protocol, self._notes
        assert parts.split is not None
        fit, val = self._cut()
        # Neighbours are searched among the training images, as their code does; a penalty is
        # chosen on some images, then all are learnt.
        is_given = protocol.classifier == "neighbours" and len(parts.val) > 0
        final = fit if is_given else np.union1d(fit, val)
        self._check_memory(len(final))
        twins, said = overlaps(self._store, final, parts.measured)
        X = finite_vectors(self._store, final)  # noqa: N806
        outside = finite_vectors(self._store, val) if is_given else X[np.searchsorted(final, val)]
        tried = self._tried(X[np.searchsorted(final, fit)], fit, outside, val)
        chosen = max(tried, key=lambda pair: pair[1])[0]
        reported = self._votes(X, final, chosen)
        commonest = int(np.bincount(parts.y[final]).argmax())
        return Probe(
            protocol=protocol,
            store=str(self._store.path),
            backbone=str(self._store.card["name"]),
            split=parts.split,
            classes=parts.classes,
            images={
                "train": len(fit),
                "val": len(val),
                "final": len(final),
                "measured": len(parts.measured),
            },
            chosen=chosen,
            tried=tuple(tried),
            reported=tuple((value, self._figures(votes)) for value, votes in reported.items()),
            without_learnt=self._without(twins, reported[chosen]),
            majority=(
                parts.classes[commonest],
                float(np.mean(parts.y[parts.measured] == commonest)),
            ),
            target=self._target,
            seed=self._seed,
            notes=(*notes, *said),
        )

    def _cut(self) -> tuple[Ints, Ints]:
        """Return the rows to fit on while choosing, and those to choose on."""
        parts, protocol = self._parts, self._protocol
        if protocol.sizes is not None:
            fit, val = self._sized(*protocol.sizes)
        elif len(parts.val):
            return parts.train, parts.val
        else:
            val = self._held(parts.train, int(protocol.share * len(parts.train)))
            fit = np.setdiff1d(parts.train, val)
            who = "as the source has it" if protocol.is_sources_share else "featpipe's choice"
            self._notes.append(
                f"{protocol.parameter} is chosen on {len(val)} of the {len(parts.train)} training "
                f"images, drawn by class ({100 * protocol.share:.0f} %, {who}), as no split is "
                "left for it"
            )
        return fit, val

    def _sized(self, n_train: int, n_val: int) -> tuple[Ints, Ints]:
        """Draw as many images as the protocol wants, or take all and divide them alike."""
        parts, store = self._parts, self._store
        train, val = parts.train, parts.val
        if len(train) >= n_train and len(val) >= n_val:
            return self._drawn(train, n_train), self._drawn(val, n_val)
        pool = np.union1d(train, val)
        total = n_train + n_val
        drawn = self._drawn(pool, total) if len(pool) >= total else pool
        if len(drawn) < total:
            self._notes.append(
                f"{printable(str(store.path))} has {len(drawn):,} training images, not {total:,}: "
                f"all are used, and this is no number of {self._protocol.name}"
            )
        held = self._held(drawn, round(n_val / total * len(drawn)))
        fit = np.setdiff1d(drawn, held)
        if len(drawn) == total and len(held) != n_val:
            self._notes.append(
                f"{len(fit)} and {len(held)} images train and validate, not {n_train} and {n_val}: "
                "equal images and those of a group stay together"
            )
        return fit, held

    def _drawn(self, rows: Ints, n_wanted: int) -> Ints:
        return rows[stratified(self._parts.y[rows], n_wanted, self._seed, least=1)]

    def _held(self, rows: Ints, n_wanted: int) -> Ints:
        held = held_out(self._store, rows, self._parts.y[rows], n_wanted, self._seed)
        if not len(held):
            raise LabelError(
                f"{printable(str(self._store.path))} has {len(rows)} training images: too few to "
                f"draw some that choose {self._protocol.parameter}; add images, or a split val"
            )
        return held

    def _check_memory(self, n_rows: int) -> None:
        needed = _COPIES * 4 * n_rows * self._store.dimension
        free = available_memory()
        if needed > free:
            raise HeadError(
                f"{self._protocol.name} needs all {n_rows:,} vectors in memory at once, "
                f"{gigabytes(needed)} with its copies of them, and {gigabytes(free)} are free: "
                "measure fewer images, or take featpipe fit, which reads them in passes"
            )

    def _tried(
        self,
        X: Vectors,  # noqa: N803 - scikit-learn's name
        fit: Ints,
        outside: Vectors,
        val: Ints,
    ) -> list[tuple[float, float]]:
        """Return each value, and its accuracy on the validation images."""
        protocol, y = self._protocol, self._parts.y
        if protocol.classifier == "logistic":
            path: Iterable[tuple[float, Floats]] = logistic_path(protocol, X, y[fit], outside)
        else:
            numbers = self._numbers(len(fit), "while k is chosen")
            of_each = neighbour_votes(X, y[fit], outside, numbers, len(self._parts.classes))
            path = zip(numbers, of_each, strict=True)
        found = []
        for value, votes in path:
            found.append((value, float(np.mean(votes.argmax(axis=1) == y[val]))))
            self._tell(len(found))
        return found

    def _votes(self, X: Vectors, final: Ints, chosen: float) -> dict[float, Floats]:  # noqa: N803
        """Return for each value that is reported the votes of the measured images."""
        protocol, y = self._protocol, self._parts.y[final]
        outside = finite_vectors(self._store, self._parts.measured)
        if protocol.classifier == "logistic":
            C = protocol.inverse_penalty(chosen)  # noqa: N806
            return {chosen: logistic_votes(X, y, outside, C)}
        numbers = self._numbers(len(final), "in the end")
        votes = neighbour_votes(X, y, outside, numbers, len(self._parts.classes))
        return dict(zip(numbers, votes, strict=True))

    def _numbers(self, n_rows: int, when: str) -> list[int]:
        """Return each k that is no larger than the number of rows; say which are."""
        numbers = [int(k) for k in self._protocol.values]
        fitting = [k for k in numbers if k <= n_rows]
        if not fitting:
            raise LabelError(
                f"{printable(str(self._store.path))} has {n_rows} images to search {when}, and "
                f"{self._protocol.name} asks for the {numbers[0]} nearest at least: add images, or "
                "take another protocol"
            )
        left = ", ".join(str(k) for k in numbers if k > n_rows)
        if left:
            self._notes.append(f"k = {left} is left out {when}: {n_rows} images are searched")
        return fitting

    def _figures(self, votes: Floats, kept: Ints | None = None) -> Figures:
        parts = self._parts
        rows = parts.measured if kept is None else parts.measured[kept]
        return Figures.measured(
            parts.y[rows],
            votes if kept is None else votes[kept],
            parts.classes,
            units_of_rows(self._store, rows),
            self._seed,
        )

    def _without(self, twins: Ints, votes: Floats) -> Figures | None:
        kept = np.flatnonzero(~np.isin(self._parts.measured, twins))
        return self._figures(votes, kept) if len(twins) and len(kept) else None

    def _tell(self, done: int) -> None:
        if self._progress is not None:
            self._progress(Progress(done, len(self._protocol.values), stage="choosing"))


def _nothing_to_measure(store: EmbeddingStore, protocol: Protocol) -> str:
    names = sorted({str(name) for name in store.splits if name is not None})
    return (
        f"{printable(str(store.path))} has no labelled image in a split test or val (its splits: "
        f"{', '.join(names) or 'none'}), and {protocol.name} measures on images that it neither "
        "learns nor chooses on: put some of every class into a folder test/ beside train/ and run "
        "`featpipe embed` again, or let `featpipe fit` estimate by cross-validation"
    )
