"""The same images from a folder, a table, archives, a bucket, the web: equal keys and vectors.

A real S3 server (moto) and a real web server on loopback serve what is in the folder; nothing is
read from elsewhere. Every kind of source is embedded into a store of its own and compared with
the folder's: paths but for what comes before them, contents, labels, splits, vectors to the last
bit; then embedded again, which must open nothing.

    PYTHONPATH=. python benchmarks/anywhere.py FOLDER [--model NAME] [--json FILE]
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featpipe.embedding import run_embedding
from featpipe.sources import FolderSource
from featpipe.storage.reading import filesystem
from featpipe.store import EmbeddingStore
from featpipe.types import ImageRef

# The servers are those of the tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from buckets import server_of_buckets
from webserver import web_server

SAID = (
    "Keys, labels, splits and vectors (to the last bit) compared with those of the folder; S3 "
    "(moto) and the web server run in the same process, on the same cores, over `http://`."
)


def main() -> None:
    """Make all kinds, embed all kinds, compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = options.folder.resolve()
    refs = list(FolderSource(folder))
    with tempfile.TemporaryDirectory() as work, kinds(folder, refs, Path(work)) as found:
        results = compared(found, options.model, Path(work))
    print(f"{SAID}\n")
    print("| source | images | equal to the folder | seconds | opened by a second run |")
    print("|---|---|---|---|---|")
    for name, result in results.items():
        equal = "yes" if result["equal"] else "NO"
        cells = [name, result["images"], equal, f"{result['seconds']:.1f}", result["opened_again"]]
        print("| " + " | ".join(map(str, cells)) + " |")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    if not all(result["equal"] and not result["opened_again"] for result in results.values()):
        raise SystemExit("not all are equal")


def compared(found: dict[str, str], model: str | None, work: Path) -> dict[str, dict[str, object]]:
    """Embed every source twice and compare its store with the first one's."""
    results: dict[str, dict[str, object]] = {}
    reference: EmbeddingStore | None = None
    for at, (name, source) in enumerate(found.items()):
        store = work / f"store-{at}"
        begun = time.perf_counter()
        report = run_embedding(source, model, output=store)
        seconds = time.perf_counter() - begun
        reference = reference or report.store
        results[name] = {
            "images": len(report.store),
            "equal": are_equal(reference, report.store),
            "seconds": round(seconds, 2),
            "opened_again": run_embedding(source, model, output=store).opened,
        }
    return results


def are_equal(one: EmbeddingStore, two: EmbeddingStore) -> bool:
    """Tell whether stores agree in everything but where the images lie."""
    ends = all(a.endswith(b) or b.endswith(a) for a, b in zip(one.paths, two.paths, strict=True))
    return (
        ends
        and one.keys == two.keys
        and one.labels().tolist() == two.labels().tolist()
        and one.splits.tolist() == two.splits.tolist()
        and np.array_equal(one.X, two.X)
    )


@contextmanager
def kinds(folder: Path, refs: list[ImageRef], work: Path) -> Iterator[dict[str, str]]:
    """Yield every kind of source, by name."""
    makers: dict[str, Callable[[], str]] = {
        "folder": lambda: str(folder),
        "CSV": lambda: table(work / "local.csv", refs, f"{folder}/"),
        "tar": lambda: archive(work / "images.tar", folder, refs),
        "Parquet bytes": lambda: parquet(work / "images.parquet", folder, refs),
    }
    with server_of_buckets(), web_server(folder) as web:
        system, _ = filesystem("s3://bucket")
        for ref in refs:
            system.pipe_file(f"bucket/images/{ref.path}", (folder / ref.path).read_bytes())
        makers["s3:// folder"] = lambda: "s3://bucket/images"
        makers["http:// list"] = lambda: table(work / "web.csv", refs, f"{web.url}/")
        found = {name: make() for name, make in makers.items()}
        system.put_file(found["tar"], "bucket/images.tar")
        yield {**found, "s3:// tar": "s3://bucket/images.tar"}


def table(path: Path, refs: list[ImageRef], before: str) -> str:
    """Write a table of paths or addresses."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split"])
        rows.writerows([before + ref.path, ref.label, ref.split] for ref in refs)
    return str(path)


def archive(path: Path, folder: Path, refs: list[ImageRef]) -> str:
    """Write an archive of the images in the order of the folder."""
    with tarfile.open(path, "w") as tar:
        for ref in refs:
            data = (folder / ref.path).read_bytes()
            member = tarfile.TarInfo(ref.path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return str(path)


def parquet(path: Path, folder: Path, refs: list[ImageRef]) -> str:
    """Write a Parquet file in the layout of Hugging Face."""
    images = [{"bytes": (folder / ref.path).read_bytes(), "path": ref.path} for ref in refs]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {
        "image": pa.array(images, kind),
        "label": pa.array([ref.label for ref in refs]),
        "split": pa.array([ref.split for ref in refs]),
    }
    pq.write_table(pa.table(columns), path, row_group_size=100)
    return str(path)


if __name__ == "__main__":
    main()
