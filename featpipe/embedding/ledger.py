"""What has become of every image of a plan so far, and the index that says so."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock

import numpy as np
import pyarrow as pa

from featpipe._files import printable
from featpipe.embedding.engine import EmbeddedBatch
from featpipe.embedding.plan import Plan
from featpipe.errors import TooManyFailuresError
from featpipe.store import Index, Outcome, Outcomes, StoreWriter
from featpipe.store.outcomes import SCHEMA
from featpipe.types import Failure, Key


@dataclass(frozen=True, slots=True)
class Limit:
    """How many images may fail (None: all of them), and the option that says so."""

    failures: int | None
    asked: str


class Ledger:
    """Takes batches in, appends their vectors to the store, and counts.

    Attributes
    ----------
    computed, known, failed, done : int
        As in `EmbedReport`; ``done`` images need no more work.
    """

    def __init__(self, plan: Plan, writer: StoreWriter, limit: Limit) -> None:
        self._plan, self._writer, self._limit = plan, writer, limit
        self._outcomes = Outcomes(len(plan.missing))
        self._failures: dict[Key, Failure] = {}
        self._waiting: list[tuple[int, Key, tuple[int, int] | None]] = []
        self._taken, self._claimed, self._lock = 0, set[Key](), Lock()
        self.computed = self.known = self.failed = 0
        self.done = len(plan) - len(plan.missing)

    def count_known_failures(self) -> None:
        """Count what failed before and is not tried again.

        Raises
        ------
        TooManyFailuresError
            Where that alone is too much.
        """
        for path, reason in self._plan.known_failures():
            self._count_failure(path, reason)

    def claim(self, key: Key) -> bool:
        """Tell a thread whether it should compute ``key``: nobody has, and nobody is at it."""
        with self._lock:
            if key in self._writer.places or key in self._claimed:
                return False
            self._claimed.add(key)
            return True

    def take(self, batch: EmbeddedBatch) -> None:
        """Note what became of the next images that the plan wants opened."""
        keys = [k for k, row in zip(batch.keys, batch.rows, strict=True) if row is not None]
        with self._lock:
            self._writer.append([key for key in keys if key is not None], batch.vectors)
            self._claimed.difference_update(keys)
        self.computed += len(keys)
        first, self._taken = self._taken, self._taken + len(batch.refs)
        for at, (key, shape, failure, row) in enumerate(
            zip(batch.keys, batch.shapes, batch.failures, batch.rows, strict=True), start=first
        ):
            if failure is not None:
                self._fail(at, key, failure)
            elif row is None and key is not None:
                self._take_known(at, key, shape)
            elif key is not None:
                self._finish(at, key, shape)

    def take_result(self, result: pa.Table) -> None:
        """Note what became of the images of a block, whose part is on disk.

        Two blocks may have computed one content; the index refers to the first that came.
        """
        own = set[int]()
        for row in result.to_pylist():
            at, key, shape = row["position"], row["key"], (row["width"], row["height"])
            if row["status"] != "ok":
                self._fail(at, key, Failure(row["status"], row["reason"]))
            elif row["row"] is None or row["row"] in own:
                self._take_known(at, key, shape)
            else:
                own.add(row["row"])
                if key not in self._writer.places:
                    self._writer.places[key] = (row["part"], row["row"])
                self.computed += 1
                self._finish(at, key, shape)

    def settle(self) -> None:
        """Give the images whose content another image has brought in what that one got."""
        waiting, self._waiting = self._waiting, []
        for at, key, shape in waiting:
            if key not in self._failures:
                self._take_known(at, key, shape)
        for at, key, _ in waiting:
            if key in self._failures:
                self._fail(at, key, self._failures[key])

    def index(self, *, prune: bool) -> Index:
        """Return the index as it stands; files that are yet to be opened keep their old rows."""
        plan, opened = self._plan, self._outcomes.table()
        former = plan.former.table.select(SCHEMA.names)
        done = self._outcomes.done
        if plan.rows is None and not len(plan.missing):
            return Index.of(plan.listed, former)
        order = plan.former_rows()
        pending = order[plan.missing[~done]]
        order[plan.missing] = -1
        order[plan.missing[done]] = len(former) + np.arange(len(opened))
        is_done = order >= 0
        listed = plan.listed if is_done.all() else plan.listed.filter(pa.array(is_done))
        joined = pa.concat_tables([former, opened], promote_options="default")
        became = joined.take(pa.array(order[is_done]))
        kept = pending[pending >= 0] if prune else np.append(plan.gone(), pending[pending >= 0])
        return self._with_kept(Index.of(listed, became), np.sort(kept))

    def _with_kept(self, index: Index, rows: np.ndarray) -> Index:
        """Append rows of the former index, but for those whose vector is lost."""
        if not len(rows):
            return index
        kept = self._plan.former.at(rows).placed(self._writer.places)
        return index.joined(kept.where(~kept.with_vector() | (kept.integers("part") >= 0)))

    def _take_known(self, at: int, key: Key, shape: tuple[int, int] | None) -> None:
        """Give an image the vector of its content, or let it wait for whoever computes that."""
        if key in self._writer.places:
            self._finish(at, key, shape)
            self.known += 1
        else:
            self._waiting.append((at, key, shape))

    def _finish(self, at: int, key: Key, shape: tuple[int, int] | None) -> None:
        outcome = Outcome("ok", key, *(shape or (None, None)))
        self._outcomes.put(at, outcome, self._writer.places[key])
        self.done += 1

    def _fail(self, at: int, key: Key | None, failure: Failure) -> None:
        if key is not None:
            self._failures[key] = failure
        self._outcomes.put(at, Outcome(failure.status, key, reason=failure.reason), None)
        self.done += 1
        self._count_failure(self._plan.path(int(self._plan.missing[at])), failure.reason)

    def _count_failure(self, path: str, reason: str) -> None:
        self.failed += 1
        if self._limit.failures is not None and self.failed > self._limit.failures:
            raise TooManyFailuresError(
                f"stopped, as {self._limit.asked} asks, at {printable(path)}: {reason}; "
                "what was finished is kept"
            )
