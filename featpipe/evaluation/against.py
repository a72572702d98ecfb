"""Two heads on the same images: which is better, and whether these images can tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe._files import printable
from featpipe.errors import LabelError
from featpipe.evaluation.figures import Figures, share
from featpipe.evaluation.measure import Evaluation
from featpipe.metrics import mcnemar, paired_difference

_CHANCE = 0.05

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two heads.

    Attributes
    ----------
    head, store : str
    accuracy : float
        On the images that both were measured on, as a share; ``interval`` is its 95 % interval.
    only_right : int
        Images that this head alone is right about.
    """

    head: str
    store: str
    accuracy: float
    interval: tuple[float, float]
    only_right: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "head": self.head,
            "store": self.store,
            "accuracy": self.accuracy,
            "interval_95": list(self.interval),
            "only_right": self.only_right,
        }


@dataclass(frozen=True, slots=True)
class HeadComparison:
    """What `compare` has found.

    Attributes
    ----------
    first, second : Side
    split : str or None
    n_samples : int
        Images that both were measured on, and that neither has learnt on.
    difference : float
        Accuracy of the first minus that of the second, in points.
    interval : tuple of float
        Its 95 % interval, in points.
    p_value : float
        Of McNemar's exact test.
    notes : tuple of str
        What is said of either head, and of images that were left out.
    withheld : str
        Why no head is called better, whatever the figures; empty where nothing forbids it.
    """

    first: Side
    second: Side
    split: str | None
    n_samples: int
    difference: float
    interval: tuple[float, float]
    p_value: float
    notes: tuple[str, ...]
    withheld: str

    @property
    def better(self) -> Side | None:
        """The better head; None where the images do not tell, or were learnt on.

        Both must say so: the interval, which keeps images of one group together, and the
        test, which is exact where few images differ.
        """
        low, high = self.interval
        if self.withheld or low <= 0 <= high or self.p_value >= _CHANCE:
            return None
        return self.first if self.difference > 0 else self.second

    def names(self) -> tuple[str, str]:
        """Return what the heads are called, fit for a terminal."""
        return _names(self.first.head, self.second.head)

    def sentence(self) -> str:
        """Return in words whether one is better."""
        if self.withheld:
            return f"no verdict: {self.withheld}"
        names, better = self.names(), self.better
        low, high = self.interval
        if better is None:
            return (
                f"no difference that these {self.n_samples:,} images could show: {names[0]} is at "
                f"{self.difference:+.1f} points to {names[1]} ({low:+.1f} to {high:+.1f})"
            )
        # Seen from the better one.
        if better is self.second:
            names, (low, high) = names[::-1], (-high, -low)
        return (
            f"{names[0]} is better than {names[1]} by {abs(self.difference):.1f} points "
            f"({low:.1f} to {high:.1f})"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``featpipe evaluate --against --json`` prints them."""
        better = self.better
        return {
            "first": self.first.to_json(),
            "second": self.second.to_json(),
            "split": self.split,
            "n_samples": self.n_samples,
            "difference": self.difference,
            "interval_95": list(self.interval),
            "mcnemar_p_value": self.p_value,
            "better": None if better is None else "first" if better is self.first else "second",
            "withheld": self.withheld or None,
            "sentence": self.sentence(),
            "notes": list(self.notes),
        }

    def table(self) -> str:
        """Return the figures laid out for a person, and the sentence."""
        names = self.names()
        width = max(22, *(len(name) + 2 for name in names))
        where = f"on {self.n_samples:,} images"
        low, high = self.interval
        lines = [f"{where:<{width}}accuracy   95 % interval   right alone"]
        for name, side in zip(names, (self.first, self.second), strict=True):
            accuracy, *ends = (share(v) for v in (side.accuracy, *side.interval))
            interval = " to ".join(ends)
            lines.append(f"{name:<{width}}{accuracy:>8}   {interval:<18}{side.only_right:>9}")
        lines += [
            f"{'difference, points':<{width}}{self.difference:>+8.1f}   {low:+.1f} to {high:+.1f}",
            f"{'chance alone':<{width}}{_p(self.p_value):>8}   (McNemar, exact)",
            "",
            self.sentence(),
        ]
        return "\n".join(lines)


def compare(first: Evaluation, second: Evaluation, *, seed: int = 0) -> HeadComparison:
    """Compare two heads, image by image.

    Images are paired by path and content, so the heads may be of different backbones and the
    evaluations of two stores. What only one of them holds, what has two labels, and what
    either head has learnt on, or a copy of it, is left out and counted. Where nothing else is
    there, all of it is compared, and neither head is called better.

    Parameters
    ----------
    first, second : Evaluation
        Of one split; see `evaluate`.
    seed : int
        Of the bootstrap.

    Raises
    ------
    LabelError
        When they were measured on different splits, or have no image in common.

    Examples
    --------
    >>> a, b = evaluate("heads/a", store), evaluate("heads/b", store)    # doctest: +SKIP
    >>> compare(a, b).sentence()                                         # doctest: +SKIP
    'heads/a is better than heads/b by 3.1 points (0.4 to 5.9)'
    """
    if first.split != second.split:
        raise LabelError(
            f"the heads were measured on two things, {_place(first)} and {_place(second)}: choose "
            "one split for both"
        )
    rows, notes = _common(first, second)
    if not len(rows):
        raise LabelError(
            f"{printable(first.store)} and {printable(second.store)} have no image in common "
            f"({_place(first)}): stores are paired by path and content, so both must come from "
            "one source"
        )
    rows, told, withheld = _unseen(first, second, rows)
    notes += told
    right = [_right(e, rows[:, side]) for side, e in enumerate((first, second))]
    units = None if first.units is None else first.units[rows[:, 0]]
    figures = [
        Figures.measured(e.y[at], e.probabilities[at], e.classes, units, seed)
        for e, at in ((first, rows[:, 0]), (second, rows[:, 1]))
    ]
    difference, interval = paired_difference(right[1], right[0], units, seed=seed)
    sides = [
        Side(
            head=e.head,
            store=e.store,
            accuracy=figures[side].accuracy,
            interval=figures[side].intervals["accuracy"],
            only_right=int((right[side] & ~right[1 - side]).sum()),
        )
        for side, e in enumerate((first, second))
    ]
    return HeadComparison(
        first=sides[0],
        second=sides[1],
        split=first.split,
        n_samples=len(rows),
        difference=difference,
        interval=interval,
        p_value=mcnemar(right[0], right[1]),
        notes=tuple(notes),
        withheld=withheld,
    )


def _common(first: Evaluation, second: Evaluation) -> tuple[Ints, list[str]]:
    """Return the positions of each image in both, (n, 2), and what is to be said."""
    notes = _told(first, second, lambda e: [n for n in e.notes if n not in e.leak_notes])
    there = {image: at for at, image in enumerate(_images(second))}
    pairs = [(at, there[image]) for at, image in enumerate(_images(first)) if image in there]
    alone = len(first.y) + len(second.y) - 2 * len(pairs)
    if alone:
        notes.append(f"{alone:,} images that one head alone was measured on are left out")
    same = [(i, j) for i, j in pairs if first.classes[first.y[i]] == second.classes[second.y[j]]]
    if len(same) < len(pairs):
        notes.append(f"{len(pairs) - len(same):,} images that have two labels are left out")
    return np.array(same, dtype=np.int64).reshape(-1, 2), notes


def _unseen(first: Evaluation, second: Evaluation, rows: Ints) -> tuple[Ints, list[str], str]:
    """Leave out what either head has learnt on, unless that is all; and say so.

    What a head has learnt by heart it is right about: of new images that tells nothing.
    """
    learnt = _learnt(first, rows[:, 0]), _learnt(second, rows[:, 1])
    seen = learnt[0] | learnt[1]
    a, b = _names(first.head, second.head)
    if not seen.any():
        return rows, [], ""
    if not seen.all():
        left_out = f"{seen.sum():,} images that {a} or {b} was fitted on, or copies of them"
        return rows[~seen], [f"{left_out}, are left out"], ""
    told = _told(first, second, lambda e: e.leak_notes)
    return rows, told, _why(a, b, [bool(flags.all()) for flags in learnt], len(rows))


def _why(a: str, b: str, has_all: list[bool], n: int) -> str:
    """Say why heads that have learnt all ``n`` images between them cannot be compared."""
    all_of = f"fitted on all of these {n:,} images, or on copies of them, which flatters"
    if all(has_all):
        who = f"{a} and {b} were {all_of} them"
    elif any(has_all):
        who = f"{a if has_all[0] else b} was {all_of} it"
    else:
        who = (
            f"{a} or {b} was fitted on each of these {n:,} images, or on a copy of it, which "
            "flatters them"
        )
    return f"{who}: compare on images that are new to both"


def _learnt(evaluation: Evaluation, rows: Ints) -> Flags:
    return np.zeros(len(rows), bool) if evaluation.learnt is None else evaluation.learnt[rows]


def _told(
    first: Evaluation, second: Evaluation, notes: Callable[[Evaluation], Iterable[str]]
) -> list[str]:
    """Return notes of both, each once, with the head that it is of."""
    told = [f"{printable(e.head)}: {note}" for e in (first, second) for note in notes(e)]
    return list(dict.fromkeys(told))


def _names(first: str, second: str) -> tuple[str, str]:
    a, b = printable(first), printable(second)
    return (a, b) if a != b else ("the first head", "the second head")


def _images(evaluation: Evaluation) -> Iterator[tuple[str, bytes]]:
    return zip(evaluation.paths, evaluation.keys, strict=True)


def _right(evaluation: Evaluation, rows: Ints) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = evaluation.probabilities[rows].argmax(axis=1) == evaluation.y[rows]
    return found


def _place(evaluation: Evaluation) -> str:
    return "all images" if evaluation.split is None else f"the split {evaluation.split}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
