"""Threads, as many as there are cores for them and no more, with one BLAS thread each."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import joblib
from threadpoolctl import ThreadpoolController


@contextmanager
def threads(n_tasks: int | None = None) -> Iterator[Executor | None]:
    """Yield threads for so many tasks, a core each; None where one is enough."""
    n_threads = min(joblib.cpu_count(), n_tasks or joblib.cpu_count())
    if n_threads == 1:
        yield None
        return
    with ThreadPoolExecutor(n_threads) as pool:
        yield pool


@contextmanager
def single_threads(n_tasks: int) -> Iterator[Executor | None]:
    """Hold BLAS to one thread, and yield threads for so many tasks; None where one is enough."""
    with _controller().limit(limits=1, user_api="blas"), threads(n_tasks) as pool:
        yield pool


@cache
def _controller() -> ThreadpoolController:
    """Return what knows the libraries: looking for them takes milliseconds."""
    return ThreadpoolController()
