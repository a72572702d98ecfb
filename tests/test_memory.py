"""How much memory a process may take: the machine's, its groups' and its own limits."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from featpipe._machine import available_memory

GIB = 2**30


def left(machine: Path) -> int:
    """What is left on the machine that lies below a folder."""
    return available_memory(machine / "proc", machine / "cgroup")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GiB free, without limits."""
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:   {8 * 2**20} kB\n")
    (proc / "self" / "status").write_text(
        "Name:\tpython\nVmSize:\t 1048576 kB\nVmData:\t 1024 kB\n"
    )
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    return tmp_path


def test_the_machine_bounds(machine: Path) -> None:
    """What is free, counting what is only cached."""
    assert left(machine) == 8 * GIB


def test_limits_of_the_process_bound(machine: Path, monkeypatch) -> None:
    """An address space of 4 GiB, one of which is taken."""
    limits = {resource.RLIMIT_AS: 4 * GIB}
    monkeypatch.setattr(
        resource, "getrlimit", lambda kind: (limits.get(kind, resource.RLIM_INFINITY),) * 2
    )
    assert left(machine) == 3 * GIB


@pytest.mark.parametrize(
    ("line", "folder", "files"),
    [
        ("0::/a/b\n", "a", ("memory.max", "memory.current")),
        (
            "9:cpu:/\n4:memory,x:/a\n",
            "memory/a",
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ),
    ],
)
def test_control_groups_bound(machine: Path, line: str, folder: str, files) -> None:
    """Of either version, also that of a group above; its cache of files is not counted."""
    (machine / "proc" / "self" / "cgroup").write_text(line)
    group = machine / "cgroup" / folder
    group.mkdir(parents=True)
    for name, value in zip(files, (3 * GIB, 2 * GIB), strict=True):
        (group / name).write_text(f"{value}\n")
    assert left(machine) == GIB
    (group / "memory.stat").write_text(f"anon 1\ninactive_file {GIB}\n")
    assert left(machine) == 2 * GIB


def test_where_no_word_is_of_what_is_free_it_is_what_the_machine_has(
    machine: Path, monkeypatch
) -> None:
    """As on macOS, which has no ``/proc``; Windows does not even say that."""
    (machine / "proc").rename(machine / "none")
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 1000, "SC_PAGE_SIZE": 4096}.get)
    assert left(machine) == 4_096_000
    monkeypatch.delattr(os, "sysconf")
    assert left(machine) == 16 * GIB
