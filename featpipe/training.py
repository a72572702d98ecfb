"""`fit`: from a store to a head, with an estimate of how good it is on images not seen."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe._files import printable
from featpipe._machine import available_memory
from featpipe.errors import HeadError, LabelError
from featpipe.heads import Head, HeadSpec, head_spec
from featpipe.heads.persistence import data_digest, short_key
from featpipe.labelled import Labelled, LabelledRows, labelled, labelled_rows, units_of_rows
from featpipe.metrics import Metrics, compute_metrics, metrics_of_blocks
from featpipe.model_selection import (
    METHODS,
    Fitted,
    fit_streamed,
    fit_tuned,
    make_folds,
    nested_probabilities,
    said,
    streams,
)
from featpipe.quality import Findings, inspect
from featpipe.store import EmbeddingStore, label_conflicts, repeated_keys
from featpipe.types import Progress, ProgressCallback
from featpipe.vectors import StoredVectors

Ints = NDArray[np.int64]
_log = logging.getLogger("featpipe.training")


@dataclass(frozen=True, slots=True)
class _Learnt:
    """What was fitted, on which of the rows, and with how many folds; what may be measured."""

    fitted: Fitted
    rows: Ints
    n_folds: int
    held: Ints | None = None


def fit(
    store: EmbeddingStore | str | os.PathLike[str],
    head: str = "logreg",
    *,
    target: str | None = None,
    cv: int = 5,
    tune: bool = True,
    seed: int = 0,
    stream: bool | None = None,
    calibration: str = "auto",
    check: bool = True,
    progress: ProgressCallback | None = None,
) -> Head:
    """Learn a classifier on the vectors of a store, and measure it.

    Parameters are tuned by stratified cross-validation on the training split alone: the
    images of the split ``train``, or all where there are no splits. Images of one group, equal
    images, and resized or re-encoded copies of one image stay in one fold. The estimate comes
    from the split ``test``, or else ``val``, which is looked at once, at the end; without either,
    from nested cross-validation. It is in `Head.metrics`, with 95 % intervals.

    Vectors that are too many for memory are read from the store in each pass over them, by
    logreg and svm: parameters are then chosen on a sample, and without a split the estimate
    comes from images that are held out once; see docs/heads.md.

    Parameters
    ----------
    store : EmbeddingStore or path
    head : str
        logreg, svm, svm-rbf, knn, ridge, lda or centroid.
    target : str, optional
        Label column, where there are several.
    cv : int
        Folds, at least 2; fewer are used where a class has fewer images.
    tune : bool
        False takes the head's default parameters.
    seed : int
        Of folds, solvers and bootstrap: the same data and seed give the same head.
    stream : bool, optional
        Whether vectors are read in each pass. Default: where four times their size as float32
        is more than the memory that the process may still take.
    calibration : str
        How scores become probabilities: temperature, sigmoid, isotonic or none; auto compares the
        first three on held-out scores, and ``report["calibration"]`` has what came of it.
    check : bool
        Whether copies are looked for, and differences between the splits; what is found is in
        ``report["quality"]`` and in the notes. The images are opened for it, once.
    progress : callable, optional
        Called with a `Progress` after each fit, or each pass.

    Raises
    ------
    LabelError
        When there are no labels, one class only, or too few images in a class.
    StoreError
        When a vector holds NaN or infinity; the message names the image.
    HeadError
        When there is no head of that name, or it cannot be fitted on so many vectors.

    Examples
    --------
    >>> head = fit("embeddings/photos-efficientnet_lite0", "svm")   # doctest: +SKIP
    >>> head.metrics["accuracy"]                                    # doctest: +SKIP
    0.94
    """
    spec = head_spec(head)
    if cv < 2:
        raise LabelError(f"cross-validation needs 2 folds at least, not {cv}: raise --cv")
    if calibration not in METHODS:
        raise HeadError(
            f"there is no calibration {printable(calibration)!r}: there are {', '.join(METHODS)}"
        )
    opened = store if isinstance(store, EmbeddingStore) else EmbeddingStore.open(store)
    training = _Training(opened, spec, target, cv, tune, seed, stream, calibration, check, progress)
    return training.go()


class _Training:
    """One call of `fit`: the rows of the splits, and what is to be said of them."""

    def __init__(
        self,
        store: EmbeddingStore,
        spec: HeadSpec,
        target: str | None,
        cv: int,
        tune: bool,
        seed: int,
        stream: bool | None,
        calibration: str,
        check: bool,
        progress: ProgressCallback | None,
    ) -> None:
        self._store, self._spec, self._target = store, spec, target
        self._cv, self._tune, self._seed = cv, tune, seed
        self._stream, self._calibration = stream, calibration
        self._check, self._progress = check, progress
        self._quality = Findings()
        self._notes: list[str] = []
        self._labels = store.labels(target)

    def go(self) -> Head:
        train, held, held_name = self._divide()
        shape = len(train), self._store.dimension
        if streams(self._spec, *shape, available_memory(), self._stream):
            self._notes.append(said(*shape))
            _log.info(said(*shape))
            rows = labelled(self._store, train, self._target)
            self._look(train, held, held_name, in_passes=True)
            rows = replace(rows, units=self._units(train))
            found = self._in_passes(rows, train, estimate=held is None)
        else:
            rows = labelled_rows(self._store, train, self._target)
            self._look(train, held, held_name)
            rows = replace(rows, units=self._units(train))
            found = self._at_once(rows)
        head = Head(
            name=self._spec.name,
            classes=rows.classes,
            pipeline=found.fitted.pipeline,
            calibrator=found.fitted.calibrator,
            backbone=self._store.card,
            parameters=found.fitted.parameters,
            class_counts=tuple(np.bincount(rows.y[found.rows]).tolist()),
        )
        if held is not None:
            how, figures = (
                f"the split {held_name}, not used before",
                self._held(head, rows, train, held),
            )
        elif found.held is not None:
            measured = measure(
                head,
                self._store,
                train[found.held],
                self._target,
                self._seed,
                self._quality.copies,
            )
            how, figures = (
                f"{len(found.held):,} images held out, not used before",
                measured.to_json(),
            )
        else:
            assert isinstance(rows, LabelledRows)
            how, figures = "nested cross-validation", self._nested(rows, train)
        return replace(head, report=self._report(rows, found, {"method": how, **figures}))

    def _at_once(self, rows: LabelledRows) -> _Learnt:
        folds = make_folds(rows.y, rows.units, self._cv, self._seed, rows.classes)
        self._say_fewer(len(folds))
        fitted = fit_tuned(
            self._spec,
            rows.X,
            rows.y,
            folds,
            tune=self._tune,
            seed=self._seed,
            calibration=self._calibration,
            on_fit=self._tell("tuning"),
        )
        return _Learnt(fitted, np.arange(len(rows.y)), len(folds))

    def _in_passes(self, rows: Labelled, train: Ints, *, estimate: bool) -> _Learnt:
        found = fit_streamed(
            self._spec,
            StoredVectors(self._store, train),
            rows.y,
            rows.units,
            rows.classes,
            n_splits=self._cv,
            estimate=estimate,
            tune=self._tune,
            seed=self._seed,
            calibration=self._calibration,
            on_fit=self._tell("tuning"),
            on_pass=self._tell_pass,
        )
        self._say_fewer(found.n_folds)
        self._notes.append(found.note)
        if estimate:
            self._say_unmeasured(rows, found.measured)
        return _Learnt(
            found.fitted, found.learnt, found.n_folds, found.measured if estimate else None
        )

    def _say_unmeasured(self, rows: Labelled, measured: Ints) -> None:
        lacking = np.setdiff1d(rows.y, rows.y[measured])
        if len(lacking):
            shown = ", ".join(printable(rows.classes[k]) for k in lacking[:5])
            self._notes.append(
                f"the estimate says nothing of {len(lacking)} classes ({shown}), which have too "
                "few distinct images or groups to hold any of them out"
            )

    def _report(
        self, rows: Labelled, found: _Learnt, estimate: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        keys = [rows.keys[i] for i in found.rows]
        names = [rows.classes[k] for k in rows.y[found.rows]]
        return {
            "estimate": estimate,
            "tuning": [dict(entry) for entry in found.fitted.table],
            "calibration": found.fitted.calibration,
            "folds": found.n_folds,
            "seed": self._seed,
            "target": self._target,
            "notes": self._notes,
            "quality": self._quality.to_json() if self._check else None,
            "data": {
                "store": str(self._store.path),
                "source": self._store.source,
                "images": len(keys),
                "digest": data_digest(keys, names),
                "keys": sorted({short_key(key) for key in keys}),
            },
        }

    def _say_fewer(self, n_folds: int) -> None:
        if n_folds < self._cv:
            self._notes.append(
                f"{n_folds} folds instead of {self._cv}: the smallest class has no more "
                "distinct images or groups"
            )

    def _divide(self) -> tuple[Ints, Ints | None, str]:
        """Return the rows to learn on, the rows to measure on, and the name of their split."""
        splits = self._store.splits
        labelled = np.array([label is not None for label in self._labels], dtype=bool)
        if not labelled.any():
            raise LabelError(_no_labels(self._store))
        names = {name for name in splits if name is not None}
        outside = np.array([name is None for name in splits], dtype=bool)
        learn = splits == "train" if "train" in names else outside
        if not (learn & labelled).any():
            raise LabelError(
                f"{printable(str(self._store.path))} has no labelled image to learn on: the "
                f"labelled ones are in the splits {_listed(splits[labelled])}; put some into a "
                "split train"
            )
        self._count("without a label", (~labelled).sum())
        if "train" in names:
            self._count("in no split", (outside & labelled).sum())
        measured = {name for name in ("test", "val") if (labelled & (splits == name)).any()}
        held_name = next((name for name in ("test", "val") if name in measured), "")
        if not held_name:
            return np.flatnonzero(learn & labelled), None, ""
        if {"test", "val"} <= measured:
            self._count("of the split val", ((splits == "val") & labelled).sum())
        held = np.flatnonzero((splits == held_name) & labelled)
        # Known before anything is fitted: a long fit would end in these words.
        if not set(self._labels[held]) & set(self._labels[learn & labelled]):
            raise LabelError("the test split has no label in common with the training split")
        return np.flatnonzero(learn & labelled), held, held_name

    def _count(self, what: str, count: int) -> None:
        if count:
            self._notes.append(f"{count} images {what} are not used")

    def _look(
        self, train: Ints, held: Ints | None, held_name: str, *, in_passes: bool = False
    ) -> None:
        """Find out, before any figure is known, what may make it untrue."""
        self._say_two_labels(train)
        if self._check:
            self._quality = inspect(
                self._store,
                train,
                held,
                self._labels,
                held_name=held_name,
                in_passes=in_passes,
                seed=self._seed,
                progress=self._progress,
            )
            self._notes += self._quality.notes

    def _units(self, rows: Ints) -> Ints:
        quality = self._quality
        return units_of_rows(self._store, rows, quality.copies if quality.keeps_together else None)

    def _say_two_labels(self, train: Ints) -> None:
        store = self._store
        suspects = train[repeated_keys([store.keys[i] for i in train])]
        rows = ((store.keys[i], store.paths[i], self._labels[i]) for i in suspects)
        for conflict in label_conflicts(rows):
            self._notes.append(conflict)

    def _nested(self, rows: LabelledRows, train: Ints) -> Mapping[str, Any]:
        probabilities = nested_probabilities(
            self._spec,
            rows.X,
            rows.y,
            rows.units,
            n_splits=self._cv,
            classes=rows.classes,
            tune=self._tune,
            seed=self._seed,
            calibration=self._calibration,
            on_fit=self._tell("estimating"),
        )
        majority = int(np.bincount(rows.y).argmax())

        def figures(at: Ints) -> dict[str, Any]:
            return compute_metrics(
                rows.y[at],
                probabilities[at],
                rows.classes,
                majority=majority,
                groups=rows.units[at],
                seed=self._seed,
            ).to_json()

        found = figures(np.arange(len(rows.y)))
        copied = self._surplus(train)
        if not len(copied):
            return found
        return {**found, "without_copies": figures(np.setdiff1d(np.arange(len(rows.y)), copied))}

    def _surplus(self, train: Ints) -> Ints:
        """Return the positions of images that equal, or are copies of, one that stands before."""
        copies = self._quality.copies
        if copies is None:
            return np.empty(0, dtype=np.int64)
        seen: set[Any] = set()
        found = []
        for at, row in enumerate(train.tolist()):
            name = self._store.keys[row] if copies[row] is None else copies[row]
            if name in seen:
                found.append(at)
            seen.add(name)
        return np.array(found, dtype=np.int64)

    def _held(self, head: Head, rows: Labelled, train: Ints, held: Ints) -> Mapping[str, Any]:
        classes = set(head.classes)
        known = [i for i in held if self._labels[i] in classes]
        unknown = sorted({str(self._labels[i]) for i in held} - classes)
        if unknown:
            self._notes.append(
                f"{len(held) - len(known)} images have labels that the training split lacks "
                f"({', '.join(printable(name) for name in unknown[:5])}) and are left out of the "
                "estimate"
            )
        self._say_shared_groups(train, held)
        seen = set(rows.keys)
        twins = {i for i in known if self._store.keys[i] in seen}
        if twins:
            self._notes.append(
                f"{len(twins)} images of the split that is measured on are in the training split, "
                "too: the estimate without them stands beside it"
            )
        copies = self._quality.copies
        if copies is not None:
            learnt = set(copies[train]) - {None}
            twins |= {i for i in known if copies[i] in learnt}

        def figures(of: list[int]) -> dict[str, Any]:
            at = np.array(of)
            return measure(head, self._store, at, self._target, self._seed, copies).to_json()

        if not twins:
            return figures(known)
        rest = [i for i in known if i not in twins]
        return {**figures(known), "without_training_images": figures(rest) if rest else None}

    def _say_shared_groups(self, train: Ints, held: Ints) -> None:
        groups = self._store.groups
        if groups is None:
            return
        learnt = {groups[i] for i in train} - {None}
        shared = {groups[i] for i in held} & learnt
        if shared:
            self._notes.append(
                f"{len(shared)} groups, such as {printable(min(shared))}, have images in the "
                "training split and in the one that is measured on: the estimate is too good for "
                "new groups"
            )

    def _tell(self, stage: str) -> Any:
        if self._progress is None:
            return None
        callback = self._progress
        return lambda done, total: callback(Progress(done, total, stage=stage))

    def _tell_pass(self, done: int, note: str) -> None:
        if self._progress is not None:
            self._progress(Progress(done, None, stage="passes", note=note))


def measure(
    head: Head,
    store: EmbeddingStore,
    rows: Ints,
    target: str | None,
    seed: int,
    copies: NDArray[np.object_] | None = None,
) -> Metrics:
    """Measure a head on rows of a store whose labels it knows."""
    position = {name: k for k, name in enumerate(head.classes)}
    y = np.array([position[label] for label in store.labels(target)[rows]], dtype=np.int64)
    units = units_of_rows(store, rows, copies)
    blocks = StoredVectors(store, rows).blocks()
    return metrics_of_blocks(
        ((y[at], head.predict_proba(vectors)) for at, vectors in blocks),
        head.classes,
        majority=int(np.argmax(head.class_counts)),
        groups=units,
        seed=seed,
    )


def _listed(splits: NDArray[np.object_]) -> str:
    return ", ".join(sorted({str(name) for name in splits}))


def _no_labels(store: EmbeddingStore) -> str:
    if not len(store):
        return (
            f"{printable(str(store.path))} holds no vector, as all its images failed: correct the "
            "paths or files and run `featpipe embed` again"
        )
    others = [name for name in store.label_columns if name != "label"]
    if others:
        names = ", ".join(printable(name) for name in others)
        return (
            f"{printable(str(store.path))} has several label columns ({names}): "
            "choose one with --target"
        )
    return (
        f"{printable(str(store.path))} has no labels: put the images into class folders, or run "
        "`featpipe embed` again with --labels TABLE; no vector is computed twice"
    )
