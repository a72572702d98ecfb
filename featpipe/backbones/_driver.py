"""What the NVIDIA driver tells, and which shared libraries can be loaded."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WINDOWS = sys.platform == "win32"
_DRIVER = "nvcuda.dll" if WINDOWS else "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU: its name, and what NVIDIA calls its compute capability; (0, 0): not told."""

    name: str
    capability: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Driver:
    """The NVIDIA driver.

    Attributes
    ----------
    error : int
        What it answered to the first call; 0: it works.
    cuda : tuple of (major, minor)
        The newest CUDA that it can serve; (0, 0) where it does not tell.
    gpus : tuple of Gpu
        What it shows to this process.
    """

    error: int
    cuda: tuple[int, int]
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True, slots=True)
class Library:
    """A shared library that is needed.

    Attributes
    ----------
    name : str
        As a person calls it.
    major : int
        The version that is needed.
    found : bool
    instead : int or None
        Another version that is there where this one is not.
    """

    name: str
    major: int
    found: bool
    instead: int | None = None


def ask_driver() -> Driver | None:
    """Ask the driver for its version and its GPUs; None: there is no driver."""
    driver = load_library(_DRIVER)
    if driver is None:
        return None
    error = int(driver.cuInit(0))
    number = ctypes.c_int(0)
    # Its version is told even where it cannot start.
    driver.cuDriverGetVersion(ctypes.byref(number))
    cuda = (number.value // 1000, number.value % 1000 // 10)
    return Driver(error, cuda, () if error else tuple(_gpus(driver)))


def _gpus(driver: ctypes.CDLL) -> Iterator[Gpu]:
    count, handle, value = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return
    for index in range(count.value):
        name = ctypes.create_string_buffer(256)
        driver.cuDeviceGet(ctypes.byref(handle), index)
        driver.cuDeviceGetName(name, len(name), handle)
        capability = []
        for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
            driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle)
            capability.append(value.value)
        yield Gpu(name.value.decode(errors="replace"), (capability[0], capability[1]))


def find_library(name: str, file: str, major: int) -> Library:
    """Look for a library, and where it is not there for another version of it.

    Parameters
    ----------
    name : str
        As a person calls it.
    file : str
        Its file, with ``{}`` in the place of the version.
    major : int
        The version that is needed.
    """
    if load_library(file.format(major)) is not None:
        return Library(name, major, found=True)
    near = (major - 1, major + 1, major - 2, major + 2)
    others = (other for other in near if _is_somewhere(file.format(other)))
    return Library(name, major, found=False, instead=next(others, None))


def _is_somewhere(file: str) -> bool:
    """Tell whether a library is there, in NVIDIA's packages or where the loader looks."""
    packages = importlib.util.find_spec("nvidia")
    folders = (packages.submodule_search_locations or []) if packages else []
    return (
        any(match for folder in folders for match in Path(folder).glob(f"*/*/{file}"))
        or load_library(file) is not None
    )


def load_library(name: str) -> ctypes.CDLL | None:
    """Load a shared library by name or path; None where that cannot be done."""
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def is_installed(name: str) -> bool:
    """Tell whether a distribution of that name is installed."""
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
