"""ONNX Runtime sessions that are what was asked for, and keep quiet.

ONNX Runtime lists what was compiled in, not what works, and gives a session on the CPU with
a line on stderr where a provider cannot be had. In featpipe a provider counts only when a
session that was asked for it has it and gives it work.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TypeAlias

import onnxruntime

from featpipe._files import first_line, printable
from featpipe.backbones.card import QUANTISER
from featpipe.backbones.contract import BackboneFile
from featpipe.errors import BackboneError

CPU = "CPUExecutionProvider"
UNSOUND = ["Pad_Fusion"]
"""Optimisations that change what a graph computes: this one takes a padding by zeros into a
MaxPool, which pads with what is smaller than any number."""

Provider: TypeAlias = str | tuple[str, dict[str, str]]


def start(data: bytes, file: BackboneFile, wanted: list[Provider]) -> Any:
    """Make an ONNX Runtime session that never changes its providers in mid-run.

    Parameters
    ----------
    data : bytes
        The model; the backbone's own bytes, or a version of them in another precision.
    file : BackboneFile
        Where they come from, for the message.
    wanted : list of str or (str, dict)
        Providers, the best first.

    Raises
    ------
    BackboneError
        When ONNX Runtime refuses the model.
    """
    options = onnxruntime.SessionOptions()
    # As many Python threads as cores call one session; a pool of its own would fight them.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if QUANTISER not in file.card.exporter:
        take_exact_integers(options)
    if wanted != [CPU]:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # The level decides bits of the vectors: it is fixed, and stands in `versions`.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 4
    try:
        with quiet_runtime():
            # With its fallback it would print to stdout and take other providers.
            session = onnxruntime.InferenceSession(
                data, options, providers=wanted, enable_fallback=False
            )
    except Exception as exc:
        # Its exceptions have no public base class, and a hostile graph can raise any of them.
        raise BackboneError(
            f"the backbone file {printable(str(file.path))} cannot be run by ONNX Runtime "
            f"{onnxruntime.__version__}: {first_line(exc)}"
        ) from exc
    session.disable_fallback()
    return session


def take_exact_integers(options: Any) -> None:
    """Ask for integer kernels that cannot overflow, whatever the processor.

    x86 without VNNI has faster ones that cut sums of two products off at 16 bits: the same
    file would give other vectors there. Floats are not concerned; what featpipe has quantised
    gives the same bits with both, and the faster ones are a third faster.
    """
    options.add_session_config_entry("session.x64quantprecision", "1")


def keeps(session: Any, wanted: list[Provider]) -> bool:
    """Tell whether a session has the providers that it was asked for, in their order."""
    names = [provider if isinstance(provider, str) else provider[0] for provider in wanted]
    return list(session.get_providers())[: len(names)] == names


def nodes_on(session: Any, provider: str) -> int | None:
    """Return how many parts of the graph a provider was given; None where it is not told."""
    # Absent before 1.23, and so on Intel Macs.
    assigned = getattr(session, "get_provider_graph_assignment_info", None)
    if assigned is None:
        return None
    return sum(1 for part in assigned() if part.ep_name == provider)


def versions(provider: str) -> dict[str, str]:
    """Return what of ONNX Runtime decides the bits of a vector."""
    return {
        "onnxruntime": str(onnxruntime.__version__),
        "provider": provider,
        "optimization": "all",
    }


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


@contextlib.contextmanager
def stdout_closed() -> Iterator[None]:
    """Throw away what a library writes to stdout, which belongs to ``--json``.

    The file descriptor itself is turned away, for libraries that are not written in Python;
    all threads share it, so this is for the moment of starting a device only.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "w", encoding="utf-8") as sink, contextlib.redirect_stdout(sink):
            os.dup2(sink.fileno(), 1)
            try:
                yield
            finally:
                os.dup2(kept, 1)
    finally:
        os.close(kept)
