"""Cross-validation folds: stratified, and never cutting through a unit.

A unit is what must not stand on both sides of a cut: images of one group (a patient, a
video), and images with the same content.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from featpipe._files import printable
from featpipe.errors import LabelError

Ints: TypeAlias = "NDArray[np.int64]"
Fold: TypeAlias = "tuple[Ints, Ints]"
"""Positions to fit on, positions to predict."""
_KEY_BYTES = 16


def units_of(keys: Sequence[bytes], *groupings: NDArray[Any] | None) -> Ints:
    """Return the unit of every row, (n,): rows that share a key or a group share a unit.

    There may be several groupings (patients, copies of one image), or None in place of one; in
    each, None stands for no group.

    >>> units_of([b"a", b"b", b"a", b"c"], np.array(["x", "x", None, None], dtype=object))
    array([0, 0, 0, 1])
    """
    n = len(keys)
    columns = [_codes(keys)]
    known = [groups for groups in groupings if groups is not None]
    if not known and int(columns[0].max(initial=-1)) == n - 1:
        return np.arange(n)
    for groups in known:
        named = [f"g{group}" if group is not None else f"row{i}" for i, group in enumerate(groups)]
        columns.append(np.unique(np.array(named), return_inverse=True)[1])
    # Rows and their keys and groups as a graph: its components are the units.
    ends, offset = [], n
    for column in columns:
        ends.append(column + offset)
        offset += int(column.max(initial=-1)) + 1
    rows = np.tile(np.arange(n), len(columns))
    graph = coo_array((np.ones(len(rows)), (rows, np.concatenate(ends))), shape=(offset, offset))
    components = connected_components(graph, directed=False)[1][:n]
    return np.asarray(np.unique(components, return_inverse=True)[1], dtype=np.int64)


def _codes(keys: Sequence[bytes]) -> Ints:
    """Return the position of every key among the different ones, sorted."""
    if {len(key) for key in keys} != {_KEY_BYTES}:
        return np.asarray(np.unique([key.hex() for key in keys], return_inverse=True)[1])
    # As two numbers each, of millions without an object for any.
    words = np.frombuffer(b"".join(keys), dtype=">u8").reshape(-1, 2)
    order = np.lexsort((words[:, 1], words[:, 0]))
    is_new = np.ones(len(keys), dtype=np.int64)
    is_new[1:] = (words[order[1:]] != words[order[:-1]]).any(axis=1)
    codes = np.empty(len(keys), dtype=np.int64)
    codes[order] = np.cumsum(is_new) - 1
    return codes


def make_folds(
    y: Ints, units: Ints, n_splits: int, seed: int, classes: Sequence[str], *, least: int = 1
) -> list[Fold]:
    """Return stratified folds that keep units whole.

    Parameters
    ----------
    y : ndarray of int, (n,)
        Classes 0 … K-1.
    units : ndarray of int, (n,)
    n_splits : int
        At least 2; fewer are made where a class has fewer units.
    least : int
        Units that every class keeps on each fitting side: 2 where that is divided again.

    Raises
    ------
    LabelError
        When a class has no more than ``least`` units: nothing can be held out of it.
    """
    per_class = _units_per_class(y, units, len(classes))
    fewest = int(per_class.min())
    if fewest <= least:
        raise LabelError(_too_few(classes, per_class, y, least))
    n_splits = min(n_splits, fewest)
    while fewest - math.ceil(fewest / n_splits) < least:
        n_splits += 1
    alone = len(np.unique(units)) == len(units)
    if alone:
        splitter: Any = StratifiedKFold(n_splits, shuffle=True, random_state=seed)
        return list(splitter.split(y, y))
    return _grouped(y, units, n_splits, seed, least)


def _grouped(y: Ints, units: Ints, n_splits: int, seed: int, least: int) -> list[Fold]:
    """Try a few seeds: a greedy split of groups may leave a class out of a fitting side."""
    n_classes = int(y.max()) + 1
    for fewer in range(n_splits, 1, -1):
        for attempt in range(20):
            splitter = StratifiedGroupKFold(fewer, shuffle=True, random_state=seed + attempt)
            folds: list[Fold] = list(splitter.split(y, y, units))
            kept = [_units_per_class(y[fit], units[fit], n_classes).min() for fit, _ in folds]
            if min(kept) >= least and all(len(held) for _, held in folds):
                return folds
    raise LabelError(
        "the groups cannot be divided so that every class is on both sides: "
        "give more groups a class, or leave the groups out"
    )


def _units_per_class(y: Ints, units: Ints, n_classes: int) -> Ints:
    pairs = np.unique(np.column_stack([y, units]), axis=0)
    return np.bincount(pairs[:, 0], minlength=n_classes)


def _too_few(classes: Sequence[str], per_class: Ints, y: Ints, least: int) -> str:
    names = [printable(name) for name, n in zip(classes, per_class, strict=True) if n <= least]
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    if least > 1:
        return (
            f"{'class' if len(names) == 1 else 'classes'} {shown} "
            f"{'has' if len(names) == 1 else 'have'} fewer than three distinct images or groups, "
            "and without a split named test the estimate needs three at least: add images, or put "
            "some of every class into such a split"
        )
    what = "distinct image" if np.bincount(y).min() < 2 else "group of images"
    return (
        f"{'class' if len(names) == 1 else 'classes'} {shown} "
        f"{'has' if len(names) == 1 else 'have'} a single {what}, and cross-validation needs two "
        "at least: add images, or leave the class out"
    )
