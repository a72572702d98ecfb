"""From listed images to predictions, batch by batch."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice, repeat
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from featpipe._files import printable
from featpipe.backbones import Backbone, load_backbone
from featpipe.embedding import EmbeddedBatch
from featpipe.errors import BackboneError, FingerprintError
from featpipe.scoring.prediction import (
    Prediction,
    decide,
    failed_prediction,
    set_of,
    unscorable_prediction,
)
from featpipe.types import Failure, ImageRef, Vectors

if TYPE_CHECKING:
    from featpipe.heads import Head
    from featpipe.ood import Novelty

_Answer: TypeAlias = tuple[NDArray[np.floating], float | None]


class Classifier(Protocol):
    """What is asked of a head while images stream by."""

    def predict_proba(self, X: Vectors) -> NDArray[np.floating]:  # noqa: N803 - scikit-learn's name
        """Return probabilities, (n, n_classes)."""
        ...


@dataclass(frozen=True, slots=True)
class Batch:
    """Some images of the listing and their rows, aligned."""

    refs: tuple[ImageRef, ...]
    rows: tuple[Prediction, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """How probabilities become rows: the head's classes, and what was asked for.

    With ``limits``, (K,), every row has a set of labels.
    """

    classes: tuple[str, ...]
    top_k: int
    threshold: float | None
    reject: float | None = None
    limits: NDArray[np.float64] | None = None


def backbone_of(
    head: Head,
    model: str | os.PathLike[str] | Backbone | None = None,
    models_dir: str | os.PathLike[str] | None = None,
) -> Backbone:
    """Find the backbone that a head was fitted on.

    Parameters
    ----------
    model : str, path or Backbone, optional
        Where to look; by default the name that the head's card gives.
    models_dir : path, optional
        A folder that is searched for names before all others.

    Raises
    ------
    BackboneError
        When there is no such backbone here.
    FingerprintError
        When there is, but it gives other vectors than the head knows.
    """
    name = str(head.backbone["name"])
    backbone = model if isinstance(model, Backbone) else _load(name, model, models_dir)
    if backbone.fingerprint != head.fingerprint:
        raise FingerprintError(
            f"the head was fitted on vectors of {printable(name)} ({head.fingerprint[:12]}), "
            f"not of {backbone.name} ({backbone.fingerprint[:12]}, {printable(str(backbone.path))})"
            ": give the backbone that it was fitted on with --model, or fit a head on this one"
        )
    return backbone


def _load(
    name: str,
    model: str | os.PathLike[str] | None,
    models_dir: str | os.PathLike[str] | None,
) -> Backbone:
    if model is not None:
        return load_backbone(model, models_dir)
    try:
        return load_backbone(name, models_dir)
    except BackboneError as exc:
        raise BackboneError(
            f"the backbone of the head cannot be had by its name: {exc}. Name its file with --model"
        ) from exc


def predict(
    batches: Generator[EmbeddedBatch, None, None],
    classifier: Classifier,
    rule: Rule,
    *,
    group: int = 1,
    novelty: Novelty | None = None,
) -> Iterator[Batch]:
    """Classify images as they come from an engine, in order, with bounded memory.

    Where there is a ``novelty``, each row says how strange its image is.

    The head is called once for every ``group`` batches of the backbone: a call of kNN costs
    12 ms for 8 rows as for 64.
    """
    # One thread: the pools of BLAS and OpenMP would wait, spinning, beside threads that decode
    # and embed (measured for kNN: 40 ms a call, against 12).
    pools = ThreadpoolController()
    with closing(batches) as embedded:
        while some := tuple(islice(embedded, group)):
            with pools.limit(limits=1):
                rows = tuple(_rows(some, classifier, rule, novelty))
            yield Batch(tuple(ref for batch in some for ref in batch.refs), rows)


def _rows(
    batches: Sequence[EmbeddedBatch], classifier: Classifier, rule: Rule, novelty: Novelty | None
) -> list[Prediction]:
    vectors = np.concatenate([batch.vectors for batch in batches])
    # A head gives a label to NaN, too: such vectors are sorted out before it sees them.
    sound = np.asarray(np.isfinite(vectors).all(axis=1))
    found = _answers(vectors[sound], classifier, novelty)
    # An image has a vector, in order, exactly where it has not failed.
    has_answer = iter(sound)
    return [
        _row(ref, failure, found if failure is None and next(has_answer) else None, rule)
        for batch in batches
        for ref, failure in zip(batch.refs, batch.failures, strict=True)
    ]


def _answers(
    vectors: Vectors, classifier: Classifier, novelty: Novelty | None
) -> Iterator[_Answer]:
    """Yield the probabilities of each vector, and how many known images look as strange."""
    if not len(vectors):
        return iter(())
    probabilities = classifier.predict_proba(vectors)
    p_values = repeat(None) if novelty is None else novelty.p_values(vectors).tolist()
    return zip(probabilities, p_values, strict=False)


def _row(
    ref: ImageRef, failure: Failure | None, found: Iterator[_Answer] | None, rule: Rule
) -> Prediction:
    if failure is not None:
        return failed_prediction(ref.path, failure)
    if found is None:
        return unscorable_prediction(ref.path)
    probabilities, ood_p = next(found)
    row = decide(
        ref.path,
        probabilities,
        rule.classes,
        top_k=rule.top_k,
        threshold=rule.threshold,
        ood_p=ood_p,
        reject=rule.reject,
    )
    if rule.limits is None:
        return row
    return replace(row, label_set=set_of(probabilities, rule.classes, rule.limits))
