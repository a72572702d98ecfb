"""Folders that Hugging Face's `datasets` has written with ``save_to_disk``."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from featpipe._files import printable, read_json
from featpipe.errors import SourceError
from featpipe.sources.base import Source
from featpipe.sources.container import CHANGED, Container, Listing
from featpipe.sources.containers import ContainerSource
from featpipe.sources.imagetables import ImageColumns, arrow_errors, bytes_in
from featpipe.sources.places import SPLITS

_STATE, _INFO, _SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"


def is_saved_dataset(text: str) -> bool:
    """Tell whether a folder was written by ``save_to_disk``, with or without splits."""
    if not os.path.isdir(text):
        return False
    has = {name: os.path.isfile(os.path.join(text, name)) for name in (_STATE, _INFO, _SPLITS)}
    return has[_SPLITS] or (has[_STATE] and has[_INFO])


def open_saved_dataset(text: str) -> Source:
    """Return the images of such a folder.

    Raises
    ------
    SourceError
        When its records are damaged.
    """
    root = Path(text)
    if (root / _SPLITS).is_file():
        names = read_json(root / _SPLITS, SourceError).get("splits")
        if not isinstance(names, list):
            raise SourceError(f"{printable(str(root / _SPLITS))} is damaged: it names no splits")
        parts = [_plain_name(name, root / _SPLITS) for name in names]
        containers = [one for part in parts for one in _files(root / part, f"{part}/", part)]
    else:
        containers = _files(root, "", None)
    location = str(root.resolve())
    return ContainerSource(containers, name=root.resolve().name or "root", location=location)


def _files(folder: Path, prefix: str, split: str | None) -> list[Container]:
    state = read_json(folder / _STATE, SourceError)
    info = read_json(folder / _INFO, SourceError)
    files = state.get("_data_files")
    if not isinstance(files, list) or not all(isinstance(one, dict) for one in files):
        raise SourceError(f"{printable(str(folder / _STATE))} is damaged: it names no data files")
    said = split or state.get("_split")
    features = info.get("features")
    return [
        ArrowImages(
            str(folder / name),
            prefix + name,
            features if isinstance(features, dict) else {},
            SPLITS.get(said.lower()) if isinstance(said, str) else None,
        )
        for name in (_plain_name(one.get("filename"), folder / _STATE) for one in files)
    ]


def _plain_name(name: Any, record: Path) -> str:
    """Return a name of something in the same folder; no other may be named."""
    if not isinstance(name, str) or name != os.path.basename(name) or name in {"", ".", ".."}:
        raise SourceError(
            f"{printable(str(record))} is damaged: {printable(str(name))!r} is no name of a file "
            "beside it"
        )
    return name


class ArrowImages(Container):
    """One Arrow file of a saved dataset, mapped into memory."""

    kind: ClassVar[str] = "Arrow file"

    def __init__(
        self, place: str, name: str, features: Mapping[str, Any], split: str | None
    ) -> None:
        super().__init__(place, name)
        self.split = split
        self._features = features
        self._lock = threading.Lock()
        self._open: tuple[str | None, ImageColumns, Any] | None = None

    def further(self) -> tuple[Any, ...]:
        """Return the features and the split."""
        return self._features, self.split

    def listed(self) -> Listing:
        """Read all columns but that of the images."""
        with arrow_errors():
            table = _mapped(self.place)
            columns = self._columns(table.schema)
            names = dict.fromkeys(leaf.partition(".")[0] for leaf in columns.needed)
            batches = table.select(list(names)).to_batches() if names else ()
            listed, notes = columns.listing(batches, table.num_rows)
            return Listing(listed, notes=notes)

    def read(self, listing: Listing, row: int) -> bytes:
        """Return the bytes of one row."""
        with arrow_errors():
            with self._lock:
                if self._open is None or self._open[0] != listing.version:
                    if self.version() != listing.version:
                        raise OSError(CHANGED)
                    table = _mapped(self.place)
                    columns = self._columns(table.schema)
                    self._open = listing.version, columns, table.column(columns.image)
                _, columns, values = self._open
            return bytes_in(values, row, is_struct=columns.is_struct)

    def release(self) -> None:
        """Let go of the map."""
        with self._lock:
            self._open = None

    def _columns(self, schema: pa.Schema) -> ImageColumns:
        columns = ImageColumns.of(schema, self._features)
        if columns is None:
            raise ValueError("no column of it holds images")
        return columns


def _mapped(place: str) -> Any:
    source = pa.memory_map(place)
    try:
        table = pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid:
        source.seek(0)
        table = pa.ipc.open_file(source).read_all()
    # Offsets that lead elsewhere would be followed: the file may come from a stranger.
    table.validate(full=True)
    return table
