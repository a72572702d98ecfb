"""Measure, on this machine, what benchmarks/scale.py multiplies; write ``scale.json``.

All seconds but those of the clock in the last table are CPU time, so that what else runs on the
machine changes them less; waiting for a disk or a network is not in them. The runs that the
model is checked against are real ones of `run_embedding`, on the photographs below --photos,
each content once, with one worker and with two.

    PYTHONPATH=. python benchmarks/scale_measure.py --photos FOLDER [--images 2000]
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from arena import HERE, machine
from rerun import make_tree
from scale import STORED

from featpipe import load_backbone
from featpipe._files import content_key
from featpipe.backbones import Backbone
from featpipe.embedding import EmbedOptions, run_embedding
from featpipe.images import decode_image
from featpipe.sources import IMAGE_SUFFIXES, FolderSource, TableSource
from featpipe.store import Index, Manifest, Outcome, StoreWriter, merge_stores
from featpipe.types import Failure, ImageRef

_FILES, _TABLE_ROWS, _MERGED_ROWS, _SHARDS = 20_000, 100_000, 20_000, 4
_RUN_FILES = (1_000, 11_000)


def photographs(folder: Path, count: int) -> list[Path]:
    """Return ``count`` files below a folder, evenly spaced, each content once."""
    files = (p for p in sorted(folder.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES)
    distinct = list({content_key(path.read_bytes()): path for path in files}.values())
    return distinct[:: max(1, len(distinct) // count)][:count]


def cpu_and_wall(work: Callable[[], Any]) -> tuple[float, float]:
    """Return the seconds of CPU, over all threads, and of the clock that something takes."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def stages(files: list[Path], backbone: Backbone) -> dict[str, float]:
    """Return core-seconds an image of reading with decoding, and of the model, in one thread."""
    session = backbone.open_session("cpu", "fp32")
    pixels: list[np.ndarray] = []

    def read_and_decode() -> None:
        for path in files:
            found = decode_image(path.read_bytes(), backbone.card.resize)
            if not isinstance(found, Failure):
                pixels.append(found.pixels)

    def embed() -> None:
        for start in range(0, len(pixels), session.batch_size):
            session.run(np.stack(pixels[start : start + session.batch_size]))

    decoding, _ = cpu_and_wall(read_and_decode)
    embed()  # the first calls allocate
    model, _ = cpu_and_wall(embed)
    return {"decode_s": decoding / len(files), "model_s": model / len(pixels)}


def real_runs(files: list[Path], backbone: Backbone, scratch: Path) -> list[dict[str, float]]:
    """Embed with one worker and with two; what the runs took."""
    runs = []
    for workers in (1, 2):
        options = EmbedOptions(workers=workers, device="cpu", precision="fp32")
        store = scratch / f"run-{workers}"
        load = os.getloadavg()[0]

        def work(store: Path = store, options: EmbedOptions = options) -> None:
            run_embedding(files, backbone, output=store, options=options)

        cpu, wall = cpu_and_wall(work)
        runs.append(
            {"workers": workers, "images": len(files), "cpu_s": cpu, "wall_s": wall, "load": load}
        )
    return runs


def listing(scratch: Path) -> dict[str, float]:
    """Return seconds a file of a folder's listing, and a row of a table's count."""
    make_tree(scratch / "tree", _FILES)
    folder = FolderSource(scratch / "tree")
    folder.count()
    folder_s, _ = cpu_and_wall(folder.count)
    table = scratch / "table.csv"
    rows = (
        f"s3://bucket/images/class_{i % 100:03d}/image_{i:09d}.jpg,c{i % 100}\n"
        for i in range(_TABLE_ROWS)
    )
    table.write_text("path,label\n" + "".join(rows))
    _, table_s = cpu_and_wall(TableSource(table).count)
    return {"folder_s": folder_s / _FILES, "table_s": table_s / _TABLE_ROWS}


def stores(backbone: Backbone, scratch: Path) -> dict[str, float]:
    """Return what an image costs in an index on disk, and in a merge: seconds and memory."""
    vectors = np.zeros((2048, backbone.dimension), dtype=np.float32)
    manifest = Manifest(backbone.card.to_json(), "float32", "nowhere")
    for shard in range(_SHARDS):
        begin, end = (_MERGED_ROWS * i // _SHARDS for i in (shard, shard + 1))
        keys = [content_key(str(i).encode()) for i in range(begin, end)]
        refs = [_ref(i, key) for i, key in enumerate(keys)]
        with StoreWriter.opened(scratch / f"shard-{shard}", manifest) as writer:
            for start in range(0, len(keys), len(vectors)):
                some = keys[start : start + len(vectors)]
                writer.append(some, vectors[: len(some)])
            outcomes = [Outcome("ok", key, 640, 480) for key in keys]
            writer.commit(Index.build(zip(refs, outcomes, strict=True), writer.places))
    inputs = [scratch / f"shard-{shard}" for shard in range(_SHARDS)]
    peaks = [_merge_peak(scratch, inputs[:some]) for some in (1, _SHARDS)]
    merging, _ = cpu_and_wall(lambda: merge_stores(scratch / "merged", inputs))
    index = (scratch / "merged" / "index.parquet").stat().st_size
    more_rows = _MERGED_ROWS * (_SHARDS - 1) / _SHARDS
    return {
        "merge_s": merging / _MERGED_ROWS,
        "merge_bytes": (peaks[1] - peaks[0]) / more_rows,
        "index_bytes": index / _MERGED_ROWS,
    }


def _ref(number: int, key: bytes) -> ImageRef:
    """Return an image whose size and time are like no other's, as those of cameras are."""
    at = int.from_bytes(key[:6], "big")
    name = f"class_{number % 100:03d}/{key[:4].hex()}.jpg"
    return ImageRef(name, 50_000 + at % 200_000, 17 * 10**17 + at * 1000, label=name[:9])


_PEAK = """
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024)
"""
_MERGE = """
import re, sys
from pathlib import Path
from featpipe.store import merge_stores
merge_stores(Path(sys.argv[1]), [Path(p) for p in sys.argv[2:]])
"""
_EMBED = """
import re, sys
from featpipe.embedding import EmbedOptions, run_embedding
options = EmbedOptions(device="cpu", workers=2)
run_embedding(sys.argv[1], sys.argv[2], output=sys.argv[3], options=options)
"""


def _peak(code: str, *arguments: Path) -> int:
    """Return the most memory, in bytes, that a process takes which runs some code."""
    command = [sys.executable, "-c", code + _PEAK, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout)


def _merge_peak(scratch: Path, inputs: list[Path]) -> int:
    return _peak(_MERGE, scratch / f"merged-{len(inputs)}", *inputs)


def run_memory(scratch: Path) -> dict[str, float]:
    """Return the bytes of memory that a run takes for one image more, all of them new."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from conftest import build_tiny_backbone

    model = scratch / "tiny.onnx"
    build_tiny_backbone(model)
    peaks = []
    for count in _RUN_FILES:
        make_tree(scratch / f"few-{count}", count)
        arguments = (scratch / f"few-{count}", model, scratch / f"store-{count}")
        peaks.append(_peak(_EMBED, *arguments))
    return {"run_bytes": (peaks[1] - peaks[0]) / (_RUN_FILES[1] - _RUN_FILES[0])}


def start(files: list[Path], backbone: Backbone, scratch: Path) -> float:
    """Return the core-seconds that a run of one image takes, in a process of its own."""
    command = [sys.executable, "-m", "featpipe", "embed", str(files[0]), "--device", "cpu"]
    command += ["--model", str(backbone.path), "-o", str(scratch / "one")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure all of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--model", help="name or file of the backbone")
    asked = parser.parse_args()
    backbone = load_backbone(asked.model)
    before = machine()
    files = photographs(asked.photos, asked.images)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        measured = {
            "date": dt.datetime.now(dt.UTC).date().isoformat(),
            "machine": before,
            "backbone": backbone.card.name,
            "dimension": backbone.dimension,
            "image_bytes": sum(path.stat().st_size for path in files) / len(files),
            **stages(files[:: max(1, len(files) // 400)], backbone),
            **listing(scratch),
            **stores(backbone, scratch),
            **run_memory(scratch),
            "start_s": start(files, backbone, scratch),
            "runs": real_runs(files, backbone, scratch),
        }
    STORED.write_text(json.dumps(measured, indent=2) + "\n")
    print(STORED.read_text())


if __name__ == "__main__":
    main()
