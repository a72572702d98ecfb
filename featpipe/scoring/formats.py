r"""The forms in which predictions leave: CSV, JSON lines, Parquet.

CSV has a header and the columns ``path, status, reason, label, probability, ood_p`` and, for
``top_k`` classes, ``top1_label, top1_probability, top2_label …``. What is missing is an empty
cell. A cell that a spreadsheet could take for a formula gets a leading ``'`` (see
`featpipe._files.guard_cell`). JSON lines and Parquet have the same fields with nulls, text as
it is, and one list ``top`` of ``{label, probability}``.

Where sets of labels were asked for, ``label_set`` comes last: a list, in CSV one cell in which
``|`` stands between the labels, and ``\|`` and ``\\`` for what a label has of these itself.

In all three a path is escaped as in a store: a byte that is not UTF-8 stands as ``\xNN``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias, get_args

from featpipe._files import escape_path, guard_cell, printable
from featpipe.scoring.prediction import Prediction

Format: TypeAlias = Literal["csv", "jsonl", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)
WriteRows: TypeAlias = Callable[[Sequence[Prediction]], None]

_TEXTS, _NUMBERS = ("path", "status", "reason", "label"), ("probability", "ood_p")
_COLUMNS = (*_TEXTS, *_NUMBERS)
_SET = "label_set"
_QUOTED = frozenset('",;\t\r\n')


def format_of(output: str, asked: str | None = None) -> Format:
    """Return the format for an output: what was asked for, or what its suffix says.

    Raises
    ------
    ValueError
        When neither names a format, or Parquet should go to standard output.

    >>> format_of("night.parquet"), format_of("-")
    ('parquet', 'csv')
    """
    known: dict[str, Format] = {name: name for name in FORMATS}
    if asked is not None and asked not in known:
        raise ValueError(f"there is no format {printable(asked)!r}: use csv, jsonl or parquet")
    chosen = known.get(asked or ("csv" if output == "-" else Path(output).suffix[1:].lower()))
    if chosen is None:
        raise ValueError(
            f"the name {printable(output)} does not tell the format: let it end in .csv, .jsonl "
            "or .parquet, or name the format"
        )
    if chosen == "parquet" and output == "-":
        raise ValueError(
            "Parquet cannot be written line by line to standard output: name a file, or use "
            "csv or jsonl"
        )
    return chosen


@contextmanager
def row_writer(
    file: IO[bytes], form: Format, top_k: int, *, sets: bool = False
) -> Iterator[WriteRows]:
    """Yield a function that writes rows to ``file``; the file is whole when the block ends.

    Parameters
    ----------
    top_k : int
        The number of top classes that every answered row has.
    sets : bool
        Whether rows have sets of labels.
    """
    if form == "parquet":
        with _parquet_writer(file, sets=sets) as write:
            yield write
        return
    if form == "csv":
        file.write(_csv_line(_csv_header(top_k, sets=sets)))
    line = _jsonl_row if form == "jsonl" else _csv_row

    def write_lines(rows: Sequence[Prediction]) -> None:
        file.write(b"".join(line(row, top_k, sets) for row in rows))

    yield write_lines


def _csv_header(top_k: int, *, sets: bool) -> list[str]:
    tops = [(f"top{i}_label", f"top{i}_probability") for i in range(1, top_k + 1)]
    return [*_COLUMNS, *(name for pair in tops for name in pair), *([_SET] if sets else [])]


def _csv_row(row: Prediction, top_k: int, sets: bool) -> bytes:
    cells = [
        guard_cell(escape_path(row.path)),
        row.status,
        guard_cell(row.reason or ""),
        guard_cell(row.label or ""),
        _number(row.probability),
        _number(row.ood_p),
    ]
    for label, probability in row.top:
        cells += [guard_cell(label), _number(probability)]
    cells += [""] * (len(_COLUMNS) + 2 * top_k - len(cells))
    if sets:
        cells.append(guard_cell(joined(row.label_set or ())))
    return _csv_line(cells)


def joined(labels: Sequence[str]) -> str:
    r"""Write labels into one cell; `split` undoes it. A store has no empty label.

    >>> joined(["ant", "a|b"])
    'ant|a\\|b'
    """
    return "|".join(label.replace("\\", r"\\").replace("|", r"\|") for label in labels)


def split(cell: str) -> tuple[str, ...]:
    r"""Return the labels of a cell that `joined` has written.

    >>> split(r"ant|a\|b"), split("")
    (('ant', 'a|b'), ())
    """
    parts = re.findall(r"(?:\\.|[^|\\])+", cell, re.DOTALL)
    return tuple(re.sub(r"\\(.)", r"\1", part, flags=re.DOTALL) for part in parts)


def _csv_line(cells: Sequence[str]) -> bytes:
    """Quote where RFC 4180 asks for it, and where another separator could be meant.

    The standard library's writer leaves a bare carriage return unquoted when lines end in a
    newline alone, as they do here.
    """
    quoted = (
        '"' + cell.replace('"', '""') + '"' if _QUOTED.intersection(cell) else cell
        for cell in cells
    )
    return _encoded(",".join(quoted) + "\n")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _jsonl_row(row: Prediction, top_k: int, sets: bool) -> bytes:
    value = _fields(row, sets=sets)
    if not top_k:
        del value["top"]
    return _encoded(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")


def _fields(row: Prediction, *, sets: bool) -> dict[str, Any]:
    found = None if row.label_set is None else list(row.label_set)
    return {
        "path": escape_path(row.path),
        "status": row.status,
        "reason": row.reason,
        "label": row.label,
        "probability": row.probability,
        "ood_p": row.ood_p,
        "top": [{"label": label, "probability": p} for label, p in row.top],
        **({_SET: found} if sets else {}),
    }


def _encoded(text: str) -> bytes:
    # A lone surrogate that no file system made has no UTF-8; in JSON this is its escape.
    return text.encode("utf-8", "backslashreplace")


@contextmanager
def _parquet_writer(file: IO[bytes], *, sets: bool) -> Iterator[WriteRows]:
    import pyarrow as pa  # noqa: PLC0415 - the other formats need none of it
    import pyarrow.parquet as pq  # noqa: PLC0415

    entry = pa.struct([("label", pa.string()), ("probability", pa.float64())])
    texts = [pa.field(name, pa.string()) for name in _TEXTS]
    numbers = [pa.field(name, pa.float64()) for name in _NUMBERS]
    lists = [pa.field("top", pa.list_(entry))]
    if sets:
        lists.append(pa.field(_SET, pa.list_(pa.string())))
    schema = pa.schema([*texts, *numbers, *lists])
    with pq.ParquetWriter(file, schema, compression="zstd") as parquet:

        def write(rows: Sequence[Prediction]) -> None:
            # Through JSON's rules for text: a lone surrogate is no UTF-8 and would be refused.
            columns = [_valid(_fields(row, sets=sets)) for row in rows]
            parquet.write_table(pa.Table.from_pylist(columns, schema=schema))

        yield write


def _valid(value: Any) -> Any:
    """Return a copy of nested plain values whose texts are valid Unicode."""
    if isinstance(value, str):
        return _encoded(value).decode()
    if isinstance(value, list):
        return [_valid(item) for item in value]
    if isinstance(value, dict):
        return {name: _valid(item) for name, item in value.items()}
    return value
