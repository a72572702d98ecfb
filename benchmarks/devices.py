"""Images a second of each device and precision that works here, beside the CPU provider's.

All sessions of a backbone take turns, one call each, with as many threads as there are cores,
so that whatever else the machine does meets them all: the ratio is the median over the
rounds. A core's time an image is what a busy machine changes least. Each session has passed
the check against the CPU; the cosine is that of the seven photographs of the gate.

    python benchmarks/devices.py [backbone …]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from featpipe.backbones import Backbone, load_backbone, usable_cores
from featpipe.backbones.gate import compare, photographs
from featpipe.backbones.providers import PRECISIONS
from featpipe.backbones.session import Session
from featpipe.errors import DeviceError

ROUNDS = 40


def sessions(backbone: Backbone) -> Iterator[Session]:
    """Open all that can be had here, and say why the others cannot."""
    for device, precisions in PRECISIONS.items():
        for precision in precisions:
            try:
                yield backbone.open_session(device, precision)
            except DeviceError as exc:
                print(f"  {device:<9} {precision}  {exc}")


def measure(backbone: Backbone) -> None:
    """Let all sessions take turns, and print what each reached."""
    print(f"{backbone.name}, {usable_cores()} cores, {ROUNDS} rounds of one batch a core")
    opened = list(sessions(backbone))
    images = {s.batch_size: photographs(s.batch_size, backbone.card.input_size) for s in opened}
    wall: dict[int, list[float]] = {i: [] for i in range(len(opened))}
    cpu: dict[int, list[float]] = {i: [] for i in range(len(opened))}
    with ThreadPoolExecutor(usable_cores()) as pool:
        for round_ in range(-3, ROUNDS):  # the first three warm up
            for i, session in enumerate(opened):
                batches = [images[session.batch_size]] * usable_cores()
                begun, begun_cpu = time.perf_counter(), time.process_time()
                n = sum(len(vectors) for vectors in pool.map(session.run, batches))
                if round_ >= 0:
                    wall[i].append((time.perf_counter() - begun) / n)
                    cpu[i].append((time.process_time() - begun_cpu) / n)
    photos = photographs(7, backbone.card.input_size)
    expected = opened[0].run(photos)
    for i, session in enumerate(opened):
        rate, work = 1 / statistics.median(wall[i]), statistics.median(cpu[i])
        best = 1 / min(wall[i])
        ratio = statistics.median(a / b for a, b in zip(wall[0], wall[i], strict=True))
        cosine = compare(expected, session.run(photos))
        print(
            f"  {session.provider:<9} {session.precision}  {rate:7.1f} images/s (best {best:.1f}), "
            f"{ratio:.2f} times the CPU's, {1000 * work:.2f} ms of a core an image, "
            f"cosine {cosine:.6f}"
        )


if __name__ == "__main__":
    for name in sys.argv[1:] or [None]:
        measure(load_backbone(name))
