"""How long it takes to list an archive: the standard library's tarfile, featpipe, and a re-run.

``python benchmarks/listing.py --members 200000`` writes an archive of small members (an image and
a label each) into a temporary folder. ``headers`` goes through them as ``tarfile`` does;
``listed`` also reads the labels and makes columns; ``again`` takes these from the cache.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import tarfile
import tempfile
import time
from pathlib import Path

from featpipe.sources import open_source
from featpipe.sources.headers import read_headers


def write(path: Path, members: int, size: int) -> None:
    """Write an archive of ``members`` images of ``size`` bytes, each with a label."""
    data = bytes(size)
    with tarfile.open(path, "w") as archive:
        for at in range(members // 2):
            for name, content in ((f"{at:09d}.cls", b"7"), (f"{at:09d}.jpg", data)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def with_tarfile(path: Path) -> int:
    """Go through an archive with the standard library, without keeping its members."""
    count = 0
    with tarfile.open(path) as archive:
        for _ in archive:
            count += 1
            archive.members = []
    return count


def with_headers(path: Path) -> int:
    """Go through the headers alone, as featpipe reads them."""
    with path.open("rb") as file:
        return sum(1 for _ in read_headers(file, path.stat().st_size))


def rows(path: Path) -> int:
    """List an archive as featpipe's planning does."""
    return sum(len(table) for table in open_source(path).batches())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--members", type=int, default=200_000)
    parser.add_argument("--size", type=int, default=20_000, help="bytes of an image")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        path = Path(folder) / "x.tar"
        write(path, 2, 1)
        rows(path)  # whatever is imported late
        write(path, options.members, options.size)
        ways = {"tarfile": with_tarfile, "headers": with_headers, "listed": rows, "again": rows}
        for name, work in ways.items():
            begun, busy = time.perf_counter(), time.process_time()
            work(path)
            took, busy = time.perf_counter() - begun, time.process_time() - busy
            share = 1e6 / options.members
            print(
                f"{name:9} {took:7.2f} s, {took * share:6.2f} µs a member ({busy * share:.2f} busy)"
            )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
