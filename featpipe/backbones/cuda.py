"""What can be seen of CUDA, and the one sentence that says why it cannot be used.

`cuda_facts` looks; `why_no_cuda` judges, and needs no GPU to be tested.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnxruntime
from onnxruntime.capi import build_and_package_info

from featpipe.backbones._runtime import MEND_WHEELS

CUDA = "CUDAExecutionProvider"
CUDNN_MAJOR = 9
_CARRIERS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
_GPU_WHEELS = ("Linux x86_64", "Windows AMD64")
_EXTRA = "pip install 'featpipe[cuda]'"
_WINDOWS = sys.platform == "win32"
_DRIVER = "nvcuda.dll" if _WINDOWS else "libcuda.so.1"


@dataclass(frozen=True, slots=True)
class CudaFacts:
    """What can be seen of CUDA without making a session.

    Attributes
    ----------
    system : str
        Operating system and processor, as in "Linux x86_64".
    wheels : tuple of str
        The installed distributions that carry the package ``onnxruntime``; two of them
        overwrite each other.
    built_for : int or None
        Major version of CUDA that the installed onnxruntime was built with; None: without.
    driver : bool
        The driver's library can be loaded.
    devices : int or None
        GPUs that the driver shows to this process; None where there is no driver to ask.
    missing : tuple of str, or None
        The CUDA libraries that cannot be loaded; None: not looked for.
    cudnn : bool or None
        cuDNN can be loaded; None: not looked for.
    """

    system: str
    wheels: tuple[str, ...]
    built_for: int | None
    driver: bool
    devices: int | None = None
    missing: tuple[str, ...] | None = None
    cudnn: bool | None = None


@dataclass(frozen=True, slots=True)
class Amiss:
    """Something that is not as it should be, and what to do about it."""

    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.remedy}"


def cuda_facts(*, thorough: bool = False) -> CudaFacts:
    """Look at wheels, driver and libraries.

    Without a driver the libraries (2 GB, when they are there) matter to nobody and are looked
    for only if ``thorough``.
    """
    built_for = _built_for()
    driver = _load(_DRIVER)
    devices = None if driver is None else _count_devices(driver)
    facts = CudaFacts(_system(), installed_wheels(), built_for, driver is not None, devices)
    if built_for is None or (driver is None and not thorough):
        return facts
    preload_libraries()
    missing = tuple(name for name, file in _libraries(built_for).items() if _load(file) is None)
    cudnn = f"cudnn64_{CUDNN_MAJOR}.dll" if _WINDOWS else f"libcudnn.so.{CUDNN_MAJOR}"
    return replace(facts, missing=missing, cudnn=_load(cudnn) is not None)


def why_no_cuda(facts: CudaFacts, index: int = 0) -> Amiss | None:
    """Return the first thing that keeps CUDA from working, or None if nothing is amiss.

    Parameters
    ----------
    facts : CudaFacts
        From `cuda_facts`.
    index : int
        Number of the GPU that is wanted.
    """
    return next(_obstacles(facts, index), None)


def _obstacles(facts: CudaFacts, index: int) -> Iterator[Amiss]:
    """Yield what stands in the way; each makes sense only where none before it does."""
    if facts.built_for is None and facts.system not in _GPU_WHEELS:
        yield Amiss(f"ONNX Runtime has no wheel with CUDA for {facts.system}", "use --device cpu")
    if facts.built_for is None:
        yield _wheel_without_cuda(facts.wheels)
    if not facts.driver:
        yield Amiss(
            "no NVIDIA driver is found on this machine",
            "install the driver of the GPU, or in a container pass the GPU on "
            "(docker run --gpus all)",
        )
    if not facts.devices:
        yield Amiss(
            "the NVIDIA driver shows no GPU to this process",
            "check nvidia-smi and the environment variable CUDA_VISIBLE_DEVICES",
        )
    elif index >= facts.devices:
        seen = "1 GPU, which is cuda:0" if facts.devices == 1 else f"{facts.devices} GPUs"
        yield Amiss(f"there is no GPU with number {index}", f"this process sees {seen}")
    if facts.missing:
        named = " and ".join(facts.missing)
        yield Amiss(f"{named} for CUDA {facts.built_for} cannot be loaded", f"run {_EXTRA}")
    if facts.cudnn is False:
        yield Amiss(f"cuDNN {CUDNN_MAJOR} cannot be loaded", f"run {_EXTRA}")


def _wheel_without_cuda(wheels: tuple[str, ...]) -> Amiss:
    remedy = f"run {MEND_WHEELS[0]}, then {MEND_WHEELS[1]}"
    if "onnxruntime-gpu" in wheels and len(wheels) > 1:
        both = " and ".join(wheels)
        return Amiss(
            f"{both} are both installed and overwrite each other, and the one without CUDA has won",
            remedy,
        )
    wheel = wheels[0] if wheels else "onnxruntime"
    return Amiss(f"the installed {wheel} is built without CUDA", remedy)


def installed_wheels() -> tuple[str, ...]:
    """Return the installed distributions that carry the package ``onnxruntime``."""
    return tuple(name for name in _CARRIERS if is_installed(name))


def gpu_name(index: int) -> str:
    """Return name of a GPU and version of its driver, as far as the driver tells."""
    driver = _load(_DRIVER)
    handle, version = ctypes.c_int(0), ctypes.c_int(0)
    name = ctypes.create_string_buffer(256)
    if (
        driver is None
        or driver.cuInit(0) != 0
        or driver.cuDeviceGet(ctypes.byref(handle), index) != 0
        or driver.cuDeviceGetName(name, len(name), handle) != 0
    ):
        return "unknown GPU"
    driver.cuDriverGetVersion(ctypes.byref(version))
    major, minor = version.value // 1000, version.value % 1000 // 10
    return f"{name.value.decode(errors='replace')}, driver for CUDA {major}.{minor}"


def preload_libraries() -> None:
    """Load CUDA and cuDNN from the packages of the ``cuda`` extra, where they are installed.

    ONNX Runtime prints what it does not find; `why_no_cuda` says it in a sentence instead.
    """
    if hasattr(onnxruntime, "preload_dlls"):
        with open(os.devnull, "w", encoding="utf-8") as sink, contextlib.redirect_stdout(sink):
            onnxruntime.preload_dlls()


def is_installed(name: str) -> bool:
    """Tell whether a distribution of that name is installed."""
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _system() -> str:
    return f"{platform.system()} {platform.machine()}"


def _built_for() -> int | None:
    """Return the major version of CUDA in the installed onnxruntime, or None."""
    if CUDA not in onnxruntime.get_available_providers():
        return None
    major = str(getattr(build_and_package_info, "cuda_version", "")).partition(".")[0]
    return int(major) if major.isdigit() else 13


def _libraries(cuda: int) -> dict[str, str]:
    """Return the libraries that the CUDA provider is linked with, by their usual names."""
    names = {"the CUDA runtime": "cudart", "cuBLAS": "cublas"}
    if _WINDOWS:
        return {name: f"{file}64_{cuda}.dll" for name, file in names.items()}
    return {
        **{name: f"lib{file}.so.{cuda}" for name, file in names.items()},
        "cuRAND": "libcurand.so.10",
    }


def _load(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _count_devices(driver: ctypes.CDLL) -> int:
    """Ask the driver how many GPUs this process sees."""
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
