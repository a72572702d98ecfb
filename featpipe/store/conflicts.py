"""Equal images under two labels: a mistake in the labels that no classifier can make good."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from featpipe._files import printable
from featpipe.store.index import Index, key_words
from featpipe.store.places import repeating, words
from featpipe.types import Key

_SHOWN = 3


def label_conflicts(images: Iterable[tuple[Key | None, str, str | None]]) -> list[str]:
    """Name the images that have equal contents and different labels.

    Parameters
    ----------
    images : iterable of (key, path, label)
        Images without a key or a label are passed over.

    Returns
    -------
    list of str
        One sentence, or none.
    """
    first: dict[Key, tuple[str, str]] = {}
    clashes: list[str] = []
    count = 0
    for key, path, label in images:
        if key is None or label is None:
            continue
        other_path, other_label = first.setdefault(key, (path, label))
        if other_label != label:
            count += 1
            if count <= _SHOWN:
                clashes.append(f"{_named(other_path, other_label)} = {_named(path, label)}")
    if not count:
        return []
    more = f" and {count - _SHOWN} more" if count > _SHOWN else ""
    shown = "; ".join(clashes)
    return [f"equal images under two labels: {shown}{more}: correct one label"]


def repeated_keys(keys: Sequence[Key]) -> NDArray[np.int64]:
    """Return the positions of all keys that another may be equal to: hardly another."""
    return repeating(words(b"".join(keys))[:, 0])


def index_conflicts(index: Index) -> list[str]:
    """Do what `label_conflicts` does for the rows of an index; objects are made for clashes alone.

    Returns
    -------
    list of str
        One sentence, or none.
    """
    clashing = index.at(_suspects(index))
    columns = (clashing.values("key"), clashing.paths(), clashing.values("label"))
    return label_conflicts(zip(*columns, strict=True))


def _suspects(index: Index) -> NDArray[np.int64]:
    """Return the rows whose content stands under two labels: all of them, and hardly another."""
    key, label = index.column("key"), index.column("label")
    names = pc.unique(label.drop_null())
    if len(names) < 2:
        return np.empty(0, dtype=np.int64)
    is_named = np.asarray(pc.and_(key.is_valid(), label.is_valid()))
    named = np.flatnonzero(is_named)
    halves = key_words(key)[:, 0]
    rows = named[repeating(halves[named])]
    if not len(rows):
        return rows
    halves = halves[rows]
    by_key = np.argsort(halves, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(halves[by_key]) != 0))
    codes = np.asarray(pc.index_in(label, value_set=names).fill_null(-1))[rows[by_key]]
    is_mixed = np.minimum.reduceat(codes, starts) != np.maximum.reduceat(codes, starts)
    sizes = np.diff(np.append(starts, len(rows)))
    return np.sort(rows[by_key[np.repeat(is_mixed, sizes)]])


def _named(path: str, label: str) -> str:
    return f"{printable(path)} ({printable(label)})"
