"""A head's folder: ``head.json`` says what it is, ``model.skops`` holds the estimator.

The rows of nearest neighbours have a file of their own, see `featpipe.heads.rowfile`, and so has
what strange images are told by, see `featpipe.heads.noveltyfile`. No pickle is read or written.
What is loaded is checked against ``head.json`` before it is used: bytes, size, types (a fixed
list), names, dtypes and shapes of all arrays, finiteness, and a digest of their contents. skops
checks types, not content.
"""

from __future__ import annotations

import errno
import hashlib
import os
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import skops.io
from numpy.typing import NDArray

from featpipe import __version__
from featpipe._files import (
    atomic_file,
    content_key,
    lock,
    make_folder,
    printable,
    refuse_address,
    write_error,
    write_json,
)
from featpipe.calibration import Temperature
from featpipe.errors import HeadError
from featpipe.heads.arrays import arrays_of, arrays_table
from featpipe.heads.entries import NoveltyEntry, RowsEntry
from featpipe.heads.head import Head
from featpipe.heads.noveltyfile import (
    is_novelty_file,
    read_novelty,
    remove_other_novelties,
    write_novelty,
)
from featpipe.heads.record import FORMAT, KIND, METHODS, Record, damaged, read_record
from featpipe.heads.rowfile import (
    attach_rows,
    is_rows_file,
    map_rows,
    remove_other_rows,
    without_rows,
    write_rows,
)
from featpipe.heads.unpacking import check_pipeline, check_steps, unpack
from featpipe.ood import Novelty
from featpipe.types import Key

RECORD, MODEL, STAGED = "head.json", "model.skops", "head.json.next"
LOCK, _LOCK_SECONDS = ".lock", 30.0
MAX_BYTES = 2**31
_READINGS = 8


def save_head(head: Head, path: str | os.PathLike[str]) -> Path:
    """Write a head into a folder, replacing a head that is there.

    The order makes it safe to die anywhere: rows, where there are any, get files that are
    named after their contents; the new record is staged, the model replaced, the record put in
    place; the files of the former head go last. A reader that meets a new model and an old
    record takes the staged one.

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
    model = skops.io.dumps(without_rows(head.pipeline), compression=zipfile.ZIP_DEFLATED)
    what = f"the head {path}"
    with lock(folder / LOCK, what=what, timeout=_LOCK_SECONDS, remove=True):
        _finish_former(folder)
        rows = write_rows(folder, head.pipeline)
        novelty = write_novelty(folder, head.novelty)
        write_json(folder / STAGED, _record(head, model, rows, novelty))
        with atomic_file(folder / MODEL) as file:
            file.write(model)
        os.replace(folder / STAGED, folder / RECORD)
        remove_other_rows(folder, rows)
        remove_other_novelties(folder, novelty)
    return folder


def _finish_former(folder: Path) -> None:
    """Put a staged record in place whose model is there: it is the only one that fits it."""
    try:
        record = _record_if_there(folder / STAGED)
        belongs = record is not None and _belongs(record, _read_model(folder / MODEL))
    except HeadError:
        return
    if belongs:
        os.replace(folder / STAGED, folder / RECORD)


def _refuse_strangers(folder: Path) -> None:
    ours = {RECORD, MODEL, STAGED, LOCK}
    strangers = [p.name for p in folder.iterdir() if p.name not in ours]
    known = is_rows_file, is_novelty_file, lambda name: name.endswith(".tmp")
    strangers = [name for name in strangers if not any(is_ours(name) for is_ours in known)]
    if strangers and not (folder / RECORD).exists():
        raise HeadError(
            f"{printable(str(folder))} holds other things (such as {printable(strangers[0])}) and "
            "is no head: give an empty or new folder with -o"
        )


def _record(
    head: Head, model: bytes, rows: RowsEntry | None, novelty: NoveltyEntry | None
) -> dict[str, Any]:
    return {
        "kind": KIND,
        "format": _format(head, rows),
        "head": head.name,
        "classes": list(head.classes),
        "class_counts": list(head.class_counts),
        "parameters": dict(head.parameters),
        "temperature": head.temperature,
        **_calibration(head),
        "backbone": dict(head.backbone),
        "model": {
            "bytes": len(model),
            "digest": content_key(model).hex(),
            "contents": head.digest,
            "arrays": arrays_table(arrays_of(head.pipeline)),
        },
        **({} if rows is None else {"rows": rows.to_json()}),
        **({} if novelty is None else {"novelty": novelty.to_json()}),
        **_further(head),
        "report": dict(head.report),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "featpipe": __version__,
            **{name: version(name) for name in ("scikit-learn", "numpy", "skops")},
        },
    }


def _format(head: Head, rows: RowsEntry | None) -> int:
    """Return the lowest that has all of the head: a former featpipe reads what it can."""
    if not isinstance(head.calibrator, Temperature):
        return FORMAT
    return 1 if rows is None else 2


def _calibration(head: Head) -> dict[str, Any]:
    simple = isinstance(head.calibrator, Temperature)
    return {} if simple else {"calibration": head.calibrator.to_json()}


def _further(head: Head) -> dict[str, Any]:
    """Return what a former featpipe does not look at, and reads the head without."""
    parts = {"conformal": head.conformal, "reference": head.reference}
    return {
        name: {"method": METHODS[name], **part.to_json()}
        for name, part in parts.items()
        if part is not None
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
    whole = _whole(folder)
    record = whole.record
    pipeline = unpack(folder / MODEL, whole.model, record)
    check_steps(folder / MODEL, pipeline, record)
    if record.rows is not None and whole.rows is not None:
        attach_rows(folder, pipeline[-1], whole.rows, record.rows)
    check_pipeline(folder / MODEL, pipeline, record)
    head = Head(
        name=record.head,
        classes=record.classes,
        pipeline=pipeline,
        calibrator=record.calibrator,
        backbone=record.backbone,
        parameters=record.parameters,
        class_counts=record.class_counts,
        report=record.report,
        novelty=whole.novelty,
        conformal=record.conformal,
        reference=record.reference,
    )
    if head.digest != record.contents:
        raise damaged(folder / MODEL, "its contents are not those that were written")
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
class _Whole:
    """What lies in the files of one head."""

    record: Record
    model: bytes
    rows: NDArray[Any] | None
    novelty: Novelty | None


def _whole(folder: Path) -> _Whole:
    """Return what lies in the files of one head, though another may be saved over it."""
    for _ in range(_READINGS):
        record, model = _matching(folder)
        try:
            rows = None if record.rows is None else map_rows(folder, record.rows)
            novelty = None if record.novelty is None else read_novelty(folder, record.novelty)
        except FileNotFoundError as exc:
            missing = damaged(Path(exc.filename), "the file is missing")
        else:
            return _Whole(record, model, rows, novelty)
    raise missing


def _matching(folder: Path) -> tuple[Record, bytes]:
    """Return the record that belongs to the model, and the model's bytes."""
    # Another process may be saving right now: what changes between two readings is read again.
    for _ in range(_READINGS):
        model = _read_model(folder / MODEL)
        for name in (RECORD, STAGED):
            record = _record_if_there(folder / name)
            if record is not None and _belongs(record, model):
                return record, model
    raise damaged(folder / MODEL, f"it is not the file that {RECORD} describes")


def _belongs(record: Record, model: bytes) -> bool:
    """Tell whether a record describes these very bytes."""
    return (record.digest, record.n_bytes) == (content_key(model).hex(), len(model))


def _record_if_there(path: Path) -> Record | None:
    # Not asked for first: a writer may rename it between a question and the reading.
    try:
        return read_record(path)
    except HeadError as exc:
        if isinstance(exc.__cause__, FileNotFoundError):
            return None
        raise


def _read_model(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise damaged(path, "it is larger than any head")
        return path.read_bytes()
    except OSError as exc:
        raise HeadError(f"cannot read {printable(str(path))}: {exc.strerror or exc}") from exc


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
    refuse_address(folder)
    if folder.is_dir():
        _refuse_strangers(folder)
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    code = 0 if os.access(there, os.W_OK) else errno.EACCES
    if not there.is_dir():
        code = errno.EEXIST if there == folder else errno.ENOTDIR
    if code:
        raise write_error(folder, OSError(code, os.strerror(code)))
