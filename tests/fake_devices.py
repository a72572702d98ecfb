"""Devices that no machine of the tests has: drivers, GPUs, libraries, sessions on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from featpipe.backbones import _driver, cuda, onnx_session
from featpipe.types import Pixels

CPU = "CPUExecutionProvider"


@dataclass
class FakeDriver:
    """Answers as the NVIDIA driver does."""

    error: int = 0
    version: int = 13020
    gpus: tuple[str, ...] = ("Fake GPU", "Fake GPU")
    capability: tuple[int, int] = (9, 0)
    count_error: int = 0

    def cuInit(self, flags: int) -> int:
        return self.error

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = self.version
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self.gpus)
        return self.count_error

    def cuDeviceGet(self, handle: Any, index: int) -> int:
        handle._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, handle: Any) -> int:
        name.value = self.gpus[handle.value].encode()
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, handle: Any) -> int:
        value._obj.value = self.capability[{75: 0, 76: 1}[attribute]]
        return 0


class FakeCudnn:
    """cuDNN, which tells the CUDA that it was built with."""

    class cudnnGetCudartVersion:  # noqa: N801 - NVIDIA's name
        """The function, whose type of result is set before it is called."""

        restype: Any = None

        def __new__(cls) -> Any:
            return 13040

    def cudnnGetVersion(self) -> int:
        return 91402


@dataclass
class FakeMachine:
    """A machine with a driver and libraries; everything is there unless a test takes it away."""

    driver: FakeDriver | None = field(default_factory=FakeDriver)
    cudnn: FakeCudnn = field(default_factory=FakeCudnn)
    files: set[str] = field(
        default_factory=lambda: {
            "libcudart.so.13",
            "libcublas.so.13",
            "libcurand.so.10",
            "libcudnn.so.9",
            "libnvinfer.so.10",
            "libnvonnxparser.so.10",
        }
    )

    def load(self, name: str) -> Any:
        if name == "libcuda.so.1":
            return self.driver
        if name not in self.files:
            return None
        return self.cudnn if name == "libcudnn.so.9" else FakeLibrary()


class FakeLibrary:
    """Any other library; TensorRT's tells its version."""

    def getInferLibVersion(self) -> int:
        return 101601


def install(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """Put a fake machine in place of this one; ONNX Runtime stays the real one."""
    from featpipe.backbones import tensorrt

    machine = FakeMachine()
    for module in (_driver, cuda, tensorrt):
        monkeypatch.setattr(module, "load_library", machine.load)
    monkeypatch.setattr(cuda, "_built_for", lambda: 13)
    monkeypatch.setattr(cuda, "preload_libraries", lambda: None)
    monkeypatch.setattr(cuda, "installed_wheels", lambda: ("onnxruntime-gpu",))
    monkeypatch.setattr(cuda, "_system", lambda: "Linux x86_64")
    monkeypatch.setattr(_driver.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(
        tensorrt.onnxruntime, "get_available_providers", lambda: [tensorrt.TENSORRT]
    )
    return machine


class FakeSession:
    """A session that says it is on a device and computes on the CPU, times ``factor``."""

    def __init__(self, data: bytes, providers: list[Any], nodes: int | None = 1) -> None:
        self.data, self.nodes = data, nodes
        self.factor: NDArray[np.float32] | float = 1.0
        self.providers = [p if isinstance(p, str) else p[0] for p in providers]
        self.options = [{} if isinstance(p, str) else p[1] for p in providers]
        self.inner = onnxruntime.InferenceSession(data, providers=[CPU])
        self.batches: list[int] = []

    def get_providers(self) -> list[str]:
        return [*self.providers, CPU]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        class Part:
            ep_name = self.providers[0]

        return [Part()] * (self.nodes or 0)

    def run(self, names: list[str], feed: dict[str, Pixels]) -> list[NDArray[np.float32]]:
        self.batches.append(len(feed["images"]))
        return [output * self.factor for output in self.inner.run(names, feed)]


def start_fakes(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[FakeSession], None] = lambda _: None
) -> list[FakeSession]:
    """Let sessions on other devices than the CPU be fakes; what was made is in the list."""
    made: list[FakeSession] = []
    start = onnx_session.start

    def fake(data: bytes, file: Any, wanted: list[Any]) -> Any:
        if wanted == [CPU]:
            return start(data, file, wanted)
        made.append(FakeSession(data, wanted))
        change(made[-1])
        return made[-1]

    monkeypatch.setattr(onnx_session, "start", fake)
    return made


def disagree(session: FakeSession) -> None:
    """Make a fake session compute other vectors than the CPU."""
    session.factor = np.where(np.arange(27) % 2, 1, -1).astype(np.float32)
