"""Files that `featpipe score` has written, read back: CSV, JSON Lines, Parquet."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from featpipe._files import first_line, guard_cell, printable
from featpipe.errors import LabelError, SourceError
from featpipe.monitoring.observed import Observed

ANSWERED = ("ok", "uncertain", "unknown")
"""Statuses of images that a head has looked at."""
SUFFIXES = (".csv", ".jsonl", ".parquet")
_NEEDED = ("status", "label", "probability")
_FURTHER = ("ood_p", "top1_label", "top")
_LINES = 2**16


def read_scores(path: Path, classes: tuple[str, ...]) -> Observed:
    """Read what a drift check asks of a file of scores; of ten million rows, too.

    Parameters
    ----------
    path : Path
        Ends in .csv, .jsonl or .parquet.
    classes : tuple of str
        Labels of the head.

    Raises
    ------
    SourceError
        When it cannot be read, is no output of `featpipe score`, or has no image with an answer.
    LabelError
        When it holds a label that the head does not know.
    """
    is_csv = path.suffix.lower() == ".csv"
    tally = _Tally(path, classes, guarded=is_csv)
    try:
        for table in _READERS[path.suffix.lower()](path):
            tally.add(table)
    # A file from anywhere may fail in any way on its road through pyarrow and json.
    except (OSError, pa.ArrowException, ValueError, TypeError, LookupError, RecursionError) as exc:
        raise SourceError(f"cannot read {printable(str(path))}: {_why(exc)}") from exc
    return tally.observed()


class _Tally:
    """Adds up the rows of a file, some thousands at a time."""

    def __init__(self, path: Path, classes: tuple[str, ...], *, guarded: bool) -> None:
        self._name = printable(str(path))
        self._place = {guard_cell(c) if guarded else c: k for k, c in enumerate(classes)}
        self._counts = np.zeros(len(classes), dtype=np.int64)
        self._confidence: list[NDArray[np.float64]] = []
        self._strange: list[NDArray[np.float64]] = []
        self._failed = self._withheld = 0
        self._has_strange = True

    def add(self, table: pa.Table) -> None:
        """Take some rows."""
        lacking = [name for name in _NEEDED if name not in table.column_names]
        if lacking:
            raise SourceError(
                f"{self._name} is no output of `featpipe score`: it has no column {lacking[0]!r}"
            )
        answered = table.filter(pc.is_in(table["status"], pa.array(ANSWERED)))
        self._failed += len(table) - len(answered)
        self._confidence.append(self._shares(answered, "probability"))
        if "ood_p" in table.column_names and not answered["ood_p"].null_count:
            self._strange.append(self._shares(answered, "ood_p"))
        else:
            # A head that cannot tell strange images writes the column without numbers.
            self._has_strange = self._has_strange and not len(answered)
        self._count(_likeliest(answered))

    def _shares(self, table: pa.Table, name: str) -> NDArray[np.float64]:
        values = np.asarray(table[name].cast(pa.float64()).to_numpy(), dtype=np.float64)
        if not ((values >= 0) & (values <= 1)).all():
            raise SourceError(
                f"{self._name} is no output of `featpipe score`: in its column {name!r} stands "
                "what is no number between 0 and 1"
            )
        return values

    def _count(self, labels: pa.ChunkedArray) -> None:
        for entry in pc.value_counts(labels).to_pylist():
            label, count = entry["values"], entry["counts"]
            if label is None:
                self._withheld += count
            elif label in self._place:
                self._counts[self._place[label]] += count
            else:
                raise LabelError(
                    f"{self._name} has the label {printable(label)!r}, which the head does not "
                    "know: give the head that scored these images"
                )

    def observed(self) -> Observed:
        """Return the whole."""
        confidence = np.concatenate([*self._confidence, np.empty(0)])
        if not len(confidence):
            raise SourceError(
                f"{self._name} has no image with an answer: there is nothing to compare"
            )
        notes = []
        if self._failed:
            notes.append(f"{self._failed:,} images failed and are left out")
        if self._withheld:
            notes.append(
                f"{self._withheld:,} labels are withheld, and the rates of classes say nothing "
                "without them: score with --top-k 1"
            )
        return Observed(
            name=self._name,
            confidence=confidence,
            counts=None if self._withheld else self._counts,
            ood_p=np.concatenate(self._strange) if self._has_strange else None,
            failed=self._failed,
            notes=tuple(notes),
        )


def _likeliest(table: pa.Table) -> pa.ChunkedArray:
    """Return the label of the likeliest class, also where a row withholds it but lists the best."""
    label = _text(table["label"])
    if not label.null_count:
        return label
    if "top1_label" in table.column_names:
        return pc.coalesce(label, _text(table["top1_label"]))
    if "top" in table.column_names:
        best = [entry[0]["label"] if entry else None for entry in table["top"].to_pylist()]
        return pc.coalesce(label, pa.chunked_array([pa.array(best, pa.string())]))
    return label


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    column = column.cast(pa.string())
    return pc.if_else(pc.equal(column, ""), None, column)


def _csv(path: Path) -> Iterator[pa.Table]:
    with path.open("rb") as file:
        # The names of the columns of `featpipe score` need no quotes.
        names = file.readline(2**20).decode("utf-8").rstrip("\r\n").split(",")
    kept = [name for name in (*_NEEDED, *_FURTHER) if name in names]
    convert = pa.csv.ConvertOptions(
        include_columns=kept,
        column_types={
            name: pa.float64() if name in ("probability", "ood_p") else pa.string() for name in kept
        },
        strings_can_be_null=False,
        null_values=[""],
    )
    parse = pa.csv.ParseOptions(newlines_in_values=True)
    with pa.csv.open_csv(path, parse_options=parse, convert_options=convert) as batches:
        for batch in batches:
            yield pa.Table.from_batches([batch])


def _jsonl(path: Path) -> Iterator[pa.Table]:
    with path.open("rb") as file:
        lines = filter(None, map(bytes.strip, file))
        while some := list(islice(lines, _LINES)):
            yield _table(map(json.loads, some))


def _table(rows: Iterable[Any]) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in (*_NEEDED, "ood_p", "top")}
    present: Counter[str] = Counter()
    for row in rows:
        if not isinstance(row, Mapping):
            raise ValueError("a line holds no object")  # noqa: TRY004 - a value of a file
        present.update(columns.keys() & row.keys())
        for name, values in columns.items():
            values.append(row.get(name))
    kinds = {"probability": pa.float64(), "ood_p": pa.float64(), "top": None}
    return pa.table(
        {
            name: pa.array(values, kinds.get(name, pa.string()))
            for name, values in columns.items()
            if present[name]
        }
    )


def _parquet(path: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        names = set(file.schema_arrow.names)
        kept = [name for name in (*_NEEDED, *_FURTHER) if name in names]
        if "label" in names and "top" in names and not _withholds(file):
            kept.remove("top")
        for batch in file.iter_batches(_LINES, columns=kept):
            yield pa.Table.from_batches([batch])


def _withholds(file: pq.ParquetFile) -> bool:
    """Tell whether some answered row has no label: only then the lists of best classes are read."""
    for batch in file.iter_batches(_LINES, columns=["status", "label"]):
        answered = batch.filter(pc.is_in(batch["status"], pa.array(ANSWERED)))
        if answered["label"].null_count:
            return True
    return False


_READERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}


def _why(exc: BaseException) -> str:
    return (exc.strerror if isinstance(exc, OSError) else None) or first_line(exc)
