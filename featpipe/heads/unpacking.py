"""``model.skops`` to a pipeline: nothing in it is taken for granted.

skops checks types, not content: sizes are looked at before it is asked, its types are held
against a fixed list, and what it gives against ``head.json``.
"""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import skops.io
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer

from featpipe._files import printable
from featpipe.errors import HeadError
from featpipe.heads.arrays import arrays_of, arrays_table
from featpipe.heads.record import Record, damaged
from featpipe.heads.registry import HEADS
from featpipe.heads.soundness import find_flaw

_SLACK = 2**20
"""What a model may hold beside its arrays, unpacked."""

TRUSTED = (
    "featpipe.heads.centroid.CosineCentroid",
    "featpipe.heads.discriminant.ShrunkDiscriminant",
    "featpipe.heads.neighbours.CosineNeighbours",
)
"""The only types that are loaded beside those that skops itself trusts."""


def unpack(path: Path, model: bytes, record: Record) -> Pipeline:
    """Load the pipeline, after everything that can be checked before loading has been.

    Raises
    ------
    HeadError
        When it is damaged, or holds what is not trusted; ``path`` stands in the message.
    """
    expected = sum(_n_bytes(path, entry) for entry in record.arrays.values())
    try:
        with zipfile.ZipFile(io.BytesIO(model)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        _refuse_swollen(path, unpacked, expected + _SLACK + 1024 * len(record.arrays))
        _refuse_foreign(path, set(skops.io.get_untrusted_types(data=model)) - set(TRUSTED))
        with warnings.catch_warnings():
            # Another version of scikit-learn is said by `check_pipeline` where it matters.
            warnings.simplefilter("ignore", InconsistentVersionWarning)
            pipeline = skops.io.loads(model, trusted=list(TRUSTED))
    except HeadError:
        raise
    # A hostile archive may fail in any way on its road through zipfile, json and skops.
    except Exception as exc:
        raise damaged(path, f"it cannot be read: {type(exc).__name__}") from exc
    return pipeline


def _refuse_swollen(path: Path, unpacked: int, allowed: int) -> None:
    if unpacked > allowed:
        raise damaged(path, "it unpacks to more than its arrays need")


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
        raise damaged(path, f"its table of arrays has the dtype {printable(entry['dtype'])}")
    rows: list[int] = entry["shape"]
    return math.prod(rows) * int(dtype.itemsize)


def check_steps(path: Path, pipeline: Any, record: Record) -> None:
    """Compare the types of the steps with those of a head of this kind."""
    fresh = HEADS[record.head].pipeline(HEADS[record.head].default, 0)
    kinds = [type(step) for _, step in fresh.steps]
    if record.head == "knn" and record.rows is None:
        # Fitted before featpipe had an estimator of its own.
        kinds = [Normalizer, KNeighborsClassifier]
    if not isinstance(pipeline, Pipeline) or [type(s) for _, s in pipeline.steps] != kinds:
        raise damaged(path, f"it is not the pipeline of a head of kind {record.head}")


def check_pipeline(path: Path, pipeline: Pipeline, record: Record) -> None:
    """Compare arrays and sizes with the record, before anything is computed."""
    arrays = arrays_of(pipeline)
    if arrays_table(arrays) != record.arrays:
        raise damaged(path, "its arrays are not those that head.json lists")
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise damaged(path, f"its array {printable(name)} holds NaN or infinity")
    estimator = pipeline[-1]
    if list(getattr(estimator, "classes_", ())) != list(range(len(record.classes))):
        raise damaged(path, "its classes are not those of head.json")
    if getattr(estimator, "n_features_in_", None) != record.backbone["dimension"]:
        raise damaged(path, "it reads vectors of another length than its backbone gives")
    apart = getattr(type(estimator), "kept_apart", ())
    flaw = find_flaw(
        pipeline,
        {**arrays, **{f"head.{name}": getattr(estimator, name) for name in apart}},
        head=record.head,
        parameters=record.parameters,
        n_classes=len(record.classes),
        dimension=record.backbone["dimension"],
    )
    if flaw:
        raise damaged(path, flaw)
