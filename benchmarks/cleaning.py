"""`clean`: what it finds of flaws that were planted, and what it takes on a large store.

    PYTHONPATH=. FEATPIPE_SHARED=… python benchmarks/cleaning.py [--seeds 5] [--rows 100000]

Into copies of ``clothing_small`` are planted: 20 equal files, 20 copies that are resized to
0.4 … 0.9 of their size and written as JPEG of quality 60 to 90, 15 wrong labels. Large stores
have generated vectors, and no images behind them: what is timed is what is done with vectors.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from rerun import HERE, once

import featpipe
from featpipe._files import content_key
from featpipe.quality import Cleaning, clean
from featpipe.store import Index, Manifest, Outcome, StoreWriter
from featpipe.types import ImageRef

N_EQUAL, N_COPIES, N_WRONG, FIRST = 20, 20, 15, 30
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
DIMENSION, CLASSES = 1280, 100

RUN = """
import sys, time
from featpipe.quality import clean
begun = time.perf_counter()
found = clean(sys.argv[1])
print(time.perf_counter() - begun, len(found.problems))
"""


def plant(root: Path, seed: int) -> None:
    """Add the flaws to a folder of class folders; their names tell them."""
    chance = random.Random(seed)
    files = sorted(root.rglob("*.jpg"))
    chosen = chance.sample(files, N_EQUAL + N_COPIES + N_WRONG)
    for path in chosen[:N_EQUAL]:
        shutil.copy(path, path.with_name(f"equal_{path.name}"))
    for path in chosen[N_EQUAL : N_EQUAL + N_COPIES]:
        scale, quality = chance.uniform(0.4, 0.9), chance.randint(60, 90)
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        size = round(scale * image.width), round(scale * image.height)
        smaller = image.resize(size, chance.choice(FILTERS))
        smaller.save(path.with_name(f"copy_{path.name}"), quality=quality)
    for path in chosen[N_EQUAL + N_COPIES :]:
        others = [p for p in path.parent.parent.iterdir() if p.is_dir() and p != path.parent]
        path.rename(chance.choice(sorted(others)) / f"wrong_{path.name}")


def found_of(cleaning: Cleaning) -> dict[str, int]:
    """Count what was found of what was planted, and pairs that are none."""
    equal = [p for p in cleaning.of("duplicate") if _is_pair(p.path, p.other, "equal_")]
    copies = {p.path for p in cleaning.of("near-duplicate") if _is_pair(p.path, p.other, "copy_")}
    false = len(cleaning.of("near-duplicate")) - len(copies)
    wrong = [p for p in cleaning.of("wrong-label")[:FIRST] if Path(p.path).name[:6] == "wrong_"]
    return {"equal": len(equal), "copies": len(copies), "false pairs": false, "wrong": len(wrong)}


def _is_pair(path: str, other: str | None, prefix: str) -> bool:
    names = sorted((Path(path).name, Path(other or "").name), key=len)
    return names[1] == prefix + names[0]


def planted(seeds: int) -> list[dict[str, float]]:
    """Plant with each seed, and count."""
    data = Path(os.environ["FEATPIPE_SHARED"]) / "datasets" / "clothing_small"
    results = []
    print("| seed | equal of 20 | copies of 20 | false pairs | wrong of 15 in 30 | s |")
    print("|---|---|---|---|---|---|")
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "clothing"
            shutil.copytree(data, root)
            plant(root, seed)
            store = featpipe.embed(root, output=Path(folder) / "store")
            begun = time.perf_counter()
            found = found_of(clean(store))
            seconds = time.perf_counter() - begun
        results.append({**found, "seconds": seconds})
        print(f"| {seed} | " + " | ".join(map(str, found.values())) + f" | {seconds:.1f} |")
    means = {name: statistics.mean(r[name] for r in results) for name in results[0]}
    print("| mean | " + " | ".join(f"{value:.1f}" for value in means.values()) + " |")
    return results


def generate(path: Path, rows: int) -> None:
    """Write a store of vectors that lie about as many centres as there are classes."""
    chance = np.random.default_rng(0)
    centres = chance.normal(size=(CLASSES, DIMENSION)).astype(np.float32)
    card = {"name": "generated", "fingerprint": "0" * 64, "dimension": DIMENSION}
    listed = []
    with StoreWriter.opened(path, Manifest(card, "float16", "generated")) as writer:
        for start in range(0, rows, 2048):
            numbers = range(start, min(start + 2048, rows))
            labels = chance.integers(CLASSES, size=len(numbers))
            noise = chance.normal(size=(len(numbers), DIMENSION)).astype(np.float32)
            keys = [content_key(str(number).encode()) for number in numbers]
            writer.append(keys, centres[labels] + 2 * noise)
            for number, key, label in zip(numbers, keys, labels, strict=True):
                ref = ImageRef(f"{number}.jpg", 1, 1, label=f"class {label}")
                listed.append((ref, Outcome("ok", key, 500, 375)))
        writer.commit(Index.build(listed, writer.places))


def large(rows: int) -> dict[str, float]:
    """Time `clean` on a generated store, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="featpipe-clean-") as folder:
        generate(Path(folder) / "store", rows)
        seconds, _, peak = once(RUN, HERE, Path(folder) / "store")
    print(f"\n{rows:,} vectors × {DIMENSION}: {seconds:.0f} s, peak {peak:,.0f} MiB")
    return {"rows": rows, "seconds": seconds, "peak_mib": peak}


def main() -> None:
    """Plant, count and time; write the figures where --json asks for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    content = {"planted": planted(asked.seeds), "large": large(asked.rows)}
    if asked.json:
        asked.json.write_text(json.dumps({"cleaning": content}, indent=2) + "\n")


if __name__ == "__main__":
    main()
