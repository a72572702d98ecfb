"""What ``head.json`` says of arrays that have a file of their own, checked before it is used."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

from featpipe.ood import METHOD, MOST_CALIBRATION, Novelty, rows_a_class

MOST_BYTES = 2**31
"""Of a file that is read into memory whole."""


@dataclass(frozen=True, slots=True)
class RowsEntry:
    """What is said of a file of rows.

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
    def read(cls, value: Any) -> Self | None:
        """Return it from what `to_json` gave, or None where anything is amiss."""
        if not _is_rows(value):
            return None
        n, dimension = value["shape"]
        return cls(value["bytes"], value["digest"], value["dtype"], (n, dimension))


@dataclass(frozen=True, slots=True)
class NoveltyEntry:
    """What is said of what strange images are told by; see `featpipe.ood.Novelty`.

    Attributes
    ----------
    rows : RowsEntry
    counts : tuple of int
    calibration : tuple of float
    contents : str
        Digest of all of it.
    """

    rows: RowsEntry
    counts: tuple[int, ...]
    calibration: tuple[float, ...]
    contents: str

    @classmethod
    def of(cls, novelty: Novelty, rows: RowsEntry) -> Self:
        """Return the entry of a novelty whose rows have been written."""
        return cls(rows, novelty.counts, tuple(novelty.calibration.tolist()), novelty.digest)

    def to_json(self) -> dict[str, Any]:
        """Return it as ``head.json`` holds it."""
        return {
            "method": METHOD,
            "rows": self.rows.to_json(),
            "counts": list(self.counts),
            "calibration": list(self.calibration),
            "contents": self.contents,
        }

    @classmethod
    def read(cls, value: Any, *, n_classes: int, dimension: int) -> Self | None:
        """Return it from what `to_json` gave, or None where anything is amiss."""
        if not isinstance(value, dict) or value.get("method") != METHOD:
            return None
        if not isinstance(value.get("contents"), str):
            return None
        rows = RowsEntry.read(value.get("rows"))
        counts: Any = value.get("counts")
        calibration: Any = value.get("calibration")
        if rows is None or not _are_counts(counts, n_classes) or not _are_scores(calibration):
            return None
        if rows.dtype != "float32" or rows.shape != (sum(counts), dimension):
            return None
        if rows.n_bytes > MOST_BYTES:
            return None
        return cls(rows, tuple(counts), tuple(map(float, calibration)), value["contents"])


def is_of_another_method(value: Any, known: str = METHOD) -> bool:
    """Tell whether an entry is of a kind that only a later featpipe knows."""
    method = value.get("method") if isinstance(value, Mapping) else None
    return isinstance(method, str) and method != known


def is_count(value: Any) -> bool:
    """Tell whether a value is a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_rows(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and is_count(value.get("bytes"))
        and isinstance(value.get("digest"), str)
        # It becomes the name of a file.
        and re.fullmatch("[0-9a-f]{32}", value["digest"]) is not None
        and value.get("dtype") in ("float16", "float32")
        and isinstance(value.get("shape"), list)
        and len(value["shape"]) == 2
        and all(is_count(n) for n in value["shape"])
    )


def _are_counts(value: Any, n_classes: int) -> bool:
    """No class has more than its share: a score takes as much memory as the largest for each."""
    most = rows_a_class(n_classes)
    return (
        isinstance(value, list)
        and len(value) == n_classes
        and all(is_count(n) and n <= most for n in value)
    )


def _are_scores(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 1 <= len(value) <= MOST_CALIBRATION
        and all(type(score) is float and math.isfinite(score) for score in value)
        and all(a <= b for a, b in pairwise(value))
    )
