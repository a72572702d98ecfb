"""`embed --engine ray` beside the local engine: seconds, and seconds of cores, of the whole run.

Cuts 5,000 different pieces out of real photographs into a temporary folder. Then each engine
embeds them into a new store, in a process of its own and in turn; so it does with few images,
which is what starting costs. The store of Ray must be the local one, vector for vector. Seconds
of cores are those of every process that has taken part, Ray's own included: other work on the
machine hardly touches them.

    FEATPIPE_SHARED=DIR PYTHONPATH=. python benchmarks/ray_engine.py [--images 5000] [--json FILE]
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

import numpy as np
from PIL import Image

from featpipe.store import EmbeddingStore

HERE = Path(__file__).resolve().parents[1]
ENGINES = ("local", "ray")
FEW = 20
SIDES = (400, 300)

EMBED = """
import sys
from featpipe.embedding import EmbedOptions, run_embedding
source, model, store, engine = sys.argv[1:]
report = run_embedding(source, model, output=store, options=EmbedOptions(engine=engine))
assert report.failed == 0, report
"""

# Whoever loses its parent becomes this process's child: none of Ray's processes is forgotten.
COUNT = """
import ctypes, os, resource, subprocess, sys, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
begun = time.perf_counter()
subprocess.run([sys.executable, "-c", *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)
took = time.perf_counter() - begun
try:
    while True:
        os.wait()
except ChildProcessError:
    pass
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(took, used.ru_utime + used.ru_stime)
"""


def make_images(root: Path, photographs: list[Path], count: int) -> None:
    """Write ``count`` pieces of 400 × 300 pixels, no two alike, as JPEG of quality 90."""
    root.mkdir()
    for number in range(count):
        seed = np.random.default_rng(number)
        with Image.open(photographs[number % len(photographs)]) as opened:
            image = opened.convert("RGB")
        left, top = (
            int(seed.integers(0, max(1, side - piece + 1)))
            for side, piece in zip(image.size, SIDES, strict=True)
        )
        piece = image.crop((left, top, left + SIDES[0], top + SIDES[1]))
        piece.putpixel((0, 0), tuple(int(v) for v in seed.integers(0, 256, 3)))
        piece.save(root / f"{number:06d}.jpg", quality=90)


def once(root: Path, model: str, store: Path, engine: str) -> tuple[float, float]:
    """Embed into a new store in a new process; return its seconds, and those of cores."""
    shutil.rmtree(store, ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-c", COUNT, EMBED, root, model, store, engine],
        cwd=HERE,
        env={**os.environ, "PYTHONPATH": str(HERE)},
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    wall, cores = map(float, done.stdout.split())
    return wall, cores


Taken = dict[str, dict[int, list[tuple[float, float]]]]


def measure(folders: dict[int, Path], scratch: Path, model: str, repetitions: int) -> Taken:
    """Time everything in turn; seconds and those of cores, by engine and number of images."""
    taken: Taken = {engine: {n: [] for n in folders} for engine in ENGINES}
    for repetition in range(repetitions):
        for count, root in folders.items():
            order = ENGINES if repetition % 2 == 0 else ENGINES[::-1]
            for engine in order:
                store = scratch / f"{engine}-{count}"
                taken[engine][count].append(once(root, model, store, engine))
                print(engine, count, taken[engine][count][-1], file=sys.stderr, flush=True)
            check_equal(*(scratch / f"{engine}-{count}" for engine in ENGINES))
    return taken


def check_equal(*stores: Path) -> None:
    """Fail unless the rows are the same but for places, and so are the vectors."""
    one, other = map(EmbeddingStore.open, stores)
    tables = [store.index.table.drop_columns(["part", "row"]) for store in (one, other)]
    assert tables[0].equals(tables[1])
    assert np.array_equal(one.X, other.X)


def show(count: int, taken: Taken) -> dict[str, dict[str, float]]:
    """Print a table, and return its figures: medians."""
    figures = {}
    print(
        f"| engine | {FEW} images, s (of cores) | {count:,} images, s (of cores) | "
        "ms of a core an image, beyond the start |\n|---|---|---|---|"
    )
    for engine in ENGINES:
        (few_s, few_cores), (all_s, all_cores) = (
            [statistics.median(column) for column in zip(*taken[engine][n], strict=True)]
            for n in (FEW, count)
        )
        each = 1000 * (all_cores - few_cores) / (count - FEW)
        figures[engine] = {"few_s": few_s, "few_cores": few_cores, "all_s": all_s}
        figures[engine] |= {"all_cores": all_cores, "ms": each}
        times = f"{few_s:.1f} ({few_cores:.1f}) | {all_s:.1f} ({all_cores:.1f})"
        print(f"| {engine} | {times} | {each:.1f} |")
    local, ray = (figures[engine] for engine in ENGINES)
    print(
        f"\nOf {count:,} images Ray takes {ray['all_s'] / local['all_s']:.2f} times as long and "
        f"{ray['all_cores'] / local['all_cores']:.2f} times the seconds of cores; its start is "
        f"{ray['few_s'] - local['few_s']:.1f} s ({ray['few_cores'] - local['few_cores']:.1f} of "
        "cores) of that. The stores are equal."
    )
    return figures


def main() -> None:
    """Measure, print, and write the figures where --json asks for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--model", default="efficientnet_lite0")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    shared = Path(os.environ["FEATPIPE_SHARED"]) / "datasets"
    photographs = sorted(
        path
        for name in ("hymenoptera_data", "clothing_small")
        for path in (shared / name).rglob("*.jpg")
    )
    with tempfile.TemporaryDirectory(prefix="featpipe-ray-") as folder:
        scratch = Path(folder)
        folders = {count: scratch / f"images-{count}" for count in (FEW, asked.images)}
        for count, root in folders.items():
            make_images(root, photographs, count)
        begun, load = time.time(), os.getloadavg()[0]
        taken = measure(folders, scratch, asked.model, asked.repetitions)
        print(
            f"{asked.images:,} pieces of {len(photographs)} photographs, {asked.model}, "
            f"{os.cpu_count()} cores and as many workers, medians of {asked.repetitions} "
            f"repetitions in turn; load {load:.1f} to {os.getloadavg()[0]:.1f}, "
            f"{time.time() - begun:.0f} s\n"
        )
        figures = show(asked.images, taken)
    if asked.json:
        found = {"images": asked.images, "taken": taken, "figures": figures}
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
