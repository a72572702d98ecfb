"""What a photograph costs before the model sees it, step by step, and what that does to vectors.

    FEATPIPE_SHARED=… python benchmarks/decode.py [--repetitions N] [--no-vectors] [--json FILE]

Milliseconds of one core an image (CPU time, so that a neighbour's load counts little), all
ways in turn. The vectors are the built-in backbone's, against those of a full decode with
Pillow and a resize of the whole image along the rows first, as torchvision does it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline import enlarged, photographs

from featpipe import load_backbone
from featpipe.images import decode_image, resize
from featpipe.images.geometry import crop_box, resized_size
from featpipe.types import ResizeRule

SMALL, LARGE = 200, 12
BATCH = 16
Way = Callable[[bytes], Any]


def ways(rule: ResizeRule) -> dict[str, Way]:
    """Return the ways from a file's bytes to a square of pixels, and parts of them."""
    method = resize.FILTERS[rule.interpolation]

    def full(data: bytes) -> Any:
        with Image.open(io.BytesIO(data)) as opened:
            image = opened.convert("RGB")
        width, height = resized_size(*image.size, rule)
        # By rows, then by columns: Pillow chooses the order by the shape since version 13.
        image = image.resize((width, image.height), method).resize((width, height), method)
        left, top = (round((side - rule.crop) / 2.0) for side in image.size)
        return np.asarray(image.crop((left, top, left + rule.crop, top + rule.crop)))

    def drafted(data: bytes) -> tuple[Image.Image, tuple[float, ...]]:
        image = Image.open(io.BytesIO(data))
        size = image.size
        width, height = resized_size(*size, rule)
        image.draft("RGB", (2 * width, 2 * height))
        image.load()
        factor = round(size[0] / image.width)
        return image, tuple(side / factor for side in crop_box(*size, rule))

    def boxed(data: bytes) -> Any:
        image, box = drafted(data)
        return np.asarray(image.resize((rule.crop, rule.crop), method, box=box))

    def columns_first(data: bytes) -> Any:
        image, (left, top, right, bottom) = drafted(data)
        square = Image.new("RGB", (rule.crop, rule.crop))
        box = resize.simd.CropBox(
            left, top, min(right, image.width) - left, min(bottom, image.height) - top
        )
        kind = resize.simd.FilterType[resize._SIMD_FILTERS[rule.interpolation]]
        options = resize.simd.ResizeOptions(
            resize_alg=resize.simd.ResizeAlg.convolution(kind), crop_box=box
        )
        resize._resizer().resize_pil(image, square, options)
        return np.asarray(square)

    found: dict[str, Way] = {
        "full decode, whole image resized": full,
        "reduced scale, box resized by Pillow": boxed,
        "featpipe": lambda data: decode_image(data, rule).pixels,  # type: ignore[union-attr]
        "Pillow's decoder alone": lambda data: drafted(data)[0],
    }
    if resize.simd is not None:
        found["box resized with SIMD, columns first"] = columns_first
    try:
        import simplejpeg
    except ImportError:
        return found

    def simple(data: bytes) -> Any:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        wide, high = resized_size(width, height, rule)
        return simplejpeg.decode_jpeg(data, "RGB", min_height=2 * high, min_width=2 * wide)

    found["simplejpeg's decoder alone"] = simple
    return found


def milliseconds(found: dict[str, Way], files: list[bytes], repetitions: int) -> dict[str, float]:
    """Return the median of each way's CPU time an image."""
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(repetitions + 1):
        for name, way in found.items():
            begun = time.thread_time()
            for data in files:
                way(data)
            times[name].append((time.thread_time() - begun) / len(files) * 1e3)
    # The first round warms up.
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def cosines(found: dict[str, Way], paths: list[Path]) -> dict[str, tuple[float, float]]:
    """Return mean and minimum, over photographs, of the cosine to the full decode's vectors."""
    session = load_backbone().open_session("cpu")
    files = [path.read_bytes() for path in paths]

    def vectors(way: Way) -> Any:
        parts = [files[i : i + BATCH] for i in range(0, len(files), BATCH)]
        rows = np.concatenate([session.run(np.stack([way(d) for d in part])) for part in parts])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    squares = {name: way for name, way in found.items() if "alone" not in name}
    first, *others = squares
    reference = vectors(squares[first])
    values = {name: (vectors(squares[name]) * reference).sum(axis=1) for name in others}
    return {name: (float(v.mean()), float(v.min())) for name, v in values.items()}


def main() -> None:
    """Measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--no-vectors", action="store_true", help="times alone")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = ways(load_backbone().card.resize)
    small = photographs()[:SMALL]
    with tempfile.TemporaryDirectory() as folder:
        large = enlarged(small[:LARGE], Path(folder))
        times = [
            milliseconds(found, [Path(p).read_bytes() for p in paths], arguments.repetitions)
            for paths in (small, large)
        ]
    data = Path(os.environ["FEATPIPE_SHARED"]) / "datasets"
    paths = [*data.glob("hymenoptera_data/*/*/*.jpg"), *data.glob("clothing_small/*/*/*.jpg")]
    near = {} if arguments.no_vectors else cosines(found, sorted(paths))
    print(f"Cosines over {len(paths)} photographs.\n")
    print("| | 500 × 375, ms | 4000 × 3000, ms | mean cosine | minimum |\n|---|---|---|---|---|")
    for name in found:
        mean, least = near.get(name, (None, None))
        shown = "| |" if mean is None else f"| {mean:.6f} | {least:.4f}"
        print(f"| {name} | {times[0][name]:.2f} | {times[1][name]:.1f} {shown} |")
    if arguments.json:
        content = {"milliseconds": times, "cosines": near, "photographs": len(paths)}
        arguments.json.write_text(json.dumps(content, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
