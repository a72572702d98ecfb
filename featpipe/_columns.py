r"""Images in columns: what an `ImageRef` says of one, said of many, as an Arrow table.

An object an image costs half a kilobyte and microseconds, a row here some fifty bytes and
nothing more. Text stands in it as in ``index.parquet`` (`featpipe._files.escape_path`): names
of files need not be Unicode, columns must.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from featpipe._files import escape_path, unescape_path
from featpipe.types import ImageRef

LABEL_PREFIX = "label:"
"""Label columns beside the main one are named ``label:NAME``."""

LISTED = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("mtime_ns", pa.int64()),
        pa.field("label", pa.string()),
        pa.field("split", pa.string()),
        pa.field("group", pa.string()),
        pa.field("problem", pa.string()),
    ]
)
"""The columns of a listing; those that are named ``label:NAME`` follow."""

BLOCK_ROWS = 2**14
"""Rows that are objects at one time, where something goes through objects."""


def text_column(values: Sequence[str | None]) -> pa.Array:
    """Return texts as a column, escaped.

    >>> text_column(["a", None, "caf\udce9"]).to_pylist() == ["a", None, r"caf\xe9"]
    True
    """
    try:
        joined = "".join(value for value in values if value is not None)
        joined.encode()
    except UnicodeEncodeError:
        escape = True
    else:
        escape = "\\x" in joined
    if escape:
        values = [None if value is None else escape_path(value) for value in values]
    return pa.array(values, pa.string())


def constant_column(value: str | None, count: int) -> pa.Array:
    """Return one text, ``count`` times, as a column, escaped."""
    return pa.repeat(pa.scalar(None if value is None else escape_path(value), pa.string()), count)


def in_columns(refs: Sequence[ImageRef]) -> pa.Table:
    """Return a listing of ``refs``."""
    columns = [text_column([r.path for r in refs])]
    columns += [
        pa.array([getattr(r, name) for r in refs], pa.int64()) for name in LISTED.names[1:3]
    ]
    columns += [text_column([getattr(r, name) for r in refs]) for name in LISTED.names[3:]]
    table = pa.table(columns, schema=LISTED)
    for name in dict.fromkeys(name for r in refs for name in r.labels):
        values = text_column([r.labels.get(name) for r in refs])
        table = table.append_column(LABEL_PREFIX + escape_path(name), values)
    return table


def in_objects(listed: pa.Table) -> Iterator[ImageRef]:
    """Undo `in_columns`; a further label that an image has not is None."""
    further = {
        name: unescape_path(name.removeprefix(LABEL_PREFIX))
        for name in listed.column_names
        if name.startswith(LABEL_PREFIX)
    }
    for start in range(0, len(listed), BLOCK_ROWS):
        for row in listed.slice(start, BLOCK_ROWS).to_pylist():
            yield ImageRef(
                unescape_path(row["path"]),
                row["size"],
                row["mtime_ns"],
                *(_unescaped(row[name]) for name in ("label", "split", "group")),
                {name: _unescaped(row[column]) for column, name in further.items()},
                _unescaped(row["problem"]),
            )


def _unescaped(text: str | None) -> str | None:
    return None if text is None else unescape_path(text)
