"""``head.json``: what a head says of itself, every field checked before it is believed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from featpipe import __version__
from featpipe._files import printable, read_json
from featpipe.calibration import Calibrator, Temperature, read_calibrator
from featpipe.conformal import Conformal
from featpipe.errors import HeadError
from featpipe.heads.entries import NoveltyEntry, RowsEntry, is_count, is_of_another_method
from featpipe.heads.registry import HEADS
from featpipe.reference import Reference

_T = TypeVar("_T")

KIND = "featpipe.head"
METHODS: Mapping[str, str] = {"conformal": "1 - p", "reference": "out of fold"}
"""What of entries is read that a head need not have; of another kind, by a later featpipe, they
are as good as none."""
FORMAT = 3
"""3 where a temperature is not all of the calibration, 2 where rows have a file of their own, else
1: what needs no more is written so that a former featpipe reads it, too."""


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
    novelty: NoveltyEntry | None
    conformal: Conformal | None
    reference: Reference | None


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
    if not is_count(found):
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
        rows=_rows(path, value),
        novelty=_novelty(path, value),
        conformal=_further(path, value, "conformal", Conformal.read),
        reference=_further(path, value, "reference", Reference.read),
    )


def _calibrator(path: Path, value: Mapping[str, Any]) -> Calibrator:
    temperature = float(value["temperature"])
    if "calibration" not in value:
        return Temperature(temperature)
    found = read_calibrator(value["calibration"], len(value["classes"]))
    if found is None or value["format"] < FORMAT or found.temperature != temperature:
        raise damaged(path, "its field 'calibration' is missing or amiss")
    return found


def _rows(path: Path, value: Mapping[str, Any]) -> RowsEntry | None:
    if "rows" not in value:
        return None
    found = RowsEntry.read(value["rows"]) if value["head"] == "knn" else None
    if found is None:
        raise damaged(path, "its field 'rows' is missing or amiss")
    return found


def _novelty(path: Path, value: Mapping[str, Any]) -> NoveltyEntry | None:
    # No label depends on it: what a later featpipe says there is as good as nothing.
    if "novelty" not in value or is_of_another_method(value["novelty"]):
        return None
    found = NoveltyEntry.read(
        value["novelty"],
        n_classes=len(value["classes"]),
        dimension=value["backbone"]["dimension"],
    )
    if found is None:
        raise damaged(path, "its field 'novelty' is missing or amiss")
    return found


def _further(
    path: Path, value: Mapping[str, Any], name: str, read: Callable[[Any, int], _T | None]
) -> _T | None:
    """Read what a head need not have: a former featpipe wrote none."""
    if name not in value or is_of_another_method(value[name], METHODS[name]):
        return None
    found = read(value[name], len(value["classes"]))
    if found is None:
        raise damaged(path, f"its field '{name}' is missing or amiss")
    return found


def _is_positive(value: Any) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        # Not `isfinite`, which a whole number of four hundred digits overflows.
        and 0 < value <= sys.float_info.max
    )


def _are_classes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) >= 2
        and all(isinstance(name, str) for name in value)
        and len(set(value)) == len(value)
    )


def _is_report(value: Any) -> bool:
    """Check what `evaluate` and `bundle` read of it; the rest is for people."""
    if not isinstance(value, dict) or not isinstance(value.get("target"), str | None):
        return False
    if not isinstance(value.get("estimate", {}), dict):
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


CHECKS: dict[str, Callable[[Any], bool]] = {
    "head": lambda v: isinstance(v, str) and v in HEADS,
    "classes": _are_classes,
    "class_counts": lambda v: isinstance(v, list) and all(is_count(n) for n in v),
    "parameters": lambda v: isinstance(v, dict),
    "temperature": _is_positive,
    "backbone.name": lambda v: isinstance(v, str),
    "backbone.fingerprint": lambda v: isinstance(v, str),
    "backbone.dimension": is_count,
    "model.bytes": is_count,
    "model.digest": lambda v: isinstance(v, str),
    "model.contents": lambda v: isinstance(v, str),
    "model.arrays": _is_table,
    "report": _is_report,
}


def damaged(path: Path, why: str) -> HeadError:
    """Return the error that says what is wrong with a file of a head."""
    return HeadError(f"{printable(str(path))} is damaged ({why}): fit the head again")
