"""Seconds of the whole command, start to end, where there is little to do.

    FEATPIPE_SHARED=… python benchmarks/startup.py [--models-dir DIR] [--before CHECKOUT]

``featpipe --help``; ``featpipe embed`` of ten new photographs, and of the same ten again. With
``--before`` the same commands of another checkout take turns. And what a session costs to open,
from the backbone's bytes, and from ONNX Runtime's optimised graph as a file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnxruntime

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline import BUILTIN, RESNET, photographs

from featpipe import load_backbone

HERE = Path(__file__).resolve().parent.parent


def seconds(checkout: Path, *words: str) -> float:
    """Return how long one command takes, as a process of its own."""
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "featpipe", *words],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - begun


def commands(
    checkouts: dict[str, Path], models: Path | None, names: list[str], repetitions: int
) -> dict[str, float]:
    """Return the median of each command, all in turn."""
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        photos = Path(scratch) / "photos"
        photos.mkdir()
        for path in photographs()[:10]:
            shutil.copy(path, photos)
        for _ in range(repetitions + 1):
            for label, checkout in checkouts.items():
                times.setdefault(f"{label}: --help", []).append(seconds(checkout, "--help"))
                for name in names:
                    store = Path(scratch) / f"{label}-{name}"
                    shutil.rmtree(store, ignore_errors=True)
                    words = ["embed", str(photos), "--model", name, "-o", str(store)]
                    words += ["--device", "cpu", *(["--models-dir", str(models)] if models else [])]
                    for what in ("ten new", "ten unchanged"):
                        key = f"{label}: {name}, {what}"
                        times.setdefault(key, []).append(seconds(checkout, *words))
    # The first round warms up.
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def sessions(path: Path, repetitions: int) -> dict[str, float]:
    """Return the median time to open one: as featpipe does, and from an optimised graph."""
    data = path.read_bytes()
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(scratch) / "optimised.onnx"

        def opened(model: bytes | str, level: str, save: Path | None = None) -> float:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            options.log_severity_level = 4
            options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
            if save is not None:
                options.optimized_model_filepath = str(save)
            begun = time.perf_counter()
            onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            return time.perf_counter() - begun

        onnxruntime.set_default_logger_severity(4)
        opened(data, "ORT_ENABLE_ALL", kept)
        for _ in range(repetitions):
            done = {
                "from the backbone's bytes": opened(data, "ORT_ENABLE_ALL"),
                "optimised, from bytes": opened(kept.read_bytes(), "ORT_DISABLE_ALL"),
                "optimised, from a file": opened(str(kept), "ORT_DISABLE_ALL"),
            }
            for name, value in done.items():
                times.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Measure, print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models-dir", type=Path)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    models = arguments.models_dir and arguments.models_dir.resolve()
    names = [BUILTIN]
    if models and (models / f"{RESNET}.onnx").exists():
        names.append(RESNET)
    checkouts = {"before": arguments.before.resolve()} if arguments.before else {}
    checkouts["now"] = HERE
    found = commands(checkouts, models, names, arguments.repetitions)
    print("| command | s |\n|---|---|")
    for name, value in found.items():
        print(f"| {name} | {value:.2f} |")
    opening = {
        name: sessions(load_backbone(name, models).path, arguments.repetitions) for name in names
    }
    print("\n| a session | " + " | ".join(opening[BUILTIN]) + " |\n|---|---|---|---|")
    for name, values in opening.items():
        print(f"| {name} | " + " | ".join(f"{v * 1e3:.0f} ms" for v in values.values()) + " |")
    if arguments.json:
        content = {"commands": found, "sessions": opening}
        arguments.json.write_text(json.dumps(content, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
