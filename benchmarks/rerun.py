"""A second `embed` over files that have not changed: wall time and memory, by number of files.

Makes a tree of tiny PNG files, no two alike, in 100 class folders below a temporary folder,
and a store that holds them all. Then each re-run is a process of its own: the floor (the same
tree listed and looked at by `os.scandir` and nothing else), ten files (what a process costs in
any case), the whole tree. With --before the same is timed for another checkout, in turn.

    PYTHONPATH=. python benchmarks/rerun.py --files 100000 [--before CHECKOUT] [--json FILE]
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
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from featpipe import load_backbone
from featpipe._files import content_key
from featpipe.embedding import run_embedding
from featpipe.sources import FolderSource
from featpipe.store import Index, Manifest, Outcome, StoreWriter
from featpipe.types import ImageRef

HERE = Path(__file__).resolve().parents[1]
FOLDERS, FEW = 100, 10
MEASURED = ("wall_s", "run_s", "peak_mib")
_EMBEDDED = 100_000
"""Larger trees get their store from the library's writer: the vectors do not matter here."""

PEAK = """
import re
# Not getrusage: a child begins with its parent's maximum there.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
"""

RERUN = """
import sys, time
begun = time.perf_counter()
from featpipe.embedding import run_embedding
report = run_embedding(sys.argv[1], sys.argv[2], output=sys.argv[3])
assert report.opened == 0 and report.failed == 0, report
wall = time.perf_counter() - begun
print(wall, report.seconds)
"""

FLOOR = """
import os, sys, time
begun = time.perf_counter()
folders = [sys.argv[1]]
while folders:
    with os.scandir(folders.pop()) as entries:
        for entry in entries:
            if entry.is_dir():
                folders.append(entry.path)
            else:
                entry.stat()
took = time.perf_counter() - begun
print(took, took)
"""


def png(number: int) -> bytes:
    """Return an image of 8 × 8 pixels that no other number gives."""
    seed = np.random.default_rng(number)
    rows = seed.integers(0, 256, (8, 1 + 8 * 3), dtype=np.uint8)
    rows[:, 0] = 0
    header = (8).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        for kind, data in chunks
    )


def make_tree(root: Path, count: int) -> None:
    """Write ``count`` images, spread over the class folders."""
    for folder in range(FOLDERS):
        place = root / f"class_{folder:03d}"
        place.mkdir(parents=True)
        for number in range(folder, count, FOLDERS):
            (place / f"image_{number:07d}.png").write_bytes(png(number))


def fill_store(root: Path, model: Path, store: Path) -> None:
    """Write the store that `embed` would, but for the vectors: those are zeros."""
    backbone = load_backbone(model)
    manifest = Manifest(backbone.card.to_json(), "float32", str(root.resolve()))
    vectors = np.zeros((2048, backbone.dimension), dtype=np.float32)

    def rows() -> Iterator[tuple[ImageRef, Outcome]]:
        waiting: list[bytes] = []
        for ref in FolderSource(root):
            key = content_key((root / ref.path).read_bytes())
            waiting.append(key)
            if len(waiting) == len(vectors):
                writer.append(waiting, vectors)
                waiting.clear()
            yield ref, Outcome("ok", key, 8, 8)
        writer.append(waiting, vectors[: len(waiting)])

    with StoreWriter.opened(store, manifest) as writer:
        listed = list(rows())
        writer.commit(Index.build(listed, writer.places))


def prepare(scratch: Path, count: int, model: Path) -> tuple[Path, Path]:
    """Return a tree and its store, made where they are not there yet."""
    root, store = scratch / f"tree-{count}", scratch / f"store-{count}"
    if not (store / "index.parquet").exists():
        make_tree(root, count)
        if count <= _EMBEDDED:
            run_embedding(root, model, output=store)
        else:
            fill_store(root, model, store)
    return root, store


def once(code: str, checkout: Path, *arguments: Path) -> tuple[float, float, float]:
    """Run ``code`` in a new process: seconds with the imports, seconds of the run, peak MiB."""
    found = subprocess.run(
        [sys.executable, "-c", code + PEAK + "print(peak)", *map(str, arguments)],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        check=True,
        capture_output=True,
        text=True,
    )
    wall, run, peak = map(float, found.stdout.split())
    return wall, run, peak


def measure(
    scratch: Path, count: int, model: Path, checkouts: dict[str, Path], repetitions: int
) -> dict[str, dict[str, float]]:
    """Time everything in turn; medians of wall and run in seconds, of the peak in MiB."""
    root, store = prepare(scratch, count, model)
    few, few_store = prepare(scratch, FEW, model)
    taken: dict[str, list[tuple[float, float, float]]] = {}
    for _ in range(repetitions):
        taken.setdefault("scandir and stat alone", []).append(once(FLOOR, HERE, root))
        for name, checkout in checkouts.items():
            taken.setdefault(f"{name}, {FEW} files", []).append(
                once(RERUN, checkout, few, model, few_store)
            )
            taken.setdefault(f"{name}, {count:,} files", []).append(
                once(RERUN, checkout, root, model, store)
            )
    return {
        name: {
            what: statistics.median(column)
            for what, column in zip(
                ("wall_s", "run_s", "peak_mib"), zip(*rows, strict=True), strict=True
            )
        }
        for name, rows in taken.items()
    }


def show(count: int, found: dict[str, dict[str, float]]) -> None:
    """Print a table; bytes an image are those above the process with ten files."""
    print("| | wall s | run s | peak MiB | bytes an image |\n|---|---|---|---|---|")
    for name, row in found.items():
        few = found.get(name.replace(f"{count:,} files", f"{FEW} files"))
        above = (row["peak_mib"] - few["peak_mib"]) * 2**20 / count if few else 0
        shown = f"{above:,.0f}" if few is not None and few is not row else ""
        times = f"{row['wall_s']:.2f} | {row['run_s']:.2f}"
        print(f"| {name} | {times} | {row['peak_mib']:.0f} | {shown} |")


def main() -> None:
    """Measure, print, and write the figures where --json asks for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--before", type=Path, help="another checkout, timed in turn")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="keep tree and store there, for the next time")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    sys.path.insert(0, str(HERE / "tests"))
    from conftest import build_tiny_backbone

    checkouts = {"before": asked.before.resolve()} if asked.before else {}
    checkouts["now"] = HERE
    scratch = (asked.scratch or Path(tempfile.mkdtemp(prefix="featpipe-rerun-"))).resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        model = scratch / "tiny.onnx"
        build_tiny_backbone(model)
        begun, load = time.time(), os.getloadavg()[0]
        found = measure(scratch, asked.files, model, checkouts, asked.repetitions)
        print(
            f"{asked.files:,} files in {FOLDERS} folders, {os.cpu_count()} cores, medians of "
            f"{asked.repetitions} repetitions in turn; load {load:.1f} to "
            f"{os.getloadavg()[0]:.1f}, {time.time() - begun:.0f} s\n"
        )
        show(asked.files, found)
    finally:
        if asked.scratch is None:
            shutil.rmtree(scratch)
    if asked.json:
        asked.json.write_text(json.dumps({"files": asked.files, "found": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
