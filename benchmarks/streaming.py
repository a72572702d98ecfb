"""`fit` on a store that is larger than memory, and on its first rows in both ways.

    PYTHONPATH=. python benchmarks/streaming.py [--rows 2000000] [--limit 4] [--head logreg svm]

Makes stores of float16 vectors below a temporary folder, which is deleted in the end (2,000,000
vectors of 1,280 numbers are 5.1 GB). Then, every fit being a process of its own:

both  the first rows (--first) in memory and in passes: accuracy on the same 20,000 test rows
all   all rows, in a process whose data are limited (RLIMIT_DATA, --limit in GB: all that it may
      write to, which libraries reserve more of than they use; files that are mapped to be read do
      not count): seconds a pass, passes, accuracy

Peak memory is the highest RssAnon, read fifty times a second; files that are mapped are not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe._files import content_key
from featpipe.store import EmbeddingStore, Index, Manifest, Outcome, StoreWriter
from featpipe.training import fit
from featpipe.types import ImageRef, Progress

CHUNK, TEST = 4096, 20_000
FACTORS = 256


class Vectors:
    """Vectors as a CNN pools them: see `heads_at_size.vectors`; chunk by chunk, any chunk alone.

    Parameters
    ----------
    spread : float
        How far apart the means of the classes are.
    """

    def __init__(self, dimension: int, classes: int, spread: float) -> None:
        rng = np.random.default_rng(0)
        self.strength = ((1 + np.arange(FACTORS)) ** -0.5).astype(np.float32)
        self.centres = rng.normal(size=(classes, FACTORS)) * self.strength * spread
        self.mix = rng.normal(size=(FACTORS, dimension)).astype(np.float32) / np.sqrt(8)
        self.bias = rng.normal(-0.7, 0.5, size=dimension).astype(np.float32)
        self.gain = 0.4 * np.exp(rng.normal(0, 0.5, size=dimension)).astype(np.float32)

    def chunk(self, number: int, n: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return rows, (n, D), and their classes."""
        rng = np.random.default_rng([1, number])
        y = rng.integers(len(self.centres), size=n)
        latent = rng.standard_normal((n, FACTORS), dtype=np.float32) * self.strength
        latent += self.centres[y].astype(np.float32)
        # Of the deviation 0.5.
        noise = (rng.random((n, len(self.bias)), dtype=np.float32) - 0.5) * np.float32(3**0.5)
        contrast = np.exp(0.3 * rng.standard_normal((n, 1), dtype=np.float32))
        activation = (latent @ self.mix + noise) * contrast + self.bias
        return np.maximum(activation, 0) * self.gain, y


def chunks(vectors: Vectors, rows: int) -> Iterator[tuple[str, Any, Any]]:
    """Yield the test rows, then the first rows to learn on."""
    for split, count, first in (("test", TEST, 1_000_000), ("train", rows, 0)):
        for number, start in enumerate(range(0, count, CHUNK)):
            yield split, *vectors.chunk(first + number, min(CHUNK, count - start))


def make_store(path: Path, vectors: Vectors, rows: int) -> None:
    """Write a store through the library."""
    card = {"name": "generated", "fingerprint": "0" * 16, "dimension": len(vectors.bias)}
    images = []
    with StoreWriter.opened(path, Manifest(card, "float16", "generated")) as writer:
        for split, X, y in chunks(vectors, rows):
            first = len(images)
            keys = [content_key(b"%d" % (first + i)) for i in range(len(y))]
            writer.append(keys, X)
            images += [
                (
                    ImageRef(f"{first + i}.jpg", 1, 1, label=f"class{k:03d}", split=split),
                    Outcome("ok", key, 8, 8),
                )
                for i, (key, k) in enumerate(zip(keys, y.tolist(), strict=True))
            ]
        writer.commit(Index.build(images, writer.places))


class Peak(threading.Thread):
    """Watches the memory of this process that no file stands behind."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.highest = 0

    def run(self) -> None:
        """Read it until the process ends."""
        while True:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    self.highest = max(self.highest, int(line.split()[1]) * 1024)
            time.sleep(0.02)


def child(store: Path, head: str, stream: bool | None, limit: float) -> dict[str, Any]:
    """Fit in this process."""
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit * 1e9), int(limit * 1e9)))
    peak = Peak()
    peak.start()
    seen: list[tuple[float, Progress]] = []

    def show(progress: Progress) -> None:
        seen.append((time.perf_counter(), progress))
        if progress.stage == "passes":
            print(f"    {progress.done}: {progress.note}", file=sys.stderr)

    started = time.perf_counter()
    fitted = fit(EmbeddingStore.open(store), head, stream=stream, progress=show)
    seconds = time.perf_counter() - started
    ends = [(at, p) for at, p in seen if p.stage == "passes"]
    last = [
        (at, p.done)
        for at, p in ends
        if p.note.split(" images")[0] == ends[-1][1].note.split(" images")[0]
    ]
    passes = [(b - a) / (m - k) for (a, k), (b, m) in pairwise(last)]
    return {
        "seconds": seconds,
        "tuned_after": max((at for at, p in seen if p.stage == "tuning"), default=started)
        - started,
        "accuracy": 100 * fitted.metrics["accuracy"],
        "log_loss": fitted.metrics["log_loss"],
        "C": fitted.parameters["C"],
        "peak_gb": peak.highest / 1e9,
        "seconds_a_pass": statistics.median(passes) if passes else None,
        "evaluations": ends[-1][1].done if ends else None,
        "notes": fitted.report["notes"],
    }


def measured(store: Path, head: str, way: str, limit: float = 0) -> dict[str, Any]:
    """Fit in a process of its own."""
    command = [sys.executable, __file__, "--child", str(store), head, way, str(limit)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    pace = f", {found['seconds_a_pass']:.1f} s a pass" if found["seconds_a_pass"] else ""
    print(
        f"{head:7} {store.name:>8} rows {way:10} accuracy {found['accuracy']:.2f} %  "
        f"log loss {found['log_loss']:.4f}  C {found['C']:g}  {found['seconds']:.0f} s "
        f"(tuned after {found['tuned_after']:.0f} s{pace})  peak {found['peak_gb']:.2f} GB  "
        f"load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    for note in found["notes"]:
        print(f"        {note}", flush=True)
    return found


def main() -> None:
    """Make the stores, and fit."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--first", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=1280)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--spread", type=float, default=0.38)
    parser.add_argument("--limit", type=float, default=4.0, help="GB of data")
    parser.add_argument("--head", nargs="+", default=["logreg"])
    parser.add_argument("--part", nargs="+", choices=["both", "all"], default=["both", "all"])
    parser.add_argument("--way", choices=["as it is", "passes"], default="as it is")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--scratch", type=Path, help="keep the stores there, for the next time")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        store, head, way, limit = options.child
        stream = {"in memory": False, "passes": True, "as it is": None}[way]
        print(json.dumps(child(Path(store), head, stream, float(limit))))
        return
    scratch = options.scratch or Path(tempfile.mkdtemp(prefix="featpipe-streaming-"))
    vectors = Vectors(options.dim, options.classes, options.spread)
    found = {}
    try:
        for part, rows in (("both", options.first), ("all", options.rows)):
            store = scratch / str(rows)
            if part in options.part and not (store / "index.parquet").exists():
                make_store(store, vectors, rows)
            for head in options.head if part in options.part else ():
                for way in ("in memory", "passes") if part == "both" else (options.way,):
                    limit = options.limit if part == "all" else 0
                    found[f"{head}, {rows}, {way}"] = measured(store, head, way, limit)
    finally:
        if options.scratch is None:
            shutil.rmtree(scratch, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
