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

from featpipe import _machine
from featpipe.backbones import Backbone, load_backbone, onnx_session, session
from featpipe.backbones._driver import ask_driver
from featpipe.backbones.contract import read_backbone
from featpipe.backbones.cuda import installed_wheels
from featpipe.backbones.gate import realistic_images
from featpipe.backbones.providers import Device, parse_device
from featpipe.backbones.writing import gate_images
from featpipe.errors import BackboneError, DeviceError
from featpipe.types import Pixels


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


def test_floats_do_not_ask_for_integer_kernels(
    builtin: session.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact integers change no bit of a float backbone, nor what the store records of it."""
    images = gate_images(9, 224, 0)
    vectors = builtin.run(images)
    monkeypatch.setattr(onnx_session, "take_exact_integers", lambda options: None)
    other = load_backbone().open_session("cpu")
    assert (vectors == other.run(images)).all()
    assert other.versions == builtin.versions
    assert set(other.versions) == {"onnxruntime", "provider", "optimization"}


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
        ("tensorrt", Device("tensorrt")),
        ("TensorRT:1", Device("tensorrt", 1)),
        ("openvino", Device("openvino")),
        ("CoreML", Device("coreml")),
    ],
)
def test_devices_are_read(text: str, device: Device) -> None:
    """Case and blanks do not matter."""
    assert parse_device(text) == device


@pytest.mark.parametrize(
    "text", ["gpu", "cuda:", "cuda:x", "cpu:0", "openvino:1", "auto:0", "cuda:-1", "cuda:٣", ""]
)
def test_other_devices_are_refused(text: str) -> None:
    """The message has all that can be asked for."""
    with pytest.raises(DeviceError) as error:
        parse_device(text)
    assert error.value.exit_code == 6
    assert str(error.value) == (
        f"there is no device '{text}': use auto, cpu, cuda, tensorrt, openvino or coreml; cuda:N "
        "and tensorrt:N mean the GPU with number N"
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


@pytest.mark.parametrize(
    ("precision", "said"),
    [
        (
            "fp16",
            (
                "fp16 is not faster on a CPU and is not offered there: use --precision fp32, or "
                "--device cuda on a machine with a GPU"
            ),
        ),
        (
            "bf16",
            (
                "bf16 is not offered by ONNX Runtime on the CPU: use --device openvino on a "
                "processor that accelerates it, or --precision fp32"
            ),
        ),
    ],
)
def test_lower_precision_on_the_cpu_is_refused(tiny: Backbone, precision: str, said: str) -> None:
    """What is asked for is not silently fp32."""
    with pytest.raises(DeviceError) as error:
        tiny.open_session("cpu", precision)
    assert str(error.value) == said


def test_an_unknown_precision_is_refused(tiny: Backbone) -> None:
    """The message has all that can be asked for."""
    with pytest.raises(DeviceError) as error:
        tiny.open_session("cpu", "fp8")
    assert str(error.value) == "there is no precision 'fp8': use auto, fp32, bf16 or fp16"


@pytest.mark.skipif(ask_driver() is not None, reason="this machine has an NVIDIA driver")
@pytest.mark.skipif("onnxruntime-gpu" not in installed_wheels(), reason="needs the GPU wheel")
def test_auto_without_better_devices_is_the_cpu_and_says_why(
    tiny: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line: what runs, and why nothing better."""
    monkeypatch.setattr(_machine, "cpu_features", lambda: {"AVX2": True, "BF16": False})
    monkeypatch.setattr(_machine, "cpu_model", lambda: "Some CPU")
    assert tiny.open_session().why == (
        "running on cpu, fp32 (no CUDA: no NVIDIA driver is found on this machine; no OpenVINO in "
        "bf16: this processor (Some CPU) does not accelerate bf16, which takes AVX512-BF16 or AMX)"
    )
    assert tiny.open_session("auto", "fp32").why == (
        "running on cpu, fp32 (no CUDA: no NVIDIA driver is found on this machine)"
    )


def test_a_file_that_changes_while_in_use_is_noticed(tiny_backbone: Path, tmp_path: Path) -> None:
    """What was checked is what runs; a later session finds another backbone in its place."""
    path = tmp_path / "b.onnx"
    path.write_bytes(tiny_backbone.read_bytes())
    backbone = load_backbone(path)
    side = backbone.card.input_size
    images = np.full((1, side, side, 3), 100, dtype=np.uint8)
    expected = load_backbone(path).open_session("cpu").run(images)

    def edit(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].float_data[0] *= 2

    edited(tiny_backbone, path, edit)
    assert np.array_equal(backbone.open_session("cpu").run(images), expected)
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
