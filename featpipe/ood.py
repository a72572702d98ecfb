"""How strange a vector is to training vectors: a score, and a p-value from left-out images.

The score joins two questions. How far is a vector from everything that is known (cosine
distance to the nearest mean of a class)? And is it between the classes (by what factor is it
nearer to its neighbours of one class than to those of the next)? The first finds images of
another kind, the second those of a class that was never shown, and neither does the other's
work; docs/unknown.md has the figures.

References
----------
Sun, Ming, Zhu, Li 2022, "Out-of-Distribution Detection with Deep Nearest Neighbors": distance to
nearest neighbours among L2-normalised vectors.

Mendes Júnior et al. 2017, "Nearest neighbors distance ratio open-set classifier", equation 1: the
ratio of the distances to the nearest neighbour and to the nearest one of another class.

Bates, Candès, Lei, Romano, Sesia 2023, "Testing for outliers with conformal p-values", equation 2.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Vectors = NDArray[np.float32]
Floats = NDArray[np.float64]

METHOD = "class-neighbours"
MOST_ROWS = 2048
"""Rows that are kept, at most, where there are no more classes than that."""
MOST_CALIBRATION = 999
"""Left-out images that a score is compared with, at most."""
NEIGHBOURS = 3
WEIGHT = 2.0
FLOOR = 1e-4
"""Distances below it count as it: a copy is no stranger than an image that is as near."""
TINY = 1e-12
_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class Novelty:
    """What strange vectors are told by.

    Attributes
    ----------
    rows : ndarray of float32, (m, D)
        Training vectors of length 1, class after class.
    counts : tuple of int, (K,)
        Rows of each class, at least 1; K is at least 2.
    calibration : ndarray of float64, (n,)
        Scores of training images that were left out, sorted; at least one.
    """

    rows: Vectors
    counts: tuple[int, ...]
    calibration: Floats

    def scores(self, X: NDArray[Any]) -> Floats:  # noqa: N803
        """Return how strange each vector is, (n,) float64; higher is stranger.

        With d_c(x) the mean cosine distance of x to its 3 nearest rows of class c, and a(x) its
        distance to the nearest mean of a class: ``log a + 2 (log d_1 - log d_2)``, where d_1 and
        d_2 are the two smallest d_c.

        Parameters
        ----------
        X : ndarray of float, (n, D)
            Finite vectors.
        """
        blocks = [self._block(X[i : i + _AT_ONCE]) for i in range(0, len(X), _AT_ONCE)]
        return np.concatenate(blocks) if blocks else np.empty(0)

    def p_values(self, X: NDArray[Any]) -> Floats:  # noqa: N803
        """Return how likely known images look as strange, (n,) in (0, 1]; see `p_values_of`."""
        return self.p_values_of(self.scores(X))

    def p_values_of(self, scores: Floats) -> Floats:
        """Return (1 + number of left-out images that score as high) / (n + 1)."""
        n = len(self.calibration)
        as_strange = n - np.searchsorted(self.calibration, scores, side="left")
        return np.asarray((1 + as_strange) / (n + 1), dtype=np.float64)

    @property
    def smallest_p(self) -> float:
        """The least p-value that there is: 1 / (n + 1)."""
        return 1 / (len(self.calibration) + 1)

    @cached_property
    def means(self) -> Vectors:
        """Directions of the classes' means, (K, D) float32 of length 1."""
        return normalised(np.add.reduceat(self.rows, self._starts, axis=0, dtype=np.float64))

    @cached_property
    def rows_digest(self) -> str:
        """Digest of the rows, 32 hexadecimal digits."""
        found = hashlib.blake2b(f"rows {self.rows.shape}\n".encode(), digest_size=16)
        found.update(np.ascontiguousarray(self.rows, dtype="<f4").data)
        return found.hexdigest()

    @cached_property
    def digest(self) -> str:
        """Digest of all that decides a score or a p-value, 32 hexadecimal digits."""
        decides = f"{METHOD} {self.rows_digest} {self.counts} {self.calibration.tolist()}"
        return hashlib.blake2b(decides.encode(), digest_size=16).hexdigest()

    @cached_property
    def _starts(self) -> Ints:
        return np.concatenate([[0], np.cumsum(self.counts)[:-1]]).astype(np.int64)

    @cached_property
    def _columns(self) -> Ints:
        """Positions of every class's rows, (K, r); m, which is no row, where it has fewer."""
        place = np.arange(max(self.counts))
        columns = self._starts[:, None] + place
        return np.where(place < np.array(self.counts)[:, None], columns, len(self.rows))

    def _block(self, vectors: NDArray[Any]) -> Floats:
        unit = normalised(vectors)
        return _joined(self._nearest(unit @ self.rows.T), unit @ self.means.T)

    def _nearest(self, cosines: NDArray[Any]) -> Floats:
        """Return the mean of the 3 highest cosines to each class, (n, K).

        A cosine of minus infinity is none; a class without any counts as 0.
        """
        none = np.full((len(cosines), 1), -np.inf, dtype=cosines.dtype)
        by_class = np.concatenate([cosines, none], axis=1)[:, self._columns]
        k = min(NEIGHBOURS, by_class.shape[2])
        best = np.partition(by_class, -k, axis=2)[:, :, -k:].astype(np.float64)
        there = best > -np.inf
        total = np.where(there, best, 0.0).sum(axis=2)
        return np.asarray(total / np.maximum(there.sum(axis=2), 1), dtype=np.float64)


class Rows(Protocol):
    """Vectors that are read when they are asked for; an array is one, too."""

    def __getitem__(self, positions: Ints, /) -> Vectors:
        """Return (m, D) float32."""
        ...


def fit_novelty(
    X: Rows,  # noqa: N803
    y: Ints,
    units: Ints,
    *,
    n_classes: int,
    seed: int = 0,
) -> Novelty | None:
    """Keep what strange vectors are told by.

    Of each class a random sample of rows is kept. Each image of another random sample, of at most
    999, is scored as if it, and whatever belongs to it, had never been seen: those are the
    scores that new ones are compared with. So no more than some thousand rows are read, however
    many there are.

    Parameters
    ----------
    X : ndarray of float32, (n, D), or Rows
        Training vectors, finite.
    y : ndarray of int, (n,)
        Classes 0 … K-1; each has a row.
    units : ndarray of int, (n,)
        What belongs together, such as copies, or images of one patient.
    n_classes : int
        K, at least 2.
    seed : int
        Of the samples.

    Returns
    -------
    Novelty or None
        None where no image can be left out, as no class has a second unit.
    """
    rng = np.random.default_rng([seed, MOST_ROWS])
    kept = _kept(y, n_classes, rng)
    asked = _calibrating(y, units, kept, rng)
    if not len(asked):
        return None
    counts = tuple(int(n) for n in np.bincount(y[kept], minlength=n_classes))
    novelty = Novelty(normalised(X[kept]), counts, np.empty(0))
    hiding = _Hiding(novelty, units[kept])
    blocks = (asked[i : i + _AT_ONCE] for i in range(0, len(asked), _AT_ONCE))
    scores = np.concatenate([hiding.scores(X[block], units[block]) for block in blocks])
    return Novelty(novelty.rows, counts, np.sort(scores))


def rows_a_class(n_classes: int) -> int:
    """Return how many rows of a class are kept at most.

    >>> rows_a_class(2), rows_a_class(1000), rows_a_class(5000)
    (1024, 2, 1)
    """
    return max(1, MOST_ROWS // n_classes)


def normalised(vectors: NDArray[Any]) -> Vectors:
    """Return vectors of length 1, float32; one of zeros stays."""
    wide = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.maximum(lengths, TINY), dtype=np.float32)


def _kept(y: Ints, n_classes: int, rng: np.random.Generator) -> Ints:
    """Draw the positions that are kept: class after class, in order within one."""
    most = rows_a_class(n_classes)
    members = (np.flatnonzero(y == k) for k in range(n_classes))
    drawn = [np.sort(rng.permutation(of)[:most]) for of in members]
    return np.concatenate(drawn)


def _calibrating(y: Ints, units: Ints, kept: Ints, rng: np.random.Generator) -> Ints:
    """Draw positions whose class has a row left when their unit is taken out."""
    pairs = np.unique(np.column_stack([y[kept], units[kept]]), axis=0)
    n_units = np.bincount(pairs[:, 0], minlength=int(y.max()) + 1)
    # Of a class with one unit among the kept rows, which one it is.
    only = np.zeros(len(n_units), dtype=np.int64)
    only[pairs[:, 0]] = pairs[:, 1]
    possible = np.flatnonzero((n_units[y] > 1) | (units != only[y]))
    return np.sort(rng.permutation(possible)[:MOST_CALIBRATION])


class _Hiding:
    """Scores as they are without the rows of a vector's own unit."""

    def __init__(self, novelty: Novelty, units: Ints) -> None:
        self._novelty, self._units = novelty, units
        rows, starts = novelty.rows.astype(np.float64), novelty._starts  # noqa: SLF001
        classes = np.repeat(np.arange(len(novelty.counts)), novelty.counts)
        sums = np.add.reduceat(rows, starts, axis=0)
        self._squares = np.einsum("kd,kd->k", sums, sums)
        # |S - u|² = |S|² - 2 S·u + |u|² for a class's sum S and what u of it is hidden: sums over
        # the hidden rows z of 2 S·z - u·z.
        pairs = np.column_stack([classes, units])
        found, of_pair = np.unique(pairs, axis=0, return_inverse=True)
        hidden = np.zeros((len(found), rows.shape[1]))
        np.add.at(hidden, of_pair.reshape(-1), rows)
        apart = 2 * sums[classes] - hidden[of_pair.reshape(-1)]
        self._taken = np.einsum("md,md->m", apart, rows)

    def scores(self, vectors: NDArray[Any], units: Ints) -> Floats:
        unit = normalised(vectors)
        starts = self._novelty._starts  # noqa: SLF001
        hidden = units[:, None] == self._units
        cosines = (unit @ self._novelty.rows.T).astype(np.float64)
        near = self._novelty._nearest(np.where(hidden, -np.inf, cosines))  # noqa: SLF001
        sums = np.add.reduceat(np.where(hidden, 0.0, cosines), starts, axis=1)
        taken = np.add.reduceat(np.where(hidden, self._taken, 0.0), starts, axis=1)
        lengths = np.sqrt(np.maximum(self._squares - taken, TINY))
        return _joined(near, sums / lengths)


def _joined(near: Floats, to_means: NDArray[Any]) -> Floats:
    """Return the score of cosines to neighbours and to means of the classes, (n, K) each."""
    apart = np.partition(np.maximum(1 - near, FLOOR), 1, axis=1)
    away = np.maximum(1 - to_means.max(axis=1).astype(np.float64), FLOOR)
    return np.asarray(np.log(away) + WEIGHT * (np.log(apart[:, 0]) - np.log(apart[:, 1])))
