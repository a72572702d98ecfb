"""`featpipe._threads`: results, order, errors, and a signal at any instruction."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from featpipe import _threads
from featpipe._threads import Threads, threads


def slowly(number: int) -> int:
    time.sleep(0.001)
    return number * number


@pytest.mark.parametrize("way", ["map", "stream"])
def test_results_come_in_order(way: str) -> None:
    """Both ways give what the built-in ``map`` gives."""
    with Threads(3) as pool:
        assert list(getattr(pool, way)(slowly, range(50))) == [n * n for n in range(50)]


def test_an_error_is_raised_where_the_result_is_asked_for() -> None:
    """The first error comes out; the threads end."""
    with pytest.raises(ZeroDivisionError), Threads(2) as pool:
        list(pool.map(lambda n: 1 // n, [1, 0, 2]))
    wait_for_the_end()


def test_nothing_is_begun_after_the_end() -> None:
    """What waits for a thread when the block ends is not begun; what runs is waited for."""
    begun: list[int] = []
    gate = threading.Event()

    def work(number: int) -> None:
        begun.append(number)
        gate.wait(10)
        begun.append(-number)

    with Threads(1) as pool:
        for number in (1, 2, 3):
            pool.submit(work, number)
        while not begun:
            time.sleep(0.001)
        threading.Thread(target=lambda: (closed(pool), gate.set())).start()
    assert begun == [1, -1]


def test_a_stream_asks_for_items_as_it_goes() -> None:
    """Of endless items only a few are taken in advance."""
    taken: list[int] = []

    def endless() -> Iterator[int]:
        number = 0
        while True:
            taken.append(number)
            yield number
            number += 1

    with Threads(2) as pool:
        stream = pool.stream(slowly, endless())
        assert [next(stream) for _ in range(10)] == [n * n for n in range(10)]
    assert len(taken) <= 10 + 4


def test_one_task_needs_no_thread() -> None:
    """`threads` yields None where there is nothing to do side by side."""
    with threads(1) as pool:
        assert pool is None


def test_no_thread_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the system has no more threads is raised where they were asked for."""

    class Refused(threading.Thread):
        def start(self) -> None:
            if self.name == "featpipe-1":
                raise RuntimeError("can't start new thread")
            super().start()

    monkeypatch.setattr(_threads, "Thread", Refused)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        Threads(2)
    wait_for_the_end()


def test_a_signal_at_any_instruction() -> None:
    """Wherever the main thread is interrupted, every thread ends."""

    def work() -> int:
        with Threads(2) as pool:
            return sum(pool.map(slowly, range(2))) + sum(pool.stream(slowly, range(5)))

    gc.collect()
    gc.disable()  # what it calls would be counted, too
    try:
        whole = Interruption(None)
        assert whole(work) == 1 + 30
        assert whole.instructions > 500
        for moment in range(1, whole.instructions + 1):
            with suppress(KeyboardInterrupt):  # `pytest.raises` would keep its frames alive
                pytest.fail(f"not interrupted, but {Interruption(moment)(work)}")
            wait_for_the_end()
    finally:
        gc.enable()


SUSPENDED = """
import sys
from featpipe._threads import Threads

def numbers():
    with Threads(2) as pool:
        yield from pool.stream(abs, range(100))

left = numbers()
next(left)
"""


@pytest.mark.parametrize("end", ["", "raise ValueError", "sys.exit(0)", "raise KeyboardInterrupt"])
def test_a_program_ends_though_a_stream_is_suspended(end: str) -> None:
    """Nobody closes a generator that a script's global or a traceback still holds."""
    done = subprocess.run(
        [sys.executable, "-c", SUSPENDED + end],
        timeout=60,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(_threads.__file__).parents[1])},
        check=False,
    )
    assert (done.returncode == 0) == (end in {"", "sys.exit(0)"})


def test_what_closed_threads_cannot_do_is_an_error() -> None:
    """Nothing waits for ever: not a second result, nor one that was dropped, nor a second end."""
    gate = threading.Event()
    begun = threading.Event()

    def wait() -> bool:
        begun.set()
        return gate.wait(10)

    with Threads(1) as pool:
        first = pool.submit(wait)
        second = pool.submit(abs, -1)
        assert begun.wait(10)
        threading.Thread(target=lambda: (closed(pool), gate.set())).start()
    assert first.result() is True
    with pytest.raises(RuntimeError, match="once"):
        first.result()
    with pytest.raises(RuntimeError, match="dropped before it began"):
        second.result()
    with pytest.raises(RuntimeError, match="have ended"):
        pool.submit(abs, -1)
    pool.close()


def test_threads_without_an_owner_begin_nothing() -> None:
    """What was queued when the last reference went is not begun."""
    begun: list[int] = []
    gate = threading.Event()
    pool = Threads(1)
    pool.submit(gate.wait, 10)
    for number in range(5):
        pool.submit(begun.append, number)
    del pool
    gate.set()
    wait_for_the_end()
    assert begun == []


def test_the_last_reference_may_go_in_a_worker() -> None:
    """A worker that closes its own threads does not wait for itself."""
    with Threads(2) as pool:
        assert pool.submit(pool.close).result() is None
    wait_for_the_end()


def closed(pool: Threads) -> None:
    """Wait until threads have been told to end."""
    while not pool._shared.is_closed:
        time.sleep(0.001)


class Interruption:
    """Runs something, and raises KeyboardInterrupt before an instruction of this thread.

    Only Python's own code is counted, as a signal is looked at between its instructions.
    """

    def __init__(self, moment: int | None) -> None:
        self.instructions = 0
        self._moment = moment

    def __call__(self, work: Callable[[], int]) -> int:
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            return work()
        finally:
            sys.settrace(before)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.instructions += 1
            if self.instructions == self._moment:
                raise KeyboardInterrupt
        return self._trace


def wait_for_the_end() -> None:
    """Wait until none of featpipe's threads is left, or fail."""
    deadline = time.monotonic() + 20
    while any(thread.name.startswith("featpipe-") for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "a thread waits for ever"
        time.sleep(0.0005)
