"""A backbone made ready to run on one device: pixels in, vectors out.

`open_session` is the one door: it takes what was asked for or fails, checks every device
other than the CPU against it on real-looking images, and says in one line what it has chosen
and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featpipe._files import first_line
from featpipe.backbones import coreml, cuda, onnx_session, openvino, tensorrt
from featpipe.backbones.contract import EMBEDDING, FEATURE_MAP, INPUT, BackboneFile
from featpipe.backbones.device_check import OtherVectorsError, check_device
from featpipe.backbones.gate import DEVICE_COSINE
from featpipe.backbones.providers import (
    LABELS,
    PRECISIONS,
    Device,
    Kind,
    parse_device,
    parse_precision,
)
from featpipe.backbones.runner import Amiss, Precision, Runner, Starter
from featpipe.errors import BackboneError, DeviceError
from featpipe.types import Pixels, Vectors

if TYPE_CHECKING:
    from featpipe.backbones import Backbone

_BATCH_SIZES: dict[Kind, int] = {"cpu": 8, "openvino": 8, "cuda": 64, "tensorrt": tensorrt.LARGEST}
_DEVICES: dict[Kind, Starter] = {
    "cuda": cuda,
    "tensorrt": tensorrt,
    "openvino": openvino,
    "coreml": coreml,
}
_CPU, _GPU, _OPENVINO = Device("cpu"), Device("cuda"), Device("openvino")
_ASKED = "it was asked for"
_FASTEST = "the fastest device that works"


@dataclass(frozen=True, slots=True)
class Session:
    """A backbone on a device; any number of threads may call it at once.

    Attributes
    ----------
    backbone : BackboneFile
        What runs.
    provider : str
        "cpu", "cuda", "tensorrt", "openvino" or "coreml".
    precision : str
        "fp32", "bf16" or "fp16".
    versions : mapping of str to str
        What, beside the backbone, decides the bits of a vector.
    why : str
        One line: what was chosen, and why nothing better.
    """

    backbone: BackboneFile
    runner: Runner
    provider: Kind
    precision: Precision
    versions: Mapping[str, str]
    why: str

    @property
    def batch_size(self) -> int:
        """Images a call that make good use of the device."""
        return _BATCH_SIZES.get(self.provider, 8)

    @property
    def uses_cores(self) -> bool:
        """Whether the backbone takes the cores that decode images, one a call."""
        return self.provider in {"cpu", "openvino"}

    def run(self, images: Pixels) -> Vectors:
        """Embed a batch.

        Parameters
        ----------
        images : ndarray of uint8, (N, H, W, 3)
            RGB, of the backbone's input size; N may be 0.

        Returns
        -------
        ndarray of float32, (N, D)

        Raises
        ------
        DeviceError
            When the device fails in the middle of the work, for lack of memory above all.
        """
        return self._run([EMBEDDING], images)[0]

    def feature_maps(self, images: Pixels) -> NDArray[np.float32]:
        """Return the maps before pooling, float32 (N, C, h, w).

        Raises
        ------
        BackboneError
            When the backbone's file has no such output.
        """
        self._require_feature_map()
        return self._run([FEATURE_MAP], images)[0]

    def run_with_maps(self, images: Pixels) -> tuple[Vectors, NDArray[np.float32]]:
        """Return what `run` and `feature_maps` do; the network is computed once.

        Raises
        ------
        BackboneError
            When the backbone's file has no such output.
        """
        self._require_feature_map()
        vectors, maps = self._run([EMBEDDING, FEATURE_MAP], images)
        return vectors, maps

    def _require_feature_map(self) -> None:
        if not self.backbone.has_feature_map:
            raise BackboneError(
                f"the backbone {self.backbone.card.name} has no output '{FEATURE_MAP}': "
                "export it again from a model that ends in global average pooling"
            )

    def _run(self, outputs: list[str], images: Pixels) -> list[NDArray[np.float32]]:
        side = self.backbone.card.input_size
        if images.dtype != np.uint8 or images.shape[1:] != (side, side, 3):
            raise ValueError(
                f"images must be uint8 (N, {side}, {side}, 3), not {images.dtype} {images.shape}"
            )
        if len(images) == 0:
            # One image tells the shape of what there is nothing of.
            blank = np.zeros((1, side, side, 3), np.uint8)
            return [found[:0] for found in self._run(outputs, blank)]
        try:
            return self.runner.run(outputs, {INPUT: np.ascontiguousarray(images)})
        except Exception as exc:
            # ONNX Runtime's exceptions have no public base class.
            raise DeviceError(_failed_run(self, len(images), exc)) from exc


def open_session(backbone: Backbone, device: str = "auto", precision: str = "auto") -> Session:
    """Make a backbone ready to run.

    Parameters
    ----------
    backbone : Backbone
        From `featpipe.backbones.load_backbone`.
    device : str
        ``auto`` takes the best that works: CUDA, OpenVINO in bf16 where the processor
        accelerates it, the CPU. ``cpu``, ``cuda``, ``cuda:N``, ``tensorrt``, ``tensorrt:N``,
        ``openvino`` and ``coreml`` are had or the call fails.
    precision : str
        ``fp32`` is had everywhere, ``fp16`` on GPUs, ``bf16`` with OpenVINO. ``auto`` is fp32
        on all but OpenVINO.

    Raises
    ------
    BackboneError
        When the file has changed since it was loaded, or breaks the contract.
    DeviceError
        When device or precision cannot be had, or the vectors disagree with the CPU's.
    """
    wanted = parse_device(device)
    arithmetic = parse_precision(precision, wanted)
    file = backbone.take_file()
    if wanted.kind == "auto":
        return _open_best(file, arithmetic)
    if wanted.kind == "openvino" and arithmetic is None:
        return _open_openvino(file)
    return _open(file, wanted, arithmetic or PRECISIONS[wanted.kind][0], _ASKED)


def why_not(device: Device, precision: Precision) -> Amiss | None:
    """Return what keeps a device from being used, as far as can be told without a session."""
    if device.kind == "cpu":
        return None
    return _DEVICES[device.kind].obstacle(device.index, precision)


def _open_best(file: BackboneFile, precision: Precision | None) -> Session:
    """Return the first device that works, and say why it is none of those before it."""
    if precision == "fp16":
        # Only a GPU can answer that; where there is none, its absence is the message.
        return _open(file, _GPU, "fp16", _FASTEST)
    if precision == "bf16":
        return _open(file, _OPENVINO, "bf16", "the only device with bf16")
    better: list[tuple[str, Device, Precision]] = [("CUDA", _GPU, "fp32")]
    if precision is None:
        better.append(("OpenVINO in bf16", _OPENVINO, "bf16"))
    passed_over: list[str] = []
    for label, device, arithmetic in better:
        because = "; ".join([_FASTEST, *passed_over])
        found = _try(file, device, arithmetic, because)
        if isinstance(found, Session):
            return found
        passed_over.append(f"no {label}: {found}")
    return _open(file, _CPU, "fp32", "; ".join(passed_over))


def _open_openvino(file: BackboneFile) -> Session:
    """Return OpenVINO in bf16 where that is accelerated and agrees with the CPU, else in fp32."""
    found = _try(file, _OPENVINO, "bf16", _ASKED)
    if isinstance(found, Session):
        return found
    return _open(file, _OPENVINO, "fp32", f"{_ASKED}; no bf16: {found}")


def _try(file: BackboneFile, device: Device, precision: Precision, because: str) -> Session | str:
    """Return a session, or why there is none; for `auto`, which takes what is sure to gain."""
    if precision == "bf16" and openvino.accelerates_bf16() is None:
        return "this system does not tell whether its processor accelerates bf16"
    amiss = why_not(device, precision)
    if amiss is not None:
        return amiss.reason
    try:
        return _open(file, device, precision, because, again=False)
    except OtherVectorsError as exc:
        return (
            f"its vectors are not the CPU's (cosine {exc.cosine:.4f}, at least {DEVICE_COSINE} is "
            "needed)"
        )
    except DeviceError as exc:
        return str(exc).removeprefix(f"{LABELS[device.kind]} cannot be used: ")


def _open(
    file: BackboneFile, device: Device, precision: Precision, because: str, *, again: bool = True
) -> Session:
    """Return a session on this device, checked against the CPU's, or raise."""
    if device.kind == "cpu":
        return _open_cpu(file, because)
    amiss = why_not(device, precision)
    if amiss is not None:
        raise DeviceError(f"{LABELS[device.kind]} cannot be used: {amiss}")
    # A file that nothing can run fails here; what fails after this is the device's fault.
    reference = _open_cpu(file, "to compare with")
    started = _DEVICES[device.kind].start(file, device.index, precision)
    why = f"running on {started.where}, {precision} ({because})"
    session = Session(file, started.runner, device.kind, precision, started.versions, why)
    verify_session(session, reference, again=again)
    return session


def _open_cpu(file: BackboneFile, because: str) -> Session:
    runner = onnx_session.start(file.data, file, [onnx_session.CPU])
    why = f"running on cpu, fp32 ({because})"
    return Session(file, runner, "cpu", "fp32", onnx_session.versions("cpu"), why)


def verify_session(session: Session, reference: Session, *, again: bool = True) -> float:
    """Compare a session with the CPU's, once a machine; return the smallest cosine.

    Parameters
    ----------
    session, reference : Session
        The one to check, and the CPU's.
    again : bool
        Check again what has failed before; False: the figure of that time is the answer.

    Raises
    ------
    OtherVectorsError
        When the vectors disagree (cosine below 0.999); the message has the figure.
    """
    identity = {
        "fingerprint": session.backbone.card.fingerprint,
        "precision": session.precision,
        **session.versions,
    }
    what = f"{session.provider} with {session.precision} on this machine"
    size = session.backbone.card.input_size
    return check_device(
        reference.run, session.run, size, identity, what, _remedy(session), again=again
    )


def _remedy(session: Session) -> str:
    """Say what to do where the vectors of a session are not the CPU's."""
    if session.precision != "fp32":
        return "take --precision fp32, or --device cpu"
    newer = "package openvino" if session.provider == "openvino" else "driver and onnxruntime"
    return f"take --device cpu, or update the {newer}"


def _failed_run(session: Session, n: int, error: Exception) -> str:
    text = first_line(error)
    if "memory" in text.lower() or "alloc" in text.lower():
        return (
            f"{session.provider} has not enough memory for {n} images at once: "
            f"give a smaller --batch-size ({text})"
        )
    return (
        f"{session.provider} failed while it embedded {n} images: {text}; "
        "run featpipe doctor, or the same command with --device cpu"
    )
