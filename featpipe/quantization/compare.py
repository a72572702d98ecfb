"""A head before and after: the same images, the same folds, and the difference image by image.

The accuracies of two backbones on one test set are far from independent, so their difference
is much more certain than either: it is measured pair by pair.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe._files import printable
from featpipe.backbones import load_backbone
from featpipe.embedding import EmbedOptions, run_embedding
from featpipe.errors import LabelError, SourceError
from featpipe.heads import HeadSpec, head_spec
from featpipe.heads.registry import class_scores
from featpipe.labelled import labelled_rows, units_of_rows
from featpipe.metrics import paired_difference
from featpipe.model_selection import fit_tuned, make_folds, nested_probabilities
from featpipe.sources import SourceLike
from featpipe.store import EmbeddingStore
from featpipe.types import ProgressCallback
from featpipe.vectors import finite_vectors

WITHIN = 0.5
"""Points of accuracy that a smaller backbone may cost."""
_FOLDS = 5

Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One head on one labelled source, with the vectors before and after.

    Attributes
    ----------
    source, head : str
    estimate : str
        What was measured on: a split, or cross-validation.
    images : int
    before, after : float
        Accuracy, per cent.
    difference : float
        After minus before, in points; ``interval`` is its 95 % interval.
    lost, won : int
        Images that were right before and are wrong after, and the reverse.
    """

    source: str
    head: str
    estimate: str
    images: int
    before: float
    after: float
    difference: float
    interval: tuple[float, float]
    lost: int
    won: int

    @property
    def kept(self) -> bool:
        """Whether no more than half a point was lost."""
        return self.difference >= -WITHIN

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "interval": list(self.interval), "kept": self.kept}


def compare_heads(
    source: SourceLike,
    before: Path,
    after: Path,
    heads: Sequence[str] = ("logreg",),
    *,
    folder: Path | None = None,
    progress: ProgressCallback | None = None,
    seed: int = 0,
) -> list[Comparison]:
    """Embed labelled images with two backbones, fit heads on both, compare them pair by pair.

    Parameters
    ----------
    before, after : path
        Backbone files.

    Others, and errors, as of `measure_heads` and `pair`.
    """
    first, second = (
        measure_heads(source, path, heads, folder=folder, progress=progress, seed=seed)
        for path in (before, after)
    )
    return pair(first, second, seed=seed)


@dataclass(frozen=True, slots=True)
class Measured:
    """Which labelled images of a source heads classify rightly, with one backbone.

    Attributes
    ----------
    source, estimate : str
    rows : tuple of bytes, (n,)
        Contents of all images of the source, in order.
    units : ndarray of int, (m,)
        Of the images that were judged; see `featpipe.metrics.paired_difference`.
    right : dict of str to ndarray of bool, (m,)
        For each head.
    """

    source: str
    estimate: str
    rows: tuple[bytes, ...]
    units: Ints
    right: dict[str, Flags]


def measure_heads(
    source: SourceLike,
    backbone: Path,
    heads: Sequence[str],
    *,
    folder: Path | None = None,
    progress: ProgressCallback | None = None,
    seed: int = 0,
) -> Measured:
    """Embed labelled images with one backbone, and judge heads on the vectors.

    Where the source has a split ``test`` or ``val``, heads learn on ``train`` and are judged
    on that; otherwise by nested cross-validation on all labelled images.

    Parameters
    ----------
    backbone : path
        Its file.
    heads : sequence of str
        One at least.
    folder : path, optional
        Where the store of vectors stays; a temporary folder by default.

    Raises
    ------
    SourceError
        When there are no images.
    LabelError
        When there are no labels, one class only, or too few images in a class.
    HeadError
        When there is no head of such a name; no image has been read then.
    """
    specs = {head: head_spec(head) for head in heads}
    with tempfile.TemporaryDirectory() as scratch:
        store = run_embedding(
            source,
            backbone,
            output=Path(folder or scratch, load_backbone(backbone).fingerprint),
            options=EmbedOptions(device="cpu"),
            progress=progress,
        ).store
        learn, held, estimate = _divide(store)
        judged = {
            head: _nested(store, spec, learn, seed)
            if held is None
            else _on_split(store, spec, learn, held, seed)
            for head, spec in specs.items()
        }
        name = Path(store.source).name or store.source
        units = next(iter(judged.values()))[1]
        right = {head: flags for head, (flags, _) in judged.items()}
        return Measured(name, estimate, tuple(store.keys), units, right)


def pair(before: Measured, after: Measured, *, seed: int = 0) -> list[Comparison]:
    """Compare two measurements on the same images, a head each.

    Raises
    ------
    SourceError
        When the images are not the same.
    """
    if before.rows != after.rows:
        raise SourceError(
            f"the images of {printable(before.source)} have changed between the two measurements: "
            "compare again when nothing writes there"
        )
    return [_compared(before, after, head, seed) for head in before.right]


def _compared(before: Measured, after: Measured, head: str, seed: int) -> Comparison:
    right_before, right_after = before.right[head], after.right[head]
    difference, interval = paired_difference(right_before, right_after, before.units, seed=seed)
    return Comparison(
        source=before.source,
        head=head,
        estimate=before.estimate,
        images=len(before.units),
        before=100 * float(right_before.mean()),
        after=100 * float(right_after.mean()),
        difference=difference,
        interval=interval,
        lost=int((right_before & ~right_after).sum()),
        won=int((~right_before & right_after).sum()),
    )


def _divide(store: EmbeddingStore) -> tuple[Ints, Ints | None, str]:
    """Return the rows to learn on, those to measure on, and how that is called."""
    labelled = np.array([label is not None for label in store.labels()], dtype=bool)
    if not labelled.any():
        raise LabelError(
            "the images to compare on have no labels: put them into class folders, or leave "
            "--compare out"
        )
    learn, held, estimate = labelled, None, "nested cross-validation"
    train = labelled & (store.splits == "train")
    for name in ("val", "test"):
        there = labelled & (store.splits == name)
        if train.any() and there.any():
            learn, held, estimate = train, there, f"split {name}"
    classes = {str(label) for label in store.labels()[learn]}
    if len(classes) < 2:
        raise LabelError(
            f"the images to compare on have one label to learn, {printable(classes.pop())}: a "
            "head needs two classes at least; give another folder with --compare, or leave it out"
        )
    return np.flatnonzero(learn), None if held is None else np.flatnonzero(held), estimate


def _on_split(
    store: EmbeddingStore, spec: HeadSpec, learn: Ints, held: Ints, seed: int
) -> tuple[Flags, Ints]:
    rows = labelled_rows(store, learn)
    folds = make_folds(rows.y, rows.units, _FOLDS, seed, rows.classes)
    fitted = fit_tuned(spec, rows.X, rows.y, folds, seed=seed)
    position = {name: k for k, name in enumerate(rows.classes)}
    # A class that was never learnt is never right, before and after.
    y = np.array([position.get(str(label), -1) for label in store.labels()[held]])
    found = class_scores(fitted.pipeline, finite_vectors(store, held)).argmax(axis=1)
    return found == y, units_of_rows(store, held)


def _nested(store: EmbeddingStore, spec: HeadSpec, learn: Ints, seed: int) -> tuple[Flags, Ints]:
    rows = labelled_rows(store, learn)
    probabilities = nested_probabilities(
        spec,
        rows.X,
        rows.y,
        rows.units,
        n_splits=_FOLDS,
        classes=rows.classes,
        seed=seed,
    )
    return probabilities.argmax(axis=1) == rows.y, rows.units
