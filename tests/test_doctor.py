"""``featpipe doctor``: what it finds, what it warns of, and its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Result
from fake_devices import disagree, install, start_fakes

from featpipe import _machine
from featpipe.backbones import cuda, load_backbone, session, usable_cores
from featpipe.backbones._driver import Driver, Gpu, Library, ask_driver
from featpipe.backbones.cuda import CudaFacts
from featpipe.backbones.runner import Amiss
from featpipe.commands.doctor import _lines
from featpipe.doctor import (
    DeviceState,
    Processor,
    _kinds,
    describe_processor,
    diagnose,
    find_warnings,
    make_photos,
    measure_speed,
    try_device,
)
from featpipe.images import Decoded, decode_image
from featpipe.types import ResizeRule

PROCESSOR = Processor(
    model="Some CPU",
    features={"AVX2": True, "AMX": False},
    cores=8,
    allowed=8,
    quota=None,
    usable=8,
    memory=16 * 2**30,
    memory_limit=None,
)
X86 = """\
processor	: 0
model name	: Some CPU
flags		: fpu avx2 avx512f avx_vnni

processor	: 1
model name	: Some CPU
flags		: fpu avx2 avx512f avx_vnni
"""


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


# --- processor and container ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "own", "quota", "memory"),
    [
        # Version 2, seen from inside a container: its own group is the root.
        ({"cpu.max": "150000 100000\n", "memory.max": "1073741824\n"}, "0::/\n", 1.5, 2**30),
        ({"cpu.max": "max 100000\n", "memory.max": "max\n"}, "0::/\n", None, None),
        # Version 2, seen from the host: the tightest limit on the way up counts.
        (
            {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000", "a/memory.max": "2048"},
            "0::/a/b\n",
            2.0,
            2048,
        ),
        # Version 1, with a controller in a folder of its own.
        (
            {
                "cpu/cpu.cfs_quota_us": "300000\n",
                "cpu/cpu.cfs_period_us": "100000\n",
                "memory/memory.limit_in_bytes": "4096\n",
            },
            "4:memory:/\n3:cpu,cpuacct:/\n1:name=systemd:/x\n",
            3.0,
            4096,
        ),
        (
            {
                "cpu/docker/cpu.cfs_quota_us": "-1\n",
                "cpu/docker/cpu.cfs_period_us": "100000\n",
                "memory/docker/memory.limit_in_bytes": "9223372036854771712\n",
            },
            "4:memory:/docker\n3:cpu:/docker\n",
            None,
            None,
        ),
        # A group outside what is mounted here, and files that hold nonsense.
        ({"cpu.max": "?", "memory.max": ""}, "0::/../other\nnonsense\n", None, None),
        ({}, "", None, None),
    ],
)
def test_a_containers_limits_are_read(
    tmp_path: Path, files: dict[str, str], own: str, quota: float | None, memory: int | None
) -> None:
    """Control groups of both versions, from inside and from the host."""
    write(tmp_path / "cgroup", files)
    write(tmp_path, {"own": own})
    assert _machine.cpu_quota(tmp_path / "cgroup", tmp_path / "own") == quota
    assert _machine.memory_limit(tmp_path / "cgroup", tmp_path / "own") == memory


@pytest.mark.parametrize(("quota", "cores"), [(None, 4), (2.0, 2), (1.5, 2), (0.2, 1), (64.0, 4)])
def test_usable_cores_are_the_smaller_of_mask_and_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int
) -> None:
    """Part of a core counts as one; there is always one."""
    monkeypatch.setattr(_machine, "allowed_cores", lambda: 4)
    monkeypatch.setattr(_machine, "cpu_quota", lambda: quota)
    assert usable_cores() == cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_an_affinity_mask_is_respected() -> None:
    """A process that is bound to one core uses one."""
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from featpipe.backbones import usable_cores; print(usable_cores())"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=root
    )
    assert done.stdout == "1\n"


def test_processor_features_are_read(tmp_path: Path) -> None:
    """Both families are known; where the system tells nothing, nothing is claimed."""
    write(tmp_path, {"x86": X86, "arm": "Features : fp asimd asimddp\n", "none": "\n"})
    assert _machine.cpu_features(tmp_path / "x86") == {
        "AVX2": True,
        "AVX-512": True,
        "VNNI": True,
        "BF16": False,
        "AMX": False,
    }
    assert _machine.cpu_features(tmp_path / "arm") == {
        "NEON": True,
        "dot product": True,
        "BF16": False,
        "SVE": False,
    }
    assert _machine.cpu_features(tmp_path / "none") == _machine.cpu_features(tmp_path / "no") == {}
    assert _machine.cpu_model(tmp_path / "x86") == "Some CPU"
    assert _machine.cpu_model(tmp_path / "none")


def test_this_machine_can_be_described() -> None:
    """The real processor has cores and memory, and never more usable ones than it has."""
    processor = describe_processor()
    assert 1 <= processor.usable <= processor.allowed <= processor.cores
    assert processor.memory is None or processor.memory > 2**20


# --- warnings -------------------------------------------------------------------------------


def test_a_sound_machine_has_no_warnings() -> None:
    """One wheel, all cores, AVX2."""
    assert find_warnings(("onnxruntime-gpu",), PROCESSOR) == []


def test_both_wheels_at_once_are_told_with_the_two_commands() -> None:
    """Two distributions share one folder: the two commands mend it."""
    assert find_warnings(("onnxruntime", "onnxruntime-gpu"), PROCESSOR) == [
        (
            "onnxruntime and onnxruntime-gpu are both installed, in one folder, and overwrite "
            "each other: run pip uninstall -y onnxruntime onnxruntime-gpu, then pip install "
            "onnxruntime-gpu"
        )
    ]


def test_both_wheels_are_found_in_a_real_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second distribution is seen by its metadata, as pip leaves it."""
    here = cuda.installed_wheels()
    other = "onnxruntime" if "onnxruntime" not in here else "onnxruntime-gpu"
    folder = tmp_path / f"{other.replace('-', '_')}-1.31.1.dist-info"
    write(folder, {"METADATA": f"Metadata-Version: 2.1\nName: {other}\nVersion: 1.31.1\n"})
    monkeypatch.syspath_prepend(tmp_path)
    assert set(cuda.installed_wheels()) == {*here, other}
    [warning] = diagnose(quick=True).warnings[:1]
    assert "are both installed, in one folder, and overwrite each other" in warning


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"quota": 1.5, "usable": 2},
            "only 2 of the machine's 8 cores are used: the container's limit is 1.5",
        ),
        (
            {"allowed": 3, "usable": 3},
            "only 3 of the machine's 8 cores are used: the affinity mask allows 3",
        ),
        (
            {"features": {"AVX2": False}},
            "the processor has no AVX2: backbones run several times slower without it",
        ),
    ],
)
def test_limits_and_old_processors_are_told(change: dict[str, object], said: str) -> None:
    """What makes a run slower than the machine is said, with its cause."""
    assert find_warnings(("onnxruntime",), replace(PROCESSOR, **change)) == [said]  # type: ignore[arg-type]


# --- speed ----------------------------------------------------------------------------------


def test_the_photos_of_the_speed_check_are_like_photographs() -> None:
    """They decode, have the size that the report names, and the weight of photographs."""
    photos = make_photos(3)
    for photo in photos:
        decoded = decode_image(photo, ResizeRule(256, 224))
        assert isinstance(decoded, Decoded)
        assert (decoded.width, decoded.height) == (768, 512)
        assert 40_000 < len(photo) < 200_000
    assert len(set(photos)) == 3


def test_speed_is_measured_and_expected(tiny_backbone: Path) -> None:
    """The expected rate follows from the two measured ones, as the bound of the design says."""
    session = load_backbone(tiny_backbone).open_session("cpu")
    speed = measure_speed(session, 0.15)
    assert speed.provider == "cpu"
    assert speed.threads == usable_cores()
    assert speed.measured > 0
    bound = speed.threads / (1 / speed.decode_per_core + 1 / speed.model)
    assert speed.expected == pytest.approx(bound)


def test_a_gpu_is_fed_by_all_cores(tiny_backbone: Path) -> None:
    """With a GPU, decoding and the backbone run at the same time: the slower one counts."""
    session = load_backbone(tiny_backbone).open_session("cpu")
    speed = measure_speed(replace(session, provider="cuda"), 0.15)
    assert speed.expected == min(speed.threads * speed.decode_per_core, speed.model)


# --- the command ----------------------------------------------------------------------------


def test_the_report_is_printed_to_stdout(run_cli: Callable[..., Result]) -> None:
    """Sections, devices with their reasons, places; nothing on stderr; exit code 0."""
    result = run_cli("doctor", "--quick")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    for section in ("Devices", "CUDA", "Processor", "Places"):
        assert section in lines
    assert "Speed" not in lines
    assert "  cpu            works: fp32" in lines
    assert any(line.startswith("  stores ") for line in lines)
    assert lines[-1] == "Embedding works here."


def test_json_is_one_document(run_cli: Callable[..., Result]) -> None:
    """`--json` writes the whole record and nothing else."""
    result = run_cli("doctor", "--quick", "--json")
    report = json.loads(result.out)
    assert (result.code, result.err) == (0, "")
    assert report["devices"][0] == {
        "name": "cpu",
        "works": True,
        "detail": "fp32",
        "precisions": ["fp32"],
    }
    assert report["speed"] is None
    assert report["problem"] is None
    assert report["processor"]["usable"] == usable_cores()


def test_the_speed_check_is_part_of_the_report() -> None:
    """Without --quick, decode, backbone, expected and measured rates are told."""
    report = diagnose(seconds=0.3)
    assert report.speed is not None
    lines = list(_lines(report))
    start = lines.index("Speed")
    assert [line.split()[0] for line in lines[start + 1 : start + 5]] == [
        "decode",
        "backbone",
        "expected",
        "measured",
    ]


def test_a_damaged_backbone_is_the_verdict(
    run_cli: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where embedding cannot work, the report says why and the exit code is the error's."""
    path = tmp_path / "efficientnet_lite0.onnx"
    path.write_bytes(b"garbage!")
    monkeypatch.setenv("FEATPIPE_MODELS", str(tmp_path))
    result = run_cli("doctor")
    assert result.code == 5
    assert result.out.splitlines()[-1] == (
        f"Embedding does not work here: the backbone file {path} is damaged: it is not an ONNX "
        "file, or it is cut short"
    )


@pytest.mark.skipif(ask_driver() is not None, reason="this machine has an NVIDIA driver")
def test_every_device_has_its_line(run_cli: Callable[..., Result]) -> None:
    """Each works, in which precisions, or has the reason and the remedy of its own."""
    lines = run_cli("doctor", "--quick").out.splitlines()
    at = lines.index("Devices")
    devices = {line.split()[0]: line[17:] for line in lines[at + 1 : lines.index("CUDA") - 1]}
    assert list(devices)[:4] == ["cpu", "cuda", "tensorrt", "openvino"]
    assert devices["cpu"] == "works: fp32"
    if "onnxruntime-gpu" in cuda.installed_wheels():
        said = (
            "no: no NVIDIA driver is found on this machine: install the driver of the GPU, or in "
            "a container pass the GPU on (docker run --gpus all)"
        )
        assert (devices["cuda"], devices["tensorrt"]) == (said, said)
    if not cuda.is_installed("openvino"):
        assert devices["openvino"] == (
            "no: the package openvino is not installed: run pip install 'featpipe[openvino]'"
        )
    elif _machine.cpu_features().get("BF16") is False:
        assert devices["openvino"] == (
            f"works: fp32; no bf16: this processor ({_machine.cpu_model()}) does not accelerate "
            "bf16, which takes AVX512-BF16 or AMX: use --precision fp32"
        )


def test_coreml_is_listed_on_a_mac_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else can do anything about it."""
    assert ("coreml" in _kinds()) == (sys.platform == "darwin")
    monkeypatch.setattr("featpipe.doctor.platform.system", lambda: "Darwin")
    assert _kinds() == ("cpu", "cuda", "tensorrt", "openvino", "coreml")


def test_a_device_that_fails_its_check_is_told(
    tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Facts that look well and a session that fails: the session's reason is told."""
    install(monkeypatch)
    start_fakes(monkeypatch, disagree)
    state = try_device(load_backbone(tiny_backbone), "cuda")
    assert (state.name, state.works, state.precisions) == ("cuda", False, ())
    assert state.detail.startswith("cuda with fp32 on this machine gives other vectors than the ")


def test_a_device_that_works_names_its_precisions(
    tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU by name; a precision that fails has its reason beside."""
    install(monkeypatch)
    start_fakes(monkeypatch)
    backbone = load_backbone(tiny_backbone)
    assert try_device(backbone, "cuda") == DeviceState(
        "cuda", True, "Fake GPU, driver for CUDA 13.2, fp32, fp16", ("fp32", "fp16")
    )
    amiss = Amiss("something is amiss", "mend it")
    monkeypatch.setattr(
        session.cuda, "obstacle", lambda index, precision: amiss if precision == "fp16" else None
    )
    assert try_device(backbone, "cuda") == DeviceState(
        "cuda",
        True,
        "Fake GPU, driver for CUDA 13.2, fp32; no fp16: something is amiss: mend it",
        ("fp32",),
    )


def test_every_line_of_a_full_report_is_told() -> None:
    """Limits, missing libraries, GPUs and warnings each have their line."""
    report = replace(
        diagnose(quick=True),
        devices=(DeviceState("cuda", works=True, detail="Some GPU"),),
        cuda=CudaFacts(
            "Linux x86_64",
            (),
            13,
            Driver(0, (13, 2), (Gpu("Some GPU", (9, 0)),)),
            (
                Library("the CUDA runtime", 13, found=True),
                Library("cuBLAS", 13, found=False, instead=12),
                Library("cuDNN", 9, found=False),
            ),
        ),
        processor=replace(PROCESSOR, quota=2.0, usable=2, memory_limit=2**31, memory=None),
        warnings=("something is odd",),
    )
    lines = list(_lines(report))
    for line in (
        "  cuda           works: Some GPU",
        "  onnxruntime    from elsewhere, built for CUDA 13",
        "  driver         found, for CUDA 13.2, 1 GPU",
        "  libraries      not found: cuBLAS 13 (but 12), cuDNN 9",
        "  features       AVX2 yes, AMX no",
        "  cores          2 of 8 usable (limit 2)",
        "  memory         unknown (limit 2.0 GiB)",
        "Warning: something is odd",
    ):
        assert line in lines
    for driver, said in (
        (None, "not found"),
        (Driver(803, (13, 0), ()), "found, does not start (error 803)"),
        (Driver(0, (13, 0), ()), "found, for CUDA 13.0, no GPUs"),
    ):
        lines = list(_lines(replace(report, cuda=replace(report.cuda, driver=driver))))
        assert f"  driver         {said}" in lines
    sound = replace(report.cuda, libraries=(Library("cuBLAS", 13, found=True),))
    assert "  libraries      found" in list(_lines(replace(report, cuda=sound)))
