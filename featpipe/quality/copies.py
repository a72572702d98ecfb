"""Of images that are copies of one another: which go, and which of them stays beside each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from featpipe.quality.cleaning import COPIES, Kind, Problem
from featpipe.types import Key

Places: TypeAlias = dict[Key, dict[str | None, str]]
"""Images by content and label: the first path of each."""

JUDGE = "have a copy under another label, which a person must judge (--kind two-labels)"
KEPT = "are copies of nothing else that stays"


@dataclass(frozen=True, slots=True)
class Copy:
    """An image that is a copy of another, or that another is a copy of."""

    path: str
    key: Key
    label: str | None


class Copies:
    """Which images are copies of which.

    A pair of two contents holds for all files of these contents. It does not reach further: a
    copy of a copy may be unlike the first.

    Parameters
    ----------
    problems : iterable of Problem
        Of any kind; those of `COPIES` count.
    kinds : collection of str
        Those for which an image may go.
    keys : mapping of str to bytes or None
        Contents of the images, by path.
    labels : mapping of str to str or None
    """

    def __init__(
        self,
        problems: Iterable[Problem],
        kinds: Collection[Kind],
        keys: Mapping[str, Key | None],
        labels: Mapping[str, str | None],
    ) -> None:
        self._kinds = frozenset(kinds) & COPIES
        self.images: dict[str, Copy] = {}
        self._near: dict[Key, dict[Key, Problem]] = {}
        self._labels: dict[Key, set[str]] = {}
        for problem in problems if self._kinds else ():
            if problem.kind not in COPIES or problem.other is None:
                continue
            one, other = keys.get(problem.path), keys.get(problem.other)
            if one is None or other is None:
                continue
            self._add(Copy(problem.path, one, labels.get(problem.path)))
            self._add(Copy(problem.other, other, labels.get(problem.other)))
            if one != other:
                self._near.setdefault(one, {}).setdefault(other, problem)
                self._near.setdefault(other, {}).setdefault(one, problem)

    def _add(self, image: Copy) -> None:
        self.images[image.path] = image
        labels = self._labels.setdefault(image.key, set())
        if image.label is not None:
            labels.add(image.label)

    def _beside(self, image: Copy) -> tuple[Key, ...]:
        return image.key, *self._near.get(image.key, ())

    def must_be_judged(self, image: Copy, staying: Places) -> bool:
        """Tell whether one of two labels is wrong, and would be forgotten if the image went."""
        if "two-labels" in self._kinds or image.label is None:
            return False
        if "duplicate" in self._kinds and image.label in staying.get(image.key, {}):
            return False
        return any(self._labels[key] - {image.label} for key in self._beside(image))

    def pair(self, image: Copy, others: Places) -> Problem | None:
        """Return why an image may go: as a copy of one of ``others``; None where it is of none."""
        for key in self._beside(image):
            found = others.get(key, {})
            own = [image.label] if image.label in found else []
            for label in (*own, *found):
                kind = self._kind(image, key, label)
                if kind is not None:
                    return self._problem(image, kind, key, label, found[label])
        return None

    def _kind(self, image: Copy, key: Key, label: str | None) -> Kind | None:
        likeness: Kind = "duplicate" if key == image.key else "near-duplicate"
        if likeness in self._kinds:
            return likeness
        are_two = None not in (label, image.label) and label != image.label
        return "two-labels" if are_two and "two-labels" in self._kinds else None

    def _problem(self, image: Copy, kind: Kind, key: Key, label: str | None, other: str) -> Problem:
        value: float | None = None
        detail = f"{image.label} here, {label} there"
        if kind == "duplicate":
            value, detail = 1.0, "the same bytes"
        elif kind == "near-duplicate":
            listed = self._near[image.key][key]
            value, detail = listed.value, listed.detail
        return Problem(kind, image.path, image.label, other, value, detail)


@dataclass(frozen=True, slots=True)
class Parting:
    """What becomes of images that are copies of one another.

    Attributes
    ----------
    going : dict of str to Problem
        By path; the ``other`` of each stays.
    spared : dict of str to str
        Copies of others that stay all the same, and why.
    """

    going: dict[str, Problem]
    spared: dict[str, str]


def part(
    copies: Copies,
    order: Sequence[str],
    leaving: Collection[str],
    check: Callable[[str], str | None],
) -> Parting:
    """Go through images in order: each goes if one that it is a copy of stays.

    So of what goes a direct copy stays, however long the chain of copies is. It is a maximal
    independent set of their graph, taken greedily.

    Parameters
    ----------
    copies : Copies
    order : sequence of str
        Paths of all its images; what comes first stays rather.
    leaving : collection of str
        Paths of images that go for another reason.
    check : callable
        Says what is in the way of taking an image; None where nothing is.
    """
    parting = Parting({}, {})
    seen, staying = Places(), Places()
    for path in order:
        image = copies.images[path]
        if path not in leaving:
            _decide(copies, image, seen, staying, check(path), parting)
        seen.setdefault(image.key, {}).setdefault(image.label, path)
    return parting


def _decide(
    copies: Copies,
    image: Copy,
    seen: Places,
    staying: Places,
    obstacle: str | None,
    parting: Parting,
) -> None:
    pair = copies.pair(image, staying)
    reason = JUDGE if copies.must_be_judged(image, staying) else obstacle
    if pair is not None and reason is None:
        parting.going[image.path] = pair
        return
    if copies.pair(image, seen) is not None:
        parting.spared[image.path] = reason or KEPT
    # What stays must be there, as a file of its own: all else may be its only copy.
    if obstacle is None:
        staying.setdefault(image.key, {}).setdefault(image.label, image.path)
