"""What quantisation costs and gives: the tables of ``docs/quantisation.md``.

``python benchmarks/quantize.py MODEL [MODEL …]`` with FEATPIPE_SHARED set. MODEL is a name or
an ``.onnx`` file. For each: arithmetic (does the same file give the same vectors without
VNNI?), then size, speed, cosine and the heads' accuracy of every method. Calibrated on
clothing_small's training split.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import QDQQuantizer, QuantType, TensorData
from onnxruntime.quantization.quant_utils import add_infer_metadata

from featpipe.backbones import load_backbone
from featpipe.backbones.half import to_half
from featpipe.backbones.quantize import Runner, interleaved_speeds, observe, prepare
from featpipe.backbones.quantize.int8 import _QUANTISED, _quiet
from featpipe.backbones.quantize.sensitivity import cosines
from featpipe.quantization import QuantizeOptions, draw_sample, quantize
from featpipe.quantization.compare import compare_heads
from featpipe.sources import open_source

ROOT = Path(os.environ["FEATPIPE_SHARED"]) / "datasets"
CALIBRATE = ROOT / "clothing_small" / "train"
COMPARE = ("clothing_small", "hymenoptera_data")
HEADS = ("logreg", "knn")


def textbook(model: onnx.ModelProto, ranges: dict[str, TensorData], *, reduce_range: bool) -> bytes:
    """Quantise as ONNX Runtime's own call does: per channel, 8 bits or 7."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    add_infer_metadata(copy)
    with _quiet():
        quantizer = QDQQuantizer(
            copy,
            per_channel=True,
            reduce_range=reduce_range,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=[],
            op_types_to_quantize=list(_QUANTISED),
            extra_options={},
        )
        quantizer.quantize_model()
    data: bytes = quantizer.model.model.SerializeToString()
    return data


def arithmetic(model: str) -> Iterator[str]:
    """Compare one file with itself: this processor's kernels, exact ones, and floats."""
    from featpipe.backbones.quantize import quantize_int8

    backbone = load_backbone(model)
    data = backbone.path.read_bytes()
    sample = draw_sample(open_source(CALIBRATE), backbone.card.resize, 128)
    prepared = prepare(data, backbone.name)
    chosen = observe(prepared, sample.calibrate).ranges("percentile")
    ranges = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in chosen.items()
    }
    forms = {
        "8 bits (ONNX Runtime's default)": textbook(prepared.model, ranges, reduce_range=False),
        "7 bits (`reduce_range`)": textbook(prepared.model, ranges, reduce_range=True),
        "8 bits, pairs bounded (featpipe)": quantize_int8(prepared, chosen).SerializeToString(),
    }
    expected = Runner(data).embed(sample.held)
    yield f"{backbone.name}: weights | cosine to fp32 here | with exact integers | same bits"
    for name, form in forms.items():
        here, there = Runner(form).embed(sample.held), Runner(form, exact=True).embed(sample.held)
        yield (
            f"{name} | {spread(cosines(expected, here))} | {spread(cosines(expected, there))} | "
            f"{100 * np.mean(here == there):.0f} %"
        )
    half = to_half(data)
    reached = spread(cosines(expected, Runner(half).embed(sample.held)))
    speeds = interleaved_speeds([data, half], sample.held[:8], 3)
    yield (
        f"fp16 arithmetic on this CPU: {speeds[1]:.1f} images/s against {speeds[0]:.1f} in fp32, "
        f"{len(half) / 1e6:.1f} MB, cosine {reached}"
    )


def spread(values: np.ndarray) -> str:
    """Return mean and minimum."""
    return f"{values.mean():.4f} / {values.min():.4f}"


def variants() -> Iterator[tuple[str, QuantizeOptions]]:
    """Yield every way that the table compares."""
    base = QuantizeOptions(heads=HEADS)
    for method in ("minmax", "percentile", "entropy"):
        yield f"int8 {method}", replace(base, method=method, float_layers=0)
    yield "int8 auto", base
    yield "fp16", replace(base, precision="fp16")


def accuracy(model: str, folder: Path) -> Iterator[str]:
    """Quantise in every way, and compare heads on both data sets."""
    for number, (title, options) in enumerate(variants()):
        named = replace(options, name=f"variant{number}")
        report = quantize(model, CALIBRATE, options=named, models_dir=folder)
        found = [
            comparison
            for data in COMPARE
            for comparison in compare_heads(
                ROOT / data,
                load_backbone(model).path,
                report.path,
                HEADS,
                folder=folder / f"{data}.stores",
            )
        ]
        cells = [
            f"{c.before:.1f} → {c.after:.1f} ({c.difference:+.1f}; {c.interval[0]:+.1f} to "
            f"{c.interval[1]:+.1f})"
            for c in found
        ]
        yield (
            f"| {title} | {len(report.float_layers)} | {report.size_after / 1e6:.1f} | "
            f"{report.speed_before:.1f} → {report.speed_after:.1f} | {report.cosine_mean:.4f} / "
            f"{report.cosine_min:.4f} | {' | '.join(cells)} |"
        )


def main() -> None:
    """Print the tables, line by line as they come."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--only", choices=["arithmetic", "accuracy"])
    arguments = parser.parse_args()
    for model in arguments.models:
        if arguments.only != "accuracy":
            for line in arithmetic(model):
                print(line, flush=True)
        if arguments.only == "arithmetic":
            continue
        columns = [f"{head} {data}" for data in COMPARE for head in HEADS]
        print(f"\n| {model} | in float | MB | images/s | cosine | {' | '.join(columns)} |")
        print("|---|---|---|---|---|" + "---|" * len(columns))
        with tempfile.TemporaryDirectory() as folder:
            for line in accuracy(model, Path(folder)):
                print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
