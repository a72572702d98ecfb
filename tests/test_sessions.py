"""Sessions: what was asked for is had or the call fails, and the vectors are the same ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper
from test_backbones import edited

from featpipe.backbones import Backbone, cuda, load_backbone, session
from featpipe.backbones.contract import read_backbone
from featpipe.backbones.cuda import CudaFacts, cuda_facts, gpu_name, installed_wheels, why_no_cuda
from featpipe.backbones.device_check import check_folder
from featpipe.backbones.gate import compare, realistic_images
from featpipe.backbones.half import to_half
from featpipe.backbones.providers import Device, parse_device
from featpipe.errors import BackboneError, DeviceError
from featpipe.types import Pixels

ALL_THERE = CudaFacts(
    system="Linux x86_64",
    wheels=("onnxruntime-gpu",),
    built_for=13,
    driver=True,
    devices=2,
    missing=(),
    cudnn=True,
)
NO_DRIVER = (
    "no NVIDIA driver is found on this machine: install the driver of the GPU, or in a container "
    "pass the GPU on (docker run --gpus all)"
)
MEND = "run pip uninstall -y onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu"


def pattern(n: int) -> Pixels:
    """Return images made of whole-number arithmetic: the same bits on every machine."""
    i, y, x, c = np.ogrid[:n, :224, :224, :3]
    return ((x * (3 + i) + y * y // 7 + (x ^ y) + 50 * c) % 256).astype(np.uint8)


@pytest.fixture(scope="module")
def builtin() -> session.Session:
    return load_backbone().open_session("cpu")


@pytest.fixture
def tiny(tiny_backbone: Path) -> Backbone:
    return load_backbone(tiny_backbone)


# --- running --------------------------------------------------------------------------------


def test_the_built_in_vectors_are_pinned(builtin: session.Session) -> None:
    """The built-in backbone gives the vectors that it gave when it was exported."""
    vectors = builtin.run(pattern(2))
    assert vectors.shape == (2, 1280)
    assert vectors.dtype == np.float32
    assert vectors[:, :6] == pytest.approx(np.array(PINNED), abs=2e-4)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(PINNED_LENGTHS, rel=1e-4)


PINNED = [
    [0.0, 0.0, 0.0, 0.03871, 0.10651, 0.0],
    [0.00443, 0.0, 0.0, 0.00706, 0.05454, 0.0],
]
PINNED_LENGTHS = [16.4980, 16.4272]


def test_the_feature_map_averages_to_the_embedding(builtin: session.Session) -> None:
    """The second output is what is pooled into the first."""
    images = realistic_images(2, 224)
    maps = builtin.feature_maps(images)
    assert maps.shape == (2, 1280, 7, 7)
    assert maps.mean(axis=(2, 3)) == pytest.approx(builtin.run(images), abs=1e-5)


def test_vectors_do_not_depend_on_the_batch(builtin: session.Session) -> None:
    """Bit for bit the same vector alone and in company, with threads beside and without."""
    images = realistic_images(8, 224)
    together = builtin.run(images)
    assert (together == np.concatenate([builtin.run(images[i : i + 1]) for i in range(8)])).all()
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(builtin.run, [images[i : i + 2] for i in range(0, 8, 2)]))
    assert (together == np.concatenate(parts)).all()


def test_no_images_give_no_vectors(tiny: Backbone) -> None:
    """An empty batch has the right shape; a view that is not contiguous is taken, too."""
    opened = tiny.open_session("cpu")
    images = realistic_images(3, 32)
    assert opened.run(images[:0]).shape == (0, 27)
    assert (opened.run(images[::-1]) == opened.run(images)[::-1]).all()


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((1, 32, 32, 3), np.float32), "float32 (1, 32, 32, 3)"),
        (np.zeros((1, 3, 32, 32), np.uint8), "uint8 (1, 3, 32, 32)"),
    ],
)
def test_other_pixels_are_a_mistake_of_the_caller(
    tiny: Backbone, images: NDArray[Any], said: str
) -> None:
    """Wrong dtype or shape raises ValueError with both."""
    whole = re.escape(f"images must be uint8 (N, 32, 32, 3), not {said}")
    with pytest.raises(ValueError, match=f"^{whole}$"):
        tiny.open_session("cpu").run(images)


def test_a_backbone_without_maps_says_so(tiny: Backbone) -> None:
    """Asking for an output that is not there is answered with a way to get it."""
    with pytest.raises(BackboneError) as error:
        tiny.open_session("cpu").feature_maps(realistic_images(1, 32))
    assert str(error.value) == (
        "the backbone tiny has no output 'feature_map': export it again from a model that ends "
        "in global average pooling"
    )


class Failing:
    """A runtime that fails in the middle of the work, as no machine does when asked to."""

    def __init__(self, text: str) -> None:
        self.text = text

    def run(self, names: list[str], feed: dict[str, Pixels]) -> list[NDArray[np.float32]]:
        raise RuntimeError(self.text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "Failed to allocate memory for requested buffer\nof size 5",
            (
                "cpu has not enough memory for 2 images at once: give a smaller --batch-size "
                "(Failed to allocate memory for requested buffer)"
            ),
        ),
        (
            "CUDA failure 700",
            (
                "cpu failed while it embedded 2 images: CUDA failure 700; run featpipe doctor, or "
                "the same command with --device cpu"
            ),
        ),
        (
            "",
            (
                "cpu failed while it embedded 2 images: RuntimeError; run featpipe doctor, or "
                "the same command with --device cpu"
            ),
        ),
    ],
)
def test_a_failure_in_mid_run_is_a_sentence(tiny: Backbone, text: str, said: str) -> None:
    """Memory and everything else have their own way out."""
    opened = replace(tiny.open_session("cpu"), runner=Failing(text))
    with pytest.raises(DeviceError) as error:
        opened.run(realistic_images(2, 32))
    assert str(error.value) == said


# --- opening --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("auto", Device("auto")),
        ("CPU", Device("cpu")),
        ("cuda", Device("cuda")),
        (" cuda:12 ", Device("cuda", 12)),
    ],
)
def test_devices_are_read(text: str, device: Device) -> None:
    """Case and blanks do not matter."""
    assert parse_device(text) == device


@pytest.mark.parametrize("text", ["gpu", "cuda:", "cuda:x", "cpu:0", "cuda:-1", "cuda:٣", ""])
def test_other_devices_are_refused(text: str) -> None:
    """The message has all that can be asked for."""
    with pytest.raises(DeviceError) as error:
        parse_device(text)
    assert error.value.exit_code == 6
    assert str(error.value) == (
        f"there is no device '{text}': use auto, cpu, cuda, or cuda:N for the GPU with number N"
    )


def test_the_cpu_session_tells_what_it_is(tiny: Backbone) -> None:
    """Provider, precision, versions and the reason stand in the session."""
    opened = tiny.open_session("cpu")
    assert (opened.provider, opened.precision, opened.batch_size) == ("cpu", "fp32", 8)
    assert opened.why == "running on cpu, fp32 (it was asked for)"
    assert opened.versions == {
        "onnxruntime": onnxruntime.__version__,
        "provider": "cpu",
        "optimization": "all",
    }


def test_half_precision_on_the_cpu_is_refused(tiny: Backbone) -> None:
    """fp16 is not silently fp32."""
    with pytest.raises(DeviceError) as error:
        tiny.open_session("cpu", "fp16")
    assert str(error.value) == (
        "fp16 is not faster on a CPU and is not offered there: use --precision fp32, or --device "
        "cuda on a machine with a GPU"
    )


def test_an_unknown_precision_is_refused(tiny: Backbone) -> None:
    """The message has all that can be asked for."""
    with pytest.raises(DeviceError) as error:
        tiny.open_session("cpu", "fp8")
    assert str(error.value) == "there is no precision 'fp8': use auto, fp32 or fp16"


def test_a_file_that_changes_while_in_use_is_noticed(tiny_backbone: Path, tmp_path: Path) -> None:
    """Between `load_backbone` and the session, another backbone took the file's place."""
    path = tmp_path / "b.onnx"
    path.write_bytes(tiny_backbone.read_bytes())
    backbone = load_backbone(path)

    def edit(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].float_data[0] *= 2

    edited(tiny_backbone, path, edit)
    with pytest.raises(BackboneError) as error:
        backbone.open_session("cpu")
    assert str(error.value) == (
        f"the backbone file {path} was replaced while it was in use ({backbone.fingerprint} "
        f"before, {load_backbone(path).fingerprint} now): start again"
    )


def test_a_graph_that_cannot_run_is_an_error_of_the_file(
    tiny_backbone: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime's refusal becomes one sentence; nothing else is printed."""
    node = helper.make_node("NoSuchOperator", ["images"], ["x"])
    path = edited(tiny_backbone, tmp_path / "odd.onnx", lambda m: m.graph.node.append(node))
    with pytest.raises(BackboneError) as error:
        load_backbone(path).open_session("cpu")
    assert str(error.value).startswith(
        f"the backbone file {path} cannot be run by ONNX Runtime {onnxruntime.__version__}: "
    )
    assert "NoSuchOperator" in str(error.value)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


# --- CUDA -----------------------------------------------------------------------------------


@pytest.mark.skipif(cuda_facts().driver, reason="this machine has an NVIDIA driver")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_without_a_gpu_fails(
    tiny: Backbone, device: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """CUDA that was asked for by name never becomes the CPU, and nothing else is printed."""
    with pytest.raises(DeviceError) as error:
        tiny.open_session(device)
    assert error.value.exit_code == 6
    if "onnxruntime-gpu" in installed_wheels():
        assert str(error.value) == f"CUDA cannot be used: {NO_DRIVER}"
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(cuda_facts().driver, reason="this machine has an NVIDIA driver")
def test_auto_without_a_gpu_is_the_cpu_and_says_why(tiny: Backbone) -> None:
    """One line: what runs, and why nothing better; fp16 cannot be had and is not replaced."""
    opened = tiny.open_session()
    assert opened.provider == "cpu"
    if "onnxruntime-gpu" in installed_wheels():
        assert opened.why == (
            "running on cpu, fp32 (no CUDA: no NVIDIA driver is found on this machine)"
        )
    with pytest.raises(DeviceError, match=r"^CUDA cannot be used: "):
        tiny.open_session("auto", "fp16")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, None),
        (
            {"built_for": None, "wheels": ("onnxruntime",)},
            f"the installed onnxruntime is built without CUDA: {MEND}",
        ),
        (
            {"built_for": None, "wheels": ()},
            f"the installed onnxruntime is built without CUDA: {MEND}",
        ),
        (
            {"built_for": None, "wheels": ("onnxruntime", "onnxruntime-gpu")},
            (
                "onnxruntime and onnxruntime-gpu are both installed and overwrite each other, and "
                f"the one without CUDA has won: {MEND}"
            ),
        ),
        (
            {"built_for": None, "system": "Darwin arm64"},
            "ONNX Runtime has no wheel with CUDA for Darwin arm64: use --device cpu",
        ),
        ({"driver": False, "devices": None, "missing": None, "cudnn": None}, NO_DRIVER),
        (
            {"devices": 0},
            (
                "the NVIDIA driver shows no GPU to this process: check nvidia-smi and the "
                "environment variable CUDA_VISIBLE_DEVICES"
            ),
        ),
        ({"devices": 1}, "there is no GPU with number 1: this process sees 1 GPU, which is cuda:0"),
        (
            {"missing": ("the CUDA runtime", "cuBLAS")},
            (
                "the CUDA runtime and cuBLAS for CUDA 13 cannot be loaded: "
                "run pip install 'featpipe[cuda]'"
            ),
        ),
        ({"cudnn": False}, "cuDNN 9 cannot be loaded: run pip install 'featpipe[cuda]'"),
    ],
)
def test_each_way_cuda_can_be_missing_has_its_sentence(
    facts: dict[str, Any], said: str | None
) -> None:
    """Wheel, platform, driver, GPU, libraries, cuDNN: the first that is missing is told."""
    amiss = why_no_cuda(replace(ALL_THERE, **facts), 1)
    assert (None if amiss is None else str(amiss)) == said


def test_a_gpu_number_beyond_several_is_told() -> None:
    """With more than one GPU their number is in the message."""
    assert str(why_no_cuda(ALL_THERE, 2)) == (
        "there is no GPU with number 2: this process sees 2 GPUs"
    )


def test_facts_are_found_without_a_gpu() -> None:
    """Looking never raises; the libraries are looked for where somebody wants to know."""
    facts = cuda_facts(thorough=True)
    assert facts.wheels == installed_wheels()
    if facts.built_for is not None:
        assert facts.missing is not None
        assert facts.cudnn is not None
    if not facts.driver:
        assert facts.devices is None
        assert gpu_name(0) == "unknown GPU"


class Driver:
    """Answers as an NVIDIA driver with two GPUs does; no machine of the tests has one."""

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken

    def cuInit(self, flags: int) -> int:
        return 999 if self.broken else 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def cuDeviceGet(self, handle: Any, index: int) -> int:
        return 0

    def cuDeviceGetName(self, name: Any, size: int, handle: Any) -> int:
        name.value = b"Fake GPU"
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 13020
        return 0


@pytest.fixture
def fake_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the driver, and every library, be there; ONNX Runtime stays the real one."""
    monkeypatch.setattr(cuda, "_load", lambda name: Driver())
    monkeypatch.setattr(cuda, "_built_for", lambda: 13)


def test_the_driver_is_asked_for_its_gpus(
    fake_driver: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Number of GPUs, name and version come from the driver; one that fails has no GPUs."""
    facts = cuda_facts()
    assert (facts.driver, facts.devices, facts.missing, facts.cudnn) == (True, 2, (), True)
    assert gpu_name(0) == "Fake GPU, driver for CUDA 13.2"
    monkeypatch.setattr(cuda, "_load", lambda name: Driver(broken=True))
    assert cuda_facts().devices == 0


@pytest.mark.skipif(cuda_facts().driver, reason="this machine has an NVIDIA driver")
def test_a_session_that_fell_back_is_refused(
    tiny: Backbone, fake_driver: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """All looks well, but the real ONNX Runtime gives a session on the CPU: that is an error."""
    with pytest.raises(DeviceError) as error:
        tiny.open_session("cuda")
    assert str(error.value) == (
        "CUDA cannot be used: driver and libraries are there, but ONNX Runtime cannot start it: "
        "run featpipe doctor, and update the driver to one for the CUDA version that it names"
    )
    assert tiny.open_session("auto").why == f"running on cpu, fp32 (no CUDA: {error.value})"
    assert capfd.readouterr() == ("", "")


class FakeCuda:
    """A session that says it is on CUDA and computes on the CPU, times ``factor``."""

    def __init__(self, data: bytes, factor: NDArray[np.float32] | float = 1.0) -> None:
        self.data, self.factor = data, factor
        self.inner = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def run(self, names: list[str], feed: dict[str, Pixels]) -> list[NDArray[np.float32]]:
        return [output * self.factor for output in self.inner.run(names, feed)]


@pytest.fixture
def fake_cuda(fake_driver: None, monkeypatch: pytest.MonkeyPatch) -> list[FakeCuda]:
    """Let CUDA sessions be made; what was made is in the list."""
    made: list[FakeCuda] = []
    start = session._start

    def fake(data: bytes, file: Any, wanted: list[Any]) -> Any:
        if wanted[0] == "CPUExecutionProvider":
            return start(data, file, wanted)
        made.append(FakeCuda(data))
        return made[-1]

    monkeypatch.setattr(session, "_start", fake)
    return made


def test_cuda_is_checked_once_and_taken(tiny: Backbone, fake_cuda: list[FakeCuda]) -> None:
    """A GPU that agrees with the CPU is used, by `auto` too, and named in the session."""
    opened = tiny.open_session("cuda:1")
    assert (opened.provider, opened.precision, opened.batch_size) == ("cuda", "fp32", 64)
    assert opened.why == (
        "running on cuda:1 (Fake GPU, driver for CUDA 13.2), fp32 (it was asked for)"
    )
    assert opened.versions["gpu"] == "Fake GPU, driver for CUDA 13.2"
    assert len(list(check_folder().iterdir())) == 1
    assert tiny.open_session().why == (
        "running on cuda:0 (Fake GPU, driver for CUDA 13.2), fp32 (the fastest device that works)"
    )
    assert len(list(check_folder().iterdir())) == 1


def test_cuda_in_half_precision_runs_a_converted_model(
    tiny: Backbone, fake_cuda: list[FakeCuda]
) -> None:
    """fp16 is another model and another check; its vectors stay float32."""
    opened = tiny.open_session("auto", "fp16")
    assert (opened.provider, opened.precision) == ("cuda", "fp16")
    assert fake_cuda[0].data != opened.backbone.data
    images = realistic_images(4, 32)
    vectors = opened.run(images)
    assert vectors.dtype == np.float32
    assert compare(tiny.open_session("cpu").run(images), vectors) > 0.9999


def test_a_gpu_that_disagrees_is_refused(
    tiny: Backbone, fake_cuda: list[FakeCuda], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other vectors than the CPU's: by name it fails, `auto` takes the CPU and says so."""
    flip = np.where(np.arange(27) % 2, 1, -1).astype(np.float32)
    init = FakeCuda.__init__
    monkeypatch.setattr(FakeCuda, "__init__", lambda self, data: init(self, data, flip))
    with pytest.raises(DeviceError, match=r"^cuda with fp32 on this machine gives other vectors "):
        tiny.open_session("cuda")
    opened = tiny.open_session("auto")
    assert opened.provider == "cpu"
    assert "gives other vectors than the CPU (cosine" in opened.why


def test_a_gpu_without_room_for_the_backbone_is_a_matter_of_the_device(
    tiny: Backbone, fake_driver: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file runs on the CPU, so what fails on the GPU is not the file's fault."""
    real = onnxruntime.InferenceSession

    def full(data: bytes, options: Any, providers: list[Any]) -> Any:
        if providers != ["CPUExecutionProvider"]:
            raise RuntimeError("CUDA failure 2: out of memory\nmore")
        return real(data, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", full)
    with pytest.raises(DeviceError) as error:
        tiny.open_session("cuda")
    assert str(error.value) == (
        "CUDA cannot be used: cuda:0 does not start the backbone (CUDA failure 2: out of memory): "
        "free memory of the GPU, or use --device cpu"
    )
    assert tiny.open_session("auto").provider == "cpu"


def test_half_precision_of_the_built_in_backbone_is_close(builtin: session.Session) -> None:
    """The converted model keeps the contract and passes the check (run here by the CPU)."""
    data = to_half(builtin.backbone.data)
    assert len(data) < 0.55 * len(builtin.backbone.data)
    half = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    images = realistic_images(4, 224)
    [vectors] = half.run(["embedding"], {"images": images})
    assert vectors.dtype == np.float32
    assert compare(builtin.run(images), vectors) > 0.999


# --- privacy --------------------------------------------------------------------------------


def test_a_session_leaves_nothing_in_a_fresh_home(tmp_path: Path) -> None:
    """ONNX Runtime's telemetry is off before it is imported: no device id, no data base."""
    code = "import featpipe; featpipe.load_backbone().open_session('cpu')"
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("XDG_", "ORT_")) and name != "HOME"
    }
    home = tmp_path / "home"
    home.mkdir()
    root = Path(__file__).parent.parent
    subprocess.run(
        [sys.executable, "-B", "-c", code],
        env={**environment, "HOME": str(home)},
        check=True,
        cwd=root,
    )
    assert list(home.iterdir()) == []


def test_looking_at_a_backbone_imports_nothing_heavy() -> None:
    """`load_backbone` needs neither ONNX Runtime nor onnx nor torch."""
    code = (
        "import sys, featpipe; featpipe.load_backbone(); "
        "print(sorted({'onnx', 'onnxruntime', 'torch', 'sklearn', 'PIL'} & set(sys.modules)))"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=root
    )
    assert done.stdout == "[]\n"


def test_the_built_in_backbone_pads_as_tensorflow_does() -> None:
    """At stride 2 one pixel more is padded below and on the right: a symmetric port is worse."""
    model = onnx.load_model_from_string(load_backbone().path.read_bytes())
    strided = []
    for node in model.graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if attributes.get("strides") == [2, 2]:
            strided.append((attributes["kernel_shape"][0], attributes["pads"]))
    assert strided == [
        (3, [0, 0, 1, 1]),
        (3, [0, 0, 1, 1]),
        (5, [1, 1, 2, 2]),
        (3, [0, 0, 1, 1]),
        (5, [1, 1, 2, 2]),
    ]


def test_the_built_in_file_tells_nothing_of_the_machine_that_made_it() -> None:
    """No path of a file system, no stack trace: neither in nodes nor in metadata."""
    file = read_backbone(load_backbone().path)
    model = onnx.load_model_from_string(file.data)
    assert [entry.key for entry in model.metadata_props] == ["featpipe.card"]
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert b"site-packages" not in file.data
    assert b"/home/" not in file.data
