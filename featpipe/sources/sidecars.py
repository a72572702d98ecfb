"""What files beside an image in an archive say of it: ``.cls``, ``.json``, ``.txt``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from featpipe._columns import BLOCK_ROWS, LABEL_PREFIX, text_column
from featpipe.sources.cells import as_text
from featpipe.sources.places import SPLITS

SIDECAR_SUFFIXES = frozenset({".cls", ".json", ".txt"})
MOST_BYTES = 2**20
"""A larger one is no note on an image, and is left out."""
CAPTION = "txt"
_LABELS = ("label", "class", "cls")
_MOST_COLUMNS = 64


class Sidecars:
    """The files of one archive that say something of its images, as they come.

    A ``.cls`` is the label, a ``.json`` an object with any of label (or class, or cls), split,
    group; its further plain values, and a ``.txt`` as ``txt``, become label columns.
    """

    def __init__(self) -> None:
        self._tables: dict[str, list[pa.Table]] = {suffix: [] for suffix in SIDECAR_SUFFIXES}
        self._waiting: dict[str, list[tuple[str, dict[str, str | None]]]] = {
            suffix: [] for suffix in SIDECAR_SUFFIXES
        }
        self._columns: dict[str, None] = {}
        self._unread = self._unused_columns = self._other_splits = 0

    def take(self, stem: str, suffix: str, data: bytes) -> None:
        """Add one; ``stem`` is its escaped name without the suffix."""
        text = data.decode("utf-8", "replace").removeprefix("\ufeff").strip()
        if suffix == ".json":
            said = self._from_json(text)
        else:
            said = {"label" if suffix == ".cls" else LABEL_PREFIX + CAPTION: text or None}
        waiting = self._waiting[suffix]
        waiting.append((stem, said))
        if len(waiting) >= BLOCK_ROWS:
            self._flush(suffix)

    def _from_json(self, text: str) -> dict[str, str | None]:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            self._unread += 1
            return {}
        said = {str(name): _as_cell(item) for name, item in value.items() if _is_plain(item)}
        label = next((name for name in _LABELS if said.get(name) is not None), None)
        known = {"label": said.pop(label) if label else None, "group": said.pop("group", None)}
        split = said.pop("split", None)
        if split is not None:
            known["split"] = SPLITS.get(split.lower())
            self._other_splits += known["split"] is None
        for name, item in said.items():
            if name not in self._columns and len(self._columns) >= _MOST_COLUMNS:
                self._unused_columns += 1
                continue
            self._columns[name] = None
            known[LABEL_PREFIX + name] = item
        return known

    def _flush(self, suffix: str) -> None:
        waiting = self._waiting[suffix]
        names = dict.fromkeys(name for _, said in waiting for name in said)
        columns = {name: text_column([said.get(name) for _, said in waiting]) for name in names}
        keys = pa.array([stem for stem, _ in waiting], pa.string())
        plain = {_as_unicode(name): column for name, column in columns.items()}
        self._tables[suffix].append(pa.table({"_key": keys, **plain}))
        waiting.clear()

    def columns(self, stems: Sequence[Any]) -> dict[str, Any]:
        """Return what is known of images, column by column.

        Parameters
        ----------
        stems : sequence of array of str, (n,)
            The escaped names under which a file beside an image may stand; the first that is
            found counts.

        Returns
        -------
        dict
            ``label``, ``split``, ``group`` and label columns, each (n,), as far as any file
            tells them.
        """
        found: dict[str, Any] = {}
        for suffix in (".cls", ".txt", ".json"):
            if self._waiting[suffix]:
                self._flush(suffix)
            if not self._tables[suffix]:
                continue
            table = pa.concat_tables(self._tables[suffix], promote_options="default")
            at = _last_rows(table.column("_key"), stems)
            for name in table.column_names[1:]:
                values = table.column(name).take(at)
                found[name] = pc.coalesce(found[name], values) if name in found else values
        return found

    @property
    def notes(self) -> list[str]:
        """What could not be used."""
        counted = [
            (self._unread, "`.json` files hold no object and are not used"),
            (self._other_splits, "splits are not train, val or test, and are not used"),
            (self._unused_columns, f"values beyond {_MOST_COLUMNS} names are not used"),
        ]
        return [f"{count} {what}" for count, what in counted if count]


def _last_rows(keys: Any, stems: Sequence[Any]) -> Any:
    """Return for every image the last row with one of its names: as with tar, the last counts."""
    backwards = keys.take(pa.array(range(len(keys) - 1, -1, -1), pa.int64()))
    at = None
    for stem in stems:
        found = pc.index_in(stem, value_set=backwards)
        at = found if at is None else pc.coalesce(at, found)
    return pc.subtract(len(keys) - 1, at)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _as_cell(value: Any) -> str | None:
    # JSON may hold half of a surrogate pair, which is no text.
    text = as_text(value)
    return None if text is None else _as_unicode(text)


def _as_unicode(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()
