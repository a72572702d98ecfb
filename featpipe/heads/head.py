"""A fitted head: vectors in, labels and probabilities out, and where all that comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.pipeline import Pipeline

from featpipe.calibration import Calibrator, Temperature
from featpipe.conformal import Conformal, within
from featpipe.errors import HeadError
from featpipe.heads.arrays import arrays_digest, arrays_of
from featpipe.heads.neighbours import CosineNeighbours
from featpipe.heads.registry import class_scores
from featpipe.ood import Novelty
from featpipe.reference import Reference

_ROWS_AT_ONCE = 8192


@dataclass(frozen=True)
class Head:
    """A classifier on the vectors of one backbone.

    Attributes
    ----------
    name : str
        Kind of head, as on the command line.
    classes : tuple of str
        Labels, sorted; columns of `predict_proba`.
    pipeline : Pipeline
        Fitted scikit-learn pipeline on classes 0 … K-1.
    calibrator : Calibrator
        Turns scores into calibrated probabilities; see `featpipe.calibration`.
    backbone : mapping
        Card of the backbone that the vectors come from.
    parameters : mapping
        What tuning has chosen.
    class_counts : tuple of int
        Training rows of each class.
    report : mapping
        What `fit` has measured, in plain values.
    novelty : Novelty or None
        What images that are like none it was fitted on are told by; None in heads that were saved
        before there was such a thing.
    conformal : Conformal or None
        What sets of labels are made by; None in heads of a featpipe that had no sets yet.
    reference : Reference or None
        What the head says of images like its own, for `featpipe.drift`; None as above.
    """

    name: str
    classes: tuple[str, ...]
    pipeline: Pipeline
    calibrator: Calibrator
    backbone: Mapping[str, Any]
    parameters: Mapping[str, Any]
    class_counts: tuple[int, ...]
    report: Mapping[str, Any] = field(default_factory=dict)
    novelty: Novelty | None = None
    conformal: Conformal | None = None
    reference: Reference | None = None

    def __repr__(self) -> str:
        return (
            f"Head({self.name}, {len(self.classes)} classes, on {self.backbone['name']}, "
            f"fitted on {sum(self.class_counts)} images)"
        )

    @cached_property
    def classes_(self) -> NDArray[np.object_]:
        """The labels as an array, under scikit-learn's name."""
        return np.array(self.classes, dtype=object)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the backbone that the head was fitted on."""
        return str(self.backbone["fingerprint"])

    @property
    def temperature(self) -> float:
        """What scores are divided by before the calibrator does the rest, if there is a rest."""
        return self.calibrator.temperature

    @property
    def dimension(self) -> int:
        """Length of the vectors that the head reads."""
        return int(self.backbone["dimension"])

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The held-out or nested estimate that `fit` has made, in plain values."""
        metrics: Mapping[str, Any] = self.report.get("estimate", {})
        return metrics

    @cached_property
    def digest(self) -> str:
        """Digest of everything that decides a prediction: equal heads predict equally."""
        # Neighbours to ask are a parameter, and stand in no array.
        parameters = sorted(self.parameters.items())
        identity = (
            f"{self.name}\n{parameters!r}\n{self.temperature!r}\n{self.fingerprint}\n"
            f"{self.classes!r}"
        )
        if not isinstance(self.calibrator, Temperature):
            # Heads that have but a temperature keep the digest that they had before there was more.
            identity += f"\n{self.calibrator.to_json()!r}"
        if isinstance(self.pipeline[-1], CosineNeighbours):
            identity += f"\n{self.pipeline[-1].rows_digest()}"
        return arrays_digest(arrays_of(self.pipeline), identity)

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Return calibrated probabilities, (n, K) float64; rows sum to 1.

        Parameters
        ----------
        X : array-like of float, (n, D)
            Vectors of the head's backbone.

        Raises
        ------
        HeadError
            When the vectors have another length, or hold NaN or infinity.
        """
        blocks = [
            self.calibrator.probabilities(class_scores(self.pipeline, block))
            for block in self._blocks(X)
        ]
        return np.concatenate(blocks) if blocks else np.empty((0, len(self.classes)))

    def ood_scores(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Return how unlike the training images each vector is, (n,) float64; higher is stranger.

        See `featpipe.ood.Novelty.scores`; raises as `predict_proba`, and where the head has
        `novelty` None.
        """
        novelty = self.knows_strangers()
        blocks = [novelty.scores(block) for block in self._blocks(X)]
        return np.concatenate(blocks) if blocks else np.empty(0)

    def ood_p_values(self, X: ArrayLike) -> NDArray[np.float64]:  # noqa: N803
        """Return the share of known images that look as strange as each vector, (n,) in (0, 1].

        See `featpipe.ood.Novelty.p_values_of`; raises as `ood_scores`.
        """
        return self.knows_strangers().p_values_of(self.ood_scores(X))

    def knows_strangers(self) -> Novelty:
        """Return `novelty`.

        Raises
        ------
        HeadError
            When the head has none.
        """
        if self.novelty is None:
            raise HeadError(
                "the head cannot tell unknown images: it was fitted by a former featpipe, or on "
                "classes of a single image or group each; fit the head again"
            )
        return self.novelty

    def _blocks(self, X: ArrayLike) -> Iterator[NDArray[np.float32]]:  # noqa: N803
        """Yield vectors, some thousands at a time, once they have been looked at."""
        vectors = np.asarray(X)
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise HeadError(
                f"the head reads vectors of {self.dimension} numbers, (n, {self.dimension}); "
                f"it was given an array of shape {vectors.shape}"
            )
        for start in range(0, len(vectors), _ROWS_AT_ONCE):
            block = np.asarray(vectors[start : start + _ROWS_AT_ONCE], dtype=np.float32)
            bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
            if len(bad):
                raise HeadError(
                    f"vector {start + bad[0]} holds NaN or infinity: no label can be given for it; "
                    "embed the image again"
                )
            yield block

    def predict(self, X: ArrayLike) -> NDArray[np.object_]:  # noqa: N803
        """Return the likeliest label of each vector, (n,); raises as `predict_proba`.

        Of equally likely ones the first.
        """
        labels: NDArray[np.object_] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return labels

    def predict_sets(
        self,
        X: ArrayLike,  # noqa: N803
        coverage: float = 0.9,
        *,
        per_class: bool = False,
    ) -> list[tuple[str, ...]]:
        """Return the labels that each vector may have, the likeliest first.

        Of images that come as the training images did, so many sets hold the true label as
        ``coverage`` says. An empty set means that no label is likely enough: that the image is
        among the strangest. See docs/scoring.md.

        Parameters
        ----------
        X : array-like of float, (n, D)
        coverage : float
            Between 0 and 1.
        per_class : bool
            Whether the promise holds within each class, not over all images together.

        Raises
        ------
        HeadError
            As `predict_proba`; and when the head was fitted by a featpipe that had no sets.
        ValueError
            When the coverage does not lie between 0 and 1.

        References
        ----------
        Sadinle, Lei, Wasserman 2019; see `featpipe.conformal`.
        """
        limits = self.set_limits(coverage, per_class=per_class)
        probabilities = self.predict_proba(X)
        order = np.argsort(-probabilities, axis=1, kind="stable")
        belongs = np.take_along_axis(within(probabilities, limits), order, axis=1)
        return [
            tuple(self.classes[k] for k in labels[inside])
            for labels, inside in zip(order, belongs, strict=True)
        ]

    def set_limits(self, coverage: float, *, per_class: bool = False) -> NDArray[np.float64]:
        """Return how strange each label may be to be in a set, (K,); raises as `predict_sets`."""
        if self.conformal is None:
            raise HeadError(
                "the head has nothing to make sets of labels by, as a former featpipe fitted it: "
                "fit it again"
            )
        return self.conformal.limits(coverage, per_class=per_class)

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the head into a folder; see `featpipe.heads.save_head`."""
        # The reader of heads is only needed where heads are read or written.
        from featpipe.heads.persistence import save_head  # noqa: PLC0415

        return save_head(self, path)
