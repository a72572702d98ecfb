"""Tables that hold the bytes of images: which column they are, and what the others say.

The layout is that of Hugging Face's `datasets`: a column of structs ``{bytes, path}``, labels as
numbers whose names stand in the schema's metadata. A plain column of bytes is read as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from featpipe._columns import LABEL_PREFIX, LISTED, path_column, text_column
from featpipe._files import printable
from featpipe.sources.cells import as_text
from featpipe.sources.places import SPLITS

IMAGE_COLUMNS = (
    *("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "photo", "picture"),
    *("content", "data"),
)
"""Names of columns of images, in lower case; the first of several counts."""
LABEL_COLUMNS = ("label", "labels", "class", "cls")
NAME_COLUMNS = ("path", "file_name", "filename", "file")
NO_BYTES = "the table holds no bytes of it"


@dataclass(frozen=True)
class ImageColumns:
    """What the columns of a table mean.

    Attributes
    ----------
    image : str
        The column with the bytes of images.
    is_struct : bool
        Whether these lie in a struct, as ``image.bytes`` beside ``image.path``.
    name : str or None
        A column of texts that may name the images.
    roles : mapping of str
        From ``label``, ``split``, ``group`` to columns.
    others : tuple of str
        Columns of plain values, which are label columns.
    left_out : tuple of str
        Columns of anything else.
    classes : mapping of str to list of str
        The names behind a column's numbers.
    """

    image: str
    is_struct: bool
    has_path: bool
    name: str | None = None
    roles: Mapping[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    classes: Mapping[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, schema: pa.Schema, features: Mapping[str, Any] | None = None
    ) -> ImageColumns | None:
        """Return what the columns mean, or None where none of them holds images.

        Parameters
        ----------
        schema : pyarrow.Schema
        features : mapping, optional
            As `datasets` describes them; those in the schema's metadata by default.

        Raises
        ------
        ValueError
            When two columns have the same name.
        """
        if len(set(schema.names)) < len(schema):
            raise ValueError("two of its columns have the same name")
        features = _features(schema) if features is None else features
        image = _image_column(schema, features)
        if image is None:
            return None
        classes = {name: names for name in schema.names if (names := _class_names(features, name))}
        plain = [f.name for f in schema if f.name != image and _is_plain(f.type)]
        lower = {name.lower(): name for name in reversed(plain)}
        roles = {role: lower[role] for role in ("split", "group") if role in lower}
        label = next((lower[name] for name in LABEL_COLUMNS if name in lower), None)
        if label is None and len(classes) == 1:
            label = next(iter(classes))
        if label is not None:
            roles["label"] = label
        name = next((lower[one] for one in NAME_COLUMNS if one in lower), None)
        if name is not None and not _is_text(schema.field(name).type):
            name = None
        used = {name, *roles.values()}
        others = tuple(one for one in plain if one not in used)
        left_out = tuple(f.name for f in schema if f.name not in {image, *plain})
        kind = schema.field(image).type
        has_path = pt.is_struct(kind) and kind.get_field_index("path") >= 0
        is_struct = pt.is_struct(kind)
        return cls(image, is_struct, has_path, name, roles, others, left_out, classes)

    @property
    def of_bytes(self) -> str:
        """The leaf that holds the bytes, as Parquet names it."""
        return f"{self.image}.bytes" if self.is_struct else self.image

    @property
    def needed(self) -> list[str]:
        """The leaves that are read to list the images: all but the bytes."""
        names = [*self.roles.values(), *self.others, *([self.name] if self.name else [])]
        return [*dict.fromkeys(names), *([f"{self.image}.path"] if self.has_path else [])]

    def listing(self, batches: Iterable[Any], count: int) -> tuple[pa.Table, list[str]]:
        """Return the table of a listing, and notes.

        Parameters
        ----------
        batches : iterable of pyarrow.RecordBatch
            With the columns `needed`.
        count : int
            Rows of the table: where nothing is needed, no batch tells them.

        Returns
        -------
        table : pyarrow.Table
            `LISTED`, and label columns.
        notes : list of str
        """
        names = {"label": self.roles.get("label"), "group": self.roles.get("group")}
        names |= {LABEL_PREFIX + name: name for name in self.others}
        columns: dict[str, list[pa.Array]] = {key: [] for key, name in names.items() if name}
        splits: list[str | None] = []
        inner: list[str | None] = []
        given: list[str | None] = []
        for batch in batches:
            for key, blocks in columns.items():
                blocks.append(text_column(self._texts(batch, names[key] or "")))
            if "split" in self.roles:
                splits += self._texts(batch, self.roles["split"])
            if self.has_path:
                inner += _paths_in(batch.column(self.image))
            if self.name:
                given += [as_text(value) for value in batch.column(self.name).to_pylist()]
        known = {key: pa.chunked_array(blocks, pa.string()) for key, blocks in columns.items()}
        notes = self._notes(splits)
        known["path"] = path_column(_names(inner, given, count))
        if splits:
            known["split"] = text_column([SPLITS.get((split or "").lower()) for split in splits])
        table = pa.table(
            [known.pop(f.name, pa.nulls(count, f.type)) for f in LISTED], schema=LISTED
        )
        for key, values in known.items():
            table = table.append_column(key, values)
        return table, notes

    def _notes(self, splits: Sequence[str | None]) -> list[str]:
        notes = []
        other = sum(split is not None and split.lower() not in SPLITS for split in splits)
        if other:
            notes.append(f"{other} splits are not train, val or test, and are not used")
        if self.left_out:
            names = ", ".join(printable(name) for name in self.left_out[:5])
            notes.append(f"columns that are neither the images nor plain values: {names}")
        return notes

    def _texts(self, batch: Any, name: str) -> list[str | None]:
        values = batch.column(name).to_pylist()
        classes = self.classes.get(name)
        if classes is None:
            return [as_text(value) for value in values]
        texts = [as_text(one) for one in classes]
        return [_class_of(value, texts) for value in values]


def _class_of(value: object, names: Sequence[str | None]) -> str | None:
    if value == -1:  # what `datasets` writes where a class is not known
        return None
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return as_text(value)


@contextmanager
def arrow_errors() -> Iterator[None]:
    """Turn what Arrow says into a ValueError of one line."""
    try:
        yield
    except pa.ArrowException as exc:
        raise ValueError(str(exc).partition("\n")[0]) from exc


def bytes_in(values: Any, row: int, *, is_struct: bool) -> bytes:
    """Return the bytes of one row of a column of images.

    Raises
    ------
    OSError
        When the row has none: a path that `datasets` keeps beside is never opened.
    """
    value = values[row].as_py() if not is_struct else values[row]["bytes"].as_py()
    if value is None:
        raise OSError(NO_BYTES)
    return bytes(value)


def _features(schema: pa.Schema) -> Mapping[str, Any]:
    """Return what `datasets` has written about the columns, as far as it is well formed."""
    try:
        said = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = said["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _type_of(features: Mapping[str, Any], name: str) -> Any:
    feature = features.get(name)
    return feature.get("_type") if isinstance(feature, dict) else None


def _class_names(features: Mapping[str, Any], name: str) -> list[str] | None:
    if _type_of(features, name) != "ClassLabel":
        return None
    names = features[name].get("names")
    is_list = isinstance(names, list) and all(isinstance(one, str) for one in names)
    return names if is_list else None


def _image_column(schema: pa.Schema, features: Mapping[str, Any]) -> str | None:
    found: list[str] = [f.name for f in schema if _may_be_image(f)]
    declared = [name for name in found if _type_of(features, name) == "Image"]
    structs = [name for name in found if pt.is_struct(schema.field(name).type)]
    for among in (declared, structs, found):
        lower = {name.lower(): name for name in reversed(among)}
        named = next((lower[name] for name in IMAGE_COLUMNS if name in lower), None)
        if named is not None:
            return named
        if among and among is not found:
            return among[0]
    # Bytes beside a column of paths may be anything: a hash, a thumbnail.
    has_paths = any(f.name.lower() in {*NAME_COLUMNS, "image"} and _is_text(f.type) for f in schema)
    return found[0] if len(found) == 1 and not has_paths else None


def _may_be_image(column: pa.Field) -> bool:
    kind = column.type
    if pt.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _is_binary(kind.field(at).type)
    return _is_binary(kind) and column.name.lower() not in NAME_COLUMNS


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pt.is_binary(kind) or pt.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or _is_binary(kind))


def _is_plain(kind: pa.DataType) -> bool:
    if pt.is_dictionary(kind):
        kind = kind.value_type
    return not (pt.is_nested(kind) or _is_binary(kind) or pt.is_fixed_size_binary(kind))


def _paths_in(values: Any) -> list[str | None]:
    return [as_text(path) for path in pc.struct_field(values, "path").to_pylist()]


def _names(inner: list[str | None], given: list[str | None], count: int) -> list[str]:
    """Return the names of images: those given, where all are and differ; else row numbers."""
    for paths in (inner, given):
        names = [path.replace("\\", "/") for path in paths if path]
        if (
            count
            and len(names) == count
            and len(set(names)) == count
            and not any(map(_leads_out, names))
        ):
            return names
    width = max(len(str(max(count - 1, 0))), 7)
    return [f"row-{row:0{width}d}" for row in range(count)]


def _leads_out(name: str) -> bool:
    """Tell whether a name is no name below a folder, such as a path on another machine."""
    return name[0] == "/" or ":" in name[:3] or ".." in name.split("/")
