"""TensorRT and CoreML: only where they are asked for, and never something else in their place."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from fake_devices import FakeMachine, FakeSession, disagree, install, start_fakes

from featpipe.backbones import Backbone, coreml, cuda, load_backbone, onnx_session, tensorrt
from featpipe.backbones._driver import ask_driver
from featpipe.backbones.gate import compare, realistic_images
from featpipe.errors import DeviceError

INSTALL = "run pip install 'tensorrt-cu13<11', or use --device cuda"


@pytest.fixture
def tiny(tiny_backbone: Path) -> Backbone:
    return load_backbone(tiny_backbone)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """A machine with two GPUs, CUDA and TensorRT."""
    return install(monkeypatch)


def refusal(backbone: Backbone, device: str, precision: str = "auto") -> str:
    with pytest.raises(DeviceError) as error:
        backbone.open_session(device, precision)
    assert error.value.exit_code == 6
    return str(error.value)


# --- TensorRT -------------------------------------------------------------------------------


@pytest.mark.skipif(ask_driver() is not None, reason="this machine has an NVIDIA driver")
@pytest.mark.skipif(
    tensorrt.TENSORRT not in onnxruntime.get_available_providers(), reason="needs the GPU wheel"
)
def test_without_a_gpu_it_fails_and_prints_nothing(
    tiny: Backbone, capfd: pytest.CaptureFixture[str]
) -> None:
    """What keeps CUDA from working keeps TensorRT; stdout stays clean."""
    assert refusal(tiny, "tensorrt:1") == (
        "TensorRT cannot be used: no NVIDIA driver is found on this machine: install the driver "
        "of the GPU, or in a container pass the GPU on (docker run --gpus all)"
    )
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("absent", "there", "said"),
    [
        (
            {"libnvinfer.so.10", "libnvonnxparser.so.10"},
            set(),
            f"TensorRT cannot be used: TensorRT 10 cannot be loaded: {INSTALL}",
        ),
        (
            {"libnvinfer.so.10", "libnvonnxparser.so.10"},
            {"libnvinfer.so.11", "libnvonnxparser.so.11"},
            (
                "TensorRT cannot be used: TensorRT 10 cannot be loaded, only version 11 is there: "
                f"{INSTALL}"
            ),
        ),
        (
            {"libnvonnxparser.so.10"},
            set(),
            f"TensorRT cannot be used: TensorRT's ONNX parser 10 cannot be loaded: {INSTALL}",
        ),
        (
            {"libcudnn.so.9"},
            set(),
            ("TensorRT cannot be used: cuDNN 9 cannot be loaded: run pip install 'featpipe[cuda]'"),
        ),
    ],
)
def test_each_missing_library_has_its_sentence(
    tiny: Backbone, machine: FakeMachine, absent: set[str], there: set[str], said: str
) -> None:
    """CUDA's come first; another version of TensorRT is named."""
    machine.files = (machine.files - absent) | there
    assert refusal(tiny, "tensorrt") == said


@pytest.mark.parametrize(
    ("value", "tf32", "ending"), [("0", "off", "-no-tf32"), ("1", "allowed", "")]
)
def test_engines_with_and_without_tf32_are_kept_apart(
    tiny: Backbone,
    machine: FakeMachine,
    monkeypatch: pytest.MonkeyPatch,
    value: str,
    tf32: str,
    ending: str,
) -> None:
    """NVIDIA's environment variable decides, and what it decides stands in the record."""
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", value)
    start_fakes(monkeypatch)
    opened = tiny.open_session("tensorrt", "fp32")
    assert opened.versions["tf32"] == tf32
    folder = tensorrt.engine_folder() / f"{tiny.fingerprint}-fp32-10.16.1{ending}"
    assert folder.is_dir()


def test_a_wheel_without_it_is_told(
    tiny: Backbone, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA is compiled in, TensorRT is not."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [cuda.CUDA])
    assert refusal(tiny, "tensorrt") == (
        "TensorRT cannot be used: the installed ONNX Runtime is built without TensorRT: "
        "use --device cuda"
    )


def test_nvidias_package_is_looked_into(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its libraries stand in a package of their own, which the system's loader does not know."""
    loaded: list[str] = []
    monkeypatch.undo()
    monkeypatch.setattr(tensorrt, "load_library", loaded.append)
    (tmp_path / "tensorrt_libs").mkdir()
    (tmp_path / "tensorrt_libs" / "__init__.py").write_text("raise ImportError('not run')")
    monkeypatch.syspath_prepend(tmp_path)
    tensorrt.find_libraries()
    assert loaded == [
        str(tmp_path / "tensorrt_libs" / name)
        for name in ("libnvinfer.so.10", "libnvonnxparser.so.10")
    ]
    assert "tensorrt_libs" not in sys.modules


def test_it_starts_with_an_engine_of_its_own(
    tiny: Backbone, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA stands behind it; the engine's folder belongs to one backbone, precision, version."""
    made = start_fakes(monkeypatch)
    opened = tiny.open_session("tensorrt:1", "fp16")
    assert (opened.provider, opened.precision, opened.batch_size) == ("tensorrt", "fp16", 64)
    assert opened.why == (
        "running on tensorrt:1 (Fake GPU, driver for CUDA 13.2, TensorRT 10.16.1), fp16 "
        "(it was asked for)"
    )
    assert opened.versions["tensorrt"] == "10.16.1"
    assert made[0].providers == [tensorrt.TENSORRT, cuda.CUDA]
    folder = tensorrt.engine_folder() / f"{tiny.fingerprint}-fp16-10.16.1"
    assert folder.is_dir()
    assert made[0].options[0] == {
        "device_id": "1",
        "trt_fp16_enable": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        "trt_profile_min_shapes": "images:1x32x32x3",
        "trt_profile_opt_shapes": "images:64x32x32x3",
        "trt_profile_max_shapes": "images:64x32x32x3",
    }
    # The engine is given the model in fp32, and rounds it itself.
    assert made[0].data == opened.backbone.data


def test_a_batch_larger_than_the_engine_is_run_in_parts(
    tiny: Backbone, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine knows batches up to the one that it was built for."""
    made = start_fakes(monkeypatch)
    opened = tiny.open_session("tensorrt")
    images = np.concatenate([realistic_images(65, 32)] * 2)
    made[0].batches.clear()
    vectors = opened.run(images)
    assert made[0].batches == [64, 64, 2]
    assert compare(tiny.open_session("cpu").run(images), vectors) > 0.99999


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda s: setattr(s, "nodes", 0),
            "TensorRT cannot be used: it takes no part of this backbone: use --device cuda",
        ),
        (
            lambda s: setattr(s, "providers", [cuda.CUDA]),
            (
                "TensorRT cannot be used: its libraries are there, but ONNX Runtime cannot start "
                "it: use --device cuda"
            ),
        ),
    ],
)
def test_a_session_on_something_else_is_refused(
    tiny: Backbone, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, change: Any, said: str
) -> None:
    """Neither CUDA nor the CPU stands in for it."""
    start_fakes(monkeypatch, change)
    assert refusal(tiny, "tensorrt") == said


def test_it_is_checked_like_any_other(
    tiny: Backbone, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other vectors than the CPU's are refused with the figure."""
    start_fakes(monkeypatch, disagree)
    assert refusal(tiny, "tensorrt").startswith(
        "tensorrt with fp32 on this machine gives other vectors than the CPU (cosine "
    )


def test_a_backbone_that_it_does_not_build_is_told_and_stdout_stays_clean(
    tiny: Backbone,
    machine: FakeMachine,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What Python and what the libraries write to stdout is thrown away."""
    real = onnxruntime.InferenceSession

    def loud(data: bytes, options: Any, providers: list[Any], enable_fallback: bool) -> Any:
        if providers == ["CPUExecutionProvider"]:
            return real(data, options, providers=providers)
        print("*************** EP Error ***************")
        os.write(1, b"from C++\n")
        raise RuntimeError("no kernel image\nmore")

    monkeypatch.setattr(onnxruntime, "InferenceSession", loud)
    assert refusal(tiny, "tensorrt") == (
        "TensorRT cannot be used: it does not build the backbone (no kernel image): "
        "use --device cuda"
    )
    print("stdout is back", flush=True)
    os.write(1, b"and its descriptor\n")
    assert capfd.readouterr() == ("stdout is back\nand its descriptor\n", "")


@pytest.mark.skipif(ask_driver() is not None, reason="this machine has an NVIDIA driver")
@pytest.mark.skipif(
    tensorrt.TENSORRT not in onnxruntime.get_available_providers(), reason="needs the GPU wheel"
)
def test_the_real_onnx_runtime_says_what_it_lacks(
    tiny: Backbone, machine: FakeMachine, capfd: pytest.CaptureFixture[str]
) -> None:
    """All looks well, ONNX Runtime finds no TensorRT: its words are in the sentence."""
    said = refusal(tiny, "tensorrt")
    assert said.startswith("TensorRT cannot be used: it does not build the backbone (")
    assert "Please install TensorRT libraries" in said
    assert capfd.readouterr() == ("", "")


def test_auto_never_takes_it(
    tiny: Backbone, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Building an engine takes minutes; CUDA starts at once."""
    start_fakes(monkeypatch)
    assert tiny.open_session().provider == "cuda"


def test_a_cache_folder_that_cannot_be_made_is_told(
    tiny: Backbone, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An engine that cannot be kept would be built anew in every run."""
    blocked = tmp_path / "cache"
    blocked.write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    said = refusal(tiny, "tensorrt")
    assert said.startswith("TensorRT cannot be used: the folder for its engines cannot be made (")
    assert said.endswith(
        "): set XDG_CACHE_HOME to a folder that can be written, or use --device cuda"
    )


def test_a_library_without_a_version_counts_as_its_major(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name of the file is what is known then."""
    monkeypatch.setattr(tensorrt, "load_library", lambda name: object())
    assert tensorrt._version() == "10"


# --- CoreML ---------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "darwin", reason="this is a Mac")
def test_coreml_elsewhere_than_on_a_mac_is_refused(tiny: Backbone) -> None:
    """The system is named."""
    assert refusal(tiny, "coreml") == (
        f"CoreML cannot be used: it exists on macOS alone, and this is {coreml.platform.system()}: "
        "use --device auto"
    )


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Mac whose ONNX Runtime has CoreML."""
    monkeypatch.setattr(coreml.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(coreml.platform, "mac_ver", lambda: ("15.1", ("", "", ""), "arm64"))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [coreml.COREML])


def test_coreml_that_is_not_compiled_in_is_told(
    tiny: Backbone, mac: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that brings the usual wheel back."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert refusal(tiny, "coreml") == (
        "CoreML cannot be used: the installed ONNX Runtime is built without it: "
        "run pip install --force-reinstall onnxruntime"
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_coreml_is_checked_and_named(
    tiny: Backbone, mac: None, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """fp16 is another model; both are compared with the CPU."""
    made = start_fakes(monkeypatch)
    opened = tiny.open_session("coreml", precision)
    assert opened.why == f"running on coreml (macOS 15.1), {precision} (it was asked for)"
    assert (opened.provider, opened.versions["macos"]) == ("coreml", "15.1")
    assert made[0].options == [{"ModelFormat": "MLProgram", "MLComputeUnits": "ALL"}]
    assert (made[0].data == opened.backbone.data) == (precision == "fp32")
    assert made[0].batches == [1, 5, 64]


def test_coreml_that_takes_nothing_is_refused(
    tiny: Backbone, mac: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CPU does not stand in for it."""
    start_fakes(monkeypatch, lambda session: setattr(session, "nodes", 0))
    assert refusal(tiny, "coreml") == (
        "CoreML cannot be used: it takes no part of this backbone: use --device cpu"
    )


def test_coreml_that_does_not_compile_is_told(
    tiny: Backbone, mac: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first line of the reason, and the way out."""
    real = onnxruntime.InferenceSession

    def failing(data: bytes, options: Any, providers: list[Any], enable_fallback: bool) -> Any:
        if providers == ["CPUExecutionProvider"]:
            return real(data, options, providers=providers)
        raise RuntimeError("Error compiling model")

    monkeypatch.setattr(onnxruntime, "InferenceSession", failing)
    assert refusal(tiny, "coreml") == (
        "CoreML cannot be used: it does not compile the backbone (Error compiling model): "
        "use --device cpu"
    )


def test_bf16_on_coreml_is_refused(tiny: Backbone) -> None:
    """The reason, and what to use."""
    assert refusal(tiny, "coreml", "bf16") == (
        "bf16 is not offered on CoreML: use --precision fp16 or fp32"
    )


def test_an_old_onnx_runtime_does_not_tell_where_nodes_run(tiny_backbone: Path) -> None:
    """Then the list of providers and the check have to do."""

    class Old:
        pass

    assert onnx_session.nodes_on(Old(), coreml.COREML) is None
    session = FakeSession(tiny_backbone.read_bytes(), [coreml.COREML])
    assert onnx_session.nodes_on(session, coreml.COREML) == 1
