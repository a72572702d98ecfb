"""Every device other than the CPU is checked once against the CPU before it is trusted.

The figure is kept in the user's cache folder, one small file for each combination of
backbone, device, versions and precision. On a GPU the versions are those of onnxruntime, cuDNN or
TensorRT, and of CUDA as the driver serves it: a driver that serves the same CUDA as the one
before is not told from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from platformdirs import user_cache_path

from featpipe._files import read_json, write_json
from featpipe.backbones.gate import DEVICE_COSINE, Embed, verify
from featpipe.errors import BackboneError, DeviceError, WriteError

# One image, a few, and a batch of the size that will be used: kernels differ by batch size.
BATCHES = (1, 5, 64)


class OtherVectorsError(DeviceError):
    """A device computes other vectors than the CPU.

    Attributes
    ----------
    cosine : float
        The smallest one between its vectors and the CPU's.
    """

    def __init__(self, what: str, cosine: float, remedy: str) -> None:
        self.cosine = cosine
        super().__init__(
            f"{what} gives other vectors than the CPU (cosine {cosine:.4f}, at least "
            f"{DEVICE_COSINE} is needed) and is not used: {remedy}"
        )


def check_folder() -> Path:
    """Return the folder that keeps the figures."""
    return user_cache_path("featpipe", appauthor=False) / "checks"


def check_device(
    reference: Embed,
    candidate: Embed,
    size: int,
    identity: Mapping[str, str],
    what: str,
    remedy: str = "take --device cpu, or update the driver and onnxruntime",
    *,
    again: bool = True,
) -> float:
    """Compare a device with the CPU, once, and return the smallest cosine.

    Parameters
    ----------
    reference, candidate : callable
        Pixels, uint8 (N, size, size, 3), to vectors, float32 (N, D): the CPU's and the
        device's.
    size : int
        Side of the images, in pixels.
    identity : mapping of str to str
        All that may change the figure; it is kept under these.
    what, remedy : str
        The device, as the message names it, and what to do where it is refused.
    again : bool
        Check again what has failed before: what was wrong may have been mended. False takes
        the figure of that time, for `auto`, which meets it in every run.

    Raises
    ------
    OtherVectorsError
        When any cosine is below 0.999; the message has the figure.
    """
    path = check_folder() / f"{_digest(identity)}.json"
    cosine = _remembered(path, identity)
    if cosine is None or (again and cosine < DEVICE_COSINE):
        cosine = verify(reference, candidate, size, batches=BATCHES)
        # Without a writable cache the check is made again next time; that is all.
        with contextlib.suppress(WriteError):
            write_json(path, {**identity, "cosine": cosine})
    if cosine < DEVICE_COSINE:
        raise OtherVectorsError(what, cosine, remedy)
    return cosine


def _digest(identity: Mapping[str, str]) -> str:
    text = json.dumps(dict(identity), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _remembered(path: Path, identity: Mapping[str, str]) -> float | None:
    """Return the figure of an earlier check, or None."""
    try:
        value = read_json(path, BackboneError)
    except BackboneError:
        return None
    cosine = value.pop("cosine", None)
    if value != dict(identity) or not isinstance(cosine, float):
        return None
    return cosine if -1.0 <= cosine <= 1.0 + 1e-6 else None
