"""TensorRT through ONNX Runtime, where it is asked for: CUDA, and NVIDIA's compiler in front.

An engine is built for one GPU and kept in the user's cache folder. ONNX Runtime names engines
by the graph alone: two backbones of one architecture would share one, so each has a folder of
its own.

ONNX Runtime has no option that keeps TensorRT from TF32 (products of 10 bits in fp32). NVIDIA's
environment variable ``NVIDIA_TF32_OVERRIDE=0`` does, for the whole process, so it is left to the
user; engines built with and without it are kept apart.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from platformdirs import user_cache_path

from featpipe._files import first_line
from featpipe.backbones import cuda, onnx_session
from featpipe.backbones._driver import WINDOWS, Library, find_library, load_library
from featpipe.backbones.contract import INPUT, BackboneFile
from featpipe.backbones.runner import Amiss, Precision, Runner, Started
from featpipe.errors import BackboneError, DeviceError
from featpipe.types import Pixels

TENSORRT = "TensorrtExecutionProvider"
MAJOR = 10
LARGEST = 64
"""Images a call that an engine is built for; more are run in several calls."""
_FILES = (
    ("nvinfer_{}.dll", "nvonnxparser_{}.dll")
    if WINDOWS
    else (
        "libnvinfer.so.{}",
        "libnvonnxparser.so.{}",
    )
)


@dataclass(frozen=True, slots=True)
class Chunks:
    """Calls a runner with so many images at once as its engine was built for."""

    inner: Runner
    largest: int = LARGEST

    def run(self, names: list[str], feed: dict[str, Pixels]) -> list[NDArray[np.float32]]:
        """Compute the named outputs."""
        images = feed[INPUT]
        parts = [
            self.inner.run(names, {INPUT: images[at : at + self.largest]})
            for at in range(0, len(images), self.largest)
        ]
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def obstacle(index: int, _precision: Precision) -> Amiss | None:
    """Return what keeps TensorRT from being used here, or None."""
    facts = cuda.cuda_facts()
    if facts.built_for is not None and TENSORRT not in onnxruntime.get_available_providers():
        return Amiss("the installed ONNX Runtime is built without TensorRT", "use --device cuda")
    return cuda.why_no_cuda(facts, index) or why_no_libraries(find_libraries(), facts.built_for)


def engine_folder() -> Path:
    """Return the folder that keeps the engines."""
    return user_cache_path("featpipe", appauthor=False) / "tensorrt"


def find_libraries() -> tuple[Library, ...]:
    """Look for TensorRT, in the loader's path and in NVIDIA's package."""
    _preload()
    names = ("TensorRT", "TensorRT's ONNX parser")
    return tuple(find_library(name, file, MAJOR) for name, file in zip(names, _FILES, strict=True))


def why_no_libraries(libraries: tuple[Library, ...], built_for: int | None) -> Amiss | None:
    """Return the sentence for the first library that is not there, or None."""
    remedy = f"run pip install 'tensorrt-cu{built_for}<{MAJOR + 1}', or use --device cuda"
    for library in libraries:
        if not library.found and library.instead is not None:
            return Amiss(
                f"{library.name} {MAJOR} cannot be loaded, only version {library.instead} is there",
                remedy,
            )
        if not library.found:
            return Amiss(f"{library.name} {MAJOR} cannot be loaded", remedy)
    return None


def start(file: BackboneFile, index: int, precision: Precision) -> Started:
    """Build or load the engine of a backbone.

    Raises
    ------
    DeviceError
        When TensorRT refuses the backbone, or leaves all of it to others.
    """
    name, version = cuda.gpu_name(index), _version()
    wanted: list[onnx_session.Provider] = [
        (TENSORRT, _options(file, index, precision, version)),
        (cuda.CUDA, {"device_id": str(index), "use_tf32": "0"}),
    ]
    try:
        # Its libraries write to stdout as they please.
        with onnx_session.stdout_closed():
            session = onnx_session.start(file.data, file, wanted)
    except BackboneError as exc:
        raise DeviceError(
            f"TensorRT cannot be used: it does not build the backbone "
            f"({first_line(exc.__cause__ or exc)}): use --device cuda"
        ) from exc
    if not onnx_session.keeps(session, wanted):
        raise DeviceError(
            "TensorRT cannot be used: its libraries are there, but ONNX Runtime cannot start it: "
            "use --device cuda"
        )
    if onnx_session.nodes_on(session, TENSORRT) == 0:
        raise DeviceError(
            "TensorRT cannot be used: it takes no part of this backbone: use --device cuda"
        )
    versions = {
        **onnx_session.versions("tensorrt"),
        "gpu": name,
        "tensorrt": version,
        "tf32": "off" if _without_tf32() else "allowed",
    }
    return Started(Chunks(session), versions, f"tensorrt:{index} ({name}, TensorRT {version})")


def _options(file: BackboneFile, index: int, precision: Precision, version: str) -> dict[str, str]:
    side = file.card.input_size
    folder = _engines(file, precision, version)

    def shape(n: int) -> str:
        return f"{INPUT}:{n}x{side}x{side}x3"

    return {
        "device_id": str(index),
        "trt_fp16_enable": "1" if precision == "fp16" else "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        "trt_profile_min_shapes": shape(1),
        "trt_profile_opt_shapes": shape(LARGEST),
        "trt_profile_max_shapes": shape(LARGEST),
    }


def _engines(file: BackboneFile, precision: Precision, version: str) -> Path:
    name = f"{file.card.fingerprint}-{precision}-{version}{'-no-tf32' if _without_tf32() else ''}"
    folder = engine_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise DeviceError(
            f"TensorRT cannot be used: the folder for its engines cannot be made ({exc}): "
            "set XDG_CACHE_HOME to a folder that can be written, or use --device cuda"
        ) from exc
    return folder


def _without_tf32() -> bool:
    return os.environ.get("NVIDIA_TF32_OVERRIDE") == "0"


def _version() -> str:
    library: Any = load_library(_FILES[0].format(MAJOR))
    if library is None or not hasattr(library, "getInferLibVersion"):
        return str(MAJOR)
    number = int(library.getInferLibVersion())
    return f"{number // 10000}.{number % 10000 // 100}.{number % 100}"


def _preload() -> None:
    """Load the libraries of NVIDIA's package, which the system's loader does not look into."""
    found = importlib.util.find_spec("tensorrt_libs")
    for folder in (found.submodule_search_locations or []) if found else []:
        for file in _FILES:
            load_library(str(Path(folder) / file.format(MAJOR)))
