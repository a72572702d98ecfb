"""Bodies from web servers: read piece by piece, and no further than was asked for.

A server may be anybody's: it may send without end, ever more slowly, or a few kilobytes that
unpack to many gigabytes. fsspec reads whatever comes into memory before it looks at any of it.
"""

from __future__ import annotations

import asyncio
import time
from threading import Event
from typing import Any

from featpipe.storage.addresses import shown
from featpipe.storage.faults import StorageError, ending, patience

MOST_BYTES = 2**30
"""Of a file whose size nobody has told."""
_LEAST_PACE = 1000.0
"""Bytes a second, on average; a server that is slower is not waited for."""
_PARTIAL = 206
_LOOK_UP_SECONDS = 0.5


def fetch(system: Any, url: str, most: int) -> bytes:
    """Return what is behind an address, ``most`` bytes at most.

    Parameters
    ----------
    system : fsspec.implementations.http.HTTPFileSystem
    url : str
    most : int

    Raises
    ------
    StorageError
        When there are more bytes, or they come too slowly.
    Exception
        Of aiohttp and fsspec; see `featpipe.storage.faults.tried`.
    """
    data, _ = _body(system, url, most, {})
    if len(data) > most:
        raise StorageError(f"the server of {shown(url)} sends more than {most} bytes")
    return data


def fetch_range(system: Any, url: str, start: int, length: int) -> bytes:
    """Return ``length`` bytes from ``start`` on, fewer at the end; errors as of `fetch`."""
    headers = {"Range": f"bytes={start}-{start + length - 1}", "Accept-Encoding": "identity"}
    data, status = _body(system, url, length, headers)
    if len(data) > length or (start and status != _PARTIAL):
        raise StorageError(
            f"the server of {shown(url)} cannot send a part of a file: download the file and "
            "give its path"
        )
    return data


def _body(system: Any, url: str, most: int, headers: dict[str, str]) -> tuple[bytes, int]:
    from fsspec.asyn import sync  # noqa: PLC0415 - an extra

    result: tuple[bytes, int] = sync(
        system.loop, _until_ended, _received(system, url, most, headers), ending()
    )
    return result


async def _until_ended(coroutine: Any, ended: Event) -> Any:
    """Wait for a coroutine, and give it up as soon as nobody wants it any more."""
    task = asyncio.ensure_future(coroutine)
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=_LOOK_UP_SECONDS)
            if ended.is_set() and not task.done():
                raise StorageError("it is not waited for any more")
        return task.result()
    finally:
        task.cancel()


async def _received(system: Any, url: str, most: int, headers: dict[str, str]) -> tuple[bytes, int]:
    """Return the beginning of a body, one byte more than ``most`` at least where there is more."""
    session = await system.set_session()
    begun, data = time.monotonic(), bytearray()
    async with session.get(system.encode_url(url), headers=headers, **system.kwargs) as response:
        response.raise_for_status()
        # What a server unpacks to comes in small pieces, too.
        async for piece in response.content.iter_any():
            data += piece
            seconds = time.monotonic() - begun
            if seconds > patience() and len(data) < seconds * _LEAST_PACE:
                raise StorageError(
                    f"the server of {shown(url)} sends less than a kilobyte a second"
                )
            if len(data) > most:
                response.close()
                break
        return bytes(data), response.status
