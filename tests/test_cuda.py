"""CUDA: each way in which it can be missing or half there has its own sentence and remedy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from conftest import Result
from fake_devices import FakeLibrary, FakeMachine, disagree, install, start_fakes

from featpipe.backbones import Backbone, _driver, cuda, load_backbone
from featpipe.backbones._driver import Driver, Gpu, Library, ask_driver, find_library
from featpipe.backbones.cuda import CudaFacts, cuda_facts, gpu_name, installed_wheels, why_no_cuda
from featpipe.backbones.device_check import check_folder
from featpipe.backbones.gate import compare, photographs, realistic_images
from featpipe.backbones.half import to_half
from featpipe.errors import DeviceError

HAS_DRIVER = ask_driver() is not None
WITHOUT_DRIVER = pytest.mark.skipif(HAS_DRIVER, reason="this machine has an NVIDIA driver")
WITH_GPU = pytest.mark.skipif(
    why_no_cuda(cuda_facts()) is not None, reason="this machine has no GPU that CUDA can use"
)
DRIVER = Driver(0, (13, 2), (Gpu("Fake GPU", (9, 0)), Gpu("Fake GPU", (9, 0))))
LIBRARIES = (
    Library("the CUDA runtime", 13, found=True),
    Library("cuBLAS", 13, found=True),
    Library("cuRAND", 10, found=True),
    Library("cuDNN", 9, found=True),
)
ALL_THERE = CudaFacts("Linux x86_64", ("onnxruntime-gpu",), 13, DRIVER, LIBRARIES, 13)
NO_DRIVER = (
    "no NVIDIA driver is found on this machine: install the driver of the GPU, or in a container "
    "pass the GPU on (docker run --gpus all)"
)
MEND = "run pip uninstall -y onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu"


@pytest.fixture
def tiny(tiny_backbone: Path) -> Backbone:
    return load_backbone(tiny_backbone)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """A machine with two GPUs and all libraries."""
    return install(monkeypatch)


def lacking(*names: str, instead: int | None = None) -> tuple[Library, ...]:
    return tuple(
        replace(library, found=False, instead=instead) if library.name in names else library
        for library in LIBRARIES
    )


# --- the matrix -----------------------------------------------------------------------------


MATRIX: dict[str, tuple[dict[str, Any], str | None]] = {
    "all there": ({}, None),
    "wheel without CUDA": (
        {"built_for": None, "wheels": ("onnxruntime",)},
        f"the installed onnxruntime is built without CUDA: {MEND}",
    ),
    "onnxruntime from elsewhere": (
        {"built_for": None, "wheels": ()},
        f"the installed onnxruntime is built without CUDA: {MEND}",
    ),
    "both wheels": (
        {"built_for": None, "wheels": ("onnxruntime", "onnxruntime-gpu")},
        (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other, and "
            f"the one without CUDA has won: {MEND}"
        ),
    ),
    "system without a wheel": (
        {"built_for": None, "system": "Darwin arm64"},
        "ONNX Runtime has no wheel with CUDA for Darwin arm64: use --device cpu",
    ),
    "no driver": ({"driver": None, "libraries": None, "cudnn_for": None}, NO_DRIVER),
    "driver too old": (
        {"driver": replace(DRIVER, cuda=(12, 4))},
        (
            "the NVIDIA driver serves CUDA 12.4 at most, and the installed onnxruntime-gpu is "
            "built for CUDA 13: update the driver to release 580 or later, or use --device cpu"
        ),
    ),
    "driver too old for a CUDA to come": (
        {"built_for": 14},
        (
            "the NVIDIA driver serves CUDA 13.2 at most, and the installed onnxruntime-gpu is "
            "built for CUDA 14: update the driver to a newer one, or use --device cpu"
        ),
    ),
    "stub of the toolkit": (
        {"driver": Driver(34, (0, 0), ())},
        (
            "libcuda.so.1 is the stub that the CUDA toolkit links with, not a driver: take the "
            "folder 'stubs' out of LD_LIBRARY_PATH, and install the driver of the GPU"
        ),
    ),
    "library and kernel module differ": (
        {"driver": Driver(803, (13, 0), ())},
        (
            "the NVIDIA driver's library and its kernel module are of different versions (error "
            "803): restart the machine after an update of the driver; in a container, take out "
            "what overlays the host's libcuda.so.1"
        ),
    ),
    "cuda-compat on a GPU that it does not support": (
        {"driver": Driver(804, (13, 0), ())},
        (
            "the package cuda-compat stands before the driver and does not support this GPU "
            "(error 804): remove cuda-compat, or take its folder out of LD_LIBRARY_PATH"
        ),
    ),
    "driver does not start": (
        {"driver": Driver(999, (13, 0), ())},
        (
            "the NVIDIA driver is there but does not start (error 999): see what nvidia-smi "
            "says; restart the machine, or install the driver again"
        ),
    ),
    "no GPU": (
        {"driver": Driver(100, (13, 0), ())},
        (
            "the NVIDIA driver shows no GPU to this process: check nvidia-smi and the "
            "environment variable CUDA_VISIBLE_DEVICES"
        ),
    ),
    "GPU hidden": (
        {"driver": Driver(0, (13, 0), ())},
        (
            "the NVIDIA driver shows no GPU to this process: check nvidia-smi and the "
            "environment variable CUDA_VISIBLE_DEVICES"
        ),
    ),
    "no GPU with that number": (
        {"driver": replace(DRIVER, gpus=DRIVER.gpus[:1])},
        "there is no GPU with number 1: this process sees 1 GPU, which is cuda:0",
    ),
    "GPU too old": (
        {"driver": replace(DRIVER, gpus=(DRIVER.gpus[0], Gpu("Tesla V100", (7, 0))))},
        (
            "the GPU Tesla V100 has compute capability 7.0, and CUDA 13, which the installed "
            "onnxruntime-gpu is built for, needs 7.5: use --device cpu, or another GPU (cuda:N)"
        ),
    ),
    "libraries missing": (
        {"libraries": lacking("the CUDA runtime", "cuBLAS"), "cudnn_for": None},
        (
            "the CUDA runtime and cuBLAS for CUDA 13 cannot be loaded: "
            "run pip install 'featpipe[cuda]'"
        ),
    ),
    "libraries of another CUDA": (
        {"libraries": lacking("the CUDA runtime", "cuBLAS", instead=12)},
        (
            "the CUDA runtime for CUDA 13 cannot be loaded, only that for CUDA 12 is there: "
            "run pip install 'featpipe[cuda]'; the other may stay"
        ),
    ),
    "another cuRAND": (
        {"libraries": lacking("cuRAND", instead=9)},
        (
            "cuRAND 10 cannot be loaded, only cuRAND 9 is there: run pip install "
            "'featpipe[cuda]'; the other may stay"
        ),
    ),
    "no cuDNN": (
        {"libraries": lacking("cuDNN"), "cudnn_for": None},
        "cuDNN 9 cannot be loaded: run pip install 'featpipe[cuda]'",
    ),
    "another cuDNN": (
        {"libraries": lacking("cuDNN", instead=8), "cudnn_for": None},
        (
            "cuDNN 9 cannot be loaded, only cuDNN 8 is there: run pip install 'featpipe[cuda]'; "
            "the other may stay"
        ),
    ),
    "cuDNN for another CUDA": (
        {"cudnn_for": 12},
        (
            "the cuDNN that is found is built for CUDA 12, and the installed onnxruntime-gpu for "
            "CUDA 13: run pip uninstall -y nvidia-cudnn-cu12 nvidia-cudnn-cu13, then pip install "
            "'featpipe[cuda]'"
        ),
    ),
    "cuDNN that does not tell": ({"cudnn_for": None}, None),
}


@pytest.mark.parametrize("case", MATRIX)
def test_each_way_cuda_can_be_missing_has_its_sentence(case: str) -> None:
    """Wheel, platform, driver, GPU, libraries, cuDNN: the first that is amiss is told."""
    facts, said = MATRIX[case]
    amiss = why_no_cuda(replace(ALL_THERE, **facts), 1)
    assert (None if amiss is None else str(amiss)) == said


def test_a_gpu_number_beyond_several_is_told() -> None:
    """With more than one GPU their number is in the message."""
    assert str(why_no_cuda(ALL_THERE, 2)) == (
        "there is no GPU with number 2: this process sees 2 GPUs"
    )


# --- looking --------------------------------------------------------------------------------


def test_facts_are_found_without_a_gpu() -> None:
    """Looking never raises; the libraries are looked for where somebody wants to know."""
    facts = cuda_facts(thorough=True)
    assert facts.wheels == installed_wheels()
    if facts.built_for is not None:
        assert facts.libraries is not None
        assert [library.name for library in facts.libraries][-1] == "cuDNN"
    if facts.driver is None:
        assert gpu_name(0) == "unknown GPU"


def test_the_driver_is_asked_for_its_gpus(machine: FakeMachine) -> None:
    """Number of GPUs, names, versions come from the driver; one that fails has no GPUs."""
    facts = cuda_facts()
    assert facts == ALL_THERE
    assert gpu_name(0) == "Fake GPU, driver for CUDA 13.2"
    assert machine.driver is not None
    machine.driver.count_error = 3
    assert ask_driver() == Driver(0, (13, 2), ())
    machine.driver.error = 803
    assert ask_driver() == Driver(803, (13, 2), ())
    assert gpu_name(0) == "unknown GPU"


def test_cudnn_is_asked_for_its_version(machine: FakeMachine) -> None:
    """It decides which kernels run; one that is not there, or does not tell, is unknown."""
    assert cuda.cudnn_version() == "9.14.2"
    machine.cudnn = FakeLibrary()  # type: ignore[assignment]
    assert cuda.cudnn_version() == "unknown"
    machine.files.discard("libcudnn.so.9")
    assert cuda.cudnn_version() == "unknown"


def test_another_version_of_a_library_is_found(machine: FakeMachine) -> None:
    """Where the wanted one is not there, the nearest other one is told."""
    machine.files = {"libcublas.so.12", "libcublas.so.11"}
    assert find_library("cuBLAS", "libcublas.so.{}", 13) == Library("cuBLAS", 13, False, 12)
    assert find_library("cuRAND", "libcurand.so.{}", 10) == Library("cuRAND", 10, False, None)


def test_another_version_in_nvidias_packages_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip puts the libraries where the system's loader does not look."""
    monkeypatch.setattr(_driver, "load_library", lambda name: None)
    folder = tmp_path / "nvidia" / "cublas" / "lib"
    folder.mkdir(parents=True)
    (folder / "libcublas.so.12").write_bytes(b"")
    # Without it, a real package of that name elsewhere would go before this one.
    (tmp_path / "nvidia" / "__init__.py").write_text("")
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    found = find_library("cuBLAS", "libcublas.so.{}", 13)
    assert found == Library("cuBLAS", 13, False, 12)


def test_a_cudnn_that_tells_nothing_is_taken_as_it_is(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where cuDNN lacks the question, the check against the CPU has to find what is amiss."""
    monkeypatch.setattr(machine, "cudnn", object())
    assert cuda_facts().cudnn_for is None


# --- without a GPU --------------------------------------------------------------------------


@WITHOUT_DRIVER
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


@WITHOUT_DRIVER
def test_half_precision_without_a_gpu_is_not_replaced(tiny: Backbone) -> None:
    """`auto` with fp16 fails with what keeps CUDA from working."""
    with pytest.raises(DeviceError, match=r"^CUDA cannot be used: "):
        tiny.open_session("auto", "fp16")


@WITHOUT_DRIVER
def test_the_command_fails_and_leaves_nothing(
    photos: Path, tmp_path: Path, run_cli: Callable[..., Result]
) -> None:
    """Exit code 6, one sentence on stderr, no store."""
    store = tmp_path / "store"
    result = run_cli("embed", photos, "--device", "cuda", "-o", store)
    assert (result.code, result.out) == (6, "")
    if "onnxruntime-gpu" in installed_wheels():
        assert result.err == f"Error: CUDA cannot be used: {NO_DRIVER}\n"
    assert not store.exists()


@WITHOUT_DRIVER
@pytest.mark.skipif("onnxruntime-gpu" not in installed_wheels(), reason="needs the GPU wheel")
def test_a_session_that_fell_back_is_refused(
    tiny: Backbone, machine: FakeMachine, capfd: pytest.CaptureFixture[str]
) -> None:
    """All looks well, but the real ONNX Runtime gives a session on the CPU: that is an error."""
    with pytest.raises(DeviceError) as error:
        tiny.open_session("cuda")
    assert str(error.value) == (
        "CUDA cannot be used: driver and libraries are there, but ONNX Runtime cannot start it: "
        "run featpipe doctor, and update the driver to one for the CUDA version that it names"
    )
    assert tiny.open_session("auto", "fp32").why == (
        "running on cpu, fp32 (no CUDA: driver and libraries are there, but ONNX Runtime cannot "
        "start it: run featpipe doctor, and update the driver to one for the CUDA version that "
        "it names)"
    )
    assert capfd.readouterr() == ("", "")


# --- with a GPU that computes on the CPU ----------------------------------------------------


def test_cuda_is_checked_once_and_taken(
    tiny: Backbone, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that agrees with the CPU is used, by `auto` too, and named in the session."""
    start_fakes(monkeypatch)
    opened = tiny.open_session("cuda:1")
    assert (opened.provider, opened.precision, opened.batch_size) == ("cuda", "fp32", 64)
    assert not opened.uses_cores
    assert opened.why == (
        "running on cuda:1 (Fake GPU, driver for CUDA 13.2), fp32 (it was asked for)"
    )
    assert opened.versions["gpu"] == "Fake GPU, driver for CUDA 13.2"
    assert opened.versions["cudnn"] == "9.14.2"
    assert len(list(check_folder().iterdir())) == 1
    assert tiny.open_session().why == (
        "running on cuda:0 (Fake GPU, driver for CUDA 13.2), fp32 (the fastest device that works)"
    )
    assert len(list(check_folder().iterdir())) == 1


def test_cuda_in_half_precision_runs_a_converted_model(
    tiny: Backbone, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp16 is another model and another check; its vectors stay float32."""
    made = start_fakes(monkeypatch)
    opened = tiny.open_session("auto", "fp16")
    assert (opened.provider, opened.precision) == ("cuda", "fp16")
    assert made[0].data != opened.backbone.data
    images = realistic_images(4, 32)
    vectors = opened.run(images)
    assert vectors.dtype == "float32"
    assert compare(tiny.open_session("cpu").run(images), vectors) > 0.9999


def test_a_gpu_that_disagrees_is_refused(
    tiny: Backbone, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other vectors than the CPU's: by name it fails, `auto` takes the CPU and says so."""
    made = start_fakes(monkeypatch, disagree)
    with pytest.raises(DeviceError) as error:
        tiny.open_session("cuda")
    cosine = str(error.value).partition("(cosine ")[2].partition(",")[0]
    assert -1 < float(cosine) < 0.2
    assert str(error.value) == (
        "cuda with fp32 on this machine gives other vectors than the CPU (cosine "
        f"{cosine}, at least 0.999 is needed) and is not used: take --device cpu, or update the "
        "driver and onnxruntime"
    )
    opened = tiny.open_session("auto", "fp32")
    assert opened.why == (
        "running on cpu, fp32 (no CUDA: its vectors are not the CPU's (cosine "
        f"{cosine}, at least 0.999 is needed))"
    )
    # `auto` trusts the figure that is kept; who asks by name has it measured again.
    assert made[-1].batches == []
    with pytest.raises(DeviceError, match="gives other vectors"):
        tiny.open_session("cuda")
    assert made[-1].batches == [1, 5, 64]


def test_a_gpu_that_was_mended_is_taken_again(
    tiny: Backbone, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check that is passed replaces the one that failed, for `auto` too."""
    with monkeypatch.context() as broken:
        start_fakes(broken, disagree)
        with pytest.raises(DeviceError, match="gives other vectors"):
            tiny.open_session("cuda")
    start_fakes(monkeypatch)
    assert tiny.open_session("auto", "fp32").provider == "cpu"
    assert tiny.open_session("cuda").provider == "cuda"
    assert tiny.open_session("auto", "fp32").provider == "cuda"


def test_a_gpu_that_is_given_no_work_is_refused(
    tiny: Backbone, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider is listed, and every node runs on the CPU."""
    start_fakes(monkeypatch, lambda session: setattr(session, "nodes", 0))
    with pytest.raises(DeviceError, match=r"^CUDA cannot be used: driver and libraries are there"):
        tiny.open_session("cuda")


def test_a_gpu_without_room_for_the_backbone_is_a_matter_of_the_device(
    tiny: Backbone, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file runs on the CPU, so what fails on the GPU is not the file's fault."""
    real = onnxruntime.InferenceSession

    def full(data: bytes, options: Any, providers: list[Any], enable_fallback: bool) -> Any:
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
    assert tiny.open_session("auto", "fp32").provider == "cpu"


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_bf16_on_a_gpu_is_refused(tiny: Backbone, device: str) -> None:
    """The reason, and what to use."""
    said = {
        "cuda": (
            "bf16 is not offered on CUDA: ONNX Runtime has no bf16 kernels there for operators "
            "that backbones are made of: use --precision fp16, which a GPU computes as fast"
        ),
        "tensorrt": (
            "bf16 is not offered on TensorRT: use --precision fp16, which a GPU computes as fast"
        ),
    }
    with pytest.raises(DeviceError) as error:
        tiny.open_session(device, "bf16")
    assert str(error.value) == said[device]


def test_half_precision_of_the_built_in_backbone_is_close() -> None:
    """The converted model keeps the contract and passes the check (run here by the CPU)."""
    builtin = load_backbone().open_session("cpu")
    data = to_half(builtin.backbone.data)
    assert len(data) < 0.55 * len(builtin.backbone.data)
    half = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    images = realistic_images(4, 224)
    [vectors] = half.run(["embedding"], {"images": images})
    assert vectors.dtype == "float32"
    assert compare(builtin.run(images), vectors) > 0.999


# --- with a real GPU ------------------------------------------------------------------------


@WITH_GPU
@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.99999), ("fp16", 0.9998)])
def test_a_real_gpu_gives_the_cpus_vectors(precision: str, least: float) -> None:
    """On photographs, with the built-in backbone."""
    backbone, images = load_backbone(), photographs(33, 224)
    vectors = backbone.open_session("cuda", precision).run(images)
    assert compare(backbone.open_session("cpu").run(images), vectors) >= least
