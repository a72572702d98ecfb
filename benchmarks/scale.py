"""Time, cost and bottleneck of embedding a million or a billion images, from measured constants.

What `scale_measure.py` has measured is in ``scale.json``; what cannot be measured here (prices,
limits of an object store, networks, GPUs) are the assumptions below, each with its source. The
tables of docs/scale.md are what this prints:

    python benchmarks/scale.py            print them
    python benchmarks/scale.py --write    and put them into docs/scale.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scale_simulation import Fleet, simulate

HERE = Path(__file__).resolve().parent
STORED = HERE / "scale.json"
PAGE = HERE.parent / "docs" / "scale.md"
COUNTS, FLEETS = (10**6, 10**9), (1, 16, 256)
_PER_TAR = 10_000
_PART_ROWS = 2048
_HOUR, _GIB = 3600.0, 2**30


@dataclass(frozen=True, slots=True)
class Measured:
    """What one image costs, by measurement; seconds are of one core where nothing else is said."""

    decode_s: float
    model_s: float
    image_bytes: float
    dimension: int
    folder_s: float
    table_s: float
    merge_s: float
    merge_bytes: float
    run_bytes: float
    index_bytes: float
    start_s: float

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Measured:
        """Take the constants out of what was stored."""
        return cls(**{name: stored[name] for name in cls.__slots__})


@dataclass(frozen=True, slots=True)
class Machine:
    """A kind of machine that can be rented.

    ``gpu_rate`` is images a second of the model on its GPU; 0 where it has none.
    """

    name: str
    cores: float
    memory_gib: float
    dollars_an_hour: float
    network_bytes: float
    gpu_rate: float = 0.0


_INSTANCES = (
    "https://www.factualminds.com/blog/amazon-ec2-on-demand-pricing-instance-families-2026/"
)
_FEES = "https://c3x.dev/blog/s3-request-fees-explained"
_GUIDE = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html"
CPU = Machine("CPU", 16, 64, 8 * 0.0816, 5e9 / 8)
GPU = Machine("GPU", 2, 16, 1.006, 5e9 / 8, 2000.0)
ASSUMED = (
    (
        "CPU machine: 16 cores, 64 GiB, $0.65 an hour",
        (
            f"eight times a `m7g.large` (us-east-1, on demand, [June 2026]({_INSTANCES})); a core "
            "is taken to be as fast as one of those measured here"
        ),
    ),
    (
        "GPU machine: 2 cores (4 vCPU), 16 GiB, one A10G, $1.006 an hour",
        "`g5.xlarge`, the same page; two vCPU count as one core",
    ),
    ("2,000 images a second of the model on that GPU", "assumption: no GPU was measured"),
    ("5 Gbit/s of network a machine", "assumption"),
    (
        "1,000 GET $0.0004, 1,000 PUT or LIST $0.005",
        f"S3 Standard, [2026]({_FEES}); traffic within the region is free",
    ),
    (
        "5,500 GET a second and prefix, 16 prefixes",
        f"[the S3 guide]({_GUIDE}); 16 is an assumption",
    ),
    ("0.1 s for a LIST of 1,000 objects, one after the other", "assumption"),
)
_GET, _PUT, _LIST = 0.0004 / 1000, 0.005 / 1000, 0.005 / 1000
_GETS_A_SECOND = 5500.0 * 16
_LIST_SECONDS = 0.1 / 1000


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run takes: seconds of each stage, dollars, what limits it, memory of one process."""

    seconds: dict[str, float]
    dollars: float
    bottleneck: str
    gib: float

    @property
    def total(self) -> float:
        """Seconds from start to the merged store."""
        return sum(self.seconds.values())


def rates(measured: Measured, machine: Machine, machines: int, layout: str) -> dict[str, float]:
    """Return how many images a second each resource allows the whole fleet."""
    cpu_s = measured.decode_s + (0 if machine.gpu_rate else measured.model_s)
    gets = _GETS_A_SECOND * (1 if layout == "objects" else _PER_TAR)
    found = {
        "cores": machines * machine.cores / cpu_s,
        "network": machines * machine.network_bytes / measured.image_bytes,
        "requests": gets,
    }
    if machine.gpu_rate:
        found["GPU"] = machines * machine.gpu_rate
    return found


def plan(
    measured: Measured, machine: Machine, images: int, machines: int, layout: str = "objects"
) -> Plan:
    """Add up a job array with ``--shard`` and a merge, from a bucket and into one.

    ``layout`` is ``objects`` (one object an image: every task lists all of them, once to count
    and once more up to the end of its piece) or ``tars`` (of 10,000 images, which a source can
    divide among its shards by name).
    """
    entries = images if layout == "objects" else images / _PER_TAR
    passes = (2 if machines > 1 else 1) if layout == "objects" else 1
    allowed = rates(measured, machine, machines, layout)
    narrowest = min(allowed, key=allowed.__getitem__)
    vectors = 4 * measured.dimension * images
    merging = machines > 1
    seconds = {
        "start": measured.start_s,
        "listing": passes * entries * _LIST_SECONDS,
        narrowest: images / allowed[narrowest],
        "merge": merging * (images * measured.merge_s + 2 * vectors / machine.network_bytes),
    }
    parts = 2 * images / _PART_ROWS
    requests = _GET * entries + _PUT * parts + machines * passes * _LIST * entries / 1000
    requests += merging * (_GET + _PUT) * parts
    rented = machines * (sum(seconds.values()) - seconds["merge"]) + seconds["merge"]
    dollars = rented / _HOUR * machine.dollars_an_hour + requests
    longest = max(seconds, key=seconds.__getitem__)
    memory = max(images / machines * measured.run_bytes, merging * images * measured.merge_bytes)
    return Plan(seconds, dollars, longest, memory / _GIB)


def finish(images: int, block: int, seconds: float, fleet: Fleet) -> float:
    """Return when the last image of a fleet is done, as the model has it: no chance, no events.

    Without a shared queue the slowest machine decides, or the one that died and came back. With
    one, all work until the work is done, and then wait for half a block.
    """
    speeds = [1 / (fleet.slowness if m in fleet.slow else 1.0) for m in range(fleet.machines)]
    if not fleet.shared:
        own = images / fleet.machines * seconds / fleet.workers
        ends = [own / speed for speed in speeds]
        if fleet.failing is not None and ends[fleet.failing] > fleet.fails_at:
            lost = block * seconds / speeds[fleet.failing] / 2
            ends[fleet.failing] += fleet.back_after + lost
        return max(ends)
    power = sum(speeds) * fleet.workers / seconds
    done_early = 0.0
    if fleet.failing is not None and images / power > fleet.fails_at:
        gone = speeds[fleet.failing] * fleet.workers / seconds
        done_early = gone * fleet.fails_at - fleet.workers * block / 2
        power -= gone
    return (images - done_early) / power + block * seconds / min(speeds) / 2


_CASE_IMAGES, _CASE_BLOCK = 4_000_000, 512


def cases(seconds: float) -> tuple[tuple[str, Fleet], ...]:
    """Return fleets, and what happens to them, for a worker that needs ``seconds`` an image."""
    middle = _CASE_IMAGES / (16 * 8) * seconds / 2
    slow = frozenset({3})
    return (
        ("16 machines of 8 workers, own pieces", Fleet(16, 8, shared=False)),
        ("the same, one of them half as fast", Fleet(16, 8, False, slow, 2.0)),
        (
            "the same, one dies half-way and is back 10 min later",
            Fleet(16, 8, False, failing=5, fails_at=middle, back_after=600.0),
        ),
        ("16 machines of 8 workers, one queue", Fleet(16, 8, shared=True)),
        ("the same, one of them half as fast", Fleet(16, 8, True, slow, 2.0)),
        (
            "the same, one dies half-way and does not come back",
            Fleet(16, 8, True, failing=5, fails_at=middle),
        ),
        ("128 machines of 8 workers, one queue", Fleet(128, 8, shared=True)),
    )


def tables(stored: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield name and Markdown of every table of the page."""
    measured = Measured.of(stored)
    yield "constants", _constants(stored, measured)
    yield "assumptions", _table(("assumed", "source"), ASSUMED)
    yield "plans", _plans(measured)
    yield "runs", _runs(stored, measured)
    yield "simulation", _simulated(measured)
    yield "limits", _limits(measured)


def _constants(stored: dict[str, Any], m: Measured) -> str:
    load = stored["machine"]["load_before"]
    head = (
        f"`python benchmarks/scale_measure.py`, {stored['date']}. "
        f"{stored['machine']['processor']}, {stored['machine']['cores']} cores; "
        f"{stored['backbone']}, fp32; load when it began: {load}.\n\n"
    )
    rows = (
        ("reading and decoding an image", f"{m.decode_s * 1e3:.2f} core-ms"),
        ("the model, an image", f"{m.model_s * 1e3:.2f} core-ms"),
        ("an image", f"{m.image_bytes / 1e3:.0f} kB"),
        ("its vector", f"{4 * m.dimension / 1e3:.1f} kB, in parts of {_PART_ROWS:,}"),
        ("listing a file of a folder", f"{m.folder_s * 1e6:.1f} µs"),
        ("counting a row of a table", f"{m.table_s * 1e6:.1f} µs"),
        ("its row in `index.parquet`", f"{m.index_bytes:.0f} bytes"),
        ("merging a row", f"{m.merge_s * 1e6:.0f} µs, {m.merge_bytes:,.0f} bytes of memory"),
        ("a run, an image that is new", f"{m.run_bytes:,.0f} bytes of memory"),
        ("starting a process, with one image", f"{m.start_s:.1f} s"),
    )
    return head + _table(("measured", ""), rows)


def _plans(measured: Measured) -> str:
    rows = [
        _plan_row(measured, images, layout, machine, machines)
        for images in COUNTS
        for layout in ("objects", "tars")
        for machine in (CPU, GPU)
        for machines in FLEETS
    ]
    return _table(("images", "machines", "time", "cost", "bottleneck", "memory"), rows)


def _plan_row(
    measured: Measured, images: int, layout: str, machine: Machine, machines: int
) -> tuple[str, ...]:
    found = plan(measured, machine, images, machines, layout)
    fits = "" if found.gib <= machine.memory_gib else ": does not fit"
    return (
        f"10^{len(str(images)) - 1} {layout}",
        f"{machines} × {machine.name}",
        _duration(found.total),
        _dollars(found.dollars),
        f"{found.bottleneck} ({_duration(found.seconds[found.bottleneck])})",
        _gib(found.gib) + fits,
    )


def _runs(stored: dict[str, Any], measured: Measured) -> str:
    rows = []
    for run in stored["runs"]:
        predicted = run["workers"] / (measured.decode_s + measured.model_s)
        by_cpu = run["workers"] * run["images"] / run["cpu_s"]
        by_clock = run["images"] / run["wall_s"]
        rows.append(
            (
                f"{run['workers']}",
                f"{run['images']:,}",
                f"{predicted:.0f}",
                f"{by_cpu:.0f} ({by_cpu / predicted - 1:+.0%})",
                f"{by_clock:.0f} ({by_clock / predicted - 1:+.0%})",
                f"{run['load']:.1f}",
            )
        )
    head = ("workers", "images", "predicted images/s", "by core-seconds", "by the clock", "load")
    return _table(head, rows)


def _simulated(measured: Measured) -> str:
    seconds = measured.decode_s + measured.model_s
    rows = []
    for what, fleet in cases(seconds):
        predicted = finish(_CASE_IMAGES, _CASE_BLOCK, seconds, fleet)
        found = simulate(_CASE_IMAGES, _CASE_BLOCK, seconds, fleet)
        error = f"{round(predicted / found - 1, 3) + 0.0:+.1%}"
        rows.append((what, _duration(predicted), _duration(found), error))
    return _table((f"{_CASE_IMAGES:,} images", "model", "simulation", "difference"), rows)


def _limits(m: Measured) -> str:
    billion, cpu = 10**9, CPU.memory_gib
    lists = _dollars(256 * 2 * billion * _LIST / 1000)
    listing = (
        f"a folder {_duration(billion * m.folder_s)} and a bucket "
        f"{_duration(billion * _LIST_SECONDS)} at one go, up to twice that in each task of "
        f"`--shard`; for LIST 256 tasks pay {lists}"
    )
    counting = _duration(billion * m.table_s)
    gets = f"{_dollars(billion * _GET)} for GET, and at most {_GETS_A_SECOND:,.0f} images a second"
    tars = f"tars of {_PER_TAR:,} images: {_dollars(billion / _PER_TAR * _GET)}"
    merge = (
        f"{_gib(billion * m.merge_bytes / _GIB)} of memory and {_duration(billion * m.merge_s)}; "
        f"{cpu:.0f} GiB are enough for {cpu * _GIB / m.merge_bytes / 1e6:,.0f} million rows"
    )
    run = (
        f"{_gib(billion * m.run_bytes / _GIB)} of memory; {cpu:.0f} GiB are enough for "
        f"{cpu * _GIB / m.run_bytes / 1e6:,.0f} million new images"
    )
    index = f"{_gib(billion * m.index_bytes / _GIB)} on disk, read and replaced as a whole"
    rows = (
        ("listing by one process", listing, f"a table of paths ({counting} to count it), or tars"),
        ("one object an image", gets, tars),
        ("one run", run, "`--shard`: the piece of a task is all that it keeps"),
        ("one merge", merge, "leave the shards as they are, or merge them by prefix or month"),
        ("one index", index, "the same: a store for each prefix or month"),
        ("vectors", f"{4e-12 * m.dimension * billion:.1f} TB", "`--dtype float16`: half of it"),
    )
    return _table(("at 10^9 images", "what it takes", "what to do"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _duration(seconds: float) -> str:
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 86_400:,.0f} days" if seconds >= 864_000 else f"{seconds / 86_400:.1f} days"


def _dollars(amount: float) -> str:
    return f"${amount:,.0f}" if amount >= 10 else f"${amount:.2f}"


def _gib(amount: float) -> str:
    return f"{amount:,.0f} GiB" if amount >= 10 else f"{amount:.1f} GiB"


def filled(page: str, stored: dict[str, Any]) -> str:
    """Return the page with every table between its marks replaced."""
    for name, table in tables(stored):
        begin, end = f"<!-- scale: {name} -->\n", f"\n<!-- end of {name} -->"
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"the page lacks the marks of the table {name}")
        page = before + begin + table + end + after
    return page


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    if parser.parse_args().write:
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), stored), encoding="utf-8")
        print(f"→ {PAGE}")
        return
    for name, table in tables(stored):
        sys.stdout.write(f"## {name}\n\n{table}\n\n")


if __name__ == "__main__":
    main()
