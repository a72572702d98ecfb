"""Memory of `embed` by number of images: it should not grow.

The photographs of ``FEATPIPE_SHARED`` are written as often as needed, each with its own number
behind the end of the JPEG: other contents, the same pixels. Every run is a process of its own
with a new store.

    PYTHONPATH=. FEATPIPE_SHARED=… python benchmarks/memory.py [--images 1000 20000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from rerun import HERE, once

RUN = """
import sys, time
begun = time.perf_counter()
from featpipe.embedding import run_embedding
report = run_embedding(sys.argv[1], sys.argv[2], output=sys.argv[3])
assert report.computed == int(sys.argv[4]) and report.failed == 0, report
print(time.perf_counter() - begun, report.seconds)
"""


def make_folder(root: Path, originals: list[bytes], count: int) -> None:
    """Write ``count`` files, no two alike."""
    root.mkdir()
    for number in range(count):
        data = originals[number % len(originals)]
        (root / f"{number:06d}.jpg").write_bytes(data + number.to_bytes(8, "little"))


def main() -> None:
    """Measure, print, and write the figures where --json asks for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 5_000, 20_000])
    parser.add_argument("--model", default="efficientnet_lite0", help="name or .onnx file")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    photographs = Path(os.environ["FEATPIPE_SHARED"]) / "datasets" / "hymenoptera_data"
    originals = [path.read_bytes() for path in sorted(photographs.rglob("*.jpg"))]
    found: dict[int, dict[str, float]] = {}
    print("| images | images/s | peak MiB | beside the first |\n|---|---|---|---|")
    for count in asked.images:
        with tempfile.TemporaryDirectory(prefix="featpipe-memory-") as scratch:
            root = Path(scratch) / "photographs"
            make_folder(root, originals, count)
            _, seconds, peak = once(
                RUN, HERE, root, asked.model, Path(scratch) / "store", Path(str(count))
            )
        found[count] = {"images_per_second": count / seconds, "peak_mib": peak}
        growth = peak / found[asked.images[0]]["peak_mib"] - 1
        print(f"| {count:,} | {count / seconds:.1f} | {peak:.0f} | {growth:+.1%} |", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps({"memory": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
