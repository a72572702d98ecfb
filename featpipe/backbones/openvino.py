"""OpenVINO, through its own package: the same file, faster where the processor has bf16.

The plug-in of ONNX Runtime refuses processors that are not Intel's; the package does not.
"""

from __future__ import annotations

import sys
import threading
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe import _machine
from featpipe._files import first_line
from featpipe.backbones._driver import is_installed
from featpipe.backbones.contract import EMBEDDING, INPUT, BackboneFile
from featpipe.backbones.runner import Amiss, Precision, Started
from featpipe.errors import DeviceError
from featpipe.types import Pixels

_HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16"}
_NAMES = {"float32": "fp32", "float": "fp32", "f32": "fp32", "bfloat16": "bf16", "bf16": "bf16"}
_ACCELERATORS = ("BF16", "AMX")
_TELEMETRY = "openvino_telemetry"
_FIRST_RUN = threading.Lock()


class OpenVinoRunner:
    """A backbone compiled by OpenVINO; each thread that calls has a request of its own.

    Parameters
    ----------
    core : openvino.Core
    data : bytes
        The ONNX file.
    precision : {"fp32", "bf16"}
    threads : int
        Calls that run at once, each on one core.

    Attributes
    ----------
    in_force : str
        The precision that OpenVINO says it computes in.
    """

    def __init__(self, core: Any, data: bytes, precision: Precision, threads: int) -> None:
        self._core, self._data = core, data
        self._settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "NUM_STREAMS": threads,
            "INFERENCE_NUM_THREADS": threads,
            # Pinned, two processes on one machine would share a core while another idles.
            "ENABLE_CPU_PINNING": False,
        }
        self._lock, self._local = threading.Lock(), threading.local()
        self._compiled: dict[str, Any] = {}
        compiled = self._compile(EMBEDDING)
        self._warm_up(compiled)
        hint = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.in_force = _NAMES.get(hint, hint)

    def run(self, names: list[str], feed: dict[str, Pixels]) -> list[NDArray[np.float32]]:
        """Compute the named outputs, and no others."""
        return [self._run(name, feed[INPUT]) for name in names]

    def _warm_up(self, compiled: Any) -> None:
        """Run one image before threads do: OpenVINO's first run must not meet another one.

        Its Python bindings set themselves up in the first conversion of an array. Two threads
        that come to it at once wait for each other for ever: one holds the interpreter's lock
        and wants the set-up, the other the reverse (seen in 3 of 10 runs with 2026.4.1).
        """
        shape = [1, *(side.get_length() for side in list(compiled.input(0).partial_shape)[1:])]
        with _FIRST_RUN:
            self._run(EMBEDDING, np.zeros(shape, np.uint8))

    def _run(self, name: str, images: Pixels) -> NDArray[np.float32]:
        # Read-only pixels would take another way through the bindings than the first run did.
        if not images.flags.writeable:
            images = images.copy()
        results = self._request(name).infer({INPUT: images}, share_inputs=True, share_outputs=True)
        # The request owns its output, and the next run writes over it.
        return np.array(results[0], dtype=np.float32)

    def _request(self, name: str) -> Any:
        requests: dict[str, Any] = self._local.__dict__
        if name not in requests:
            with self._lock:
                requests[name] = self._compile(name).create_infer_request()
        return requests[name]

    def _compile(self, name: str) -> Any:
        """Compile the part of the graph that one output needs, when it is first asked for."""
        if name not in self._compiled:
            model = self._core.read_model(self._data)
            for result in list(model.get_results()):
                if name not in result.input_value(0).get_names():
                    model.remove_result(result)
            self._compiled[name] = self._core.compile_model(model, "CPU", self._settings)
        return self._compiled[name]


def obstacle(_index: int, precision: Precision) -> Amiss | None:
    """Return what keeps OpenVINO from being used here in this precision, or None."""
    if precision == "bf16" and accelerates_bf16() is False:
        return Amiss(
            f"this processor ({_machine.cpu_model()}) does not accelerate bf16, which takes "
            "AVX512-BF16 or AMX",
            "use --precision fp32",
        )
    if not is_installed("openvino"):
        return Amiss(
            "the package openvino is not installed", "run pip install 'featpipe[openvino]'"
        )
    try:
        devices = _core().available_devices
    except (ImportError, AttributeError, OSError, RuntimeError) as exc:
        return Amiss(
            f"the package openvino cannot be loaded ({first_line(exc)})",
            "run pip install --force-reinstall openvino",
        )
    if "CPU" not in devices:
        return Amiss(f"openvino {version()} has no device for this processor", "use --device cpu")
    return None


def accelerates_bf16() -> bool | None:
    """Tell whether the processor computes in bf16; None where the system does not tell."""
    features = _machine.cpu_features()
    if not features:
        return None
    return any(features.get(name, False) for name in _ACCELERATORS)


def start(file: BackboneFile, _index: int, precision: Precision) -> Started:
    """Compile a backbone with OpenVINO.

    Raises
    ------
    DeviceError
        When OpenVINO does not compile it, or computes in another precision.
    """
    try:
        runner = OpenVinoRunner(_core(), file.data, precision, _machine.usable_cores())
    except Exception as exc:
        # The front end for ONNX raises classes of its own.
        raise DeviceError(
            f"OpenVINO cannot be used: openvino {version()} does not compile the backbone "
            f"({first_line(exc)}): use --device cpu"
        ) from exc
    if runner.in_force != precision:
        raise DeviceError(
            f"OpenVINO cannot be used: it computes in {runner.in_force} on this processor, though "
            f"{precision} was asked for: use --precision fp32"
        )
    versions = {
        "openvino": version(),
        "provider": "openvino",
        "processor": _machine.cpu_model(),
        "instructions": " ".join(name for name, has in _machine.cpu_features().items() if has),
    }
    return Started(runner, versions, f"openvino {version()}")


def version() -> str:
    """Return the version of the installed package, without the build's name."""
    return str(load_openvino().__version__).partition("-")[0]


@lru_cache(maxsize=1)
def _core() -> Any:
    return load_openvino().Core()


def load_openvino() -> Any:
    """Import OpenVINO without its telemetry.

    The mere import tells Google Analytics that it took place, and writes an identifier into
    the home folder. Without the package that sends, OpenVINO takes a stub of its own; whoever
    imports that package afterwards gets it as ever.

    Raises
    ------
    ImportError
        When it is not installed, or damaged.
    """
    hidden = sys.modules.get(_TELEMETRY)
    # What stands there as None cannot be imported.
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino  # noqa: PLC0415 - 180 MB, and only for who asks for it
    finally:
        del sys.modules[_TELEMETRY]
        if hidden is not None:
            sys.modules[_TELEMETRY] = hidden
    return openvino
