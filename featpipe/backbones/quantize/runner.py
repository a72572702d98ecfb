"""Models in memory, made ready to run: as featpipe runs them, or without any optimisation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from featpipe._machine import usable_cores
from featpipe.backbones.contract import EMBEDDING, INPUT
from featpipe.backbones.onnx_session import CPU, take_exact_integers
from featpipe.types import Pixels, Vectors

Tensors: TypeAlias = Callable[[list[str], Pixels], Sequence[NDArray[np.float32]]]
_BATCH = 8
_Level = onnxruntime.GraphOptimizationLevel


class Runner:
    """Pixels to vectors by a model's bytes, on the CPU.

    Parameters
    ----------
    data : bytes
        A model that keeps the contract.
    optimise : bool
        False runs the graph node by node as it stands. For an int8 model that is a
        simulation in floats: what its integers should give.
    exact : bool
        True takes integer kernels that cannot overflow, on every processor, instead of the
        processor's own.
    threads : int, optional
        One a core by default.
    """

    def __init__(
        self,
        data: bytes,
        *,
        optimise: bool = True,
        exact: bool = False,
        threads: int | None = None,
    ) -> None:
        self._session = _open(data, optimise, threads or usable_cores(), exact=exact)
        self._names = [output.name for output in self._session.get_outputs()]

    def embed(self, images: Pixels) -> Vectors:
        """Return the vectors of any number of images, float32 (N, D)."""
        starts = range(0, max(len(images), 1), _BATCH)
        return np.concatenate([self._run([EMBEDDING], images[s : s + _BATCH])[0] for s in starts])

    def outputs(self, images: Pixels) -> Sequence[NDArray[np.float32]]:
        """Return every output for one batch, in the order of the file."""
        return self._run(self._names, images)

    def _run(self, names: list[str], images: Pixels) -> Sequence[NDArray[np.float32]]:
        found: Sequence[NDArray[np.float32]] = self._session.run(names, {INPUT: images})
        return found


def open_float(data: bytes) -> Tensors:
    """Return a function from names and pixels to the tensors of these names."""
    session = _open(data, True, usable_cores())
    return lambda names, images: session.run(names, {INPUT: images})


def interleaved_speeds(models: Sequence[bytes], images: Pixels, rounds: int = 9) -> list[float]:
    """Return images a second of each model on one core, measured in turns.

    One batch of each model a round, so that whatever else the machine does meets them all;
    the median of the rounds counts.

    Parameters
    ----------
    models : sequence of bytes
    images : ndarray of uint8, (N, H, W, 3)
        One batch.
    """
    runners = [Runner(data, threads=1) for data in models]
    for runner in runners:
        runner.embed(images)
    seconds = np.empty((rounds, len(runners)))
    for turn in range(rounds):
        for column, runner in enumerate(runners):
            started = time.perf_counter()
            runner.embed(images)
            seconds[turn, column] = time.perf_counter() - started
    return [len(images) / float(median) for median in np.median(seconds, axis=0)]


def _open(
    data: bytes, optimise: bool, threads: int, *, exact: bool = False
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    if exact:
        take_exact_integers(options)
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.graph_optimization_level = _Level.ORT_ENABLE_ALL if optimise else _Level.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(data, options, providers=[CPU])
