"""The foreign file as it came, run by ONNX Runtime's CPU provider: what an import is held against.

Nothing of the graph is changed but the list of its outputs, and the pixels are normalised
here, in NumPy and in double precision: by another way than the backbone's own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from featpipe._files import first_line, printable
from featpipe._machine import usable_cores
from featpipe.backbones.gate import photographs
from featpipe.backbones.importing.options import Arrays, Part, Reads
from featpipe.backbones.importing.reading import too_large
from featpipe.backbones.onnx_session import CPU, UNSOUND, take_exact_integers
from featpipe.errors import BackboneError
from featpipe.types import Pixels

_SILENT = 4


class Original:
    """A foreign file, ready to run.

    Parameters
    ----------
    path : Path
        Where it came from, for messages.
    model : onnx.ModelProto
        Its content; left as it is.
    reads : Reads
        What it reads.
    names : sequence of str
        The tensors that `run` returns.
    constants : set of str
        Those among them that have no axis of the images.

    Raises
    ------
    BackboneError
        When ONNX Runtime cannot load it.
    """

    def __init__(
        self,
        path: Path,
        model: onnx.ModelProto,
        reads: Reads,
        names: Sequence[str],
        constants: frozenset[str] = frozenset(),
    ) -> None:
        self._path, self.reads, self._names = path, reads, list(dict.fromkeys(names))
        self._constants = constants
        self._session = open_quietly(path, _with_outputs(path, model, self._names))

    def run(self, images: Pixels) -> Arrays:
        """Return the tensors for a batch of any size, whatever size the file itself wants.

        Raises
        ------
        BackboneError
            When the file cannot be run; the message names the node.
        """
        # Files that take any number squeeze the axis of one image away and then fail on it.
        step = self.reads.batch or max(len(images), 2)
        pieces = [self._piece(images[i : i + step], step) for i in range(0, len(images), step)]
        return {
            name: first if name in self._constants else np.concatenate([p[name] for p in pieces])
            for name, first in pieces[0].items()
        }

    def _piece(self, images: Pixels, step: int) -> Arrays:
        missing = np.repeat(images[-1:], step - len(images), axis=0)
        feed = {self.reads.name: prepared(np.concatenate([images, missing]), self.reads)}
        found = run_quietly(self._path, self._session, self._names, feed)
        return {
            name: array if name in self._constants else _by_image(array, step)[: len(images)]
            for name, array in zip(self._names, found, strict=True)
            if isinstance(array, np.ndarray)
        }


def _by_image(array: NDArray[Any], n: int) -> NDArray[Any]:
    """Give back the axis of the images where the file has squeezed it away at batch 1."""
    gone = n == 1 and (array.ndim == 0 or array.shape[0] != 1)
    return array[None] if gone or array.ndim == 0 else array


def with_working_batch(
    path: Path,
    model: onnx.ModelProto,
    reads: Reads,
    names: Sequence[str],
    constants: frozenset[str],
) -> tuple[Reads, Arrays]:
    """Run the file on two photographs; find out whether it takes two at once.

    Returns
    -------
    Reads
        With ``batch`` 1 where the file says that it takes any number, and does not.
    dict of ndarray
        The tensors ``names`` for the two photographs.

    Raises
    ------
    BackboneError
        When the file cannot be run.
    """
    images = photographs(2, reads.size)
    ways = [reads] if reads.batch is not None else [reads, replace(reads, batch=1)]
    for way in ways:
        original = Original(path, model, way, names, constants)
        try:
            found = original.run(images)
        except BackboneError:
            if way is ways[-1]:
                raise
            continue
        if way is ways[-1] or _is_a_batch(found, names, len(images)):
            return way, found
    raise AssertionError("one of the ways returns or raises")  # pragma: no cover


def _is_a_batch(found: Arrays, names: Sequence[str], n: int) -> bool:
    """Tell whether the last tensors of the file have a row for each image."""
    return all(len(found[name]) == n for name in names[:1] if name in found)


def prepared(images: Pixels, reads: Reads) -> NDArray[Any]:
    """Prepare pixels as the foreign file wants them: normalised, in its layout and type.

    Parameters
    ----------
    images : ndarray of uint8, (N, H, W, 3)
        RGB.

    Returns
    -------
    ndarray of ``reads.dtype``, (N, 3, H, W) or (N, H, W, 3)
    """
    values: NDArray[Any] = images
    if not reads.is_raw:
        values = (images.astype(np.float64) / 255 - np.array(reads.mean)) / np.array(reads.std)
    values = values[..., ::-1] if reads.bgr else values
    values = values.transpose(0, 3, 1, 2) if reads.layout == "nchw" else values
    return np.ascontiguousarray(values, dtype=reads.dtype)


def numbers(part: Part, array: NDArray[Any]) -> NDArray[np.float64]:
    """Return a tensor of the file as numbers, where it is quantised."""
    values = array.astype(np.float64)
    if part.zero_point is not None:
        values -= part.zero_point.astype(np.float64)
    return values if part.scale is None else values * part.scale.astype(np.float64)


def as_vectors(part: Part, array: NDArray[Any]) -> NDArray[np.float32]:
    """Return the embedding that a tensor of the file is: float32 (N, D)."""
    values = numbers(part, array)
    if part.layout != "vector":
        values = values.mean(axis=(2, 3) if part.layout == "nchw" else (1, 2))
    return values.reshape(len(values), -1).astype(np.float32)


def as_map(part: Part, array: NDArray[Any]) -> NDArray[np.float32]:
    """Return the feature map that a tensor of the file is: float32 (N, C, h, w)."""
    values = numbers(part, array)
    values = values.transpose(0, 3, 1, 2) if part.layout == "nhwc" else values
    return values.astype(np.float32)


def _with_outputs(path: Path, model: onnx.ModelProto, names: Sequence[str]) -> bytes:
    """Return the model with more outputs; ONNX Runtime finds their types by itself."""
    wider = onnx.ModelProto()
    wider.CopyFrom(model)
    known = {value.name for value in wider.graph.output}
    wider.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in known
    )
    try:
        data: bytes = wider.SerializeToString()
    except ValueError:  # protobuf's own limit
        raise too_large(path) from None
    return data


def open_quietly(path: Path, data: bytes) -> Any:
    """Open a session of the CPU provider that writes nothing to stderr.

    Raises
    ------
    BackboneError
        When ONNX Runtime cannot load the model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    options.log_severity_level = _SILENT
    take_exact_integers(options)
    try:
        return onnxruntime.InferenceSession(
            data, options, providers=[CPU], disabled_optimizers=UNSOUND
        )
    except Exception as exc:
        # Its exceptions share no base class.
        raise BackboneError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {printable(str(path))}: "
            f"{_told(exc)}"
        ) from exc


def run_quietly(path: Path, session: Any, names: list[str], feed: Arrays) -> list[Any]:
    """Run a session; a failure becomes a sentence that names the node, and nothing is printed.

    Raises
    ------
    BackboneError
        When the graph fails on these inputs.
    """
    options = onnxruntime.RunOptions()
    options.log_severity_level = _SILENT
    try:
        found: list[Any] = session.run(names, feed, options)
    except Exception as exc:
        raise BackboneError(
            f"ONNX Runtime cannot run {printable(str(path))} on "
            f"{len(next(iter(feed.values())))} photographs: {_told(exc)}"
        ) from exc
    return found


def _told(error: Exception) -> str:
    """Return what ONNX Runtime says, without its codes and source files."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", first_line(error))
    return re.sub(r"\S+\.(cc|h):\d+ \S.*?\) ", "", text) or type(error).__name__
