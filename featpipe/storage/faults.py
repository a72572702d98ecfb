"""What may go wrong between here and a storage: what is tried again, and what is said."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, local
from typing import TypeVar

from featpipe._files import printable
from featpipe.storage.addresses import without_secrets

T = TypeVar("T")

PATIENCE_VARIABLE = "FEATPIPE_RETRY_SECONDS"
_PATIENCE_SECONDS = 60.0
_LONGEST_WAIT = 10.0

_CREDENTIALS = (
    "no credentials were found for it: give them as its own tools expect them (for S3 "
    "AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or an instance role)"
)
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_PASSING_NUMBERS = frozenset(
    getattr(errno, name)
    for name in (
        *("EBUSY", "EIO", "EREMOTEIO", "ETIMEDOUT", "ECONNREFUSED", "ECONNRESET", "EPIPE"),
        *("ECONNABORTED", "EHOSTUNREACH", "ENETUNREACH", "ENETDOWN", "EHOSTDOWN"),
    )
    if hasattr(errno, name)
)
_PASSING_NAMES = frozenset(
    {
        # botocore
        *("EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "HTTPClientError"),
        *(
            "ConnectionClosedError",
            "ConnectionError",
            "IncompleteReadError",
            "ProxyConnectionError",
        ),
        *("ResponseParserError", "ResponseStreamingError"),
        # aiohttp, gcsfs, fsspec
        *("ClientConnectionError", "ClientPayloadError", "ServerDisconnectedError"),
        *("ClientConnectorError", "ClientOSError", "ServerTimeoutError", "FSTimeoutError"),
    }
)
"""Classes of packages that need not be there; looked for by name among the bases, too."""
_NO_CREDENTIALS = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError"}
)


_local = local()


class StorageError(OSError):
    """Something behind an address cannot be had; the message is one sentence without secrets."""


class StorageGoneError(StorageError):
    """A storage did not answer for as long as featpipe waits; the next one would fail, too."""


def patience() -> float:
    """Return for how many seconds a storage that does not answer is asked again."""
    try:
        return max(float(os.environ.get(PATIENCE_VARIABLE, _PATIENCE_SECONDS)), 0.0)
    except ValueError:
        return _PATIENCE_SECONDS


@contextmanager
def until(ended: Event) -> Iterator[None]:
    """Let this thread ask again only as long as ``ended`` is not set."""
    _local.ended = ended
    try:
        yield
    finally:
        del _local.ended


def ending() -> Event:
    """Return what tells this thread to ask no more; see `until`."""
    return getattr(_local, "ended", None) or Event()


def tried(action: Callable[[], T], place: str) -> T:
    """Do something with a storage, again and again while that makes sense.

    The waits grow from a tenth of a second to ten seconds, by chance, so that many workers do
    not come back at once (exponential back-off with full jitter).

    Parameters
    ----------
    action : callable
    place : str
        What is asked for, as it may be shown.

    Raises
    ------
    StorageGoneError
        When nothing has come for `patience` seconds.
    FileNotFoundError, PermissionError, FileExistsError, StorageError
        When there is no use in asking again.
    """
    from tenacity import (  # noqa: PLC0415 - comes with the extras that read addresses
        Retrying,
        retry_if_exception,
        sleep_using_event,
        stop_after_delay,
        stop_when_event_set,
        wait_random_exponential,
    )

    ended = ending()
    attempts = Retrying(
        retry=retry_if_exception(is_passing),
        wait=wait_random_exponential(multiplier=0.1, max=_LONGEST_WAIT),
        stop=stop_after_delay(patience()) | stop_when_event_set(ended),
        sleep=sleep_using_event(ended),
        reraise=True,
    )
    try:
        return attempts(action)
    except Exception as exc:
        raise translated(exc, place) from exc


def is_passing(error: BaseException) -> bool:
    """Tell whether the same request may succeed a little later."""
    error = _unwrapped(error)
    if isinstance(error, FileNotFoundError | PermissionError | FileExistsError):
        return False
    if isinstance(error, TimeoutError | ConnectionError | asyncio.TimeoutError):
        return True
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return status in _PASSING_STATUS
    if isinstance(error, OSError) and error.errno in _PASSING_NUMBERS:
        return True
    return any(base.__name__ in _PASSING_NAMES for base in type(error).__mro__)


def translated(error: BaseException, place: str) -> OSError:
    """Return a foreign error as one of ours, which is an OSError."""
    error = _unwrapped(error)
    place, said = printable(place), printable(without_secrets(_said(error)))
    status = getattr(error, "status", None)
    result: OSError = StorageError(f"{place} cannot be read or written ({said})")
    if isinstance(error, StorageError):
        result = error
    elif is_passing(error):
        result = StorageGoneError(f"{place} does not answer ({said})")
    elif isinstance(error, FileNotFoundError) or status in {404, 410}:
        result = FileNotFoundError(errno.ENOENT, f"there is nothing at {place}")
    elif isinstance(error, FileExistsError):
        result = FileExistsError(errno.EEXIST, f"there is something at {place} already")
    elif isinstance(error, PermissionError) or status in {401, 403}:
        result = PermissionError(errno.EACCES, f"{place} may not be read or written ({said})")
    elif any(base.__name__ in _NO_CREDENTIALS for base in type(error).__mro__):
        result = StorageError(f"{place} cannot be opened: {_CREDENTIALS}")
    return result


def _unwrapped(error: BaseException) -> BaseException:
    """Return the refusal or the silence behind what fsspec calls a file that is not there."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or cause is None:
        return error
    return cause if is_passing(cause) or hasattr(cause, "status") else error


def _said(error: BaseException) -> str:
    """Return what an error says, in one line; some of them say nothing but their name."""
    status, message = getattr(error, "status", None), getattr(error, "message", None)
    if isinstance(status, int) and message:
        return f"{status} {message}"
    text = " ".join((getattr(error, "strerror", None) or str(error)).split())
    return text or type(error).__name__
