"""`clean`: everything about a set of images that a person may want to put right first."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from featpipe._files import escape_path, printable
from featpipe._machine import available_memory
from featpipe.errors import HeadError, LabelError
from featpipe.heads import head_spec
from featpipe.labelled import labelled_rows, units_of_rows
from featpipe.model_selection import streams
from featpipe.quality.findings import unseen
from featpipe.quality.looks import Looks, first_rows
from featpipe.quality.mislabelled import suspect_labels
from featpipe.quality.near import NearDuplicates, find_near_duplicates
from featpipe.store import EmbeddingStore
from featpipe.types import Progress, ProgressCallback

Ints = NDArray[np.int64]
Labels = NDArray[np.object_]

Kind: TypeAlias = Literal[
    "unreadable",
    "duplicate",
    "near-duplicate",
    "two-labels",
    "wrong-label",
    "unlike-others",
    "blank",
    "dark",
    "blurred",
    "odd-size",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
COPIES: frozenset[Kind] = frozenset({"duplicate", "near-duplicate", "two-labels"})
"""Problems of two images: the first one of a store, and another that is a copy of it."""
MEANING: dict[Kind, str] = {
    "unreadable": "cannot be read or decoded",
    "duplicate": "the same bytes as another",
    "near-duplicate": "resized or re-encoded copies of others",
    "two-labels": "copies under another label",
    "wrong-label": "labels that are likely wrong, likeliest first",
    "unlike-others": "look like no other image",
    "blank": "hold next to nothing",
    "dark": "are very dark",
    "blurred": "are blurred, beside the others",
    "odd-size": "are very small or very long",
}
"""What stands beside the number of images of a kind."""

_NEIGHBOURS, _LEAST_UNITS = 5, 3
_FAR = 3.0
"""How many times the range of the middle half a distance lies above it, to be unlike others."""
_UNIFORM, _BLANK, _DARK = 1.0, 4.0, 24.0
_BLURRED = 4.0
_SMALLEST_SIDE, _LONGEST = 64, 4.0


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that may be amiss with one image.

    Attributes
    ----------
    kind : str
    path, label : str, str or None
    other : str or None
        The image that it is a copy of, or the class that is likelier.
    value : float or None
        The figure behind it: cosine, probability of the label, distance, grey values.
    detail : str
        The same in words.
    """

    kind: Kind
    path: str
    label: str | None
    other: str | None
    value: float | None
    detail: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values; paths are escaped as in a store."""
        is_path = self.other is not None and self.kind != "wrong-label"
        other = escape_path(self.other) if is_path and self.other else self.other
        return {**asdict(self), "path": escape_path(self.path), "other": other}


@dataclass(frozen=True, slots=True)
class Cleaning:
    """What `clean` has found, kind by kind; where there is a figure, the worst first.

    Attributes
    ----------
    store : str
    images : int
        With and without a vector.
    problems : tuple of Problem
    threshold : str
        From where on images count as copies.
    notes : tuple of str
    target : str or None
        The label column that was asked for.
    """

    store: str
    images: int
    problems: tuple[Problem, ...]
    threshold: str
    notes: tuple[str, ...]
    target: str | None = None

    def of(self, kind: Kind) -> tuple[Problem, ...]:
        """Return the problems of one kind."""
        return tuple(problem for problem in self.problems if problem.kind == kind)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``featpipe clean --json`` prints them."""
        return {
            "store": self.store,
            "images": self.images,
            "threshold": self.threshold,
            "counts": {kind: len(self.of(kind)) for kind in KINDS},
            "problems": [problem.to_json() for problem in self.problems],
            "notes": list(self.notes),
        }


def clean(
    store: EmbeddingStore | str | os.PathLike[str],
    *,
    head: str = "ridge",
    target: str | None = None,
    seed: int = 0,
    progress: ProgressCallback | None = None,
) -> Cleaning:
    """Find what may be amiss with the images of a store; change nothing.

    Unreadable files; equal files; resized or re-encoded copies; equal files and copies under
    two labels; labels that a head which has not seen the image finds unlikely; images that are
    unlike all others (mean cosine distance to the five nearest); blank, dark and blurred ones;
    odd sizes.

    Parameters
    ----------
    store : EmbeddingStore or path
    head : str
        The kind of head that judges labels.
    target : str, optional
        Label column, where there are several.
    seed : int
        Of the folds.
    progress : callable, optional

    Raises
    ------
    StoreError
        When the store is damaged.
    LabelError
        When there is no such label column.

    Examples
    --------
    >>> found = clean("embeddings/photos-efficientnet_lite0")     # doctest: +SKIP
    >>> [problem.path for problem in found.of("wrong-label")]     # doctest: +SKIP
    """
    opened = store if isinstance(store, EmbeddingStore) else EmbeddingStore.open(store)
    return _Search(opened, head, target, seed, progress).go()


class _Search:
    """One call of `clean`."""

    def __init__(
        self,
        store: EmbeddingStore,
        head: str,
        target: str | None,
        seed: int,
        progress: ProgressCallback | None,
    ) -> None:
        self._store, self._spec, self._seed = store, head_spec(head), seed
        self._target, self._progress = target, progress
        self._labels = store.labels(target)
        self._notes: list[str] = []

    def go(self) -> Cleaning:
        store = self._store
        near = find_near_duplicates(store, progress=self._progress)
        self._notes += unseen(store, near)
        firsts, copies = first_rows(store), near.groups(store)
        found: list[Iterable[Problem]] = [
            self._unreadable(),
            self._equal(firsts),
            self._copies(near),
            self._two_labels(firsts, near),
            self._wrong_labels(copies),
            self._unlike_others(near, copies),
            self._odd_looks(near.looks),
            self._odd_sizes(),
        ]
        return Cleaning(
            store=str(store.path),
            images=len(store.index),
            problems=tuple(problem for problems in found for problem in problems),
            threshold=str(near.threshold),
            notes=tuple(self._notes),
            target=self._target,
        )

    def _problem(
        self, kind: Kind, row: int, detail: str, value: float | None, other: str | None = None
    ) -> Problem:
        label = self._labels[row]
        path = self._store.paths[row]
        return Problem(kind, path, None if label is None else str(label), other, value, detail)

    def _unreadable(self) -> Iterator[Problem]:
        for path, status, reason in self._store.failures:
            yield Problem("unreadable", path, None, None, None, f"{status}: {reason}")

    def _equal(self, firsts: Ints) -> Iterator[Problem]:
        for row in np.flatnonzero(firsts != np.arange(len(firsts))).tolist():
            other = self._store.paths[int(firsts[row])]
            yield self._problem("duplicate", row, "the same bytes", 1.0, other)

    def _copies(self, near: NearDuplicates) -> Iterator[Problem]:
        for at in np.argsort(-near.cosines, kind="stable").tolist():
            i, j = near.pairs[at].tolist()
            cosine, bits = float(near.cosines[at]), int(near.bits[at])
            detail = f"cosine {cosine:.3f}, {bits} of 63 bits apart"
            yield self._problem("near-duplicate", j, detail, cosine, self._store.paths[i])

    def _two_labels(self, firsts: Ints, near: NearDuplicates) -> Iterator[Problem]:
        rows = np.flatnonzero(firsts != np.arange(len(firsts)))
        pairs = [*zip(firsts[rows].tolist(), rows.tolist(), strict=True), *near.pairs.tolist()]
        labels = self._labels
        for i, j in pairs:
            if labels[i] is not None and labels[j] is not None and labels[i] != labels[j]:
                detail = f"{labels[j]} here, {labels[i]} there"
                yield self._problem("two-labels", j, detail, None, self._store.paths[i])

    def _wrong_labels(self, copies: Labels) -> Iterator[Problem]:
        rows = self._judged(copies)
        if not len(rows):
            return
        try:
            # Heads that cannot be fitted in passes say so with an error.
            if streams(self._spec, len(rows), self._store.dimension, available_memory(), None):
                self._notes.append("labels were not judged, as their vectors do not fit in memory")
                return
            given = labelled_rows(self._store, rows, self._target)
            suspects = suspect_labels(
                self._spec,
                given.X,
                given.y,
                units_of_rows(self._store, rows, copies),
                given.classes,
                seed=self._seed,
                on_fit=self._tell("judging labels"),
            )
        except (LabelError, HeadError) as exc:
            self._notes.append(f"labels were not judged: {exc}")
            return
        columns = suspects.rows.tolist(), suspects.suggested.tolist(), suspects.confidence.tolist()
        for row, suggested, confidence in zip(*columns, strict=True):
            other = given.classes[suggested]
            detail = f"{confidence:.1%} likely; rather {other}"
            yield self._problem("wrong-label", int(rows[row]), detail, confidence, other)

    def _judged(self, copies: Labels) -> Ints:
        """Return the rows whose labels can be judged: some of their class can be held out."""
        is_labelled = np.array([label is not None for label in self._labels], dtype=bool)
        rows = np.flatnonzero(is_labelled)
        if not len(rows):
            names = ", ".join(printable(name) for name in self._store.label_columns)
            several = f"there are several label columns ({names}): choose one with --target"
            self._notes.append(several if names else "there are no labels, so none was judged")
            return rows
        units, given = units_of_rows(self._store, rows, copies), self._labels[rows].astype(str)
        few = {name for name in set(given) if len(np.unique(units[given == name])) < _LEAST_UNITS}
        if few:
            shown = ", ".join(printable(name) for name in sorted(few)[:5])
            self._notes.append(
                f"labels were not judged in {len(few):,} classes ({shown}), which have fewer than "
                f"{_LEAST_UNITS} distinct images or groups"
            )
        return rows[~np.isin(given, sorted(few))] if few else rows

    def _unlike_others(self, near: NearDuplicates, copies: Labels) -> Iterator[Problem]:
        """Compare one of each group of copies: these do not make an image less alone."""
        rows, distances = _distances(near, copies)
        if len(rows) < 4 * _NEIGHBOURS:
            return
        low, high = np.quantile(distances, (0.25, 0.75))
        far = np.flatnonzero(distances > high + _FAR * (high - low))
        for at in far[np.argsort(-distances[far], kind="stable")].tolist():
            value = float(distances[at])
            detail = f"mean cosine distance to the {_NEIGHBOURS} nearest {value:.2f}"
            yield self._problem("unlike-others", int(rows[at]), detail, value)

    def _odd_looks(self, looks: Looks) -> Iterator[Problem]:
        seen = looks.is_seen
        dark = seen & (looks.brightness < _DARK) & (looks.contrast < _DARK)
        dark &= looks.contrast >= _UNIFORM
        blank = seen & ~dark & (looks.contrast < _BLANK)
        usual = np.median(looks.sharpness[seen]) if seen.any() else 0.0
        blurred = seen & ~blank & ~dark & (looks.sharpness < usual / _BLURRED)
        kinds: tuple[tuple[Kind, Any, Any, str], ...] = (
            ("blank", blank, looks.contrast, "grey values vary by {:.1f} of 255"),
            ("dark", dark, looks.brightness, "mean grey value {:.0f} of 255"),
            ("blurred", blurred, looks.sharpness, f"sharpness {{:.1f}}, usual here {usual:.1f}"),
        )
        for kind, is_so, values, detail in kinds:
            rows = np.flatnonzero(is_so)
            for row in rows[np.argsort(values[rows], kind="stable")].tolist():
                value = float(values[row])
                yield self._problem(kind, row, detail.format(value), value)

    def _odd_sizes(self) -> Iterator[Problem]:
        index = self._store.index.where(self._store.index.with_vector())
        width, height = index.integers("width"), index.integers("height")
        short, long = np.minimum(width, height), np.maximum(width, height)
        known = short > 0
        odd = known & ((short < _SMALLEST_SIDE) | (long > _LONGEST * short))
        for row in np.flatnonzero(odd).tolist():
            detail = f"{width[row]} × {height[row]} pixels"
            yield self._problem("odd-size", row, detail, float(short[row]))

    def _tell(self, stage: str) -> Any:
        callback = self._progress
        if callback is None:
            return None
        return lambda done, total: callback(Progress(done, total, stage=stage))


def _distances(near: NearDuplicates, group: Labels) -> tuple[Ints, NDArray[np.float64]]:
    """Return rows, and the mean cosine distance of each to the nearest that are no copies of it."""
    rows, others = near.nearest.rows, near.nearest.others
    has_group = np.array([name is not None for name in group], dtype=bool)
    number = np.where(has_group, group, -1 - np.arange(len(group))).astype(np.int64)
    distances = np.where(number[others] == number[rows][:, None], np.nan, 1 - near.nearest.cosines)
    # What is a copy of none is found among the nearest, as there are twelve of these.
    nearest = np.sort(distances, axis=1)[:, :_NEIGHBOURS]
    known = ~np.isnan(nearest).all(axis=1)
    _, first = np.unique(number[rows], return_index=True)
    kept = np.intersect1d(np.flatnonzero(known), first)
    return rows[kept], np.nanmean(nearest[kept], axis=1)
