"""What a scoring run has finished so far, so that the next one can go on from there.

``<output>.partial`` holds JSON lines: first what the run is (head, backbone, options), then
one row an image with the size and time of change that the listing gave. Lines reach the
system batch by batch and the disk every few seconds; a line that was cut short when the
process or the machine died is cut off by the next run. At the end the output is made from
the journal, and the journal goes.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from featpipe._files import printable, write_error
from featpipe.scoring.prediction import STATUSES, Prediction
from featpipe.types import ImageRef

FORMAT = 1
_SYNC_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Identity:
    """What decides the rows of a run; another one's journal is of no use to it."""

    head: str
    backbone: str
    source: str
    device: str
    precision: str
    top_k: int
    threshold: float | None
    reject: float | None = None
    conformal: str | None = None
    shard: str | None = None

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Return the names of the fields in which a journal's first line differs."""
        return [name for name, value in asdict(self).items() if other.get(name) != value]


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of a journal, and the offset of the byte after it."""

    size: int | None
    mtime_ns: int | None
    prediction: Prediction
    end: int

    def is_of(self, ref: ImageRef) -> bool:
        return (self.prediction.path, self.size, self.mtime_ns) == (
            ref.path,
            ref.size,
            ref.mtime_ns,
        )


class Journal:
    """The rows of one run; use `Journal.opened`.

    Attributes
    ----------
    path : Path
    counts : Counter
        Rows by status.
    sizes : Counter
        Of those that were taken over, sets of labels by their size.
    resumed : int
        Rows taken over from an interrupted run.
    notes : list of str
        What was found amiss.
    """

    def __init__(self, path: Path, identity: Identity, file: IO[bytes]) -> None:
        self.path, self._identity, self._file = path, identity, file
        self.counts: Counter[str] = Counter()
        self.sizes: Counter[int] = Counter()
        self.resumed = 0
        self.notes: list[str] = []
        self._synced = time.monotonic()
        self._start = self._settle()

    @classmethod
    @contextmanager
    def opened(cls, path: Path, identity: Identity) -> Iterator[Journal]:
        """Open the journal that is there, or begin one; it stays, however the block ends.

        Raises
        ------
        WriteError
            When the operating system refuses to write.
        """
        with _open(path) as file:
            journal = cls(path, identity, file)
            try:
                yield journal
            finally:
                journal.sync()

    def take_over(self, refs: Iterable[ImageRef], step: int) -> Iterator[ImageRef]:
        """Keep the rows that fit the beginning of the listing; return what is left of it.

        Parameters
        ----------
        refs : iterable of ImageRef
            The listing.
        step : int
            Rows are kept in multiples of it: so the batches that follow are those of an
            unbroken run, and their numbers are the same to the last bit.

        Notes
        -----
        Unreadable images at the end of the journal are tried again: a disk that went away
        may be back.
        """
        listing = iter(refs)
        held: list[ImageRef] = []
        statuses: Counter[str] = Counter()
        sizes: Counter[int] = Counter()
        end = self._start
        for row in islice(self._rows(), self._readable_rows()):
            ref = next(listing, None)
            if ref is None:
                break
            held.append(ref)
            if not row.is_of(ref):
                break
            statuses[row.prediction.status] += 1
            sizes.update(row.prediction.set_size)
            if len(held) == step:
                self.counts, self.sizes = self.counts + statuses, self.sizes + sizes
                end, held, statuses, sizes = row.end, [], Counter(), Counter()
        self._cut(end)
        self.resumed = self.counts.total()
        return chain(held, listing)

    def append(self, refs: Sequence[ImageRef], rows: Sequence[Prediction]) -> None:
        """Add the rows of one batch."""
        lines = [_line(_row_fields(ref, row)) for ref, row in zip(refs, rows, strict=True)]
        self._write(b"".join(lines))
        self.counts.update(row.status for row in rows)
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Bring what has been written to the disk itself."""
        try:
            os.fsync(self._file.fileno())
        except OSError as exc:
            raise write_error(self.path, exc) from exc
        self._synced = time.monotonic()

    def predictions(self) -> Iterator[Prediction]:
        """Read all rows, in order."""
        return (row.prediction for row in self._rows())

    def _settle(self) -> int:
        """Check the first line, or write it; return the offset of the first row."""
        self._file.seek(0)
        # A first line is short; a file of another kind may have no line break at all.
        with open(self.path, "rb") as reader:
            first = reader.readline(65536)
        found = _parsed(first)
        if found is not None and found.get("featpipe_score") == FORMAT:
            differences = self._identity.differences(found)
            if not differences:
                return len(first)
            self._say_anew(f"belongs to a run with another {_listed(differences)}")
        elif first:
            self._say_anew("is damaged")
        self._cut(0)
        self._write(_line({"featpipe_score": FORMAT, **asdict(self._identity)}))
        return self._file.tell()

    def _say_anew(self, why: str) -> None:
        self.notes.append(
            f"{printable(str(self.path))}, left by an interrupted run, {why}: "
            "all images are scored anew"
        )

    def _rows(self) -> Iterator[_Row]:
        """Read rows up to the end, or to the first line that is not one."""
        with open(self.path, "rb") as reader:
            end = reader.seek(self._start)
            for line in reader:
                end += len(line)
                row = _parsed_row(line, end)
                if row is None:
                    return
                yield row

    def _readable_rows(self) -> int:
        """Return how many rows there are up to the last one whose file could be read."""
        count = 0
        for number, row in enumerate(self._rows(), start=1):
            if row.prediction.status != "unreadable":
                count = number
        return count

    def _cut(self, end: int) -> None:
        self._file.truncate(end)
        self._file.seek(end)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:  # an unbuffered write may stop short of a limit; the next one fails
                view = view[self._file.write(view) :]
        except OSError as exc:
            raise write_error(self.path, exc) from exc


def _open(path: Path) -> IO[bytes]:
    """Open a journal for reading and writing, and make it if it is not there.

    Unbuffered: what has been written survives the process, and one that is stopped has
    nothing left to write. Not in append mode: after a cut, the next line belongs there.
    """
    try:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        return open(os.open(path, flags, 0o666), "r+b", buffering=0)
    except OSError as exc:
        raise write_error(path, exc) from exc


def _row_fields(ref: ImageRef, row: Prediction) -> dict[str, Any]:
    return {"size": ref.size, "mtime_ns": ref.mtime_ns, **asdict(row)}


def _line(value: Mapping[str, Any]) -> bytes:
    # ASCII, so that a path's surrogate escapes survive.
    return json.dumps(value, ensure_ascii=True, allow_nan=False).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object that a whole line holds, or None."""
    if not line.endswith(b"\n"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _parsed_row(line: bytes, end: int) -> _Row | None:
    value = _parsed(line)
    if value is None:
        return None
    try:
        prediction = Prediction(
            path=_as(str, value["path"]),
            status=value["status"],
            reason=_as(str, value["reason"], or_none=True),
            label=_as(str, value["label"], or_none=True),
            probability=_as(float, value["probability"], or_none=True),
            top=tuple((_as(str, label), _as(float, number)) for label, number in value["top"]),
            # A journal of a former featpipe has none.
            ood_p=_as(float, value.get("ood_p"), or_none=True),
            label_set=_labels(value.get("label_set")),
        )
        if prediction.status not in STATUSES:
            return None
        return _Row(value["size"], value["mtime_ns"], prediction, end)
    except (KeyError, TypeError, ValueError):
        return None


def _labels(value: Any) -> tuple[str, ...] | None:
    return None if value is None else tuple(_as(str, label) for label in _as(list, value))


def _as(kind: type, value: Any, *, or_none: bool = False) -> Any:
    """Return ``value`` where it is of the kind that a row has there, or raise TypeError."""
    if isinstance(value, kind) or (or_none and value is None):
        return value
    raise TypeError(kind.__name__)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name.replace("_", "-") for name in names)
