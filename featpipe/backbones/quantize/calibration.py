"""Which values the activations of a float model take, on calibration images.

Two passes over the images: the smallest and the largest value of every activation, then its
histogram between these. Every way to choose a range works from the same histograms, so one
observation serves them all. Memory does not grow with the number of images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from featpipe.backbones.quantize.prepare import Prepared
from featpipe.backbones.quantize.ranges import Range, choose_range, rounded_outwards
from featpipe.backbones.quantize.runner import Tensors, open_float
from featpipe.types import Pixels

BINS = 2048
_AT_ONCE = 2
"""Images a call: every activation of these is in memory."""
_SMALLEST_STEP = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class Activations:
    """What was observed of every activation.

    Attributes
    ----------
    extremes : mapping of str to (float, float)
        Smallest and largest finite value.
    counts : mapping of str to ndarray of int, (BINS,)
        Histogram between these. What goes into a rectifier has none: integers take both in
        at once, and the rectifier's output decides.
    certain : mapping of str to (float, float)
        Ranges that need no observation: those of the normalised pixels, which black and
        white give.
    """

    extremes: Mapping[str, Range]
    counts: Mapping[str, NDArray[np.int64]]
    certain: Mapping[str, Range]

    def ranges(self, method: str) -> dict[str, Range]:
        """Return the range of every activation by a method of `METHODS`."""
        chosen = {
            name: choose_range(method, counts, *self.extremes[name])
            for name, counts in self.counts.items()
        }
        rounded = {n: rounded_outwards(pair) for n, pair in {**self.extremes, **chosen}.items()}
        return {**rounded, **self.certain}


def observe(
    prepared: Prepared, images: Pixels, on_batch: Callable[[int, int], None] | None = None
) -> Activations:
    """Run the float model on calibration images and note what its activations are.

    Parameters
    ----------
    prepared : Prepared
    images : ndarray of uint8, (N, H, W, 3)
        N is at least 1.
    on_batch : callable, optional
        Called with images that are done and of all; each image counts twice.
    """
    run = open_float(_with_outputs(prepared).SerializeToString())
    every, counted = list(prepared.activations), _counted(prepared)
    report = on_batch or _say_nothing
    extremes: dict[str, Range] = {}
    for start in range(0, len(images), _AT_ONCE):
        batch = images[start : start + _AT_ONCE]
        for name, values in zip(every, run(every, batch), strict=True):
            extremes[name] = _wider(extremes.get(name), values)
        report(start + len(batch), 2 * len(images))
    counts = {name: np.zeros(BINS, np.int64) for name in counted}
    for start in range(0, len(images), _AT_ONCE):
        batch = images[start : start + _AT_ONCE]
        for name, values in zip(counted, run(counted, batch), strict=True):
            counts[name] += _histogram(values, extremes[name])
        report(len(images) + start + len(batch), 2 * len(images))
    return Activations(extremes, counts, _certain(prepared, run, images.shape[1]))


def _say_nothing(done: int, total: int) -> None:
    """Stand in where nobody listens."""


def _counted(prepared: Prepared) -> list[str]:
    """Return the activations that a range is chosen for."""
    rectified = {layer.node for layer in prepared.layers if layer.rectifier is not None}
    inner = {n.output[0] for n in prepared.model.graph.node if n.name in rectified}
    return [name for name in prepared.activations if name not in inner]


def _certain(prepared: Prepared, run: Tensors, side: int) -> dict[str, Range]:
    """Return the ranges of the normalised pixels: no image goes beyond black and white."""
    names = [name for name in prepared.activations if name in prepared.pixelwise]
    if not names:
        return {}
    both = np.zeros((2, side, side, 3), np.uint8)
    both[1] = 255
    return {name: _wider(None, v) for name, v in zip(names, run(names, both), strict=True)}


def _with_outputs(prepared: Prepared) -> onnx.ModelProto:
    """Return a copy of the model that gives all its activations."""
    model = onnx.ModelProto()
    model.CopyFrom(prepared.model)
    there = {value.name for value in model.graph.output}
    known = {value.name: value for value in model.graph.value_info}
    model.graph.output.extend(known[n] for n in prepared.activations if n not in there)
    return model


def _wider(former: Range | None, values: NDArray[np.float32]) -> Range:
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        values = values[np.isfinite(values)]
        low, high = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    return (low, high) if former is None else (min(former[0], low), max(former[1], high))


def _histogram(values: NDArray[np.float32], extremes: Range) -> NDArray[np.int64]:
    low, high = extremes
    values = values.ravel()
    if not (math.isfinite(values.min()) and math.isfinite(values.max())):
        values = values[np.isfinite(values)]
    step = (high - low) / BINS
    if step < _SMALLEST_STEP:  # 32 bits cannot divide by it: all values are one
        step = 1.0
    bins = ((values - np.float32(low)) * np.float32(1 / step)).astype(np.int32)
    return np.bincount(np.minimum(bins, BINS - 1, out=bins), minlength=BINS)
