"""A bundle beside the head that it was made of, on the same pictures.

The reference is scikit-learn on the vectors of the very backbone that is inside, from squares
that featpipe's own resize has made. So what is compared is all that the bundle adds: resize
and crop, head, calibration, labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from featpipe._files import first_line
from featpipe._machine import usable_cores
from featpipe.backbones.contract import EMBEDDING, INPUT
from featpipe.backbones.onnx_session import CPU
from featpipe.backbones.quantize import Runner
from featpipe.bundling.assemble import STRANGE, Parts
from featpipe.bundling.graph import valid_text
from featpipe.errors import BundleError
from featpipe.images import square_of
from featpipe.ood import Novelty
from featpipe.types import Pixels, Vectors

MOST_APART = 1e-4
"""How far a probability may be from scikit-learn's."""
MOST_APART_STRANGE = 5e-3
"""How far an out-of-distribution score may be from featpipe's: it is a logarithm."""
_NAMES = ["label", "label_index", "probabilities", EMBEDDING]
_BATCHES = (2, 3)
_CORNER = 512
_TIED = 1e-6
_STEPS = 2.5
"""By fewer steps than this a p-value may be another: so many calibration scores may be equal."""

Numbers = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two ways to classify the same pictures agree.

    Attributes
    ----------
    images : int
    labels_equal : int
    largest_difference : float
        Of any two probabilities.
    strangeness : float or None
        The largest difference of out-of-distribution scores; None where the head has none.
    """

    images: int
    labels_equal: int
    largest_difference: float
    strangeness: float | None = None

    @classmethod
    def of(cls, expected: Numbers, found: Numbers, classes: Ints | None = None) -> Agreement:
        """Compare probabilities, (n, K) each; ``classes`` are those that were found likeliest."""
        likeliest = found.argmax(axis=1) if classes is None else classes
        same = int((expected.argmax(axis=1) == likeliest).sum())
        return cls(len(expected), same, float(np.abs(expected - found).max(initial=0.0)))

    @property
    def holds(self) -> bool:
        """Whether all labels are equal and no number is further apart than it may be."""
        return (
            self.labels_equal == self.images
            and self.largest_difference <= MOST_APART
            and (self.strangeness is None or self.strangeness <= MOST_APART_STRANGE)
        )

    def __str__(self) -> str:
        said = (
            f"{self.labels_equal} of {self.images} labels equal, probabilities within "
            f"{self.largest_difference:.1g}"
        )
        if self.strangeness is None:
            return said
        return f"{said}, out-of-distribution scores within {self.strangeness:.1g}"


def squares(pictures: Sequence[Pixels], parts: Parts) -> Pixels:
    """Return what the backbone reads of pictures of any size, uint8 (n, crop, crop, 3)."""
    return np.stack([square_of(picture, parts.card.resize) for picture in pictures])


def verify(data: bytes, parts: Parts, pictures: Sequence[Pixels]) -> Agreement:
    """Compare a bundle with scikit-learn's head, picture by picture and in batches.

    Raises
    ------
    BundleError
        When ONNX Runtime cannot run the bundle, or its label is not its likeliest class.
    """
    session = _session(data, parts.card.name)
    ready = squares(pictures, parts)
    vectors = embedded(parts.backbone, ready)
    expected = parts.head.predict_proba(vectors)
    handed = pictures if parts.with_resize else list(ready)
    answers = [_run(session, picture[None], parts) for picture in handed]
    found, classes, strange = (np.concatenate(column) for column in zip(*answers, strict=True))
    _check_batches(session, handed[0], parts)
    agreement = Agreement.of(expected, found, classes)
    if parts.head.novelty is None:
        return agreement
    return replace(agreement, strangeness=_strangeness(strange, vectors, parts.head.novelty))


def _check_batches(session: onnxruntime.InferenceSession, picture: Pixels, parts: Parts) -> None:
    """Raise where a picture, uint8 (H, W, 3), is another one among its equals."""
    # A corner will do: a batch of large pictures would not fit into memory.
    part = picture[:_CORNER, :_CORNER] if parts.with_resize else picture
    alone = _run(session, part[None], parts)[0]
    for n in _BATCHES:
        several = np.repeat(part[None], n, axis=0)
        if not np.abs(_run(session, several, parts)[0] - alone).max() <= MOST_APART:
            raise BundleError(
                f"the bundle of {parts.card.name} gives a picture other probabilities in a batch "
                f"of {n}: nothing was written; its backbone mixes the images of a batch"
            )


def _strangeness(found: Numbers, vectors: Vectors, novelty: Novelty) -> float:
    """Return how far scores and p-values, (n, 2), are from featpipe's at most.

    A p-value counts as far as its score where another score would explain it.
    """
    scores, p_values = found.T.astype(np.float64)
    apart = float(np.abs(scores - novelty.scores(vectors)).max())
    # A score that is a calibration score but for its last digit may be counted on either side.
    steps = np.abs(p_values - novelty.p_values_of(scores)) / novelty.smallest_p
    return apart if steps.max() < _STEPS else float("inf")


def embedded(backbone: bytes, ready: Pixels) -> Vectors:
    """Return the vectors of squares, float32 (n, D)."""
    return Runner(backbone).embed(ready)


def _session(data: bytes, name: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(data, options, providers=[CPU])
    except Exception as exc:
        # ONNX Runtime's exceptions have no public base class.
        raise BundleError(
            f"the bundle of {name} cannot be run by ONNX Runtime {onnxruntime.__version__}: "
            f"{first_line(exc)}: nothing was written"
        ) from exc


def _run(
    session: onnxruntime.InferenceSession, images: Pixels, parts: Parts
) -> tuple[Numbers, Ints, Numbers]:
    """Return probabilities, (n, K), classes, scores and p-values, (n, 2); check the labels."""
    names = [*_NAMES, *(STRANGE if parts.head.novelty is not None else ())]
    try:
        labels, classes, found, _, *strange = session.run(names, {INPUT: images})
    except Exception as exc:
        # As in `_session`.
        raise BundleError(
            f"the bundle of {parts.card.name} fails on a picture of {images.shape[2]} × "
            f"{images.shape[1]}: {first_line(exc)}: nothing was written"
        ) from exc
    texts = [valid_text(name) for name in parts.head.classes]
    # In 64 bits a class may be ahead of another by less than 32 bits can tell.
    behind = found.max(axis=1) - np.take_along_axis(found, classes[:, None], axis=1)[:, 0]
    if list(labels) != [texts[i] for i in classes] or behind.max() > _TIED:
        raise BundleError(
            f"the bundle of {parts.card.name} gives labels that are not those of its "
            "probabilities: nothing was written; please report it"
        )
    return found, classes, np.stack(strange, axis=1) if strange else np.empty((len(found), 0))
