"""Which images of a store are learnt on, and which are kept to measure on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featpipe._files import printable
from featpipe.errors import LabelError
from featpipe.store import EmbeddingStore

Ints = NDArray[np.int64]
Labels = NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class Division:
    """Rows of a store by what they are for.

    Attributes
    ----------
    train : ndarray of int
        Labelled rows to learn on.
    held : ndarray of int, or None
        Labelled rows to measure on; None where there is no split for that.
    held_name : str
        Name of that split; empty where there is none.
    notes : tuple of str
        What is left out, a sentence each.
    """

    train: Ints
    held: Ints | None
    held_name: str
    notes: tuple[str, ...]


def divide(store: EmbeddingStore, labels: Labels, *, uses_val: bool = False) -> Division:
    """Divide a store by its splits: ``train``, and ``test`` or else ``val``.

    Without a split ``train``, the images of no split are learnt on.

    Parameters
    ----------
    store : EmbeddingStore
    labels : ndarray of object, (len(store),)
    uses_val : bool
        Whether a split ``val`` beside ``test`` has a use of its own: it is not left out then.

    Raises
    ------
    LabelError
        When there are no labels, none to learn on, or none in common.
    """
    splits = store.splits
    labelled = np.array([label is not None for label in labels], dtype=bool)
    if not labelled.any():
        raise LabelError(no_labels(store))
    names = {name for name in splits if name is not None}
    outside = np.array([name is None for name in splits], dtype=bool)
    learn = splits == "train" if "train" in names else outside
    if not (learn & labelled).any():
        raise LabelError(
            f"{printable(str(store.path))} has no labelled image to learn on: the "
            f"labelled ones are in the splits {_listed(splits[labelled])}; put some into a "
            "split train"
        )
    left_out = [("without a label", ~labelled)]
    if "train" in names:
        left_out.append(("in no split", outside & labelled))
    train = np.flatnonzero(learn & labelled)
    measured = [name for name in ("test", "val") if (labelled & (splits == name)).any()]
    if not measured:
        return Division(train, None, "", _counted(left_out))
    if len(measured) == 2 and not uses_val:
        left_out.append(("of the split val", (splits == "val") & labelled))
    held = np.flatnonzero((splits == measured[0]) & labelled)
    # Known before anything is fitted: a long fit would end in these words.
    if not set(labels[held]) & set(labels[train]):
        raise LabelError(f"the {measured[0]} split has no label in common with the training split")
    return Division(train, held, measured[0], _counted(left_out))


def _counted(left_out: list[tuple[str, NDArray[np.bool_]]]) -> tuple[str, ...]:
    return tuple(
        f"{rows.sum()} images {what} are not used" for what, rows in left_out if rows.any()
    )


def _listed(splits: Labels) -> str:
    return ", ".join(sorted({str(name) for name in splits}))


def no_labels(store: EmbeddingStore) -> str:
    """Say that no image has a label, and what to do."""
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
