"""OpenVINO: the same vectors as the CPU's, in the precision that was asked for, or a refusal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import Result
from numpy.typing import NDArray
from onnx import helper
from test_backbones import edited

from featpipe import _machine
from featpipe.backbones import Backbone, load_backbone, openvino, session, usable_cores
from featpipe.backbones._driver import is_installed
from featpipe.backbones.card import CARD_KEY
from featpipe.backbones.contract import read_backbone, with_fingerprint
from featpipe.backbones.device_check import BATCHES, check_folder
from featpipe.backbones.gate import (
    DEVICE_COSINE,
    compare,
    photographs,
    realistic_images,
    verify,
)
from featpipe.backbones.providers import Device
from featpipe.backbones.runner import Precision
from featpipe.errors import DeviceError
from featpipe.types import Pixels

pytestmark = pytest.mark.openvino

REAL = pytest.mark.skipif(not is_installed("openvino"), reason="needs the package openvino")
WITHOUT_BF16 = pytest.mark.skipif(
    openvino.accelerates_bf16() is not False, reason="this processor accelerates bf16"
)
WITH_BF16 = pytest.mark.skipif(
    openvino.accelerates_bf16() is not True, reason="this processor does not accelerate bf16"
)
NO_BF16 = (
    "this processor (Some CPU) does not accelerate bf16, which takes AVX512-BF16 or AMX: "
    "use --precision fp32"
)


@pytest.fixture
def tiny(tiny_backbone: Path) -> Backbone:
    return load_backbone(tiny_backbone)


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """A processor that accelerates bf16; its features can be changed."""
    features = {"AVX2": True, "BF16": True, "AMX": False}
    monkeypatch.setattr(_machine, "cpu_features", lambda: features)
    monkeypatch.setattr(_machine, "cpu_model", lambda: "Some CPU")
    return features


class FakeOpenVino:
    """A runtime for bf16 that no machine of the tests has: computes on the CPU, less exactly."""

    noise = 0.0
    in_force = "bf16"
    runs = 0

    def __init__(self, core: Any, data: bytes, precision: Precision, threads: int) -> None:
        import onnxruntime

        self.inner = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(self, names: list[str], feed: dict[str, Pixels]) -> list[NDArray[np.float32]]:
        type(self).runs += 1
        error = 1 + self.noise * (-1.0) ** np.arange(27)
        return [(out * error).astype(np.float32) for out in self.inner.run(names, feed)]


@pytest.fixture
def fake(processor: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> type[FakeOpenVino]:
    """Let OpenVINO in bf16 be there; noise 0.057 gives a cosine of 0.9984."""

    class Fake(FakeOpenVino):
        pass

    monkeypatch.setattr(openvino, "OpenVinoRunner", Fake)
    monkeypatch.setattr(openvino, "obstacle", lambda index, precision: None)
    monkeypatch.setattr(openvino, "_core", lambda: None)
    monkeypatch.setattr(openvino, "version", lambda: "2026.4.1")
    no_gpu = session.Amiss("no NVIDIA driver is found on this machine", "install it")
    monkeypatch.setattr(session.cuda, "obstacle", lambda index, precision: no_gpu)
    return Fake


# --- the real one ---------------------------------------------------------------------------


@REAL
def test_the_vectors_and_maps_are_the_cpus() -> None:
    """In fp32, on photographs, with the built-in backbone, whatever the size of the batch."""
    backbone, images = load_backbone(), photographs(9, 224)
    opened, reference = backbone.open_session("openvino", "fp32"), backbone.open_session("cpu")
    for n in (1, 2, 9):
        assert compare(reference.run(images[:n]), opened.run(images[:n])) > 0.999999
    maps = opened.feature_maps(images[:2])
    assert maps.shape == (2, 1280, 7, 7)
    assert compare(reference.feature_maps(images[:2]), maps) > 0.99999
    assert opened.run(images[:0]).shape == (0, 1280)


@REAL
def test_threads_do_not_meddle_with_one_another(tiny: Backbone) -> None:
    """More threads than cores, each with batches of its own: every vector stays its own."""
    opened = tiny.open_session("openvino", "fp32")
    images = realistic_images(96, 32)
    batches = [images[at : at + 1 + at % 5] for at in range(90)]
    alone = [opened.run(batch) for batch in batches]
    kept = [vectors.copy() for vectors in alone]
    with ThreadPoolExecutor(2 * usable_cores() + 1) as pool:
        together = list(pool.map(opened.run, batches * 3))
    # What was returned before is not written over by what was computed after.
    assert all((a == b).all() for a, b in zip(alone, kept, strict=True))
    assert all((a == b).all() for a, b in zip(alone * 3, together, strict=True))


@REAL
def test_the_first_runs_of_several_threads_do_not_wait_for_ever(tiny_backbone: Path) -> None:
    """OpenVINO's bindings set themselves up in the first run, and two at once hang.

    It depends on the moment: three runs in ten hung without the first run that is made alone.
    """
    code = """
import faulthandler, sys, threading
faulthandler.dump_traceback_later(60, exit=True)
import numpy as np
from pathlib import Path
from featpipe.backbones import openvino
from featpipe.backbones.contract import read_backbone
runner = openvino.start(read_backbone(Path(sys.argv[1])), 0, "fp32").runner
barrier = threading.Barrier(4)
def work():
    barrier.wait()
    runner.run(["embedding"], {"images": np.zeros((2, 32, 32, 3), np.uint8)})
threads = [threading.Thread(target=work) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
    command = [sys.executable, "-c", code, os.fspath(tiny_backbone)]
    for _ in range(4):
        done = subprocess.run(
            command, check=False, capture_output=True, cwd=Path(__file__).parent.parent
        )
        assert (done.returncode, done.stderr) == (0, b"")


@REAL
def test_an_image_that_cannot_be_written_to_is_taken(tiny: Backbone) -> None:
    """Memory-mapped and other read-only pixels run like any others, and stay as they are."""
    opened = tiny.open_session("openvino", "fp32")
    images = realistic_images(3, 32)
    expected = opened.run(images)
    images.flags.writeable = False
    assert (opened.run(images) == expected).all()
    assert (opened.run(images[::-1])[::-1] == expected).all()


@REAL
@WITHOUT_BF16
def test_without_bf16_the_session_is_fp32_and_says_so(
    tiny: Backbone, capfd: pytest.CaptureFixture[str]
) -> None:
    """Device, version, precision, processor and the reason stand in the session."""
    opened = tiny.open_session("openvino")
    version = metadata.version("openvino")
    assert (opened.provider, opened.precision, opened.batch_size) == ("openvino", "fp32", 8)
    assert opened.uses_cores
    assert opened.why == (
        f"running on openvino {version}, fp32 (it was asked for; no bf16: this processor "
        f"({_machine.cpu_model()}) does not accelerate bf16, which takes AVX512-BF16 or AMX)"
    )
    assert opened.versions == {
        "openvino": version,
        "provider": "openvino",
        "processor": _machine.cpu_model(),
        "instructions": " ".join(name for name, has in _machine.cpu_features().items() if has),
    }
    assert capfd.readouterr() == ("", "")


@REAL
def test_the_store_records_it(photos: Path, tmp_path: Path, run_cli: Callable[..., Result]) -> None:
    """Provider, precision and versions are in store.json; the line says what was chosen."""
    store = tmp_path / "store"
    result = run_cli("embed", photos, "--device", "openvino", "--precision", "fp32", "-o", store)
    version = metadata.version("openvino")
    assert result.code == 0
    assert result.err.splitlines()[0] == (f"running on openvino {version}, fp32 (it was asked for)")
    [engine] = json.loads((store / "store.json").read_text())["engines"]
    assert (engine["provider"], engine["precision"]) == ("openvino", "fp32")
    assert engine["openvino"] == version


@WITHOUT_BF16
@pytest.mark.parametrize("device", ["openvino", "auto"])
def test_bf16_on_a_processor_without_it_is_refused(
    device: str, photos: Path, run_cli: Callable[..., Result]
) -> None:
    """By name and by `auto`: exit code 6, the reason, the remedy; for real on this processor."""
    result = run_cli("embed", photos, "--device", device, "--precision", "bf16")
    assert (result.code, result.out) == (6, "")
    assert result.err == (
        f"Error: OpenVINO cannot be used: this processor ({_machine.cpu_model()}) does not "
        "accelerate bf16, which takes AVX512-BF16 or AMX: use --precision fp32\n"
    )


@REAL
@WITHOUT_BF16
def test_a_precision_that_openvino_does_not_keep_is_refused(
    tiny: Backbone, processor: dict[str, bool]
) -> None:
    """The processor claims bf16; what OpenVINO says that it computes in is what counts."""
    with pytest.raises(DeviceError) as error:
        tiny.open_session("openvino", "bf16")
    assert str(error.value) == (
        "OpenVINO cannot be used: it computes in fp32 on this processor, though bf16 was asked "
        "for: use --precision fp32"
    )


@REAL
@WITH_BF16
def test_bf16_is_had_where_the_processor_has_it(tiny_backbone: Path) -> None:
    """The precision in force is bf16; a network of five nodes passes the check in it."""
    opened = load_backbone(tiny_backbone).open_session("openvino", "bf16")
    assert (opened.provider, opened.precision) == ("openvino", "bf16")


def quantized(path: Path) -> Path:
    """Write an int8 (QDQ) version of the built-in backbone, calibrated on photographs."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    source = load_backbone()
    images = iter([{"images": photographs(7, 224)[i : i + 1]} for i in range(7)])

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def get_next(self) -> dict[str, Pixels] | None:
            return next(images, None)

    quantization.quantize_static(
        str(source.path),
        str(path),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        # Eight bits times eight overflow on processors without VNNI.
        reduce_range=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    model = onnx.load(path)
    del model.metadata_props[:]
    card = replace(source.card, name="int8")
    card = with_fingerprint(card, model.SerializeToString())
    helper.set_model_props(model, {CARD_KEY: json.dumps(card.to_json())})
    path.write_bytes(model.SerializeToString())
    return path


@REAL
def test_an_int8_graph_is_refused_with_the_figure(tmp_path: Path) -> None:
    """OpenVINO computes int8 graphs otherwise than the CPU: the check is what notices.

    By how much depends on processor and version (cosine 0.17 to 0.998 were seen); where it is
    little enough, the session is had.
    """
    backbone = load_backbone(quantized(tmp_path / "int8.onnx"))
    reference = backbone.open_session("cpu")
    unchecked = replace(reference, runner=openvino.start(reference.backbone, 0, "fp32").runner)
    cosine = verify(reference.run, unchecked.run, 224, batches=BATCHES)
    if cosine >= DEVICE_COSINE:
        assert backbone.open_session("openvino", "fp32").provider == "openvino"
        return
    with pytest.raises(DeviceError) as error:
        backbone.open_session("openvino", "fp32")
    assert str(error.value) == (
        "openvino with fp32 on this machine gives other vectors than the CPU (cosine "
        f"{cosine:.4f}, at least 0.999 is needed) and is not used: take --device cpu, or update "
        "the package openvino"
    )
    [kept] = [json.loads(path.read_text()) for path in check_folder().iterdir()]
    assert kept["cosine"] == pytest.approx(cosine, abs=1e-5)


@REAL
def test_a_graph_that_openvino_does_not_know_is_a_matter_of_the_device(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    """ONNX Runtime has operators of its own; OpenVINO says no in one sentence."""

    def edit(model: onnx.ModelProto) -> None:
        model.graph.node[-1].output[0] = "plain"
        model.graph.node.append(
            helper.make_node("ExpandDims", ["plain", "last"], ["deep"], domain="com.microsoft")
        )
        model.graph.node.append(helper.make_node("Reshape", ["deep", "shape"], ["embedding"]))
        model.graph.initializer.append(helper.make_tensor("last", onnx.TensorProto.INT32, [], [-1]))
        model.graph.initializer.append(
            helper.make_tensor("shape", onnx.TensorProto.INT64, [2], [-1, 27])
        )
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    backbone = load_backbone(edited(tiny_backbone, tmp_path / "odd.onnx", edit))
    assert backbone.open_session("cpu").run(realistic_images(2, 32)).shape == (2, 27)
    with pytest.raises(DeviceError) as error:
        backbone.open_session("openvino", "fp32")
    start = (
        f"OpenVINO cannot be used: openvino {metadata.version('openvino')} does not compile the "
        "backbone ("
    )
    assert str(error.value).startswith(start)
    assert str(error.value).endswith("): use --device cpu")
    assert "\n" not in str(error.value)


@REAL
def test_nothing_is_sent_and_nothing_is_written(tmp_path: Path) -> None:
    """The mere import of OpenVINO reports to Google Analytics; featpipe's does not.

    A fresh home stays empty but for the figure of the check, no process is started, no address
    is looked up, and who imports the telemetry package afterwards finds it as it is.
    """
    code = """
import multiprocessing, os, socket, sys
def forbidden(*args, **kwargs):
    os.write(2, b"something was sent")
    os._exit(9)
socket.getaddrinfo = multiprocessing.Process.start = forbidden
import featpipe
featpipe.load_backbone().open_session("openvino", "fp32")
assert not any(name.startswith("openvino_telemetry") for name in sys.modules)
import openvino_telemetry
"""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("XDG_", "ORT_")) and name not in {"HOME", "CI", "TF_BUILD"}
    }
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        env={**environment, "HOME": str(home)},
        check=False,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert (done.returncode, done.stderr) == (0, "")
    written = [path for path in home.rglob("*") if path.is_file()]
    assert [path.parent for path in written] == [home / ".cache" / "featpipe" / "checks"]


@REAL
def test_telemetry_that_others_have_loaded_is_left_to_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What stood in the place of the telemetry package stands there afterwards."""
    theirs = type(sys)("openvino_telemetry")
    monkeypatch.setitem(sys.modules, "openvino_telemetry", theirs)
    openvino.load_openvino()
    assert sys.modules["openvino_telemetry"] is theirs


# --- what keeps it from working -------------------------------------------------------------


def test_a_processor_without_bf16_is_the_first_reason(processor: dict[str, bool]) -> None:
    """Where the processor gains nothing, nobody is told to install 180 MB."""
    processor["BF16"] = False
    assert str(openvino.obstacle(0, "bf16")) == NO_BF16


def test_amx_counts_and_an_unknown_processor_is_asked(processor: dict[str, bool]) -> None:
    """Either extension will do; where the system tells nothing, OpenVINO has to."""
    processor["BF16"] = False
    processor["AMX"] = True
    assert openvino.accelerates_bf16() is True
    processor.clear()
    assert openvino.accelerates_bf16() is None


def test_a_missing_package_is_told_with_the_command(
    tiny: Backbone, processor: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By name it is an error; `auto` says what could be gained."""
    monkeypatch.setattr(openvino, "is_installed", lambda name: False)
    with pytest.raises(DeviceError) as error:
        tiny.open_session("openvino", "fp32")
    assert str(error.value) == (
        "OpenVINO cannot be used: the package openvino is not installed: "
        "run pip install 'featpipe[openvino]'"
    )
    no_gpu = session.Amiss("no NVIDIA driver is found on this machine", "install it")
    monkeypatch.setattr(session.cuda, "obstacle", lambda index, precision: no_gpu)
    assert tiny.open_session().why == (
        "running on cpu, fp32 (no CUDA: no NVIDIA driver is found on this machine; no OpenVINO in "
        "bf16: the package openvino is not installed)"
    )


def test_a_damaged_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that is missing inside the package is not a traceback."""

    def broken() -> Any:
        raise ImportError("libopenvino.so.2641: cannot open shared object file\nmore")

    monkeypatch.setattr(openvino, "is_installed", lambda name: True)
    monkeypatch.setattr(openvino, "_core", broken)
    assert str(openvino.obstacle(0, "fp32")) == (
        "the package openvino cannot be loaded (libopenvino.so.2641: cannot open shared object "
        "file): run pip install --force-reinstall openvino"
    )


def test_a_package_without_a_cpu_device_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO for a processor that it has no plug-in for."""

    class Core:
        available_devices = ("GPU",)

    monkeypatch.setattr(openvino, "is_installed", lambda name: True)
    monkeypatch.setattr(openvino, "_core", Core)
    monkeypatch.setattr(openvino, "version", lambda: "2026.4.1")
    assert str(openvino.obstacle(0, "fp32")) == (
        "openvino 2026.4.1 has no device for this processor: use --device cpu"
    )


def test_fp16_is_refused(tiny: Backbone) -> None:
    """The reason, and what to use."""
    with pytest.raises(DeviceError) as error:
        tiny.open_session("openvino", "fp16")
    assert str(error.value) == (
        "fp16 is not faster on a CPU and is not offered there: use --precision bf16 on a "
        "processor that accelerates it, --precision fp32, or --device cuda on a machine with a GPU"
    )


# --- what auto does where bf16 is accelerated -----------------------------------------------


def test_auto_takes_bf16_that_agrees(tiny: Backbone, fake: type[FakeOpenVino]) -> None:
    """The best that works after CUDA; checked once a machine."""
    opened = tiny.open_session()
    assert (opened.provider, opened.precision) == ("openvino", "bf16")
    assert opened.why == (
        "running on openvino 2026.4.1, bf16 (the fastest device that works; no CUDA: no NVIDIA "
        "driver is found on this machine)"
    )
    assert fake.runs == 3
    tiny.open_session()
    assert fake.runs == 3


def test_auto_leaves_bf16_that_disagrees(tiny: Backbone, fake: type[FakeOpenVino]) -> None:
    """The figure stands in the line; it is not measured again in every run."""
    fake.noise = 0.057
    opened = tiny.open_session()
    assert (opened.provider, opened.precision) == ("cpu", "fp32")
    assert opened.why == (
        "running on cpu, fp32 (no CUDA: no NVIDIA driver is found on this machine; no OpenVINO in "
        "bf16: its vectors are not the CPU's (cosine 0.9984, at least 0.999 is needed))"
    )
    assert fake.runs == 3
    assert tiny.open_session().why == opened.why
    assert fake.runs == 3


def test_auto_leaves_bf16_of_an_unknown_processor(
    tiny: Backbone, fake: type[FakeOpenVino], processor: dict[str, bool]
) -> None:
    """It may be slower than fp32 there; whoever asks for it has it, if OpenVINO has it."""
    processor.clear()
    assert tiny.open_session().why == (
        "running on cpu, fp32 (no CUDA: no NVIDIA driver is found on this machine; no OpenVINO in "
        "bf16: this system does not tell whether its processor accelerates bf16)"
    )
    assert tiny.open_session("openvino", "bf16").precision == "bf16"


def test_openvino_by_name_is_fp32_where_bf16_disagrees(
    tiny: Backbone, fake: type[FakeOpenVino], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device was asked for, the precision was not."""
    fake.noise = 0.057
    init = fake.__init__

    def exact_in_fp32(self: Any, core: Any, data: bytes, precision: Any, threads: int) -> None:
        init(self, core, data, precision, threads)
        self.in_force = precision
        self.noise = 0.057 if precision == "bf16" else 0.0

    monkeypatch.setattr(fake, "__init__", exact_in_fp32)
    opened = tiny.open_session("openvino")
    assert (opened.provider, opened.precision) == ("openvino", "fp32")
    assert opened.why == (
        "running on openvino 2026.4.1, fp32 (it was asked for; no bf16: its vectors are not the "
        "CPU's (cosine 0.9984, at least 0.999 is needed))"
    )
    with pytest.raises(DeviceError) as error:
        tiny.open_session("auto", "bf16")
    assert str(error.value) == (
        "openvino with bf16 on this machine gives other vectors than the CPU (cosine 0.9984, at "
        "least 0.999 is needed) and is not used: take --precision fp32, or --device cpu"
    )


def test_bf16_by_name_takes_no_other_device(tiny: Backbone, fake: type[FakeOpenVino]) -> None:
    """`--precision bf16` alone means OpenVINO."""
    assert tiny.open_session("auto", "bf16").why == (
        "running on openvino 2026.4.1, bf16 (the only device with bf16)"
    )
    assert session.why_not(Device("openvino"), "bf16") is None


def test_the_file_is_compiled_as_it_was_checked(tiny: Backbone, fake: type[FakeOpenVino]) -> None:
    """OpenVINO is given the bytes that were read, not a path that may change."""
    seen: list[bytes] = []
    init = fake.__init__

    def spy(self: Any, core: Any, data: bytes, *rest: Any) -> None:
        seen.append(data)
        init(self, core, data, *rest)

    fake.__init__ = spy  # type: ignore[method-assign]
    tiny.open_session("openvino", "bf16")
    assert seen == [read_backbone(tiny.path).data]
