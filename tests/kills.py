"""A process that is killed before the first, second … call of the system; no test stands here."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable

_CALLS = ("link", "open", "fsync", "replace", "unlink")


def kill_everywhere(
    work: Callable[[], object], reset: Callable[[], None], check: Callable[[bool], None]
) -> int:
    """Kill ``work`` before every one of its calls; return how many there are.

    For each call: begin anew (``reset``), die before it, go on to the end. For each third,
    which in the end is each step of some image, the second run dies as well. ``check`` is called
    after each run, with whether it came to its end.
    """
    # The kernel outlives what is killed: syncing is a step to die at, and nothing to wait for.
    os.fsync = lambda _: None
    number = 0
    while True:
        reset()
        is_whole = _run(work, number)
        check(is_whole)
        if is_whole:
            return number
        if number % 3 == 0:
            check(_run(work, number // 2))
        work()
        check(True)
        number += 1


def forbid_links() -> None:
    """Let no file have a second name in another folder, as between two file systems."""
    link = os.link

    def across(source, target, **options):
        if ".moving-" not in str(source):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        link(source, target, **options)

    os.link = across


def _run(work: Callable[[], object], calls: int) -> bool:
    """Run in a child; tell whether it came to its end before it was killed."""
    child = os.fork()
    if not child:
        _die_after(calls)
        try:
            work()
        except BaseException as exc:
            os.write(2, repr(exc).encode())
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFEXITED(status)


def _die_after(number: int) -> None:
    calls = iter(range(number))

    def counted(function):
        def call(*arguments, **options):
            if next(calls, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for name in _CALLS:
        setattr(os, name, counted(getattr(os, name)))
