"""Nearest neighbours at size: queries a second and peak memory, beside scikit-learn's.

    python benchmarks/neighbours.py [--rows N] [--peer-rows N] [--tuned-rows N] [--json FILE]

Vectors of 1280 numbers and rank 64 are made in blocks and lie as float16 in a memory map below a
temporary folder (2.56 GB for a million, twice that while the head is saved), which is deleted
at the end. The estimator and a whole head, saved and loaded again, answer batches of 1, 8 and 256.
Then, on as many of the rows as it can hold, scikit-learn's ``KNeighborsClassifier`` answers the
same, in turn with the estimator; and on fewer, the head is tuned in both ways, five folds and ten
values of k: one search a fold, and a fit for every value and fold.

Peak memory is that of anonymous pages, looked at every 10 ms, above what the process had after its
imports: pages of the map are the system's cache, which it takes back when it needs them. The high
water mark (VmHWM) counts these, too. ``product`` is the bare matrix product with the same rows, as
float32 in memory, by as many threads: what BLAS needs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer

from featpipe._threads import single_threads
from featpipe.calibration import Temperature
from featpipe.heads import HEADS, Head, load_head
from featpipe.heads.neighbours import CosineNeighbours
from featpipe.model_selection import fit_tuned, make_folds

DIMENSION, RANK, CLASSES, K = 1280, 64, 100, 10
BATCHES = (1, 8, 256)
BLOCK = 20_000


def made(path: Path, rows: int) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.float32]]:
    """Return a map of new vectors, their classes, and some queries that are not among them."""
    # In another process: what it leaves in memory is not counted here.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        y, queries = pool.submit(write, path, rows).result()
    return np.load(path, mmap_mode="r"), y, queries


def write(path: Path, rows: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Write vectors, block by block; return their classes, and some queries."""
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(RANK, DIMENSION)).astype(np.float32)
    means = rng.normal(size=(CLASSES, RANK)).astype(np.float32)
    y = rng.integers(0, CLASSES, rows + max(BATCHES))

    def block(some: NDArray[np.int64]) -> NDArray[np.float32]:
        noise = rng.standard_normal((len(some), RANK), dtype=np.float32)
        return np.maximum((means[some] + noise) @ basis, 0)

    mapped = np.lib.format.open_memmap(path, "w+", np.float16, (rows, DIMENSION))
    for start in range(0, rows, BLOCK):
        mapped[start : start + BLOCK] = block(y[start : min(start + BLOCK, rows)])
    mapped.flush()
    return y[:rows], block(y[rows:])


def status(field: str) -> int:
    """Return a figure of this process in MiB."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{field}:")[2].split()[0]) // 1024


@contextmanager
def peak() -> Iterator[dict[str, int]]:
    """Measure the most anonymous memory of a block above that at the start, in MiB."""
    found, ended = {"mib": 0}, threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            found["mib"] = max(found["mib"], status("RssAnon") - AT_START)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()


AT_START = status("RssAnon")


def seconds(work: Callable[..., Any], *given: Any) -> float:
    started = time.perf_counter()
    work(*given)
    return time.perf_counter() - started


def whole_head(estimator: CosineNeighbours, y: NDArray[np.int64]) -> Head:
    """Return a head around a fitted estimator."""
    return Head(
        name="knn",
        classes=tuple(f"{k:03d}" for k in range(CLASSES)),
        pipeline=Pipeline([("scale", Normalizer()), ("head", estimator)]),
        calibrator=Temperature(1.0),
        backbone={"name": "made", "fingerprint": "0" * 16, "dimension": DIMENSION},
        parameters={"n_neighbors": K},
        class_counts=tuple(int(n) for n in np.bincount(y)),
    )


def at_size(folder: Path, rows: int, repetitions: int) -> dict[str, Any]:
    """Measure the estimator and its head on all rows."""
    vectors, y, queries = made(folder / "vectors.npy", rows)
    result: dict[str, Any] = {"rows": rows, "gigabytes": vectors.nbytes / 1e9}
    estimator = CosineNeighbours(K)
    with peak() as most:
        result["fit_s"] = seconds(estimator.fit, vectors, y)
    result["fit_mib"] = most["mib"]
    for batch in BATCHES:
        with peak() as most:
            times = [
                seconds(estimator.predict_proba, queries[:batch])
                for _ in range(repetitions if batch > 8 else 2 * repetitions)
            ]
        result[f"batch_{batch}"] = {"seconds": times, "mib": most["mib"]}
        print(rows, batch, [f"{t:.2f}" for t in times], file=sys.stderr)
    head = whole_head(estimator, y)
    with peak() as most:
        result["save_s"] = seconds(head.save, folder / "head")
        result["load_s"] = seconds(load_head, folder / "head")
    result["save_and_load_mib"] = most["mib"]
    result["high_water_mib"] = status("VmHWM")
    return result


def beside_peer(folder: Path, rows: int, repetitions: int) -> dict[str, Any]:
    """Measure the estimator and scikit-learn's, in turn, on some of the rows."""
    vectors, y, queries = made(folder / "some.npy", rows)
    own = CosineNeighbours(K).fit(vectors, y)
    with peak() as most:
        peer = peers({"n_neighbors": K}, 0)
        peer.fit(vectors.astype(np.float32), y)
        peer.predict_proba(queries)
    result: dict[str, Any] = {"rows": rows, "peer_mib": most["mib"]}
    apart = np.abs(own.predict_proba(queries) - peer.predict_proba(queries)).max()
    result["largest_difference"] = float(apart)
    wide = vectors.astype(np.float32)
    ways = {"own": own.predict_proba, "peer": peer.predict_proba, "product": partial(product, wide)}
    for batch in BATCHES:
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(repetitions):
            for way, work in ways.items():
                times[way].append(seconds(work, queries[:batch]))
        result[f"batch_{batch}"] = times
    return result


def tuned(folder: Path, rows: int, classes: int, repetitions: int) -> dict[str, Any]:
    """Measure a tuned fit, and the same with scikit-learn's estimator, in turn."""
    vectors, y, _ = made(folder / "few.npy", rows)
    wide, y = np.asarray(vectors, dtype=np.float32), y % classes
    names = [f"{k:03d}" for k in range(classes)]
    folds = make_folds(y, np.arange(rows), 5, 0, names)
    specs = {"own": HEADS["knn"], "peer": replace(HEADS["knn"], estimator=peers, solver=None)}
    result: dict[str, Any] = {"rows": rows, "classes": classes, "own": [], "peer": []}
    tables = {}
    for _ in range(repetitions):
        for way, spec in specs.items():
            started = time.perf_counter()
            tables[way] = fit_tuned(spec, wide, y, folds).table
            result[way].append(time.perf_counter() - started)
    losses = [[entry["log_loss"] for entry in tables[way]] for way in specs]
    result["largest_difference"] = float(np.abs(np.subtract(*losses)).max())
    return result


def peers(parameters: Mapping[str, Any], _: int) -> KNeighborsClassifier:
    """Return scikit-learn's estimator."""
    return KNeighborsClassifier(
        parameters["n_neighbors"], weights="distance", metric="cosine", algorithm="brute"
    )


def product(rows: NDArray[np.float32], queries: NDArray[np.float32]) -> None:
    """Multiply rows and queries, a part of the rows a thread."""
    cores = joblib.cpu_count()
    with single_threads(cores) as pool:
        parts = np.array_split(rows, cores)
        list(pool.map(lambda part: queries @ part.T, parts) if pool else map(queries.dot, [rows.T]))


def ratio(times: dict[str, list[float]], way: str) -> float:
    """Return how many times as long as the estimator another way takes."""
    return median(b / a for a, b in zip(times["own"], times[way], strict=True))


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--peer-rows", type=int, default=50_000)
    parser.add_argument("--tuned-rows", type=int, default=5_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        large = at_size(Path(name), options.rows, options.repetitions)
    with tempfile.TemporaryDirectory() as name:
        beside = beside_peer(Path(name), options.peer_rows, options.repetitions)
        fits = [
            tuned(Path(name), options.tuned_rows, n, options.repetitions) for n in (10, CLASSES)
        ]
    show(large, beside, fits)
    if options.json:
        machine = {"cores": joblib.cpu_count(), "load": os.getloadavg()[0]}
        found = {"at_size": large, "beside": beside, "tuned": fits, "machine": machine}
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def show(large: dict[str, Any], beside: dict[str, Any], fits: list[dict[str, Any]]) -> None:
    """Print Markdown tables."""
    print("| batch | rows | s | queries/s | peak MiB |\n|---|---|---|---|---|")
    for batch in BATCHES:
        found = large[f"batch_{batch}"]
        middle = median(found["seconds"])
        print(
            f"| {batch} | {large['rows']:,} | {middle:.2f} | {batch / middle:.1f} "
            f"| {found['mib']} |"
        )
    print(
        f"\nfit {large['fit_s']:.1f} s, {large['fit_mib']} MiB; save {large['save_s']:.1f} s, "
        f"load {large['load_s']:.1f} s, {large['save_and_load_mib']} MiB; "
        f"high water mark with the map {large['high_water_mib']} MiB\n"
    )
    print("| batch | rows | featpipe s | scikit-learn s | ratio | product s | ratio |")
    print("|---|---|---|---|---|---|---|")
    for batch in BATCHES:
        found = beside[f"batch_{batch}"]
        print(
            f"| {batch} | {beside['rows']:,} | {median(found['own']):.3f} "
            f"| {median(found['peer']):.3f} | {ratio(found, 'peer'):.1f} "
            f"| {median(found['product']):.3f} | {ratio(found, 'product'):.2f} |"
        )
    print(
        f"\nscikit-learn {beside['peer_mib']} MiB; largest difference of a probability "
        f"{beside['largest_difference']:.0e}"
    )
    for fit in fits:
        print(
            f"\ntuned on {fit['rows']:,} rows, {fit['classes']} classes: "
            f"{median(fit['own']):.2f} s, with scikit-learn's estimator "
            f"{median(fit['peer']):.2f} s ({ratio(fit, 'peer'):.1f} x), largest "
            f"difference of a log loss {fit['largest_difference']:.0e}"
        )


if __name__ == "__main__":
    main()
