"""What can be seen of CUDA, the one sentence that says why it cannot be used, and its start.

`cuda_facts` looks; `why_no_cuda` judges, and needs no GPU to be tested.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

import onnxruntime
from onnxruntime.capi import build_and_package_info

from featpipe._files import first_line
from featpipe.backbones import onnx_session
from featpipe.backbones._driver import (
    WINDOWS,
    Driver,
    Library,
    ask_driver,
    find_library,
    is_installed,
    load_library,
)
from featpipe.backbones._runtime import MEND_WHEELS
from featpipe.backbones.contract import BackboneFile
from featpipe.backbones.runner import Amiss, Precision, Started
from featpipe.errors import BackboneError, DeviceError

CUDA = "CUDAExecutionProvider"
CUDNN_MAJOR = 9
_CUDNN = "cuDNN"
_CARRIERS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
_GPU_WHEELS = ("Linux x86_64", "Windows AMD64")
_EXTRA = "run pip install 'featpipe[cuda]'"
# What a major version of CUDA needs: the release of the driver, the capability of the GPU.
_DRIVER_RELEASES = {12: 525, 13: 580}
_CAPABILITIES = {12: (5, 0), 13: (7, 5)}
# Answers of cuInit, by the numbers that NVIDIA gave them.
_NO_GPU = 100
_DRIVER_ERRORS = {
    34: Amiss(
        "libcuda.so.1 is the stub that the CUDA toolkit links with, not a driver",
        "take the folder 'stubs' out of LD_LIBRARY_PATH, and install the driver of the GPU",
    ),
    803: Amiss(
        "the NVIDIA driver's library and its kernel module are of different versions (error 803)",
        "restart the machine after an update of the driver; in a container, take out what "
        "overlays the host's libcuda.so.1",
    ),
    804: Amiss(
        "the package cuda-compat stands before the driver and does not support this GPU "
        "(error 804)",
        "remove cuda-compat, or take its folder out of LD_LIBRARY_PATH",
    ),
}
_UNEXPLAINED = (
    "CUDA cannot be used: driver and libraries are there, but ONNX Runtime cannot start it: "
    "run featpipe doctor, and update the driver to one for the CUDA version that it names"
)


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
    driver : Driver or None
        None where there is none.
    libraries : tuple of Library, or None
        What the CUDA provider is linked with; None: not looked for.
    cudnn_for : int or None
        Major version of CUDA that cuDNN was built with; None where it does not tell.
    """

    system: str
    wheels: tuple[str, ...]
    built_for: int | None
    driver: Driver | None
    libraries: tuple[Library, ...] | None = None
    cudnn_for: int | None = None


def cuda_facts(*, thorough: bool = False) -> CudaFacts:
    """Look at wheels, driver and libraries.

    Without a driver the libraries (2 GB, when they are there) matter to nobody and are looked
    for only if ``thorough``.
    """
    built_for, driver = _built_for(), ask_driver()
    facts = CudaFacts(_system(), installed_wheels(), built_for, driver)
    if built_for is None or (driver is None and not thorough):
        return facts
    preload_libraries()
    libraries = tuple(find_library(*library) for library in _libraries(built_for))
    return replace(facts, libraries=libraries, cudnn_for=_cudnn_built_for())


def why_no_cuda(facts: CudaFacts, index: int = 0) -> Amiss | None:
    """Return the first thing that keeps CUDA from working, or None if nothing is amiss.

    Parameters
    ----------
    facts : CudaFacts
        From `cuda_facts`.
    index : int
        Number of the GPU that is wanted.
    """
    obstacles = chain(
        _wheel_obstacles(facts), _driver_obstacles(facts, index), _library_obstacles(facts)
    )
    return next(obstacles, None)


def obstacle(index: int, _precision: Precision) -> Amiss | None:
    """Return what keeps a GPU from being used here, or None."""
    return why_no_cuda(cuda_facts(), index)


def start(file: BackboneFile, index: int, precision: Precision) -> Started:
    """Start a backbone on a GPU that nothing seems to keep from it.

    Raises
    ------
    DeviceError
        When it does not start, or runs elsewhere.
    """
    data = half_precision(file.data) if precision == "fp16" else file.data
    # TF32 would round fp32 products to 10 bits without being asked.
    wanted: list[onnx_session.Provider] = [(CUDA, {"device_id": str(index), "use_tf32": "0"})]
    try:
        runner = onnx_session.start(data, file, wanted)
    except BackboneError as exc:
        raise DeviceError(
            f"CUDA cannot be used: cuda:{index} does not start the backbone "
            f"({first_line(exc.__cause__ or exc)}): "
            "free memory of the GPU, or use --device cpu"
        ) from exc
    if not onnx_session.keeps(runner, wanted) or onnx_session.nodes_on(runner, CUDA) == 0:
        raise DeviceError(_UNEXPLAINED)
    name = gpu_name(index)
    versions = {**onnx_session.versions("cuda"), "gpu": name, "cudnn": cudnn_version()}
    return Started(runner, versions, f"cuda:{index} ({name})")


def half_precision(data: bytes) -> bytes:
    """Return a model in 16-bit floats; see `featpipe.backbones.half`."""
    # The converter brings the `onnx` package along, which nothing else here needs.
    from featpipe.backbones.half import to_half  # noqa: PLC0415

    return to_half(data)


def _wheel_obstacles(facts: CudaFacts) -> Iterator[Amiss]:
    if facts.built_for is not None:
        return
    if facts.system not in _GPU_WHEELS:
        yield Amiss(f"ONNX Runtime has no wheel with CUDA for {facts.system}", "use --device cpu")
    remedy = f"run {MEND_WHEELS[0]}, then {MEND_WHEELS[1]}"
    if "onnxruntime-gpu" in facts.wheels and len(facts.wheels) > 1:
        both = " and ".join(facts.wheels)
        yield Amiss(
            f"{both} are both installed and overwrite each other, and the one without CUDA has won",
            remedy,
        )
    wheel = facts.wheels[0] if facts.wheels else "onnxruntime"
    yield Amiss(f"the installed {wheel} is built without CUDA", remedy)


def _driver_obstacles(facts: CudaFacts, index: int) -> Iterator[Amiss]:
    """Yield what stands in the way; each makes sense only where none before it does."""
    driver, cuda = facts.driver, facts.built_for or 0
    if driver is None:
        yield Amiss(
            "no NVIDIA driver is found on this machine",
            "install the driver of the GPU, or in a container pass the GPU on "
            "(docker run --gpus all)",
        )
        return
    if (0, 0) < driver.cuda < (cuda, 0):
        yield _old_driver(driver, cuda)
    if driver.error in _DRIVER_ERRORS:
        yield _DRIVER_ERRORS[driver.error]
    if driver.error not in {0, _NO_GPU}:
        yield Amiss(
            f"the NVIDIA driver is there but does not start (error {driver.error})",
            "see what nvidia-smi says; restart the machine, or install the driver again",
        )
    if not driver.gpus:
        yield Amiss(
            "the NVIDIA driver shows no GPU to this process",
            "check nvidia-smi and the environment variable CUDA_VISIBLE_DEVICES",
        )
    elif index >= len(driver.gpus):
        seen = "1 GPU, which is cuda:0" if len(driver.gpus) == 1 else f"{len(driver.gpus)} GPUs"
        yield Amiss(f"there is no GPU with number {index}", f"this process sees {seen}")
    elif (0, 0) < driver.gpus[index].capability < _CAPABILITIES.get(cuda, (0, 0)):
        yield _old_gpu(driver, index, cuda)


def _old_driver(driver: Driver, cuda: int) -> Amiss:
    release = _DRIVER_RELEASES.get(cuda)
    newer = "a newer one" if release is None else f"release {release} or later"
    return Amiss(
        f"the NVIDIA driver serves CUDA {driver.cuda[0]}.{driver.cuda[1]} at most, and the "
        f"installed onnxruntime-gpu is built for CUDA {cuda}",
        f"update the driver to {newer}, or use --device cpu",
    )


def _old_gpu(driver: Driver, index: int, cuda: int) -> Amiss:
    gpu, least = driver.gpus[index], _CAPABILITIES[cuda]
    return Amiss(
        f"the GPU {gpu.name} has compute capability {gpu.capability[0]}.{gpu.capability[1]}, and "
        f"CUDA {cuda}, which the installed onnxruntime-gpu is built for, needs "
        f"{least[0]}.{least[1]}",
        "use --device cpu, or another GPU (cuda:N)",
    )


def _library_obstacles(facts: CudaFacts) -> Iterator[Amiss]:
    cuda, libraries = facts.built_for, facts.libraries or ()
    lacking = [library for library in libraries if not library.found]
    for library in lacking:
        if library.instead is not None:
            yield _wrong_library(library, cuda)
    missing = [library.name for library in lacking if library.name != _CUDNN]
    if missing:
        named = " and ".join(missing)
        yield Amiss(f"{named} for CUDA {cuda} cannot be loaded", _EXTRA)
    if lacking:
        yield Amiss(f"{_CUDNN} {CUDNN_MAJOR} cannot be loaded", _EXTRA)
    if facts.cudnn_for is not None and facts.cudnn_for != cuda:
        yield Amiss(
            f"the {_CUDNN} that is found is built for CUDA {facts.cudnn_for}, and the installed "
            f"onnxruntime-gpu for CUDA {cuda}",
            f"run pip uninstall -y nvidia-cudnn-cu{facts.cudnn_for} nvidia-cudnn-cu{cuda}, then "
            f"{_EXTRA.removeprefix('run ')}",
        )


def _wrong_library(library: Library, cuda: int | None) -> Amiss:
    if library.major == cuda:
        wanted, found = f"{library.name} for CUDA {cuda}", f"that for CUDA {library.instead}"
    else:
        wanted = f"{library.name} {library.major}"
        found = f"{library.name} {library.instead}"
    return Amiss(
        f"{wanted} cannot be loaded, only {found} is there", f"{_EXTRA}; the other may stay"
    )


def installed_wheels() -> tuple[str, ...]:
    """Return the installed distributions that carry the package ``onnxruntime``."""
    return tuple(name for name in _CARRIERS if is_installed(name))


def gpu_name(index: int) -> str:
    """Return name of a GPU and version of its driver, as far as the driver tells."""
    driver = ask_driver()
    if driver is None or index >= len(driver.gpus):
        return "unknown GPU"
    major, minor = driver.cuda
    return f"{driver.gpus[index].name}, driver for CUDA {major}.{minor}"


def cudnn_version() -> str:
    """Return the version of the cuDNN that is loaded, which chooses its kernels by it."""
    cudnn = _cudnn()
    try:
        number = 0 if cudnn is None else int(cudnn.cudnnGetVersion())
    except AttributeError:
        number = 0
    if not number:
        return "unknown"
    return f"{number // 10000}.{number % 10000 // 100}.{number % 100}"


def preload_libraries() -> None:
    """Load CUDA and cuDNN from the packages of the ``cuda`` extra, where they are installed.

    ONNX Runtime prints what it does not find; `why_no_cuda` says it in a sentence instead.
    """
    if hasattr(onnxruntime, "preload_dlls"):
        with open(os.devnull, "w", encoding="utf-8") as sink, contextlib.redirect_stdout(sink):
            onnxruntime.preload_dlls()


def _system() -> str:
    return f"{platform.system()} {platform.machine()}"


def _built_for() -> int | None:
    """Return the major version of CUDA in the installed onnxruntime, or None."""
    if CUDA not in onnxruntime.get_available_providers():
        return None
    major = str(getattr(build_and_package_info, "cuda_version", "")).partition(".")[0]
    return int(major) if major.isdigit() else 13


def _libraries(cuda: int) -> list[tuple[str, str, int]]:
    """Return the libraries that the CUDA provider is linked with: name, file, version."""
    pattern = "{}64_{{}}.dll" if WINDOWS else "lib{}.so.{{}}"
    libraries = [
        ("the CUDA runtime", pattern.format("cudart"), cuda),
        ("cuBLAS", pattern.format("cublas"), cuda),
        (_CUDNN, pattern.format("cudnn"), CUDNN_MAJOR),
    ]
    if not WINDOWS:
        libraries.insert(2, ("cuRAND", pattern.format("curand"), 10))
    return libraries


def _cudnn_built_for() -> int | None:
    """Ask cuDNN for its CUDA: packages for both majors put it into one folder."""
    cudnn = _cudnn()
    if cudnn is None:
        return None
    try:
        cudnn.cudnnGetCudartVersion.restype = ctypes.c_size_t
        return int(cudnn.cudnnGetCudartVersion()) // 1000 or None
    except AttributeError:
        return None


def _cudnn() -> ctypes.CDLL | None:
    return load_library(f"cudnn64_{CUDNN_MAJOR}.dll" if WINDOWS else f"libcudnn.so.{CUDNN_MAJOR}")
