"""What a device hands over: something that runs, and what is to be known of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from featpipe.backbones.contract import BackboneFile
from featpipe.types import Pixels

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]


class Runner(Protocol):
    """What is asked of an ONNX Runtime session; the seam for other runtimes."""

    def run(self, names: list[str], feed: dict[str, Pixels]) -> list[NDArray[np.float32]]:
        """Compute the named outputs, and no others; from any number of threads at once."""
        ...


@dataclass(frozen=True, slots=True)
class Started:
    """A backbone that has been started on a device, and not yet been checked there.

    Attributes
    ----------
    runner : Runner
    versions : mapping of str to str
        What, beside backbone and precision, decides the bits of a vector.
    where : str
        The device as a person names it: "cuda:0 (Some GPU, driver for CUDA 13.2)".
    """

    runner: Runner
    versions: Mapping[str, str]
    where: str


@dataclass(frozen=True, slots=True)
class Amiss:
    """Something that is not as it should be, and what to do about it."""

    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.remedy}"


class Starter(Protocol):
    """One kind of device: a module with these two functions."""

    def obstacle(self, index: int, precision: Precision, /) -> Amiss | None:
        """Return what keeps the device from being used, as far as can be seen from outside."""
        ...

    def start(self, file: BackboneFile, index: int, precision: Precision, /) -> Started:
        """Start a backbone on it, or raise `DeviceError`; nobody has checked its vectors yet."""
        ...
