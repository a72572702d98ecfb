"""`quantize`: from a backbone and images to a smaller backbone, measured."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from featpipe._files import printable
from featpipe.backbones import Backbone, BackboneCard, load_backbone
from featpipe.backbones.card import QUANTISER
from featpipe.backbones.gate import DEVICE_COSINE, photographs
from featpipe.backbones.quantize import (
    METHODS,
    Layer,
    Prepared,
    Runner,
    halve_weights,
    interleaved_speeds,
    observe,
    prepare,
)
from featpipe.backbones.quantize.sensitivity import cosines
from featpipe.backbones.registry import SUFFIX, check_name_is_free, models_folder
from featpipe.backbones.writing import write_backbone
from featpipe.errors import BackboneError, SourceError
from featpipe.heads import head_spec
from featpipe.quantization.checks import (
    check_integers,
    check_is_another,
    check_writable,
    default_name,
)
from featpipe.quantization.choice import Chooser
from featpipe.quantization.compare import Measured, measure_heads, pair
from featpipe.quantization.report import QuantizeReport, Variant
from featpipe.quantization.sample import FEWEST, Sample, draw_sample
from featpipe.sources import SourceLike, open_source
from featpipe.types import Pixels, Progress, ProgressCallback, Vectors

PRECISIONS = ("int8", "fp16")
FLOOR = 0.95
"""Mean cosine to the float model under which an int8 file is not written."""
INTEGER_COSINE = 0.95
"""What the integers of a written int8 file must reach against their simulation in floats.

A half that is rounded the other way moves the vectors of a deep network a little (0.989 was
seen); integers that overflow, or layers that are quantised once more at loading, move them much
(0.6 to 0.85).
"""
_SPEED_BATCH = 8
_PHOTOGRAPHS = 21


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """What `quantize` may be asked for beside backbone and images.

    Attributes
    ----------
    precision : {"int8", "fp16"}
    method : {"auto", "minmax", "percentile", "entropy"}
        How ranges of activations are chosen; auto takes the one with the highest cosine.
    images : int
        How many images to calibrate with, at most; 20 are the least.
    float_layers : int or None
        Layers that stay in float, those that cost most; None: as many as it takes.
    name : str or None
        Of the new backbone; None: the old one's with ``_int8`` or ``_fp16``.
    heads : tuple of str
        What is compared on labelled images.
    """

    precision: str = "int8"
    method: str = "auto"
    images: int = 128
    float_layers: int | None = None
    name: str | None = None
    heads: tuple[str, ...] = ("logreg",)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be int8 or fp16, not {self.precision!r}")
        if self.method not in {"auto", *METHODS}:
            raise ValueError(f"method must be auto, {', '.join(METHODS)}, not {self.method!r}")
        if self.images < FEWEST:
            raise ValueError(f"images must be {FEWEST} or more, not {self.images}")
        if self.float_layers is not None and self.float_layers < 0:
            raise ValueError(f"float_layers must be 0 or more, not {self.float_layers}")
        if not self.heads:
            raise ValueError("heads must name one at least")


def quantize(
    model: str | os.PathLike[str] | None = None,
    calibrate: SourceLike | None = None,
    *,
    compare: SourceLike | None = None,
    options: QuantizeOptions | None = None,
    models_dir: str | os.PathLike[str] | None = None,
    progress: ProgressCallback | None = None,
) -> QuantizeReport:
    """Make a smaller backbone of one that is there, and say what it costs.

    Parameters
    ----------
    model : str or path, optional
        A name, the path of an ``.onnx`` file, or None for the built-in backbone.
    calibrate : folder or other source, optional
        Images of the kind that will be embedded. int8 needs them; fp16 is measured on them,
        or on the photographs that come with featpipe.
    compare : folder or other source, optional
        Labelled images: heads are fitted on the vectors before and after.
    options : QuantizeOptions, optional
    models_dir : path, optional
        Where the new backbone is written, and searched first for ``model``.
    progress : callable, optional
        Called with a `Progress` now and then.

    Raises
    ------
    BackboneError
        When there is no such backbone, it cannot be quantised, what would be written is too
        far from it, or its name stands for something else. Nothing is written then.
    SourceError
        When there are too few images.
    LabelError
        When the images to compare on have no labels, one class, or too few images in a class.
        Nothing is written then.
    WriteError
        When the new file cannot be written.

    Examples
    --------
    >>> report = quantize("resnet50", "photos/")     # doctest: +SKIP
    >>> report.path.name                             # doctest: +SKIP
    'resnet50_int8.onnx'
    """
    return _Quantization(model, models_dir, options or QuantizeOptions(), progress).go(
        calibrate, compare
    )


@dataclass(frozen=True, slots=True)
class _Made:
    """A smaller model, not written yet."""

    model: onnx.ModelProto
    chosen: Variant
    tried: tuple[Variant, ...]
    layers: int
    float_layers: tuple[Layer, ...]
    note: str


class _Quantization:
    """One call of `quantize`."""

    def __init__(
        self,
        model: str | os.PathLike[str] | None,
        models_dir: str | os.PathLike[str] | None,
        options: QuantizeOptions,
        progress: ProgressCallback | None,
    ) -> None:
        self._backbone = load_backbone(model, models_dir)
        self._data = self._backbone.take_file().data
        self._options, self._progress = options, progress
        name = options.name or default_name(self._backbone.name, options.precision)
        # The card refuses a name that leads elsewhere before it becomes part of a path.
        self._card = replace(self._backbone.card, name=name, fingerprint="")
        check_name_is_free(name)
        self._path = models_folder(models_dir) / f"{name}{SUFFIX}"
        check_is_another(self._path, self._backbone)

    def go(self, calibrate: SourceLike | None, compare: SourceLike | None) -> QuantizeReport:
        for head in self._options.heads:
            head_spec(head)
        check_writable(self._path)
        sample = self._sample(calibrate)
        expected = self._expected(sample.held)
        if self._options.precision == "int8":
            prepared = self._prepared()
            before = self._measured(compare, self._backbone.path)
            made = self._int8(prepared, sample)
            check_integers(made.model.SerializeToString(), sample.held, self._card.name)
        else:
            halved = halve_weights(self._data, self._backbone.name)
            before = self._measured(compare, self._backbone.path)
            made = self._fp16(halved, sample, expected)
        report = self._reported(made, self._write(made), sample, expected)
        after = self._measured(compare, self._path)
        if before is None or after is None:
            return report
        return replace(report, comparisons=tuple(pair(before, after)))

    def _reported(
        self, made: _Made, card: BackboneCard, sample: Sample, expected: Vectors
    ) -> QuantizeReport:
        """Measure the file that was written."""
        after = self._path.read_bytes()
        reached = cosines(expected, Runner(after).embed(sample.held))
        speeds = interleaved_speeds([self._data, after], sample.held[:_SPEED_BATCH])
        return QuantizeReport(
            card=card,
            path=self._path,
            source=self._backbone.name,
            precision=self._options.precision,
            chosen=replace(
                made.chosen,
                size=len(after),
                cosine_mean=float(reached.mean()),
                cosine_min=float(reached.min()),
            ),
            tried=made.tried,
            layers=made.layers,
            float_layers=tuple(layer.title for layer in made.float_layers),
            images=len(sample.calibrate),
            held=len(sample.held),
            failures=sample.failures,
            size_before=len(self._data),
            size_after=len(after),
            speed_before=speeds[0],
            speed_after=speeds[1],
            notes=sample.notes,
        )

    def _sample(self, calibrate: SourceLike | None) -> Sample:
        rule, n_images = self._backbone.card.resize, self._options.images
        if calibrate is not None:
            sample = draw_sample(open_source(calibrate), rule, n_images, progress=self._progress)
            if self._options.precision == "int8":
                return sample
            # Nothing is calibrated: images are measured on, and that is all.
            return replace(sample, calibrate=sample.calibrate[:0], notes=())
        if self._options.precision == "int8":
            raise SourceError(
                "int8 is calibrated on images: give a folder of those that will be embedded "
                "with --calibrate"
            )
        images = photographs(_PHOTOGRAPHS, rule.crop)
        return Sample("featpipe's own photographs", images[:0], images)

    def _expected(self, images: Pixels) -> Vectors:
        vectors = Runner(self._data).embed(images)
        if not np.isfinite(vectors).all():
            raise BackboneError(
                f"{self._backbone.name} gives vectors with NaN or infinity: nothing was written; "
                "its weights are probably wrong"
            )
        return vectors

    def _prepared(self) -> Prepared:
        prepared = prepare(self._data, self._backbone.name)
        if (self._options.float_layers or 0) >= len(prepared.layers):
            raise BackboneError(
                f"{self._backbone.name} has {len(prepared.layers)} layers, and "
                f"{self._options.float_layers} left in float leave none for int8: lower "
                "--float-layers, or leave it out"
            )
        return prepared

    def _int8(self, prepared: Prepared, sample: Sample) -> _Made:
        activations = observe(
            prepared, sample.calibrate, lambda done, of: self._tell("calibrating", done, of)
        )
        embed = Runner(self._data).embed
        chooser = Chooser(prepared, activations, sample, embed, self._progress)
        found = chooser.choose(self._options.method, self._options.float_layers)
        if found.variant.cosine_mean < FLOOR:
            raise BackboneError(
                f"{self._backbone.name} does not bear int8: the cosine to its fp32 vectors is "
                f"{found.variant.cosine_mean:.4f} on average where {FLOOR} is needed, with "
                f"{found.variant.float_layers} layers left in float: nothing was written; raise "
                "--float-layers, or take --precision fp16"
            )
        return _Made(
            found.model,
            found.variant,
            found.tried,
            len(prepared.layers),
            found.float_layers,
            _int8_note(self._backbone, sample, found.variant, found.float_layers),
        )

    def _fp16(self, model: onnx.ModelProto, sample: Sample, expected: Vectors) -> _Made:
        data = model.SerializeToString()
        reached = cosines(expected, Runner(data).embed(sample.held))
        variant = Variant("fp16", 0, len(data), float(reached.mean()), float(reached.min()))
        note = (
            f"Weights of {_origin(self._backbone)} stored as 16-bit floats; the arithmetic is in "
            "32 bits."
        )
        return _Made(model, variant, (variant,), 0, (), note)

    def _write(self, made: _Made) -> BackboneCard:
        """Write the file; its gate compares with what was made, or, for fp16, with fp32."""
        # What says of integers that they are safe is not said of those that were there before.
        maker = QUANTISER if self._options.precision == "int8" else "fp16"
        exporter = {**self._card.exporter, maker: f"onnxruntime {onnxruntime.__version__}"}
        card = replace(self._card, note=_joined(self._card.note, made.note), exporter=exporter)
        if self._options.precision == "fp16":
            source, verb, least = Runner(self._data), "fp16 form", DEVICE_COSINE
        else:
            simulation = Runner(made.model.SerializeToString(), optimise=False)
            source, verb, least = simulation, "int8 form", INTEGER_COSINE
        return write_backbone(
            made.model, card, self._path, source.outputs, verb=verb, cosine=least
        )[0]

    def _measured(self, source: SourceLike | None, path: Path) -> Measured | None:
        """Judge heads with a backbone: once before the work, so that no figures get lost.

        What cannot be compared is found out then, and nothing has been written.
        """
        if source is None:
            return None
        return measure_heads(source, path, self._options.heads, progress=self._progress)

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(Progress(done, total, stage=stage))


def _origin(backbone: Backbone) -> str:
    return f"{backbone.name} ({backbone.fingerprint})"


def _joined(former: str | None, note: str) -> str:
    return note if former is None else f"{former} {note}"


def _int8_note(
    backbone: Backbone, sample: Sample, variant: Variant, in_float: Sequence[Layer]
) -> str:
    left = ", ".join(layer.title for layer in in_float) or "none"
    return (
        f"{_origin(backbone)} in 8 bits: static QDQ, weights signed with a scale for every "
        f"channel, activations unsigned, ranges by {variant.method} from "
        f"{len(sample.calibrate)} images of {printable(sample.source)}. Layers in float: {left}. "
        f"Cosine to fp32 on {len(sample.held)} other images: mean {variant.cosine_mean:.4f}, "
        f"minimum {variant.cosine_min:.4f}."
    )
