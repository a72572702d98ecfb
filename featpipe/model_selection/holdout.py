"""Some rows of many: stratified, and whole units only."""

from __future__ import annotations

import numpy as np

from featpipe.model_selection.folds import Ints


def draw(y: Ints, units: Ints, n_wanted: int, seed: int, *, least: int = 1, keep: int = 0) -> Ints:
    """Return positions of about ``n_wanted`` rows, every class in its share, in rising order.

    Parameters
    ----------
    y : ndarray of int, (n,)
        Classes 0 … K-1.
    units : ndarray of int, (n,)
        Rows of one unit are drawn together.
    least : int
        Units that are drawn of every class, however small its share.
    keep : int
        Units of every class that are left; this goes before ``least``.
    """
    numbers, first, member = np.unique(units, return_index=True, return_inverse=True)
    sizes, kind = np.bincount(member), y[first]
    chance = np.random.default_rng(seed).random(len(numbers))
    order = np.lexsort((chance, kind))
    sizes, kind = sizes[order], kind[order]
    n_units = np.bincount(kind, minlength=int(y.max()) + 1)
    starts = np.cumsum(n_units) - n_units
    rank = np.arange(len(order)) - starts[kind]
    rows_before = np.cumsum(sizes) - sizes
    of_class = np.bincount(kind, sizes, len(n_units))
    middle = rows_before - (np.cumsum(of_class) - of_class)[kind] + sizes / 2
    taken = (middle <= of_class[kind] * (n_wanted / len(y))) | (rank < least)
    taken &= rank < (n_units - keep)[kind]
    drawn = np.zeros(len(numbers), dtype=bool)
    drawn[order] = taken
    if keep:
        _put_back(drawn, y, member)
    else:
        _bring_in(drawn, y, member, least)
    return np.flatnonzero(drawn[member])


def _bring_in(drawn: Ints, y: Ints, member: Ints, least: int) -> None:
    """Add units of classes that are in none: a class may stand first in no unit."""
    for lacking in np.setdiff1d(y, y[drawn[member]]):
        drawn[np.unique(member[y == lacking])[:least]] = True


def _put_back(drawn: Ints, y: Ints, member: Ints) -> None:
    """Leave out units whose classes the rest would lack: a unit may hold rows of several."""
    rest = ~drawn[member]
    lacking = np.setdiff1d(y, y[rest])
    drawn[member[np.isin(y, lacking)]] = False
