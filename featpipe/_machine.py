"""What the processor can do, and how many cores and how much memory this process may use.

A container's limit stands in its control group, which ``os.cpu_count`` does not know.
"""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")
_CPUINFO = Path("/proc/cpuinfo")
_share: list[int] = []
_UNKNOWN = 16 * 2**30
"""Bytes that are assumed where the operating system says nothing of memory."""

# What makes a backbone faster, and the names that Linux has for it; any of them will do.
_FEATURES: dict[str, dict[str, tuple[str, ...]]] = {
    "x86": {
        "AVX2": ("avx2",),
        "AVX-512": ("avx512f",),
        "VNNI": ("avx512_vnni", "avx_vnni"),
        "BF16": ("avx512_bf16",),
        "AMX": ("amx_tile",),
    },
    "arm": {"NEON": ("asimd",), "dot product": ("asimddp",), "BF16": ("bf16",), "SVE": ("sve",)},
}


def usable_cores() -> int:
    """Return the number of cores that this process may use: at least 1.

    The smaller of its CPU affinity and its container's quota (rounded up).
    """
    if _share:
        return _share[-1]
    quota = cpu_quota()
    allowed = allowed_cores()
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def take_share(cores: int) -> None:
    """Let this process use so many cores from now on: others of its kind have the rest."""
    _share.append(cores)


def allowed_cores() -> int:
    """Return the number of cores that the system's affinity mask allows."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # pragma: no cover - Windows and macOS


def cpu_quota(root: Path = _CGROUP, own: Path = _OWN_GROUP) -> float | None:
    """Return the container's limit in cores, or None where there is none."""
    limits = []
    for folder in _group_folders(root, own, "cpu"):
        # Version 2 writes "QUOTA PERIOD" into one file, version 1 each into its own.
        words = _words(folder / "cpu.max") or [
            *_words(folder / "cpu.cfs_quota_us"),
            *_words(folder / "cpu.cfs_period_us"),
        ]
        quota, period = _number(words, 0), _number(words, 1)
        if quota and period:
            limits.append(quota / period)
    return min(limits, default=None)


def memory_limit(root: Path = _CGROUP, own: Path = _OWN_GROUP) -> int | None:
    """Return the container's memory limit in bytes, or None where there is none."""
    limits = []
    for folder in _group_folders(root, own, "memory"):
        words = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        limit = _number(words, 0)
        # Version 1 writes a number near 2**63 for "no limit".
        if limit and limit < 2**60:
            limits.append(limit)
    return min(limits, default=None)


def total_memory() -> int | None:
    """Return the machine's memory in bytes, or None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # pragma: no cover - Windows
        return None


def available_memory(proc: Path = _PROC, root: Path = _CGROUP) -> int:
    """Return the bytes that this process may still take.

    The least of what the machine has free, what the control groups of the process leave, and
    what its own limits of address space and of data do. Where none of them is known it is the
    machine's memory.
    """
    free = _sizes(proc / "meminfo").get("MemAvailable")
    bounds = [*_left_by_limits(_sizes(proc / "self" / "status"))]
    bounds += _left_by_groups(root, proc / "self" / "cgroup")
    if free is not None:
        bounds.append(free)
    return max(min(bounds, default=total_memory() or _UNKNOWN), 0)


def _sizes(path: Path) -> dict[str, int]:
    """Return the sizes, in bytes, of a file with lines such as ``VmData:  1024 kB``."""
    found = {}
    for line in _lines(path):
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB":
            found[name] = int(words[0]) * 1024
    return found


def _left_by_limits(own: dict[str, int]) -> Iterator[int]:
    if sys.platform == "win32":
        return
    # There is no such module on Windows.
    import resource  # noqa: PLC0415

    for limit, taken in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY and taken in own:
            yield most - own[taken]


def _left_by_groups(root: Path, own: Path) -> Iterator[int]:
    for folder in _group_folders(root, own, "memory"):
        limit = _number(_words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes"))
        used = _number(
            _words(folder / "memory.current") or _words(folder / "memory.usage_in_bytes")
        )
        if limit and used:
            yield limit - used + _cached(folder)


def _cached(group: Path) -> int:
    """Return the bytes of a group that hold files and are given up when they are needed."""
    for line in _lines(group / "memory.stat"):
        name, _, value = line.partition(" ")
        if name in {"inactive_file", "total_inactive_file"} and value.isdigit():
            return int(value)
    return 0


def cpu_features(cpuinfo: Path = _CPUINFO) -> dict[str, bool]:
    """Return which of the instruction sets that matter the processor has; {}: not known."""
    for kind, field in (("x86", "flags"), ("arm", "Features")):
        flags = set(_cpuinfo_field(cpuinfo, field).split())
        if flags:
            return {name: not flags.isdisjoint(any_) for name, any_ in _FEATURES[kind].items()}
    return {}


def cpu_model(cpuinfo: Path = _CPUINFO) -> str:
    """Return the processor's name, or what the system has instead."""
    return _cpuinfo_field(cpuinfo, "model name") or platform.processor() or platform.machine()


def _cpuinfo_field(cpuinfo: Path, field: str) -> str:
    for line in _lines(cpuinfo):
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""


def _group_folders(root: Path, own: Path, controller: str) -> list[Path]:
    """Return the folders of this process's control group and all groups above it."""
    folders = [root, root / controller]
    for line in _lines(own):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            base = root
        elif controller in controllers.split(","):
            base = root / controller
        else:
            continue
        group = Path(path.lstrip("/"))
        folders += [base / part for part in [group, *group.parents] if ".." not in part.parts]
    return list(dict.fromkeys(folders))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _number(words: list[str], index: int = 0) -> int | None:
    """Return a positive number; "max" and -1 mean that there is no limit."""
    word = words[index] if index < len(words) else ""
    return int(word) if word.isdigit() and int(word) > 0 else None
