"""`evaluate`: the figures of a head on a store's labelled images."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe._files import printable
from featpipe.errors import FingerprintError, LabelError
from featpipe.evaluation.leaks import find_leaks
from featpipe.evaluation.table import metrics_table, without_line
from featpipe.heads import Head, load_head
from featpipe.labelled import units_of_rows
from featpipe.metrics import Metrics, compute_metrics
from featpipe.splits import no_labels
from featpipe.store import EmbeddingStore
from featpipe.types import Key, ProgressCallback
from featpipe.vectors import StoredVectors

_SPLITS = ("test", "val")


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` has measured.

    Attributes
    ----------
    head, store : str
        Where they lie, or what they are.
    split : str or None
        The split that was measured on; None for all images.
    classes : tuple of str
    metrics : Metrics
    y, probabilities : ndarray, (n,) and (n, K)
        What the figures were computed from.
    notes : tuple of str
    paths, keys : tuple, (n,)
        Of the images, and of their contents.
    units : ndarray of int, (n,), or None
        Images of one group, and equal ones, share one.
    rest : Metrics or None
        Without images that the head has learnt on, or copies of them, where there are any.
    learnt : ndarray of bool, (n,), or None
        Whether the head has learnt on an image, or on a copy of it; None where nobody has looked.
    leak_notes : tuple of str
        Those of the notes that say so.
    """

    head: str
    store: str
    split: str | None
    classes: tuple[str, ...]
    metrics: Metrics
    y: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    notes: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    keys: tuple[Key, ...] = ()
    units: NDArray[np.int64] | None = None
    rest: Metrics | None = None
    learnt: NDArray[np.bool_] | None = None
    leak_notes: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        """Give the figures under their own names: ``evaluation.accuracy``."""
        if name.startswith("_") or name == "metrics":
            raise AttributeError(name)
        return getattr(self.metrics, name)

    def __repr__(self) -> str:
        low, high = self.metrics.intervals["accuracy"]
        return (
            f"Evaluation({self.metrics.n_samples} images, accuracy {self.metrics.accuracy:.3f} "
            f"[{low:.3f}, {high:.3f}])"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``featpipe evaluate --json`` prints them."""
        return {
            "head": self.head,
            "store": self.store,
            "split": self.split,
            "classes": list(self.classes),
            **self.metrics.to_json(),
            "without_training_images": None if self.rest is None else self.rest.to_json(),
            "notes": list(self.notes),
        }

    def table(self) -> str:
        """Return the figures laid out for a person."""
        lines = [metrics_table(self.metrics.to_json())]
        if self.rest is not None:
            count = self.metrics.n_samples - self.rest.n_samples
            lines += ["", without_line(count, "copies of training images", self.rest.to_json())]
        return "\n".join(lines)

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw confusion matrix and reliability diagram; see `featpipe.evaluation.plot`."""
        # matplotlib is loaded by those who ask for a picture.
        from featpipe.evaluation.plot import plot_evaluation  # noqa: PLC0415

        return plot_evaluation(self, Path(path))


def evaluate(
    head: Head | str | os.PathLike[str],
    store: EmbeddingStore | str | os.PathLike[str],
    *,
    split: str | None = None,
    target: str | None = None,
    seed: int = 0,
    check: bool = True,
    progress: ProgressCallback | None = None,
) -> Evaluation:
    """Measure a head on the labelled images of a store.

    Parameters
    ----------
    head : Head or path
    store : EmbeddingStore or path
    split : str, optional
        train, val, test or all. Default: ``test``, else ``val``, else all images.
    target : str, optional
        Label column; the one that the head was fitted on by default.
    seed : int
        Of the bootstrap.
    check : bool
        Whether resized and re-encoded copies of training images are looked for among those that
        are measured on, where the store holds both. The images are opened for it, once.
    progress : callable, optional
        Called with a `Progress` meanwhile.

    Raises
    ------
    FingerprintError
        When head and store come from different backbones; both are named.
    LabelError
        When no image of the split has a label that the head knows.
    """
    fitted = head if isinstance(head, Head) else load_head(head)
    opened = store if isinstance(store, EmbeddingStore) else EmbeddingStore.open(store)
    require_same_backbone(fitted, opened)
    labels = opened.labels(target if target is not None else fitted.report.get("target"))
    chosen, name = _rows(opened, labels, split)
    known = {label: k for k, label in enumerate(fitted.classes)}
    rows = np.array([i for i in chosen if labels[i] in known], dtype=np.int64)
    if not len(rows):
        raise LabelError(_nothing_to_measure(opened, fitted, name, labels[chosen]))
    leaks = find_leaks(fitted, opened, rows, check=check, progress=progress)
    y = np.array([known[labels[i]] for i in rows], dtype=np.int64)
    blocks = StoredVectors(opened, rows).blocks()
    probabilities = np.concatenate([fitted.predict_proba(vectors) for _, vectors in blocks])
    units = units_of_rows(opened, rows, leaks.copies)

    def figures(at: NDArray[np.bool_] | slice) -> Metrics:
        return compute_metrics(
            y[at],
            probabilities[at],
            fitted.classes,
            majority=int(np.argmax(fitted.class_counts)),
            groups=units[at],
            seed=seed,
        )

    learnt = leaks.equal | leaks.copied
    return Evaluation(
        head=repr(fitted) if isinstance(head, Head) else str(head),
        store=str(opened.path),
        split=name,
        classes=fitted.classes,
        metrics=figures(slice(None)),
        y=y,
        probabilities=probabilities,
        notes=(*_notes(opened, fitted, name, labels, chosen, len(rows)), *leaks.notes),
        leak_notes=tuple(leaks.notes),
        paths=tuple(opened.paths[i] for i in rows),
        keys=tuple(opened.keys[i] for i in rows),
        units=units,
        rest=figures(~learnt) if learnt.any() and not learnt.all() else None,
        learnt=learnt,
    )


def require_same_backbone(head: Head, store: EmbeddingStore) -> None:
    """Raise `FingerprintError` unless the head reads the store's vectors."""
    if head.fingerprint != store.fingerprint:
        raise FingerprintError(
            f"the head was fitted on {printable(str(head.backbone['name']))} "
            f"({head.fingerprint[:12]}), {printable(str(store.path))} holds vectors of "
            f"{printable(store.manifest.name)} ({store.fingerprint[:12]}): use a store of the "
            "head's backbone, or fit a head on this one"
        )


def _rows(
    store: EmbeddingStore, labels: NDArray[np.object_], split: str | None
) -> tuple[NDArray[np.int64], str | None]:
    labelled = np.array([label is not None for label in labels], dtype=bool)
    present = set(store.splits[labelled])
    if split is None:
        split = next((name for name in _SPLITS if name in present), "all")
    if split == "all":
        return np.flatnonzero(labelled), None
    if split not in present:
        names = ", ".join(sorted(name for name in present if name)) or "none"
        raise LabelError(
            f"{printable(str(store.path))} has no labelled image in the split "
            f"{printable(split)!r} (its splits: {names}): choose one of them, or all"
        )
    return np.flatnonzero((store.splits == split) & labelled), split


def _notes(
    store: EmbeddingStore,
    head: Head,
    name: str | None,
    all_labels: NDArray[np.object_],
    chosen: NDArray[np.int64],
    n_known: int,
) -> list[str]:
    labels = all_labels[chosen]
    notes = []
    unknown = sorted({str(label) for label in labels} - set(head.classes))
    if unknown:
        notes.append(
            f"{len(labels) - n_known} images have labels that the head does not know "
            f"({', '.join(printable(label) for label in unknown[:5])}) and are left out"
        )
    unlabelled = sum(
        label is None and (name is None or part == name)
        for label, part in zip(all_labels, store.splits, strict=True)
    )
    if unlabelled:
        notes.append(f"{unlabelled} images without a label are left out")
    return notes


def _nothing_to_measure(
    store: EmbeddingStore, head: Head, name: str | None, labels: NDArray[np.object_]
) -> str:
    where = printable(str(store.path)) + (f", split {name}," if name else "")
    if not len(labels):
        return no_labels(store)
    known = ", ".join(printable(label) for label in head.classes[:5])
    found = ", ".join(printable(label) for label in sorted({str(v) for v in labels})[:5])
    return f"{where} has no image with a label that the head knows ({known}); it has {found}"
