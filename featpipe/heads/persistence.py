"""A head's folder: ``head.json`` says what it is, ``model.skops`` holds the estimator.

No pickle is read or written. What is loaded is checked against ``head.json`` before it is
used: bytes, size, types (a fixed list), names, dtypes and shapes of all arrays, finiteness,
and a digest of their contents. skops checks types, not content.
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import skops.io
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.pipeline import Pipeline

from featpipe import __version__
from featpipe._files import (
    atomic_file,
    content_key,
    lock,
    make_folder,
    printable,
    read_json,
    write_error,
    write_json,
)
from featpipe.errors import HeadError
from featpipe.heads.arrays import arrays_of, arrays_table
from featpipe.heads.head import Head
from featpipe.heads.registry import HEADS
from featpipe.heads.soundness import find_flaw
from featpipe.types import Key

FORMAT = 1
KIND = "featpipe.head"
RECORD, MODEL, STAGED = "head.json", "model.skops", "head.json.next"
LOCK, _LOCK_SECONDS = ".lock", 30.0
MAX_BYTES = 2**31
_READINGS = 3
_SLACK = 2**20
"""What a model may hold beside its arrays, unpacked."""

TRUSTED = (
    "featpipe.heads.neighbours.CosineNeighbours",
    "featpipe.heads.centroid.CosineCentroid",
    "featpipe.heads.discriminant.ShrunkDiscriminant",
)
"""The only types that are loaded beside those that skops itself trusts."""


def save_head(head: Head, path: str | os.PathLike[str]) -> Path:
    """Write a head into a folder, replacing a head that is there.

    The order makes it safe to die anywhere: the new record is staged, the model replaced, the
    record put in place; a reader that meets a new model and an old record takes the staged one.

    Raises
    ------
    WriteError
        When the operating system refuses to write.
    LockedError
        When another process writes there for longer than half a minute.
    HeadError
        When the folder holds other things.
    """
    folder = Path(path)
    make_folder(folder)
    _refuse_strangers(folder)
    model = skops.io.dumps(head.pipeline, compression=zipfile.ZIP_DEFLATED)
    what = f"the head {path}"
    with lock(folder / LOCK, what=what, timeout=_LOCK_SECONDS, remove=True):
        write_json(folder / STAGED, _record(head, model))
        with atomic_file(folder / MODEL) as file:
            file.write(model)
        os.replace(folder / STAGED, folder / RECORD)
    return folder


def _refuse_strangers(folder: Path) -> None:
    ours = {RECORD, MODEL, STAGED, LOCK}
    strangers = [p.name for p in folder.iterdir() if p.name not in ours]
    strangers = [name for name in strangers if not name.endswith(".tmp")]
    if strangers and not (folder / RECORD).exists():
        raise HeadError(
            f"{printable(str(folder))} holds other things (such as {printable(strangers[0])}) and "
            "is no head: give an empty or new folder with -o"
        )


def _record(head: Head, model: bytes) -> dict[str, Any]:
    return {
        "kind": KIND,
        "format": FORMAT,
        "head": head.name,
        "classes": list(head.classes),
        "class_counts": list(head.class_counts),
        "parameters": dict(head.parameters),
        "temperature": head.temperature,
        "backbone": dict(head.backbone),
        "model": {
            "bytes": len(model),
            "digest": content_key(model).hex(),
            "contents": head.digest,
            "arrays": arrays_table(arrays_of(head.pipeline)),
        },
        "report": dict(head.report),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "featpipe": __version__,
            **{name: version(name) for name in ("scikit-learn", "numpy", "skops")},
        },
    }


def load_head(path: str | os.PathLike[str]) -> Head:
    """Read a head that `Head.save` has written.

    Raises
    ------
    HeadError
        When the folder is no head, is damaged, was written by a newer featpipe, or holds what
        is not trusted. The message names file and field.
    """
    folder = Path(path)
    if not (folder / RECORD).exists() and not (folder / STAGED).exists():
        raise HeadError(
            f"{printable(str(folder))} is not a head of featpipe: it has no {RECORD}; "
            "make one with: featpipe fit"
        )
    record, model = _matching(folder)
    pipeline = _unpack(folder / MODEL, model, record)
    head = Head(
        name=record.head,
        classes=record.classes,
        pipeline=pipeline,
        temperature=record.temperature,
        backbone=record.backbone,
        parameters=record.parameters,
        class_counts=record.class_counts,
        report=record.report,
    )
    if head.digest != record.contents:
        raise _damaged(folder / MODEL, "its contents are not those that were written")
    return head


def newest_head(folder: str | os.PathLike[str] = "heads") -> Path:
    """Return the head in ``folder`` that was written last.

    Raises
    ------
    HeadError
        When there is none.
    """
    found = [(path.stat().st_mtime_ns, path.parent) for path in Path(folder).glob(f"*/{RECORD}")]
    if not found:
        raise HeadError(
            f"there is no head under {printable(str(folder))}/: make one with `featpipe fit`, "
            "or name it with --head"
        )
    return max(found)[1]


@dataclass(frozen=True, slots=True)
class _Record:
    """``head.json``, every field checked."""

    head: str
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    parameters: Mapping[str, Any]
    temperature: float
    backbone: Mapping[str, Any]
    n_bytes: int
    digest: str
    contents: str
    arrays: Mapping[str, Mapping[str, Any]]
    report: Mapping[str, Any]


def _matching(folder: Path) -> tuple[_Record, bytes]:
    """Return the record that belongs to the model, and the model's bytes."""
    # Another process may be saving right now: what changes between two readings is read again.
    for _ in range(_READINGS):
        model = _read_model(folder / MODEL)
        digest = content_key(model).hex()
        for name in (RECORD, STAGED):
            record = _record_if_there(folder / name)
            if record is not None and (record.digest, record.n_bytes) == (digest, len(model)):
                return record, model
    raise _damaged(folder / MODEL, f"it is not the file that {RECORD} describes")


def _record_if_there(path: Path) -> _Record | None:
    return _read_record(path) if path.exists() else None


def _read_model(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _damaged(path, "it is larger than any head")
        return path.read_bytes()
    except OSError as exc:
        raise HeadError(f"cannot read {printable(str(path))}: {exc.strerror or exc}") from exc


def _read_record(path: Path) -> _Record:
    value = read_json(path, HeadError)
    if value.get("kind") != KIND:
        raise _damaged(path, "its field 'kind' is missing or amiss")
    found: Any = value.get("format")
    if not _is_count(found):
        raise _damaged(path, "its field 'format' is missing or amiss")
    if found > FORMAT:
        raise HeadError(
            f"{printable(str(path.parent))} has format {found}, written by a newer featpipe; this "
            f"one ({__version__}) reads up to {FORMAT}: upgrade featpipe"
        )
    for field, check in _CHECKS.items():
        inner: Any = value
        for name in field.split("."):
            inner = inner.get(name) if isinstance(inner, dict) else None
        if not check(inner):
            raise _damaged(path, f"its field '{field}' is missing or amiss")
    if len(value["class_counts"]) != len(value["classes"]):
        raise _damaged(path, "its field 'class_counts' is missing or amiss")
    model = value["model"]
    return _Record(
        head=value["head"],
        classes=tuple(value["classes"]),
        class_counts=tuple(value["class_counts"]),
        parameters=value["parameters"],
        temperature=float(value["temperature"]),
        backbone=value["backbone"],
        n_bytes=model["bytes"],
        digest=model["digest"],
        contents=model["contents"],
        arrays=model["arrays"],
        report=value["report"],
    )


def _is_positive(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        # Not `isfinite`, which a whole number of four hundred digits overflows.
        and 0 < value <= sys.float_info.max
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and _is_positive(value)


def _are_classes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) >= 2
        and all(isinstance(name, str) for name in value)
        and len(set(value)) == len(value)
    )


def _is_report(value: Any) -> bool:
    """Check what `evaluate` reads of it; the rest is for people."""
    if not isinstance(value, dict) or not isinstance(value.get("target"), str | None):
        return False
    data = value.get("data", {})
    keys = data.get("keys", []) if isinstance(data, dict) else None
    return isinstance(keys, list) and all(isinstance(key, str) for key in keys)


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(entry, dict)
        and isinstance(entry.get("dtype"), str)
        and isinstance(entry.get("shape"), list)
        and all(isinstance(n, int) and n >= 0 for n in entry["shape"])
        for entry in value.values()
    )


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "head": lambda v: isinstance(v, str) and v in HEADS,
    "classes": _are_classes,
    "class_counts": lambda v: isinstance(v, list) and all(_is_count(n) for n in v),
    "parameters": lambda v: isinstance(v, dict),
    "temperature": _is_positive,
    "backbone.name": lambda v: isinstance(v, str),
    "backbone.fingerprint": lambda v: isinstance(v, str),
    "backbone.dimension": _is_count,
    "model.bytes": _is_count,
    "model.digest": lambda v: isinstance(v, str),
    "model.contents": lambda v: isinstance(v, str),
    "model.arrays": _is_table,
    "report": _is_report,
}


def _unpack(path: Path, model: bytes, record: _Record) -> Pipeline:
    """Load the pipeline, after everything that can be checked before loading has been."""
    expected = sum(_n_bytes(path, entry) for entry in record.arrays.values())
    try:
        with zipfile.ZipFile(io.BytesIO(model)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        _refuse_swollen(path, unpacked, expected + _SLACK + 1024 * len(record.arrays))
        _refuse_foreign(path, set(skops.io.get_untrusted_types(data=model)) - set(TRUSTED))
        with warnings.catch_warnings():
            # Another version of scikit-learn is said by `_check_arrays` where it matters.
            warnings.simplefilter("ignore", InconsistentVersionWarning)
            pipeline = skops.io.loads(model, trusted=list(TRUSTED))
    except HeadError:
        raise
    # A hostile archive may fail in any way on its road through zipfile, json and skops.
    except Exception as exc:
        raise _damaged(path, f"it cannot be read: {type(exc).__name__}") from exc
    _check_pipeline(path, pipeline, record)
    return pipeline


def _refuse_swollen(path: Path, unpacked: int, allowed: int) -> None:
    if unpacked > allowed:
        raise _damaged(path, "it unpacks to more than its arrays need")


def _refuse_foreign(path: Path, types: set[str]) -> None:
    if types:
        raise HeadError(
            f"{printable(str(path))} holds the type {printable(min(types))}, which is not "
            "trusted: use only heads that featpipe has written"
        )


def _n_bytes(path: Path, entry: Mapping[str, Any]) -> int:
    try:
        dtype = np.dtype(entry["dtype"])
    except (TypeError, ValueError, SyntaxError):
        dtype = np.dtype(object)
    if dtype.hasobject:
        raise _damaged(path, f"its table of arrays has the dtype {printable(entry['dtype'])}")
    rows: list[int] = entry["shape"]
    return math.prod(rows) * int(dtype.itemsize)


def _check_pipeline(path: Path, pipeline: Any, record: _Record) -> None:
    """Compare types, arrays and sizes with the record, before anything is computed."""
    fresh = HEADS[record.head].pipeline(HEADS[record.head].default, 0)
    kinds = [type(step) for _, step in fresh.steps]
    if not isinstance(pipeline, Pipeline) or [type(s) for _, s in pipeline.steps] != kinds:
        raise _damaged(path, f"it is not the pipeline of a head of kind {record.head}")
    arrays = arrays_of(pipeline)
    if arrays_table(arrays) != record.arrays:
        raise _damaged(path, "its arrays are not those that head.json lists")
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise _damaged(path, f"its array {printable(name)} holds NaN or infinity")
    estimator = pipeline[-1]
    if list(getattr(estimator, "classes_", ())) != list(range(len(record.classes))):
        raise _damaged(path, "its classes are not those of head.json")
    if getattr(estimator, "n_features_in_", None) != record.backbone["dimension"]:
        raise _damaged(path, "it reads vectors of another length than its backbone gives")
    flaw = find_flaw(
        pipeline,
        arrays,
        head=record.head,
        parameters=record.parameters,
        n_classes=len(record.classes),
        dimension=record.backbone["dimension"],
    )
    if flaw:
        raise _damaged(path, flaw)


def _damaged(path: Path, why: str) -> HeadError:
    return HeadError(f"{printable(str(path))} is damaged ({why}): fit the head again")


def data_digest(keys: list[bytes], labels: list[str]) -> str:
    """Return a digest of what a head was fitted on: contents and labels, in any order."""
    digest = hashlib.blake2b(digest_size=16)
    for key, label in sorted(zip(keys, labels, strict=True)):
        digest.update(key)
        digest.update(label.encode("utf-8", "backslashreplace") + b"\0")
    return digest.hexdigest()


def short_key(key: Key) -> str:
    """Return the half of a content's key, in hexadecimal digits, that a head remembers."""
    return key[:8].hex()


def check_head_folder(path: str | os.PathLike[str]) -> None:
    """Raise now what `save_head` would raise after the work; makes nothing.

    Raises
    ------
    WriteError, HeadError
        As `save_head`.
    """
    folder = Path(path)
    if folder.is_dir():
        _refuse_strangers(folder)
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    code = 0 if os.access(there, os.W_OK) else errno.EACCES
    if not there.is_dir():
        code = errno.EEXIST if there == folder else errno.ENOTDIR
    if code:
        raise write_error(folder, OSError(code, os.strerror(code)))
