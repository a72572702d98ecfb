"""What this machine has, what of it works for featpipe, and how fast it is.

`diagnose` looks and measures; it never prints and never fails: what is amiss stands in the
report with its remedy.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image
from platformdirs import user_cache_path

from featpipe import __version__, _machine
from featpipe._threads import Threads
from featpipe.backbones import Backbone, load_backbone
from featpipe.backbones._driver import is_installed
from featpipe.backbones._runtime import MEND_WHEELS
from featpipe.backbones.coreml import COREML
from featpipe.backbones.cuda import CUDA, CudaFacts, cuda_facts, installed_wheels
from featpipe.backbones.device_check import check_folder
from featpipe.backbones.gate import realistic_images
from featpipe.backbones.onnx_session import CPU
from featpipe.backbones.providers import PRECISIONS, Device, Kind
from featpipe.backbones.registry import model_folders
from featpipe.backbones.runner import Amiss
from featpipe.backbones.session import Session, why_not
from featpipe.backbones.tensorrt import TENSORRT, engine_folder
from featpipe.errors import FeatpipeError
from featpipe.images import Decoded, decode_image
from featpipe.sources.listings import listing_folder
from featpipe.types import Pixels, ResizeRule

_PACKAGES = ("openvino", "numpy", "onnx", "pillow", "pyarrow", "scikit-learn", "skops")
_PHOTO = (768, 512)


@dataclass(frozen=True, slots=True)
class DeviceState:
    """One device: whether a session on it works.

    Attributes
    ----------
    detail : str
        What it is and in which precisions it works, and why not in others; or why it does not
        work, and what to do.
    precisions : tuple of str
        Those in which its vectors are the CPU's.
    """

    name: str
    works: bool
    detail: str
    precisions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Processor:
    """The processor, and what of it this process may use.

    Attributes
    ----------
    features : mapping of str to bool
        Instruction sets that make backbones faster; empty where the system does not tell.
    cores, allowed, usable : int
        Cores of the machine, those of the affinity mask, and those that are left after the
        container's quota.
    quota : float or None
        The container's limit in cores.
    memory, memory_limit : int or None
        Bytes of the machine, and the container's limit.
    """

    model: str
    features: Mapping[str, bool]
    cores: int
    allowed: int
    quota: float | None
    usable: int
    memory: int | None
    memory_limit: int | None


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast photographs of 768 × 512 pixels become vectors here; images a second.

    Attributes
    ----------
    decode_per_core : float
        Decode, resize and crop, one thread.
    model : float
        The backbone alone: one thread on the CPU, the whole device otherwise.
    threads : int
        Threads that `expected` and `measured` are about: one a usable core.
    expected : float
        What these two leave for a whole run at best.
    measured : float
        All threads at once, each decoding and running the backbone.
    """

    provider: str
    decode_per_core: float
    model: float
    threads: int
    expected: float
    measured: float


@dataclass(frozen=True, slots=True)
class Report:
    """All that `featpipe doctor` tells.

    Attributes
    ----------
    problem : str or None
        Why embedding cannot work here; None: it can.
    exit_code : int
        The code that the problem has in featpipe's table; 0 without one.
    warnings : tuple of str
        What is amiss but does not keep embedding from working.
    """

    featpipe: str
    python: str
    system: str
    packages: Mapping[str, str]
    devices: tuple[DeviceState, ...]
    cuda: CudaFacts
    processor: Processor
    places: Mapping[str, str]
    speed: Speed | None
    warnings: tuple[str, ...]
    problem: str | None
    exit_code: int

    def to_json(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return asdict(self)


def diagnose(*, quick: bool = False, seconds: float = 9.0) -> Report:
    """Look at this machine, open a session on each device, and measure for ``seconds``.

    Parameters
    ----------
    quick : bool
        Measure nothing.
    seconds : float
        Time for the measurement, in three equal parts.

    Returns
    -------
    Report
    """
    facts = cuda_facts(thorough=True)
    devices: tuple[DeviceState, ...] = ()
    speed, problem, exit_code = None, None, 0
    try:
        backbone = load_backbone()
        devices = tuple(try_device(backbone, kind) for kind in _kinds())
        if not quick:
            speed = measure_speed(backbone.open_session("auto"), seconds)
    except FeatpipeError as exc:
        problem, exit_code = str(exc), exc.exit_code
    processor = describe_processor()
    return Report(
        featpipe=__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        packages=_versions(),
        devices=(*devices, *_unused_providers()),
        cuda=facts,
        processor=processor,
        places=_places(),
        speed=speed,
        warnings=tuple(find_warnings(facts.wheels, processor)),
        problem=problem,
        exit_code=exit_code,
    )


def find_warnings(wheels: tuple[str, ...], processor: Processor) -> list[str]:
    """Return what is amiss but does not keep embedding from working, with its remedy."""
    warnings = []
    if len(wheels) > 1:
        both = " and ".join(wheels)
        mend = Amiss(
            f"{both} are both installed, in one folder, and overwrite each other",
            f"run {MEND_WHEELS[0]}, then {MEND_WHEELS[1]}",
        )
        warnings.append(str(mend))
    if processor.usable < processor.cores:
        limit = (
            f"the container's limit is {processor.quota:g}"
            if processor.quota is not None and processor.usable < processor.allowed
            else f"the affinity mask allows {processor.allowed}"
        )
        warnings.append(
            f"only {processor.usable} of the machine's {processor.cores} cores are used: {limit}"
        )
    if processor.features.get("AVX2") is False:
        warnings.append("the processor has no AVX2: backbones run several times slower without it")
    return warnings


def describe_processor() -> Processor:
    """Return the processor, and what of it this process may use."""
    return Processor(
        model=_machine.cpu_model(),
        features=_machine.cpu_features(),
        cores=os.cpu_count() or 1,
        allowed=_machine.allowed_cores(),
        quota=_machine.cpu_quota(),
        usable=_machine.usable_cores(),
        memory=_machine.total_memory(),
        memory_limit=_machine.memory_limit(),
    )


def measure_speed(session: Session, seconds: float) -> Speed:
    """Measure decoding, the backbone, and both together on all cores; a third of the time each."""
    rule = session.backbone.card.resize
    photos = make_photos(8)
    images = realistic_images(session.batch_size, rule.crop)
    part = seconds / 3

    def decode() -> int:
        return len([_decode(photo, rule) for photo in photos])

    def infer() -> int:
        return len(session.run(images))

    def both() -> int:
        batch = [_decode(photos[i % len(photos)], rule) for i in range(len(images))]
        return len(session.run(_stack(batch)))

    threads = _machine.usable_cores()
    decode_rate, model_rate = _rate(decode, part), _rate(infer, part)
    if session.uses_cores:
        expected = threads / (1 / decode_rate + 1 / model_rate)
    else:
        expected = min(threads * decode_rate, model_rate)
    measured = _rate(both, part, threads)
    return Speed(session.provider, decode_rate, model_rate, threads, expected, measured)


def make_photos(n: int) -> list[bytes]:
    """Return ``n`` JPEG files of 768 × 512 pixels that cost about what photographs cost."""
    photos = []
    for pixels in realistic_images(n, _PHOTO[0] // 3):
        # Noise is as sharp as its pixels; photographs are not: enlarged, it is as soft as they.
        image = Image.fromarray(pixels).resize((_PHOTO[0], _PHOTO[0])).crop((0, 0, *_PHOTO))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=90)
        photos.append(file.getvalue())
    return photos


def _decode(photo: bytes, rule: ResizeRule) -> Pixels:
    decoded = decode_image(photo, rule)
    assert isinstance(decoded, Decoded)
    return decoded.pixels


def _stack(batch: list[Pixels]) -> Pixels:
    stacked: Pixels = np.stack(batch)
    return stacked


def _rate(work: Callable[[], int], seconds: float, threads: int = 1) -> float:
    """Return images a second of ``work``, which returns how many it has done."""
    work()

    def repeat() -> int:
        done = work()
        while time.perf_counter() < deadline:
            done += work()
        return done

    start = time.perf_counter()
    deadline = start + seconds
    with Threads(threads) as pool:
        tasks = [pool.submit(repeat) for _ in range(threads)]
        done = sum(task.result() for task in tasks)
    return done / (time.perf_counter() - start)


def try_device(backbone: Backbone, kind: Kind) -> DeviceState:
    """Open a session on a device in each of its precisions."""
    if kind == "cpu":
        # Where the CPU cannot run the backbone, nothing can: that is the report's verdict.
        backbone.open_session("cpu")
        return DeviceState("cpu", works=True, detail="fp32", precisions=("fp32",))
    device, working, amiss, named = Device(kind), [], [], ""
    for precision in PRECISIONS[kind]:
        obstacle = why_not(device, precision)
        if obstacle is not None:
            amiss.append((precision, str(obstacle)))
            continue
        try:
            session = backbone.open_session(kind, precision)
        except FeatpipeError as exc:
            amiss.append((precision, str(exc)))
        else:
            named = session.versions.get("gpu", "")
            working.append(precision)
    if not working:
        return DeviceState(kind, works=False, detail=amiss[0][1])
    works = ", ".join([named, *working] if named else working)
    detail = "; ".join([works, *(f"no {precision}: {why}" for precision, why in amiss)])
    return DeviceState(kind, works=True, detail=detail, precisions=tuple(working))


def _kinds() -> tuple[Kind, ...]:
    """Return the devices that make sense on this system."""
    known: tuple[Kind, ...] = ("cpu", "cuda", "tensorrt", "openvino")
    return (*known, "coreml") if platform.system() == "Darwin" else known


def _unused_providers() -> list[DeviceState]:
    """Return what ONNX Runtime has beside: named, so that nobody wonders."""
    used = {CPU, CUDA, TENSORRT, COREML}
    return [
        DeviceState(
            name.removesuffix("ExecutionProvider").lower(),
            works=False,
            detail="in ONNX Runtime, not used by featpipe",
        )
        for name in onnxruntime.get_available_providers()
        if name not in used
    ]


def _versions() -> dict[str, str]:
    names = (*installed_wheels(), *_PACKAGES)
    return {name: importlib.metadata.version(name) for name in names if is_installed(name)}


def _places() -> dict[str, str]:
    """Return where featpipe reads and writes."""
    return {
        "backbones": os.pathsep.join(str(folder) for folder in model_folders()),
        "device checks": str(check_folder()),
        "TensorRT engines": str(engine_folder()),
        "listings of archives": str(listing_folder()),
        "vectors of ImageEmbedder": str(user_cache_path("featpipe", appauthor=False) / "vectors"),
        "stores": str(Path("embeddings").absolute()),
        "heads": str(Path("heads").absolute()),
    }
