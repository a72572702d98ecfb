"""Threads, as many as there are cores for them and no more, with one BLAS thread each.

`concurrent.futures` waits with locks that are written in Python. A signal (Ctrl-C, SIGTERM)
that arrives in the main thread just as it has taken one leaves it locked for ever: a worker
then waits for the lock, and the main thread for the worker: a nightly run hung so. Here
all that the main thread shares with workers are queues written in C, which a signal leaves
whole.
"""

from __future__ import annotations

import weakref
from _thread import start_new_thread
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from queue import Empty, SimpleQueue
from threading import Thread, get_ident, main_thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, Self, TypeVar, cast

from featpipe import _machine

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

_P = ParamSpec("_P")
_R = TypeVar("_R")
_LOOK_UP_SECONDS = 1.0


class Task(Generic[_R]):
    """One call that a thread will make, and its result."""

    __slots__ = ("_answer", "_asked", "_call")

    def __init__(self, call: Callable[[], _R]) -> None:
        self._call: Callable[[], _R] | None = call
        self._answer: SimpleQueue[tuple[_R | None, BaseException | None]] = SimpleQueue()
        self._asked = False

    def run(self) -> None:
        """Make the call, unless it was dropped."""
        call, self._call = self._call, None
        if call is None:
            return
        try:
            answer = call()
        except BaseException as exc:  # noqa: BLE001 - raised where the result is asked for
            self._answer.put((None, exc))
        else:
            self._answer.put((answer, None))

    def drop(self) -> None:
        """Do not begin, if it has not begun: who asks for the result is told so."""
        if self._call is not None:
            self._call = None
            self._answer.put((None, RuntimeError("the call was dropped before it began")))

    def result(self) -> _R:
        """Wait for the result, once, and return it; raise what the call has raised."""
        if self._asked:
            raise RuntimeError("the result of a task can be asked for once")
        self._asked = True
        answer, problem = self._answer.get()
        if problem is not None:
            _raise(problem)
        return cast("_R", answer)


class _Shared:
    """What threads and the `Threads` they belong to have in common; no lock in it."""

    def __init__(self, owner: Threads) -> None:
        self.tasks: SimpleQueue[Task[Any] | object] = SimpleQueue()
        self.ended: SimpleQueue[bool] = SimpleQueue()
        self.idents: list[int] = []
        self.is_closed = False
        # A signal may come before the `with` is entered, or at its end: the threads end, too,
        # when the owner is deleted. No `__del__`, as a signal inside it would be lost.
        self.owner = weakref.ref(owner, self.tasks.put)


class Threads:
    """Threads that make calls, in the order in which they were given.

    Use it in a ``with`` statement: at its end nothing more is begun, and what has begun is
    waited for.

    Raises
    ------
    RuntimeError
        When the system has no thread left.
    """

    def __init__(self, n_threads: int) -> None:
        self._n_threads = n_threads
        self._shared = _Shared(self)
        begun: SimpleQueue[BaseException | None] = SimpleQueue()
        # `Thread.start` waits with such a lock, too: it is left to a thread that no signal
        # ever reaches.
        start_new_thread(_start, (n_threads, self._shared, begun))
        problem = begun.get()
        if problem is not None:
            _raise(problem)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def submit(self, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> Task[_R]:
        """Let a thread call ``work`` as soon as one is free.

        Raises
        ------
        RuntimeError
            When the threads have been told to end.
        """
        if self._shared.is_closed:
            raise RuntimeError("these threads have ended")
        task = Task(partial(work, *args, **kwargs))
        self._shared.tasks.put(task)
        return task

    def map(self, work: Callable[[Any], _R], items: Iterable[Any]) -> Iterator[_R]:
        """Begin the calls of ``work`` with all items, and return the results in order."""
        tasks = [self.submit(work, item) for item in items]
        return (task.result() for task in tasks)

    def stream(self, work: Callable[[Any], _R], items: Iterable[Any]) -> Iterator[_R]:
        """Yield what ``work`` makes of items, in order; only a few are under way at a time.

        `map` begins all of them, and keeps every result that is not yet asked for.
        """
        pending: deque[Task[_R]] = deque()
        try:
            for item in items:
                pending.append(self.submit(work, item))
                if len(pending) == 2 * self._n_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for task in pending:
                task.drop()

    def close(self) -> None:
        """Begin nothing more, and wait for what has begun."""
        shared = self._shared
        if shared.is_closed:
            return
        shared.is_closed = True
        shared.tasks.put(None)
        # The last reference may go in one of these threads, where it cannot wait for itself.
        if get_ident() not in shared.idents:
            for _ in range(self._n_threads):
                shared.ended.get()


def _raise(problem: BaseException) -> NoReturn:
    try:
        raise problem
    finally:
        del problem  # its traceback holds this frame


def _start(n_threads: int, shared: _Shared, begun: SimpleQueue[BaseException | None]) -> None:
    try:
        for number in range(n_threads):
            # Said to be no daemon, or it would ask what this thread is.
            name = f"featpipe-{number}"
            Thread(target=_work, args=(shared,), name=name, daemon=False).start()
    except BaseException as exc:  # noqa: BLE001 - raised in the thread that asked for it
        shared.tasks.put(None)
        begun.put(exc)
    else:
        begun.put(None)


def _work(shared: _Shared) -> None:
    """Run tasks until there is something else; hold nothing that holds the `Threads`."""
    shared.idents.append(get_ident())
    while isinstance(task := _next(shared), Task):
        if shared.is_closed or shared.owner() is None:
            task.drop()
        else:
            task.run()
        del task  # or its result would live until the next one comes
    shared.tasks.put(task)  # for the other threads
    shared.ended.put(True)


def _next(shared: _Shared) -> Task[Any] | object:
    """Wait for a task; give None where the program has ended and something holds the owner."""
    while main_thread().is_alive():
        with suppress(Empty):
            return shared.tasks.get(timeout=_LOOK_UP_SECONDS)
    return None


@contextmanager
def threads(n_tasks: int | None = None) -> Iterator[Threads | None]:
    """Yield threads for so many tasks, a core each; None where one is enough."""
    n_cores = _machine.usable_cores()
    n_threads = min(n_cores, n_tasks or n_cores)
    if n_threads == 1:
        yield None
        return
    with Threads(n_threads) as pool:
        yield pool


@contextmanager
def single_threads(n_tasks: int) -> Iterator[Threads | None]:
    """Hold BLAS to one thread, and yield threads for so many tasks; None where one is enough."""
    with _controller().limit(limits=1, user_api="blas"), threads(n_tasks) as pool:
        yield pool


@cache
def _controller() -> ThreadpoolController:
    """Return what knows the libraries: looking for them takes milliseconds."""
    from threadpoolctl import ThreadpoolController  # noqa: PLC0415 - `embed` needs none of it

    return ThreadpoolController()
