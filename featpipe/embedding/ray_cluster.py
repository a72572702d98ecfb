"""Joining a cluster of Ray, or starting one: quietly, on loopback, and without a trace.

Ray writes to standard output, takes over signals and would send statistics: all of that is kept
from it here.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from threading import current_thread, get_ident, main_thread
from typing import Any, TextIO, cast
from urllib.parse import urlsplit

from featpipe._files import first_line, printable
from featpipe.errors import DeviceError

_MISSING = "--engine ray needs Ray: pip install 'featpipe[ray]'"
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_KNOCK_SECONDS = 10.0


@contextmanager
def joined(address: str | None, workers: int) -> Iterator[None]:
    """Be part of a cluster for the time of the block, and keep what Ray says from stdout."""
    if address is not None and "://" in address:
        raise DeviceError(
            f"Ray Data cannot be used through {printable(address)}: run the command on a machine "
            "of the cluster with --address auto, or give HOST:PORT"
        )
    if address not in {None, "auto"} and _host_and_port(address or "")[1] is None:
        # Ray would look for some of these for minutes; "local" would start a cluster without token.
        raise DeviceError(
            f"{printable(address or '') or 'an empty text'} is no address of a Ray cluster: give "
            "--address auto, or HOST:PORT"
        )
    ray = import_ray(address)
    with redirect_stdout(cast("TextIO", _CallerOnly(sys.stdout))):
        if ray.is_initialized():
            yield
            return
        connect(ray, address, workers)
        try:
            yield
        finally:
            with redirect_stdout(io.StringIO()):
                # Here the caller's own thread says what Ray has kept back.
                ray.shutdown()


def connect(ray: Any, address: str | None, workers: int) -> None:
    """Join a cluster, or start one for so many workers on this machine.

    Raises
    ------
    DeviceError
        When that fails.
    """
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        with _handlers_kept():
            if address is None:
                ray.init(address="local", num_cpus=workers, include_dashboard=False, **quiet)
            else:
                _knock(address)
                ray.init(address=address, **quiet)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as exc:
        what = (
            "cannot be started" if address is None else f"at {printable(address)} is out of reach"
        )
        raise DeviceError(f"the Ray cluster {what}: {first_line(exc)}") from exc
    logging.getLogger("ray.data").setLevel(logging.ERROR)


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Undo that Ray answers SIGTERM for the process, for good, by an exit that looks like another.

    The process ends as it does without Ray; its workers and its own cluster notice that.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        # None is a handler that Python does not know; in another thread Ray sets none.
        if before is not None and current_thread() is main_thread():
            signal.signal(signal.SIGTERM, before)


def _knock(address: str) -> None:
    """Raise OSError where nobody listens: Ray would try for minutes."""
    host, port = _host_and_port(address)
    if port is not None:
        socket.create_connection((host, port), _KNOCK_SECONDS).close()


def _host_and_port(address: str) -> tuple[str, int | None]:
    """Return the parts of an address; ``auto`` has no port, nor has what Ray will not read."""
    parts = urlsplit(f"//{address}")
    try:
        return parts.hostname or "", parts.port
    except ValueError:
        return "", None


def import_ray(address: str | None) -> Any:
    """Import Ray, whose settings stand in the environment before that.

    Raises
    ------
    DeviceError
        When it is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address is None:
        # Other users of this machine are kept out; Ray keeps the token in ~/.ray.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if address is None or _host_and_port(address)[0] in _LOOPBACK:
        # Off Linux a cluster of one machine listens to that machine alone; this asks for it here,
        # and keeps Ray from looking for that machine at another address.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray  # noqa: PLC0415
        import ray.data  # noqa: PLC0415
    except ImportError as exc:
        raise DeviceError(_MISSING) from exc
    return ray


class _CallerOnly:
    """Standard output for the thread that has asked: Ray writes there from threads of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._thread = stream, get_ident()

    def write(self, text: str) -> int:
        return self._stream.write(text) if get_ident() == self._thread else len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def cause(error: BaseException) -> str:
    """Return what is at the root of an error of Ray's, in one line."""
    cause = getattr(error, "cause", None)
    return first_line(cause if isinstance(cause, BaseException) else error)
