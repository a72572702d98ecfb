"""Reading ``--device``, and an ONNX Runtime that keeps quiet.

ONNX Runtime lists what was compiled in, not what works, and gives a session on the CPU with
a line on stderr where CUDA cannot be had. In featpipe a provider counts only when a session
that was asked for it has it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import onnxruntime

from featpipe._files import printable
from featpipe.errors import DeviceError

CPU = "CPUExecutionProvider"


@dataclass(frozen=True, slots=True)
class Device:
    """A parsed ``--device``; ``index`` is the number of the GPU."""

    kind: Literal["auto", "cpu", "cuda"]
    index: int = 0


def parse_device(text: str) -> Device:
    """Read ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    DeviceError
        For anything else.

    >>> parse_device("cuda:1")
    Device(kind='cuda', index=1)
    """
    match text.strip().lower():
        case "auto":
            return Device("auto")
        case "cpu":
            return Device("cpu")
        case "cuda":
            return Device("cuda")
    numbered = re.fullmatch(r"cuda:(\d{1,3})", text.strip().lower(), re.ASCII)
    if numbered is None:
        raise DeviceError(
            f"there is no device '{printable(text)}': use auto, cpu, cuda, or cuda:N "
            "for the GPU with number N"
        )
    return Device("cuda", int(numbered[1]))


@contextlib.contextmanager
def quiet_runtime() -> Iterator[None]:
    """Silence ONNX Runtime's own lines on stderr; session options do not.

    The level in force cannot be asked for; afterwards it is the default again: warnings.
    """
    onnxruntime.set_default_logger_severity(4)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(2)
