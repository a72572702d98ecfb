"""Smaller backbones: 8-bit integers, or weights stored as 16-bit floats.

Everything here goes from a model and pixels to a model; nothing knows of folders, labels or
names. `featpipe.quantization` samples the images, chooses, measures and writes.

The 8-bit form is static: ranges of all activations are observed once, on calibration images
(`observe`), and every variant is built from them (`quantize_int8`). Its integers are the same
on every processor; `docs/quantisation.md` has the measurements behind that.
"""

from featpipe.backbones.quantize.calibration import Activations, observe
from featpipe.backbones.quantize.half_weights import halve_weights
from featpipe.backbones.quantize.int8 import quantize_int8
from featpipe.backbones.quantize.prepare import Layer, Prepared, prepare
from featpipe.backbones.quantize.ranges import METHODS
from featpipe.backbones.quantize.runner import Runner, interleaved_speeds
from featpipe.backbones.quantize.sensitivity import rank_layers

__all__ = [
    "METHODS",
    "Activations",
    "Layer",
    "Prepared",
    "Runner",
    "halve_weights",
    "interleaved_speeds",
    "observe",
    "prepare",
    "quantize_int8",
    "rank_layers",
]
