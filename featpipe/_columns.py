r"""Images in columns: what an `ImageRef` says of one, said of many, as an Arrow table.

An object an image costs half a kilobyte and microseconds, a row here some fifty bytes and
nothing more. Names of files need not be Unicode, columns must: paths stand in them escaped
(`featpipe._files.escape_path`), as in ``index.parquet``; in all other text a byte that is no
UTF-8 is ``\xNN`` for good, as nothing is looked up by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from featpipe._files import escape_path, unescape_path
from featpipe.types import ImageRef

LABEL_PREFIX = "label:"
"""Label columns beside the main one are named ``label:NAME``."""

VERSION = "version"
"""A listing has this column (text) only where its source tells versions."""

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
"""The columns of a listing; ``version`` and those that are named ``label:NAME`` may follow."""

BLOCK_ROWS = 2**12
"""Rows that are objects at one time, where something goes through objects."""


def path_column(paths: Sequence[str]) -> pa.Array:
    """Return paths as a column."""
    try:
        joined = "".join(paths)
        joined.encode()
        is_plain = "\\x" not in joined
    except UnicodeEncodeError:
        is_plain = False
    return pa.array(paths if is_plain else map(escape_path, paths), pa.string())


def text_column(values: Sequence[str | None]) -> pa.Array:
    r"""Return texts as a column.

    >>> text_column(["a", None, "caf\udce9"]).to_pylist()[2] == r"caf\xe9"
    True
    """
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        return pa.array([None if v is None else _as_unicode(v) for v in values], pa.string())


def constant_column(value: str | None, count: int) -> pa.Array:
    """Return one text, ``count`` times, as a column."""
    text = None if value is None else _as_unicode(value)
    return pa.repeat(pa.scalar(text, pa.string()), count)


def in_columns(refs: Sequence[ImageRef]) -> pa.Table:
    """Return a listing of ``refs``."""
    columns = [path_column([r.path for r in refs])]
    columns += [
        pa.array([getattr(r, name) for r in refs], pa.int64()) for name in LISTED.names[1:3]
    ]
    columns += [text_column([getattr(r, name) for r in refs]) for name in LISTED.names[3:]]
    table = pa.table(columns, schema=LISTED)
    if any(r.version is not None for r in refs):
        table = table.append_column(VERSION, text_column([r.version for r in refs]))
    for name in dict.fromkeys(name for r in refs for name in r.labels):
        values = text_column([r.labels.get(name) for r in refs])
        table = table.append_column(LABEL_PREFIX + _as_unicode(name), values)
    return table


def in_objects(listed: pa.Table) -> Iterator[ImageRef]:
    """Yield what is needed to open images, and to say which: all but their labels."""
    columns = listed.select(["path", "size", "mtime_ns", "problem"])
    for start in range(0, len(listed), BLOCK_ROWS):
        for row in columns.slice(start, BLOCK_ROWS).to_pylist():
            path = unescape_path(row["path"])
            yield ImageRef(path, row["size"], row["mtime_ns"], problem=row["problem"])


def _as_unicode(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
