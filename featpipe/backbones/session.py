"""A backbone made ready to run on one device: pixels in, vectors out.

`open_session` is the one door: it takes what was asked for or fails, checks every provider
other than the CPU's against the CPU's on real-looking images, and says in one line what it
has chosen and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from featpipe._files import printable
from featpipe.backbones import cuda, providers
from featpipe.backbones.contract import EMBEDDING, FEATURE_MAP, INPUT, BackboneFile, read_backbone
from featpipe.backbones.device_check import check_device
from featpipe.errors import BackboneError, DeviceError
from featpipe.types import Pixels, Vectors

if TYPE_CHECKING:
    from featpipe.backbones import Backbone

Precision: TypeAlias = Literal["fp32", "fp16"]
_PRECISIONS = ("auto", "fp32", "fp16")
_BATCH_SIZES = {"cpu": 8, "cuda": 64}
_UNEXPLAINED = (
    "CUDA cannot be used: driver and libraries are there, but ONNX Runtime cannot start it: "
    "run featpipe doctor, and update the driver to one for the CUDA version that it names"
)


class Runner(Protocol):
    """What is asked of an ONNX Runtime session; the seam for other runtimes."""

    def run(self, names: list[str], feed: dict[str, Pixels]) -> list[NDArray[np.float32]]:
        """Compute the named outputs."""
        ...


@dataclass(frozen=True, slots=True)
class Session:
    """A backbone on a device; any number of threads may call it at once.

    Attributes
    ----------
    backbone : BackboneFile
        What runs.
    provider : str
        "cpu" or "cuda".
    precision : str
        "fp32" or "fp16".
    versions : mapping of str to str
        What, beside the backbone, decides the bits of a vector.
    why : str
        One line: what was chosen, and why nothing better.
    """

    backbone: BackboneFile
    runner: Runner
    provider: str
    precision: Precision
    versions: Mapping[str, str]
    why: str

    @property
    def batch_size(self) -> int:
        """Images a call that make good use of the device."""
        return _BATCH_SIZES[self.provider]

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
        return self._run(EMBEDDING, images)

    def feature_maps(self, images: Pixels) -> NDArray[np.float32]:
        """Return the maps before pooling, float32 (N, C, h, w).

        Raises
        ------
        BackboneError
            When the backbone's file has no such output.
        """
        if not self.backbone.has_feature_map:
            raise BackboneError(
                f"the backbone {self.backbone.card.name} has no output '{FEATURE_MAP}': "
                "export it again from a model that ends in global average pooling"
            )
        return self._run(FEATURE_MAP, images)

    def _run(self, output: str, images: Pixels) -> NDArray[np.float32]:
        side = self.backbone.card.input_size
        if images.dtype != np.uint8 or images.shape[1:] != (side, side, 3):
            raise ValueError(
                f"images must be uint8 (N, {side}, {side}, 3), not {images.dtype} {images.shape}"
            )
        if len(images) == 0:
            # One image tells the shape of what there is nothing of.
            blank = np.zeros((1, side, side, 3), np.uint8)
            return self._run(output, blank)[:0]
        try:
            return self.runner.run([output], {INPUT: np.ascontiguousarray(images)})[0]
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
        ``auto`` takes the best that works; ``cpu``, ``cuda`` and ``cuda:N`` are had or the
        call fails.
    precision : str
        ``auto`` and ``fp32`` are 32-bit floats; ``fp16`` needs CUDA.

    Raises
    ------
    BackboneError
        When the file has changed since it was loaded, or breaks the contract.
    DeviceError
        When device or precision cannot be had, or the vectors disagree with the CPU's.
    """
    wanted = providers.parse_device(device)
    if precision not in _PRECISIONS:
        raise DeviceError(f"there is no precision '{printable(precision)}': use auto, fp32 or fp16")
    file = read_backbone(backbone.path)
    if file.card.fingerprint != backbone.fingerprint:
        raise BackboneError(
            f"the backbone file {printable(str(file.path))} was replaced while it was in use "
            f"({backbone.fingerprint} before, {file.card.fingerprint} now): start again"
        )
    if wanted.kind == "cpu":
        return _open_cpu(file, precision, "it was asked for")
    if wanted.kind == "cuda":
        return _open_cuda(file, wanted.index, precision, "it was asked for")
    return _open_best(file, precision)


def _open_best(file: BackboneFile, precision: str) -> Session:
    """Return CUDA where it works, the CPU otherwise, and say why."""
    if precision == "fp16":
        # Only a GPU can answer that; where there is none, its absence is the message.
        return _open_cuda(file, 0, precision, "the fastest device that works")
    amiss = cuda.why_no_cuda(cuda.cuda_facts())
    if amiss is not None:
        return _open_cpu(file, precision, f"no CUDA: {amiss.reason}")
    try:
        return _open_cuda(file, 0, precision, "the fastest device that works")
    except DeviceError as exc:
        return _open_cpu(file, precision, f"no CUDA: {exc}")


def _open_cpu(file: BackboneFile, precision: str, because: str) -> Session:
    if precision == "fp16":
        raise DeviceError(
            "fp16 is not faster on a CPU and is not offered there: "
            "use --precision fp32, or --device cuda on a machine with a GPU"
        )
    runner = _start(file.data, file, [providers.CPU])
    return Session(
        file, runner, "cpu", "fp32", _versions("cpu"), f"running on cpu, fp32 ({because})"
    )


def _open_cuda(file: BackboneFile, index: int, precision: str, because: str) -> Session:
    """Return a checked CUDA session, or raise with the reason and the remedy."""
    amiss = cuda.why_no_cuda(cuda.cuda_facts(), index)
    if amiss is not None:
        raise DeviceError(f"CUDA cannot be used: {amiss}")
    arithmetic: Precision = "fp16" if precision == "fp16" else "fp32"
    data = _half(file.data) if arithmetic == "fp16" else file.data
    # TF32 would round fp32 products to 10 bits without being asked.
    options = {"device_id": str(index), "use_tf32": "0"}
    # A file that nothing can run fails here; what fails after this is the device's fault.
    reference = _open_cpu(file, "fp32", "to compare with")
    try:
        runner = _start(data, file, [(cuda.CUDA, options)])
    except BackboneError as exc:
        raise DeviceError(
            f"CUDA cannot be used: cuda:{index} does not start the backbone "
            f"({_first_line(exc.__cause__ or exc)}): free memory of the GPU, or use --device cpu"
        ) from exc
    if runner.get_providers()[0] != cuda.CUDA:
        raise DeviceError(_UNEXPLAINED)
    name = cuda.gpu_name(index)
    session = Session(
        file,
        runner,
        "cuda",
        arithmetic,
        {**_versions("cuda"), "gpu": name},
        f"running on cuda:{index} ({name}), {arithmetic} ({because})",
    )
    verify_session(session, reference)
    return session


def verify_session(session: Session, reference: Session) -> float:
    """Compare a session with the CPU's, once a machine; return the smallest cosine.

    Raises
    ------
    DeviceError
        When the vectors disagree (cosine below 0.999); the message has the figure.
    """
    identity = {
        "fingerprint": session.backbone.card.fingerprint,
        "precision": session.precision,
        **session.versions,
    }
    what = f"{session.provider} with {session.precision} on this machine"
    size = session.backbone.card.input_size
    return check_device(reference.run, session.run, size, identity, what)


def _half(data: bytes) -> bytes:
    # The converter brings the `onnx` package along, which nothing else here needs.
    from featpipe.backbones.half import to_half  # noqa: PLC0415

    return to_half(data)


def _versions(provider: str) -> dict[str, str]:
    return {
        "onnxruntime": str(onnxruntime.__version__),
        "provider": provider,
        "optimization": "all",
    }


def _start(data: bytes, file: BackboneFile, wanted: list[Any]) -> Any:
    """Make an ONNX Runtime session that never changes its providers in mid-run."""
    options = onnxruntime.SessionOptions()
    # As many Python threads as cores call one session; a pool of its own would fight them.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # The level decides bits of the vectors: it is fixed, and stands in `versions`.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    try:
        with providers.quiet_runtime():
            session = onnxruntime.InferenceSession(data, options, providers=wanted)
    except Exception as exc:
        # Its exceptions have no public base class, and a hostile graph can raise any of them.
        raise BackboneError(
            f"the backbone file {printable(str(file.path))} cannot be run by ONNX Runtime "
            f"{onnxruntime.__version__}: {_first_line(exc)}"
        ) from exc
    session.disable_fallback()
    return session


def _failed_run(session: Session, n: int, error: Exception) -> str:
    text = _first_line(error)
    if "memory" in text.lower() or "alloc" in text.lower():
        return (
            f"{session.provider} has not enough memory for {n} images at once: "
            f"give a smaller --batch-size ({text})"
        )
    return (
        f"{session.provider} failed while it embedded {n} images: {text}; "
        "run featpipe doctor, or the same command with --device cpu"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return printable(lines[0][:300]) if lines else type(error).__name__
