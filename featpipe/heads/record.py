"""``head.json``: what a head says of itself, every field checked before it is believed."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from featpipe import __version__
from featpipe._files import printable, read_json
from featpipe.calibration import Calibrator, Temperature, read_calibrator
from featpipe.errors import HeadError
from featpipe.heads.registry import HEADS

KIND = "featpipe.head"
FORMAT = 3
"""3 where a temperature is not all of the calibration, 2 where rows have a file of their own, else
1: what needs no more is written so that a former featpipe reads it, too."""


@dataclass(frozen=True, slots=True)
class RowsEntry:
    """What is said of the file of rows.

    Attributes
    ----------
    n_bytes : int
        Size of the file.
    digest : str
        Of dtype, shape and numbers; the file is named after it.
    dtype : str
        float16 or float32.
    shape : tuple of int
        (n, D).
    """

    n_bytes: int
    digest: str
    dtype: str
    shape: tuple[int, int]

    def to_json(self) -> dict[str, Any]:
        """Return it as ``head.json`` holds it."""
        return {
            "bytes": self.n_bytes,
            "digest": self.digest,
            "dtype": self.dtype,
            "shape": list(self.shape),
        }

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> Self:
        """Return it from what `to_json` gave, once that has been checked."""
        n, dimension = value["shape"]
        return cls(value["bytes"], value["digest"], value["dtype"], (n, dimension))


@dataclass(frozen=True, slots=True)
class Record:
    """``head.json``, every field checked."""

    head: str
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    parameters: Mapping[str, Any]
    calibrator: Calibrator
    backbone: Mapping[str, Any]
    n_bytes: int
    digest: str
    contents: str
    arrays: Mapping[str, Mapping[str, Any]]
    report: Mapping[str, Any]
    rows: RowsEntry | None


def read_record(path: Path) -> Record:
    """Read ``head.json``.

    Raises
    ------
    HeadError
        When it cannot be read, a field is missing or amiss, or a newer featpipe wrote it.
    """
    value = read_json(path, HeadError)
    if value.get("kind") != KIND:
        raise damaged(path, "its field 'kind' is missing or amiss")
    found: Any = value.get("format")
    if not _is_count(found):
        raise damaged(path, "its field 'format' is missing or amiss")
    if found > FORMAT:
        raise HeadError(
            f"{printable(str(path.parent))} has format {found}, written by a newer featpipe; this "
            f"one ({__version__}) reads up to {FORMAT}: upgrade featpipe"
        )
    for field, check in CHECKS.items():
        inner: Any = value
        for name in field.split("."):
            inner = inner.get(name) if isinstance(inner, dict) else None
        if not check(inner):
            raise damaged(path, f"its field '{field}' is missing or amiss")
    if len(value["class_counts"]) != len(value["classes"]):
        raise damaged(path, "its field 'class_counts' is missing or amiss")
    if "rows" in value and (value["head"] != "knn" or not _is_rows(value["rows"])):
        raise damaged(path, "its field 'rows' is missing or amiss")
    model = value["model"]
    return Record(
        head=value["head"],
        classes=tuple(value["classes"]),
        class_counts=tuple(value["class_counts"]),
        parameters=value["parameters"],
        calibrator=_calibrator(path, value),
        backbone=value["backbone"],
        n_bytes=model["bytes"],
        digest=model["digest"],
        contents=model["contents"],
        arrays=model["arrays"],
        report=value["report"],
        rows=RowsEntry.read(value["rows"]) if "rows" in value else None,
    )


def _calibrator(path: Path, value: Mapping[str, Any]) -> Calibrator:
    temperature = float(value["temperature"])
    if "calibration" not in value:
        return Temperature(temperature)
    found = read_calibrator(value["calibration"], len(value["classes"]))
    if found is None or value["format"] < FORMAT or found.temperature != temperature:
        raise damaged(path, "its field 'calibration' is missing or amiss")
    return found


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


def _is_rows(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_count(value.get("bytes"))
        and isinstance(value.get("digest"), str)
        # It becomes the name of a file.
        and re.fullmatch("[0-9a-f]{32}", value["digest"]) is not None
        and value.get("dtype") in ("float16", "float32")
        and isinstance(value.get("shape"), list)
        and len(value["shape"]) == 2
        and all(_is_count(n) for n in value["shape"])
    )


CHECKS: dict[str, Callable[[Any], bool]] = {
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


def damaged(path: Path, why: str) -> HeadError:
    """Return the error that says what is wrong with a file of a head."""
    return HeadError(f"{printable(str(path))} is damaged ({why}): fit the head again")
