"""Reading: what lies in a folder, what is known of a file, its bytes, a range of them."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, BinaryIO

from featpipe.errors import SourceError
from featpipe.storage.addresses import PACKAGES, is_url, scheme_of, shown
from featpipe.storage.faults import StorageError, tried
from featpipe.storage.web import MOST_BYTES, fetch, fetch_range

_AHEAD_BYTES = 2**22
"""What an open file fetches at once: jumps over less cost nothing."""
_LONGEST_VERSION = 256
_CONNECT_SECONDS, _READ_SECONDS = 10, 30


@dataclass(frozen=True, slots=True)
class Entry:
    """What a storage says of a file or folder without reading it.

    Attributes
    ----------
    name : str
        Within the folder that was listed; in full where one file was looked at.
    size, mtime_ns : int or None
        Bytes; nanoseconds since 1970. None where the storage does not say it.
    version : str or None
        ETag or generation: an opaque text that changes with the bytes; None for local files.
    is_folder : bool
    """

    name: str
    size: int | None = None
    mtime_ns: int | None = None
    version: str | None = None
    is_folder: bool = False


def look_at(place: str) -> Entry:
    """Return what is known of one file.

    Raises
    ------
    OSError
        FileNotFoundError, PermissionError, or `StorageError` with a sentence.
    """
    if not is_url(place):
        stat = os.stat(place)
        return Entry(place, stat.st_size, stat.st_mtime_ns, is_folder=Path(place).is_dir())
    system, path = filesystem(place)
    return _entry(place, tried(lambda: system.info(path), shown(place)))


def list_folder(place: str) -> list[Entry]:
    """Return what lies in a folder of a bucket, in the order of the names.

    Raises
    ------
    OSError
        As for `look_at`.
    """
    system, path = filesystem(place)
    found = tried(lambda: system.ls(path, detail=True, refresh=True), shown(place))
    # A bucket lists the mark of a folder among its contents.
    named = {entry["name"].rstrip("/").rpartition("/")[2]: entry for entry in found}
    inside = [
        _entry(name, entry)
        for name, entry in named.items()
        if name and entry["name"].rstrip("/") != path.rstrip("/")
    ]
    return sorted(inside, key=lambda entry: entry.name)


def read_file(place: str, *, is_large: bool = False, most: int = MOST_BYTES) -> bytes:
    """Return all bytes of a file, in one request; errors as of `look_at`.

    ``is_large`` allows its size to be asked for first, and pieces to be fetched side by side. A
    web server that sends more than ``most`` bytes is not listened to any further.
    """
    if not is_url(place):
        return Path(place).read_bytes()
    system, path = filesystem(place)
    # s3fs asks for the size of every file unless it is told to fetch it as one piece.
    options = {"max_concurrency": 1} if scheme_of(place) == "s3" and not is_large else {}
    data: bytes
    if scheme_of(place) in {"http", "https"}:
        data = tried(lambda: fetch(system, path, most), shown(place))
    else:
        data = tried(lambda: system.cat_file(path, **options), shown(place))
    return data


def read_range(place: str, start: int, length: int) -> bytes:
    """Return some bytes of a file, fewer at its end; errors as of `look_at`."""
    if not is_url(place):
        with open(place, "rb") as file:
            file.seek(start)
            return file.read(length)
    if length <= 0:
        return b""
    system, path = filesystem(place)
    data: bytes
    if scheme_of(place) in {"http", "https"}:
        data = tried(lambda: fetch_range(system, path, start, length), shown(place))
    else:
        data = tried(lambda: system.cat_file(path, start=start, end=start + length), shown(place))
    return data


def open_file(place: str) -> BinaryIO:
    """Open a file to read and seek in; what is behind an address is fetched in blocks of 4 MiB.

    Raises
    ------
    OSError
        As for `look_at`, now or in any later read.
    """
    if not is_url(place):
        return open(place, "rb")
    size = look_at(place).size
    if size is None:
        raise StorageError(f"the server of {shown(place)} does not say how large that file is")
    return io.BufferedReader(_Ranges(place, size), _AHEAD_BYTES)


class _Ranges(io.RawIOBase):
    """A file behind an address, read by ranges."""

    def __init__(self, place: str, size: int) -> None:
        super().__init__()
        self._place, self._size, self._at = place, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(start + offset, 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self._size - self._at)
        if length <= 0:
            return 0
        data = read_range(self._place, self._at, length)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for an address, and the path in it.

    Raises
    ------
    SourceError
        When featpipe reads no such address, or the package that does is not installed.
    """
    scheme = scheme_of(url)
    package, extra = PACKAGES[scheme]
    if any(importlib.util.find_spec(name) is None for name in ("fsspec", "tenacity", package)):
        raise SourceError(
            f"reading {scheme}:// addresses needs a package that is not installed: "
            f"pip install 'featpipe[{extra}]'"
        )
    import fsspec  # noqa: PLC0415 - an extra

    # Not `url_to_fs`, to which `::` in a name means a file system within another.
    kind = fsspec.get_filesystem_class(scheme)
    _silence(package)
    system = kind(**_options(scheme))
    # A key in front of a bucket opens nothing, and would be repeated as a part of its name.
    place = url if scheme in {"http", "https"} else shown(url)
    path = kind._strip_protocol(scheme + place[len(scheme) :])  # noqa: SLF001 - fsspec's protocol
    if scheme == "s3":
        # Waiting is left to `tried`, which knows for how long and when to stop.
        system.retries = 1
    return system, str(path)


def _silence(package: str) -> None:
    """Keep what a package logs, such as whole tracebacks, from a terminal where nobody logs."""
    log = logging.getLogger(package)
    if not log.handlers:
        log.addHandler(logging.NullHandler())


def _options(scheme: str) -> dict[str, Any]:
    """Return time-outs, and no memory of listings: a bucket changes while a process lives."""
    if scheme == "s3":
        # `tried` asks again, and knows for how long.
        once = {"total_max_attempts": 1}
        times = {"connect_timeout": _CONNECT_SECONDS, "read_timeout": _READ_SECONDS}
        config = {**times, "retries": once}
        return {"config_kwargs": config, "use_listings_cache": False}
    if scheme in {"http", "https"}:
        import aiohttp  # noqa: PLC0415 - an extra

        limits = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_SECONDS, sock_read=_READ_SECONDS
        )
        return {"client_kwargs": {"timeout": limits}, "use_listings_cache": False}
    return {"use_listings_cache": False}


def _entry(name: str, info: Mapping[str, Any]) -> Entry:
    size, version = info.get("size"), None
    for field in ("generation", "ETag", "etag", "Content-MD5"):
        if info.get(field):
            version = _as_version(str(info[field]).strip('"'))
            break
    is_folder = info.get("type") == "directory"
    known_size = None if is_folder or size is None else int(size)
    return Entry(name, known_size, _nanoseconds(info), version, is_folder)


def _as_version(text: str) -> str:
    """Return a version that any table can hold, whatever a server calls one."""
    data = text.encode("utf-8", "surrogateescape")
    if len(data) > _LONGEST_VERSION:
        return hashlib.blake2b(data, digest_size=16).hexdigest()
    return data.decode("utf-8", "backslashreplace")


def _nanoseconds(info: Mapping[str, Any]) -> int | None:
    for field in ("LastModified", "last_modified", "updated", "mtime", "Last-Modified"):
        value = info.get(field)
        if isinstance(value, str):
            value = _parsed(value)
        if isinstance(value, datetime):
            whole = value.replace(microsecond=0, tzinfo=value.tzinfo or UTC)
            found = int(whole.timestamp()) * 10**9 + value.microsecond * 1000
            return found if abs(found) < 2**63 else None
    return None


def _parsed(text: str) -> datetime | None:
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            return parse(text)
        except (ValueError, OverflowError):
            continue
    return None
