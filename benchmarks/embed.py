"""Images a second of `featpipe.embed` beside the loop that one would write oneself.

Both run in turn, several times, on the same photographs in one process; the ratio of the
medians is what counts, as machines differ and are shared.

    FEATPIPE_SHARED=… python benchmarks/embed.py [repetitions]
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

import featpipe
from featpipe.backbones import find_backbone, usable_cores

N_IMAGES = 200


def naive(paths: list[Path]) -> np.ndarray:
    """Decode in full, resize, crop, batch by batch, on a session with default options."""
    session = onnxruntime.InferenceSession(find_backbone(), providers=["CPUExecutionProvider"])
    vectors = []
    for start in range(0, len(paths), 32):
        batch = np.stack([square(path) for path in paths[start : start + 32]])
        vectors.append(session.run(["embedding"], {"images": batch})[0])
    return np.concatenate(vectors)


def square(path: Path) -> np.ndarray:
    """Prepare one photograph as the textbook does."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    width, height = image.size
    scale = 256 / min(width, height)
    image = image.resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    return np.asarray(image.crop((left, top, left + 224, top + 224)))


def seconds(run: Callable[[], object]) -> float:
    """Return how long one call takes."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def main() -> None:
    """Measure in turn, print medians and ratio."""
    folder = Path(os.environ["FEATPIPE_SHARED"]) / "datasets" / "hymenoptera_data"
    paths = sorted(folder.rglob("*.jpg"))[:N_IMAGES]
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    times: dict[str, list[float]] = {"featpipe": [], "naive loop": [], "second run": []}
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "store"
        for _ in range(repetitions):
            shutil.rmtree(store, ignore_errors=True)
            times["featpipe"].append(
                seconds(lambda: featpipe.embed(paths, output=store, device="cpu"))
            )
            times["second run"].append(
                seconds(lambda: featpipe.embed(paths, output=store, device="cpu"))
            )
            times["naive loop"].append(seconds(lambda: naive(paths)))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{len(paths)} photographs, {usable_cores()} cores, {repetitions} repetitions in turn\n")
    print("| | median s | images/s |\n|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {median:.2f} | {len(paths) / median:,.0f} |")
    print(f"\nratio to the naive loop: {medians['naive loop'] / medians['featpipe']:.2f}")


if __name__ == "__main__":
    main()
