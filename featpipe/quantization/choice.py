"""Which way to calibrate, and which layers to leave in float: chosen by measurement.

Labels are not needed: a variant is as good as the cosine between its vectors and those of the
float model, on images that it was not calibrated with. `docs/quantisation.md` shows what
accuracy goes with what cosine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx

from featpipe.backbones.quantize import (
    METHODS,
    Activations,
    Layer,
    Prepared,
    Runner,
    quantize_int8,
    rank_layers,
)
from featpipe.backbones.quantize.sensitivity import cosines
from featpipe.quantization.report import Variant
from featpipe.quantization.sample import Sample
from featpipe.types import Progress, ProgressCallback, Vectors

AIM = 0.995
"""Mean cosine at which no more layers are taken back to float."""
LADDER = (0, 2, 4, 8)
"""How many layers are tried in float, the dearest first."""
_TO_RANK = 8
"""Images on which the layers are ranked."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The variant that was chosen, and all that were tried."""

    model: onnx.ModelProto
    variant: Variant
    float_layers: tuple[Layer, ...]
    tried: tuple[Variant, ...]


class Chooser:
    """Builds variants of one model from one observation, and measures each."""

    def __init__(
        self,
        prepared: Prepared,
        activations: Activations,
        sample: Sample,
        embed: Callable[..., Vectors],
        progress: ProgressCallback | None = None,
    ) -> None:
        self._prepared, self._activations, self._sample = prepared, activations, sample
        self._embed, self._progress = embed, progress
        self._expected = embed(sample.held)
        self._tried: list[Variant] = []

    def choose(self, method: str, float_layers: int | None) -> Chosen:
        """Return the best variant.

        Parameters
        ----------
        method : str
            One of `METHODS`, or "auto" for the one with the highest mean cosine.
        float_layers : int or None
            So many of the dearest layers stay in float; None: as few of `LADDER` as reach
            `AIM`, or as many as come nearest.
        """
        methods = METHODS if method == "auto" else (method,)
        best = self._best_method(methods)
        if float_layers == 0 or (float_layers is None and best.variant.cosine_mean >= AIM):
            return best
        ranked = self._ranked(best.variant.method)
        if float_layers is not None:
            return self._build(best.variant.method, ranked[:float_layers])
        for number in LADDER[1:]:
            if 2 * number > len(ranked):
                break
            found = self._build(best.variant.method, ranked[:number])
            best = max(best, found, key=lambda chosen: chosen.variant.cosine_mean)
            if best.variant.cosine_mean >= AIM:
                break
        return self._with_all_tried(best)

    def _best_method(self, methods: Sequence[str]) -> Chosen:
        found = []
        for done, name in enumerate(methods, start=1):
            found.append(self._build(name, ()))
            self._tell("trying methods", done, len(methods))
        return self._with_all_tried(max(found, key=lambda chosen: chosen.variant.cosine_mean))

    def _ranked(self, method: str) -> tuple[Layer, ...]:
        images = self._sample.calibrate[:_TO_RANK]
        ranked = rank_layers(
            self._prepared,
            self._activations.ranges(method),
            images,
            self._embed(images),
            lambda done, total: self._tell("weighing layers", done, total),
        )
        return tuple(layer for layer, _ in ranked)

    def _build(self, method: str, in_float: Sequence[Layer]) -> Chosen:
        ranges = self._activations.ranges(method)
        model = quantize_int8(self._prepared, ranges, float_layers=in_float)
        data = model.SerializeToString()
        reached = cosines(self._expected, Runner(data).embed(self._sample.held))
        variant = Variant(
            method, len(in_float), len(data), float(reached.mean()), float(reached.min())
        )
        self._tried.append(variant)
        # In the order of the graph, as people read it.
        kept = tuple(layer for layer in self._prepared.layers if layer in in_float)
        return Chosen(model, variant, kept, tuple(self._tried))

    def _with_all_tried(self, chosen: Chosen) -> Chosen:
        return Chosen(chosen.model, chosen.variant, chosen.float_layers, tuple(self._tried))

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(Progress(done, total, stage=stage))
