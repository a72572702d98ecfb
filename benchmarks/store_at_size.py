"""A store of ten million rows: seconds and peak memory of whatever is done to one.

Makes a store whose index, keys and parts are those of so many images (paths in folders of a
thousand, 1,000 labels, two splits, every thousandth image a copy of the one before it), and
four more that hold a quarter each; no image is there. The vectors are short (27 numbers), so
that the disk holds them: what is measured is what grows with the rows. A source lists the same
images in columns without touching a file. Each figure comes from a process of its own. Where
other work shares the machine, the seconds of the processor (of all threads) count.

    PYTHONPATH=. python benchmarks/store_at_size.py [--rows 10000000] [--before CHECKOUT]
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
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from rerun import HERE, once

from featpipe import load_backbone
from featpipe._columns import LISTED
from featpipe._files import KEY_BYTES
from featpipe.sources import Source
from featpipe.store import Index, Manifest, parts
from featpipe.types import ImageRef

_LABELS, _FOLDER, _COPIES, _PART, _BLOCK = 1000, 1000, 1000, 2048, 2**16
_QUARTERS = 4
MEASURED = ("seconds", "processor_s", "peak_mib")

BEGIN = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from store_at_size import Made
store, rows, model = Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
from featpipe.commands.stores import describe
from featpipe.embedding import run_embedding
from featpipe.embedding.plan import make_plan
from featpipe.store import (
    EmbeddingStore, Manifest, StoreWriter, collect_garbage, merge_stores, write_parquet
)
begun, used = time.perf_counter(), time.process_time()
"""

END = """
print(time.perf_counter() - begun, time.process_time() - used)
"""

TASKS = {
    "process alone": "",
    "listing alone": "assert sum(len(batch) for batch in Made(0, rows).batches()) == rows",
    "open": "assert len(EmbeddingStore.open(store)) == rows",
    "one label column": "assert len(EmbeddingStore.open(store).labels()) == rows",
    "the paths": "assert len(EmbeddingStore.open(store).paths) == rows",
    "plan of an unchanged re-run": """
with StoreWriter.opened(store, Manifest.read(store)) as writer:
    plan = make_plan(Made(0, rows), writer.previous, writer.places)
    assert len(plan) == rows and not len(plan.missing)
""",
    "unchanged re-run": """
report = run_embedding(Made(0, rows), model, output=store)
assert report.images == rows and report.opened == 0 and report.failed == 0, report
""",
    "index written anew": """
opened = EmbeddingStore.open(store)
opened.index.table
begun, used = time.perf_counter(), time.process_time()
opened.index.write(store)
""",
    "info": "assert describe(EmbeddingStore.open(store))['images'] == rows",
    "gc, nothing to do": "assert collect_garbage(store).dropped == 0",
    "gc, a tenth to drop": "assert collect_garbage(store.with_name('fewer')).dropped > 0",
    "merge of four quarters": """
quarters = [store.with_name(f"quarter-{number}") for number in range(4)]
assert len(merge_stores(store.with_name("merged"), quarters)) == rows
""",
    "to-parquet": """
assert write_parquet(EmbeddingStore.open(store), store.with_suffix(".parquet")) == rows
""",
}
"""What is measured: code that follows `BEGIN`."""


class Made(Source):
    """Lists images that there are not, those numbered from ``start`` to ``stop``."""

    name = "made"

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.location = f"made:{start}-{stop}"
        self._range = start, stop

    def __iter__(self) -> Iterator[ImageRef]:
        raise NotImplementedError

    def read(self, ref: ImageRef) -> bytes:
        """Refuse: nothing of an unchanged re-run is opened."""
        raise OSError(f"{ref.path} is not there")

    def batches(self) -> Iterator[pa.Table]:
        """List in columns, a block at a time."""
        start, stop = self._range
        for begin in range(start, stop, _BLOCK):
            yield listed(np.arange(begin, min(begin + _BLOCK, stop)))


def scattered(numbers: NDArray[np.int64], salt: int) -> NDArray[np.uint64]:
    """Return numbers that look like chance, the same each time (the end of splitmix64)."""
    mixed = numbers.astype(np.uint64) + np.uint64(salt * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def numbered(before: str, numbers: NDArray[np.int64], digits: int, after: str) -> pa.Array:
    """Return texts with a number of so many digits in them."""
    texts = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), digits, "0")
    return pc.binary_join_element_wise(before, texts, after, "")


def listed(rows: NDArray[np.int64]) -> pa.Table:
    """Return what a source says of some images."""
    folders = numbered("s/", rows // _FOLDER, 5, "/")
    chance = scattered(rows, 1)
    columns = [
        pc.binary_join_element_wise(folders, numbered("", rows, 8, ".jpg"), ""),
        pa.array((chance % 900_000 + 20_000).astype(np.int64)),
        pa.array((1_600_000_000_000_000_000 + chance % 10**17).astype(np.int64)),
        numbered("class_", scattered(content(rows), 5).astype(np.int64) % _LABELS, 4, ""),
        pa.array(["train", "test"]).take(pa.array((chance % 5 == 0).astype(np.int8))),
        pa.nulls(len(rows), pa.string()),
        pa.nulls(len(rows), pa.string()),
    ]
    return pa.table(columns, schema=LISTED)


def content(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of what is in each image: some have that of the one before them."""
    return rows - (rows + 1) // _COPIES


def keys(contents: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return keys of contents, (n, 2)."""
    return np.stack([scattered(contents, 2), scattered(contents, 3)], axis=1)


def became(rows: NDArray[np.int64], first: int) -> pa.Table:
    """Return what became of the images; ``first`` is the number of the store's first content."""
    contents = content(rows)
    place = contents - first
    data = pa.py_buffer(keys(contents).tobytes())
    pixels = (scattered(rows, 4) % 4000 + 200).astype(np.int32)
    return pa.table(
        {
            "key": pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(KEY_BYTES), len(rows), [None, data]
            ),
            "width": pa.array(pixels),
            "height": pa.array(pixels[::-1]),
            "status": pa.repeat("ok", len(rows)),
            "reason": pa.nulls(len(rows), pa.string()),
            "part": pa.array((place // _PART).astype(np.int32)),
            "row": pa.array((place % _PART).astype(np.int32)),
        }
    )


def make_store(path: Path, start: int, stop: int, manifest: Manifest) -> None:
    """Write the store of the images from ``start`` to ``stop``; multiples of `_COPIES`."""
    path.mkdir()
    (path / parts.FOLDER).mkdir()
    manifest.write(path)
    first, last = start - start // _COPIES, stop - stop // _COPIES
    shape = parts.PartShape(manifest.dimension, manifest.dtype)
    for number, begin in enumerate(range(first, last, _PART)):
        contents = np.arange(begin, min(begin + _PART, last))
        vectors = np.zeros((len(contents), manifest.dimension), dtype=manifest.dtype)
        vectors[:, 0] = contents
        held = [key.tobytes() for key in keys(contents)]
        parts.write_part(path, number, shape, held, vectors)
    blocks = [np.arange(at, min(at + _BLOCK, stop)) for at in range(start, stop, _BLOCK)]
    tables = pa.concat_tables([listed(rows) for rows in blocks])
    Index.of(tables, pa.concat_tables([became(rows, first) for rows in blocks])).write(path)


def prepare(scratch: Path, rows: int, model: Path) -> Path:
    """Return the store, made with its quarters where it is not there yet."""
    store = scratch / "store"
    if not store.exists():
        backbone = load_backbone(model)
        for start, stop, name in [
            *((rows * i // 4, rows * (i + 1) // 4, f"quarter-{i}") for i in range(_QUARTERS)),
            (0, rows, store.name),
        ]:
            manifest = Manifest(backbone.card.to_json(), "float32", Made(start, stop).location)
            make_store(scratch / name, start, stop, manifest)
    return store


def renew(store: Path, task: str) -> None:
    """Put in place what one task uses up."""
    if task == "merge of four quarters":
        shutil.rmtree(store.with_name("merged"), ignore_errors=True)
    if task == "gc, a tenth to drop":
        fewer = store.with_name("fewer")
        shutil.rmtree(fewer, ignore_errors=True)
        # Parts never change, so links do.
        shutil.copytree(store, fewer, copy_function=os.link)
        for name in ("index.parquet", ".lock"):
            (fewer / name).unlink(missing_ok=True)
        index = Index.read(store)
        index.where(np.arange(len(index)) % 10 != 0).write(fewer)


def measure(
    store: Path, rows: int, model: Path, checkouts: dict[str, Path], only: list[str], repeats: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Return seconds, those of the processor and peak MiB of every task and checkout; medians."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    arguments = (Path(__file__).parent, store, Path(str(rows)), model)
    for task in only:
        for name, checkout in checkouts.items():
            taken = []
            for _ in range(repeats):
                renew(store, task)
                try:
                    taken.append(once(BEGIN + TASKS[task] + END, checkout, *arguments))
                except subprocess.CalledProcessError as exc:
                    print(f"{name}, {task}: {exc.stderr.splitlines()[-1:]}", file=sys.stderr)
                    break
            if taken:
                row = dict(
                    zip(MEASURED, map(statistics.median, zip(*taken, strict=True)), strict=True)
                )
                found.setdefault(task, {})[name] = row
                print(f"{name}, {task}: {_shown(row)}", file=sys.stderr)
    return found


def show(found: dict[str, dict[str, dict[str, float]]], names: list[str]) -> None:
    """Print a table."""
    heads = [f"{name}: s | of the processor | peak MiB" for name in names]
    print("| | " + " | ".join(heads) + " |")
    print("|---" * (1 + 3 * len(names)) + "|")
    for task, row in found.items():
        cells = [_shown(row[name]) if name in row else " | | " for name in names]
        print(f"| {task} | " + " | ".join(cells) + " |")


def _shown(row: dict[str, float]) -> str:
    return f"{row['seconds']:.2f} | {row['processor_s']:.2f} | {row['peak_mib']:,.0f}"


def main() -> None:
    """Measure, print, and write the figures where --json asks for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000, help="a multiple of 4000")
    parser.add_argument("--before", type=Path, help="another checkout, measured in turn")
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--scratch", type=Path, help="keep the stores there, for the next time")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.rows % (_QUARTERS * _COPIES):
        parser.error(f"--rows must be a multiple of {_QUARTERS * _COPIES}")
    sys.path.insert(0, str(HERE / "tests"))
    from conftest import build_tiny_backbone

    checkouts = {"before": asked.before.resolve()} if asked.before else {}
    checkouts["now"] = HERE
    scratch = (asked.scratch or Path(tempfile.mkdtemp(prefix="featpipe-store-"))).resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        model = scratch / "tiny.onnx"
        if not model.exists():
            build_tiny_backbone(model)
        store = prepare(scratch, asked.rows, model)
        begun, load = time.time(), os.getloadavg()[0]
        found = measure(store, asked.rows, model, checkouts, asked.only, asked.repeats)
        size = (store / "index.parquet").stat().st_size
        print(
            f"{asked.rows:,} rows, index of {size / 1e6:,.0f} MB, {os.cpu_count()} cores, medians "
            f"of {asked.repeats}; load {load:.1f} to {os.getloadavg()[0]:.1f}, "
            f"{time.time() - begun:.0f} s\n"
        )
        show(found, list(checkouts))
    finally:
        if asked.scratch is None:
            shutil.rmtree(scratch)
    if asked.json:
        asked.json.write_text(json.dumps({"rows": asked.rows, "found": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
