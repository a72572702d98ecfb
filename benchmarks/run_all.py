"""Run the benchmarks one after the other; write ``RESULTS.md``, ``results.json`` and a chart.

    python benchmarks/run_all.py [--models-dir DIR] [--only NAME ...] [--quick] [--with …]

What follows ``--with`` is handed to the script: ``--only pipeline --with --repetitions 9``.
Every section is what a script printed, beside the machine it ran on: no figure is typed by
hand. A section that is not run again keeps what it had.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from arena import HERE, machine

RESULTS, PAGE, CHART = HERE / "results.json", HERE / "RESULTS.md", HERE / "results.svg"
# Section: title, script and arguments, what --quick adds.
SECTIONS: dict[str, tuple[str, list[str], list[str]]] = {
    "pipeline": ("Images a second", ["pipeline.py"], ["--repetitions", "1", "--images", "16"]),
    "decode": ("Decoding", ["decode.py"], ["--repetitions", "1", "--no-vectors"]),
    "memory": ("Memory by number of images", ["memory.py"], ["--images", "50", "100"]),
    "startup": ("Starting up", ["startup.py"], ["--repetitions", "1"]),
    "heads": (
        "Tuned linear heads",
        ["heads_at_size.py"],
        ["--size", "500 x 2048 x 10", "--repetitions", "1"],
    ),
    "neighbours": (
        "Nearest neighbours",
        ["neighbours.py"],
        ["--rows", "20000", "--repetitions", "1"],
    ),
    "streaming": (
        "A store larger than memory",
        ["streaming.py", "--rows", "300000"],
        ["--rows", "20000", "--first", "5000"],
    ),
    "cleaning": (
        "Finding copies and wrong labels",
        ["cleaning.py"],
        ["--seeds", "1", "--rows", "5000"],
    ),
    "honesty": (
        "Are the intervals and estimates honest?",
        ["honesty.py"],
        ["--data-sets", "20", "--seeds", "3"],
    ),
    "unknown": ("Images that a head was never shown", ["unknown.py"], []),
    "conformal": (
        "Sets of labels, and what they promise",
        ["conformal.py"],
        ["--splits", "2", "--heads", "knn"],
    ),
    "drift": (
        "Drift: false alarms, and true ones",
        ["drift.py"],
        ["--splits", "2", "--heads", "knn"],
    ),
    "rerun": (
        "A re-run over unchanged files",
        ["rerun.py", "--files", "100000"],
        ["--files", "10000", "--repetitions", "1"],
    ),
    "store_at_size": (
        "A store of ten million rows",
        ["store_at_size.py"],
        ["--rows", "100000"],
    ),
    "anywhere": ("The same images from everywhere", ["anywhere.py"], []),
    "ray": (
        "Ray beside the local engine",
        ["ray_engine.py", "--images", "5000"],
        ["--images", "200", "--repetitions", "1"],
    ),
    "bundle": ("Bundles in other runtimes", ["bundle.py"], ["--images", "4"]),
}


def run(name: str, extra: list[str]) -> dict[str, Any]:
    """Run one script; return what it printed and measured."""
    title, command, _ = SECTIONS[name]
    before = machine()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.json"
        done = subprocess.run(
            [sys.executable, HERE / command[0], *command[1:], *extra, "--json", file],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        data = json.loads(file.read_text(encoding="utf-8"))
    # A folder of this machine says nothing to anybody else.
    shown = [word if "/" not in word else "DIR" for word in extra]
    return {
        "title": title,
        "command": " ".join(["python", f"benchmarks/{command[0]}", *command[1:], *shown]),
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": before,
        "markdown": done.stdout.strip(),
        "data": data,
    }


def page(results: dict[str, dict[str, Any]]) -> str:
    """Return RESULTS.md."""
    lines = [
        "# Results",
        "",
        "Written by `make bench` (`benchmarks/run_all.py`); `benchmarks/README.md` says what is",
        "compared with what, and how to read it. Machines are shared: ratios within a table count.",
    ]
    for name in SECTIONS:
        if name not in results:
            continue
        found = results[name]
        lines += [
            "",
            f"## {found['title']}",
            "",
            f"`{found['command']}`, {found['date']}. {described(found['machine'])}",
            "",
            found["markdown"],
        ]
        if name == "pipeline" and CHART.exists():
            lines += ["", f"![images a second]({CHART.name})"]
    return "\n".join(lines) + "\n"


def described(about: dict[str, Any]) -> str:
    """Return the line that says what it was measured on."""
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    return (
        f"{about['processor']}, {about['cores']} cores, {about['system']}; {packages}. "
        f"Load when it began: {about['load_before']}."
    )


def draw(results: list[dict[str, Any]]) -> None:
    """Draw images a second of every contender, a panel for each backbone and kind of photograph."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        len(results), 1, figsize=(8, 3.2 * len(results)), layout="constrained", squeeze=False
    )
    for axis, result in zip(axes[:, 0], results, strict=True):
        bars = [c for c in result["contenders"] if c["rates"] and "alone" not in c["name"]]
        bars.sort(key=lambda c: c["rate"])
        colours = ["#1b6ca8" if c["name"].startswith("featpipe") else "#b0b7bf" for c in bars]
        drawn = axis.barh([c["name"] for c in bars], [c["rate"] for c in bars], color=colours)
        axis.bar_label(drawn, fmt="%.1f", padding=3)
        if result["limit"]:
            axis.axvline(result["limit"], color="#c0392b", linestyle="--", linewidth=1)
        axis.set_title(f"{result['backbone']}, {result['photographs']}: images/s (dashed: limit)")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(CHART, metadata={"Date": None})


def main() -> None:
    """Run what is asked for, write all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models-dir", type=Path, help="resnet50.onnx, and int8 files")
    parser.add_argument("--only", action="append", choices=list(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="to see that all of it runs")
    parser.add_argument("--with", dest="further", nargs=argparse.REMAINDER, default=[])
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name in arguments.only or SECTIONS:
        extra = list(SECTIONS[name][2]) if arguments.quick else []
        if name in {"pipeline", "startup"} and arguments.models_dir:
            extra += ["--models-dir", str(arguments.models_dir)]
        extra += arguments.further
        print(f"== {name}", file=sys.stderr, flush=True)
        results[name] = run(name, extra)
        # A long run that is broken off keeps what it has.
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if "pipeline" in results:
        draw(results["pipeline"]["data"]["pipeline"])
    PAGE.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
