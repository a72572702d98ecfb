"""How much memory this process may still take."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

_PROC, _CGROUP = Path("/proc"), Path("/sys/fs/cgroup")
_UNKNOWN = 16 * 2**30
"""What is assumed where the operating system says nothing."""


def available_memory() -> int:
    """Return the bytes that this process may still take.

    The least of what the machine has free, what the control groups of the process allow, and
    what its own limits of address space and of data leave.
    """
    return max(min(_bounds(), default=_installed()), 0)


def _installed() -> int:
    """Return the machine's memory, which macOS tells; there is no word of what is free."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return _UNKNOWN


def _bounds() -> Iterator[int]:
    free = _table(_PROC / "meminfo").get("MemAvailable")
    if free is not None:
        yield free
    yield from _of_limits(_table(_PROC / "self" / "status"))
    yield from _of_groups()


def _table(path: Path) -> dict[str, int]:
    """Return the sizes, in bytes, of a file with lines such as ``VmData:  1024 kB``."""
    found = {}
    for line in _text(path).splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB":
            found[name] = int(words[0]) * 1024
    return found


def _of_limits(own: dict[str, int]) -> Iterator[int]:
    if sys.platform == "win32":
        return
    # There is no such module on Windows.
    import resource  # noqa: PLC0415

    for limit, taken in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY and taken in own:
            yield most - own[taken]


def _of_groups() -> Iterator[int]:
    """Yield what the group of the process and those above it leave (version 2, then version 1)."""
    for line in _text(_PROC / "self" / "cgroup").splitlines():
        _, controllers, name = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            root, most, taken = _CGROUP, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, most = _CGROUP / "memory", "memory.limit_in_bytes"
            taken = "memory.usage_in_bytes"
        else:
            continue
        own = root / name.strip("/")
        for group in (own, *own.parents):
            limit, used = _text(group / most).strip(), _text(group / taken).strip()
            if limit.isdigit() and used.isdigit():
                yield int(limit) - int(used) + _cache(group)
            if group == root:
                break


def _cache(group: Path) -> int:
    """Return the bytes of a group that hold files and are given up when they are needed."""
    for line in _text(group / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name in {"inactive_file", "total_inactive_file"} and value.isdigit():
            return int(value)
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
