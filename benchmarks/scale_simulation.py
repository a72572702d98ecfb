"""Machines that embed blocks of images, one event after the other.

It is what the formulas of benchmarks/scale.py are checked against, and knows none of them.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Fleet:
    """Machines and what happens to them.

    ``shared`` blocks are handed out as machines ask (Ray); otherwise each machine has its own
    (``--shard``). A machine takes ``slowness`` times as long where its number is among ``slow``;
    ``failing`` dies once, at ``fails_at`` seconds, and is back ``back_after`` seconds later
    (requeued by a batch scheduler) or, with a shared queue, not at all.
    """

    machines: int
    workers: int
    shared: bool
    slow: frozenset[int] = frozenset()
    slowness: float = 1.0
    failing: int | None = None
    fails_at: float = 0.0
    back_after: float = 0.0


@dataclass(slots=True)
class _Queues:
    """Blocks that wait, for everybody or for each machine."""

    fleet: Fleet
    waiting: list[deque[int]] = field(default_factory=list)

    def of(self, machine: int) -> deque[int]:
        return self.waiting[0 if self.fleet.shared else machine]


def simulate(images: int, block: int, seconds: float, fleet: Fleet, *, seed: int = 0) -> float:
    """Return the seconds until the last of ``images`` is done.

    ``seconds`` is what one worker needs for one image; a block of them takes up to a quarter
    more or less, by chance.
    """
    chance = random.Random(seed)
    queues = _Queues(fleet, [deque() for _ in range(1 if fleet.shared else fleet.machines)])
    for machine in range(len(queues.waiting)):
        begin = images * machine // len(queues.waiting)
        end = images * (machine + 1) // len(queues.waiting)
        queues.waiting[machine].extend(min(block, end - at) for at in range(begin, end, block))
    free = [(0.0, machine) for machine in range(fleet.machines) for _ in range(fleet.workers)]
    heapq.heapify(free)
    done = 0.0
    while any(queues.waiting):
        if not free:
            raise RuntimeError("no machine is left, and blocks wait")
        now, machine = heapq.heappop(free)
        if machine == fleet.failing and now >= fleet.fails_at and fleet.shared:
            continue  # it is gone, and others do what is left
        queue = queues.of(machine)
        if not queue:
            continue
        count = queue.popleft()
        speed = fleet.slowness if machine in fleet.slow else 1.0
        end = now + count * seconds * speed * chance.uniform(0.75, 1.25)
        if machine == fleet.failing and now < fleet.fails_at < end:
            queue.appendleft(count)  # in flight when the machine died: done again
            heapq.heappush(free, (fleet.fails_at + fleet.back_after, machine))
            continue
        done = max(done, end)
        heapq.heappush(free, (end, machine))
    return done
