"""What a saved head says of its own fit, read with care: the file may come from anybody."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featpipe.errors import HeadError
from featpipe.heads import Head
from featpipe.model_selection import METHODS


@dataclass(frozen=True, slots=True)
class Recorded:
    """What `fit` was asked for, and what it has written down.

    Attributes
    ----------
    target, seed, cv, tune, calibration, check : as of `featpipe.fit`
    in_passes : bool
        Whether vectors were read from the store in passes.
    notes : tuple of str
    keys : frozenset of str
        Short keys of the images that were learnt on.
    baselines, calibrated : mapping or None
        As in ``Head.report["baselines"]`` and ``["calibration"]``.
    """

    target: str | None
    seed: int
    cv: int
    tune: bool
    calibration: str
    check: bool
    in_passes: bool
    notes: tuple[str, ...]
    keys: frozenset[str]
    baselines: Mapping[str, Any] | None
    calibrated: Mapping[str, Any] | None


def read_record(head: Head) -> Recorded:
    """Return what a head's report says.

    Raises
    ------
    HeadError
        When it is none of `fit`.
    """
    try:
        return _read(head.report)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as exc:
        raise HeadError(
            f"what the head says of its own fit cannot be read ({type(exc).__name__}): its "
            "head.json was edited or is damaged; fit it again"
        ) from exc


def _read(report: Mapping[str, Any]) -> Recorded:
    # Heads that were saved before options were written down tell them by what came of them.
    options = {
        "target": report.get("target"),
        "seed": report.get("seed", 0),
        "cv": report.get("folds", 5),
        "tune": len(report.get("tuning", ())) != 1,
        "check": report.get("quality") is not None,
        "calibration": "temperature",
        "stream": False,
        **report.get("options", {}),
    }
    target, calibration = options["target"], options["calibration"]
    if not (target is None or isinstance(target, str)) or calibration not in METHODS:
        raise ValueError("an option of another kind")
    return Recorded(
        target=target,
        seed=max(0, int(options["seed"])),
        cv=min(100, max(2, int(options["cv"]))),
        tune=bool(options["tune"]),
        calibration=calibration,
        check=bool(options["check"]),
        in_passes=bool(options["stream"]),
        notes=tuple(str(note) for note in report.get("notes", ())),
        keys=frozenset(str(key) for key in report.get("data", {}).get("keys", ())),
        baselines=_baselines(report.get("baselines")),
        calibrated=_calibrated(report.get("calibration")),
    )


def _baselines(found: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if not found:
        return None
    return {
        "words": str(found["words"]),
        "learnt_on": int(found["learnt_on"]),
        "measured_on": int(found["measured_on"]),
        "notes": [str(note) for note in found["notes"]],
        **_share(found),
        "baselines": [{"name": str(b["name"]), **_share(b)} for b in found["baselines"]],
    }


def _share(found: Mapping[str, Any]) -> dict[str, Any]:
    low, high = found["interval_95"]
    values = [float(v) for v in (found["accuracy"], low, high)]
    if not all(0 <= v <= 1 for v in values):
        raise ValueError("no share")
    return {"accuracy": values[0], "interval_95": values[1:]}


def _calibrated(found: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if not found:
        return None
    figures = {
        when: {name: float(found[when][name]) for name in ("calibration_error", "log_loss")}
        for when in ("before", "after")
    }
    if not all(math.isfinite(v) for of in figures.values() for v in of.values()):
        raise ValueError("no figure")
    return {"method": str(found["method"]), "considered": len(found["log_loss"]), **figures}
