"""Contenders in processes of their own, measured in turn; what counts are ratios of medians.

Machines are shared and noisy, and libraries in one process disturb each other's thread
pools: so every contender gets a process, all are started and warmed up first, and then each
runs once a round. Load that comes and goes meets all of them alike.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from featpipe._machine import cpu_features, cpu_model, usable_cores

HERE = Path(__file__).resolve().parent
PEERS = Path(os.environ.get("FEATPIPE_BENCH_PEERS", HERE.parent / "build" / "peers"))
"""The environment of ``requirements-peers.txt``."""


@dataclass
class Contender:
    """One way of doing the work.

    Attributes
    ----------
    name : str
        As the table has it.
    kind : str
        Function of ``worker.py``.
    options : dict
        Its arguments.
    images : int
        Of each run; slow ones are given fewer.
    peer : bool
        Whether it runs in the peers' environment.
    """

    name: str
    kind: str
    options: dict[str, Any]
    images: int
    peer: bool = False
    rates: list[float] = field(default_factory=list)
    memory: int = 0
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return what was measured; options hold folders of this machine, which mean nothing."""
        values = {name: value for name, value in asdict(self).items() if name != "options"}
        return {**values, "rate": self.rate, "spread": self.spread}

    @property
    def rate(self) -> float:
        """Images a second, the median of all runs."""
        return statistics.median(self.rates) if self.rates else 0.0

    @property
    def spread(self) -> float:
        """Half the range of the middle half of the runs, as a share of the median."""
        if len(self.rates) < 3:
            return 0.0
        low, middle, high = statistics.quantiles(self.rates, n=4)
        return (high - low) / 2 / middle


class Worker:
    """A contender's process."""

    def __init__(self, contender: Contender) -> None:
        python = PEERS / "bin" / "python" if contender.peer else Path(sys.executable)
        self._process = subprocess.Popen(
            [python, HERE / "worker.py", contender.kind, json.dumps(contender.options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read()

    def run(self, paths: list[str]) -> dict[str, float]:
        """Let it do the images once; return images a second and peak memory in bytes."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(paths) + "\n")
        self._process.stdin.flush()
        return self._read()

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the contender ended with code {self._process.wait()}")
        answer: dict[str, float] = json.loads(line)
        return answer


def compete(contenders: list[Contender], paths: list[str], repetitions: int) -> None:
    """Start all, warm up, and let each run once a round; those that cannot start say why."""
    workers: dict[str, Worker] = {}
    try:
        for contender in contenders:
            try:
                workers[contender.name] = Worker(contender)
                workers[contender.name].run(paths[: contender.images])
            except (OSError, RuntimeError) as exc:
                contender.problem = str(exc)
                workers.pop(contender.name, None)
        for number in range(1, repetitions + 1):
            for contender in contenders:
                if contender.name in workers:
                    measured = workers[contender.name].run(paths[: contender.images])
                    contender.rates.append(measured["rate"])
                    contender.memory = max(contender.memory, int(measured["memory"]))
            print(f"round {number} of {repetitions}", file=sys.stderr, flush=True)
    finally:
        for worker in workers.values():
            worker.stop()


def machine() -> dict[str, Any]:
    """Describe the machine and the packages that decide how fast it is."""
    features, found = cpu_features().items(), {}
    for name in ("onnxruntime-gpu", "onnxruntime", "openvino", "pillow", "scikit-learn", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "processor": f"{cpu_model()} ({', '.join(name for name, has in features if has)})",
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "packages": found,
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
