"""What needs to be opened, and what is known already."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

from featpipe.store import Index, Outcome
from featpipe.types import ImageRef, Key, Progress, ProgressCallback

_SAY_EVERY = 1000


@dataclass(slots=True)
class Plan:
    """Every image of a source, with what is known of it.

    Attributes
    ----------
    refs : list of ImageRef
        In the order of the source.
    outcomes : list of Outcome or None
        Aligned with ``refs``; None where the file must be opened.
    former : dict
        Path and row of the images in the former index that the source lists no more.
    """

    refs: list[ImageRef]
    outcomes: list[Outcome | None]
    former: dict[str, int]

    @property
    def missing(self) -> list[int]:
        """Positions of the images that must be opened."""
        return [i for i, outcome in enumerate(self.outcomes) if outcome is None]


def make_plan(
    refs: Iterable[ImageRef],
    previous: Index,
    held: Container[Key],
    *,
    rehash: bool = False,
    progress: ProgressCallback | None = None,
) -> Plan:
    """Compare what a source lists with what a store knows; opens no image.

    An image is known where its path, size and time of change are those of the former index,
    and its vector is held; so is one that could not be decoded, as its bytes are the same.
    One that could not be read is tried again.
    """
    known = _Known(previous, held)
    plan = Plan([], [], {})
    for ref in refs:
        former = known.rows.pop(ref.path, None)
        plan.refs.append(ref)
        plan.outcomes.append(None if rehash or former is None else known.outcome(ref, former))
        if progress is not None and len(plan.refs) % _SAY_EVERY == 0:
            progress(Progress(len(plan.refs), None, stage="listing"))
    plan.former = known.rows
    return plan


class _Known:
    """The former index, by path."""

    def __init__(self, index: Index, held: Container[Key]) -> None:
        self.rows = {path: row for row, path in enumerate(index.paths())}
        self._held = held
        self._sizes, self._times = index.integers("size"), index.integers("mtime_ns")
        self._widths, self._heights = index.integers("width"), index.integers("height")
        self._keys, self._statuses = index.values("key"), index.values("status")
        self._reasons = index.values("reason")

    def outcome(self, ref: ImageRef, row: int) -> Outcome | None:
        if ref.size is None or (ref.size, ref.mtime_ns) != (self._sizes[row], self._times[row]):
            return None
        status, key = self._statuses[row], self._keys[row]
        if status == "ok" and key in self._held:
            return Outcome("ok", key, int(self._widths[row]), int(self._heights[row]))
        if status == "undecodable":
            return Outcome("undecodable", key, reason=self._reasons[row])
        return None
