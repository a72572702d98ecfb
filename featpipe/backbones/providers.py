"""Reading ``--device`` and ``--precision``, and which of them go together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from featpipe._files import printable
from featpipe.backbones.runner import Precision
from featpipe.errors import DeviceError

Kind: TypeAlias = Literal["auto", "cpu", "cuda", "tensorrt", "openvino", "coreml"]
LABELS: dict[Kind, str] = {
    "cpu": "the CPU",
    "cuda": "CUDA",
    "tensorrt": "TensorRT",
    "openvino": "OpenVINO",
    "coreml": "CoreML",
}
"""The devices, as messages name them."""
PRECISIONS: dict[Kind, tuple[Precision, ...]] = {
    "cpu": ("fp32",),
    "cuda": ("fp32", "fp16"),
    "tensorrt": ("fp32", "fp16"),
    "openvino": ("fp32", "bf16"),
    "coreml": ("fp32", "fp16"),
}
"""What a device offers at most; the first is what ``auto`` means there."""
_NUMBERED: tuple[Kind, ...] = ("cuda", "tensorrt")
_NO_KERNELS = (
    "bf16 is not offered on {label}: ONNX Runtime has no bf16 kernels there for operators that "
    "backbones are made of: use --precision fp16, which a GPU computes as fast"
)
_REFUSALS: dict[tuple[Kind, Precision], str] = {
    ("cpu", "fp16"): (
        "fp16 is not faster on a CPU and is not offered there: "
        "use --precision fp32, or --device cuda on a machine with a GPU"
    ),
    ("cpu", "bf16"): (
        "bf16 is not offered by ONNX Runtime on the CPU: use --device openvino on a processor "
        "that accelerates it, or --precision fp32"
    ),
    ("openvino", "fp16"): (
        "fp16 is not faster on a CPU and is not offered there: use --precision bf16 on a "
        "processor that accelerates it, --precision fp32, or --device cuda on a machine with a GPU"
    ),
    ("cuda", "bf16"): _NO_KERNELS.format(label="CUDA"),
    ("tensorrt", "bf16"): (
        "bf16 is not offered on TensorRT: use --precision fp16, which a GPU computes as fast"
    ),
    ("coreml", "bf16"): "bf16 is not offered on CoreML: use --precision fp16 or fp32",
}


@dataclass(frozen=True, slots=True)
class Device:
    """A parsed ``--device``; ``index`` is the number of the GPU."""

    kind: Kind
    index: int = 0


def parse_device(text: str) -> Device:
    """Read ``auto``, ``cpu``, ``cuda``, ``cuda:N``, ``tensorrt``, ``openvino`` or ``coreml``.

    Raises
    ------
    DeviceError
        For anything else.

    >>> parse_device("cuda:1")
    Device(kind='cuda', index=1)
    """
    match = re.fullmatch(r"([a-z]+)(?::(\d{1,3}))?", text.strip().lower(), re.ASCII)
    kind, number = match.groups() if match else ("", None)
    if kind not in {"auto", *LABELS} or (number is not None and kind not in _NUMBERED):
        raise DeviceError(
            f"there is no device '{printable(text)}': use auto, cpu, cuda, tensorrt, openvino or "
            "coreml; cuda:N and tensorrt:N mean the GPU with number N"
        )
    return Device(cast("Kind", kind), int(number or 0))


def parse_precision(text: str, device: Device) -> Precision | None:
    """Read ``--precision``; None: the device may choose.

    Raises
    ------
    DeviceError
        When there is no such precision, or the device has none of its kind anywhere.

    >>> parse_precision("bf16", Device("openvino"))
    'bf16'
    """
    if text == "auto":
        return None
    if text not in {"fp32", "bf16", "fp16"}:
        raise DeviceError(
            f"there is no precision '{printable(text)}': use auto, fp32, bf16 or fp16"
        )
    precision = cast("Precision", text)
    if (device.kind, precision) in _REFUSALS:
        raise DeviceError(_REFUSALS[device.kind, precision])
    return precision
