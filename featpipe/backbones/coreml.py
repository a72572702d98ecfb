"""CoreML through ONNX Runtime, where it is asked for: Apple's GPU and neural engine.

Written from its documentation; no Mac could be had to measure it, so `auto` never takes it,
and like every device it must agree with the CPU before it is used.
"""

from __future__ import annotations

import platform

import onnxruntime

from featpipe._files import first_line
from featpipe.backbones import onnx_session
from featpipe.backbones.contract import BackboneFile
from featpipe.backbones.cuda import half_precision
from featpipe.backbones.runner import Amiss, Precision, Started
from featpipe.errors import BackboneError, DeviceError

COREML = "CoreMLExecutionProvider"


def obstacle(_index: int, _precision: Precision) -> Amiss | None:
    """Return what keeps CoreML from being used here, or None."""
    if platform.system() != "Darwin":
        return Amiss(
            f"it exists on macOS alone, and this is {platform.system()}", "use --device auto"
        )
    if COREML not in onnxruntime.get_available_providers():
        return Amiss(
            "the installed ONNX Runtime is built without it",
            "run pip install --force-reinstall onnxruntime",
        )
    return None


def start(file: BackboneFile, _index: int, precision: Precision) -> Started:
    """Compile a backbone for CoreML.

    Raises
    ------
    DeviceError
        When CoreML refuses the backbone, or leaves all of it to the CPU.
    """
    data = half_precision(file.data) if precision == "fp16" else file.data
    # Of its two formats, the one in which the model's own precision is kept.
    options = {"ModelFormat": "MLProgram", "MLComputeUnits": "ALL"}
    wanted: list[onnx_session.Provider] = [(COREML, options)]
    try:
        with onnx_session.stdout_closed():
            session = onnx_session.start(data, file, wanted)
    except BackboneError as exc:
        raise DeviceError(
            f"CoreML cannot be used: it does not compile the backbone "
            f"({first_line(exc.__cause__ or exc)}): use --device cpu"
        ) from exc
    if not onnx_session.keeps(session, wanted) or onnx_session.nodes_on(session, COREML) == 0:
        raise DeviceError(
            "CoreML cannot be used: it takes no part of this backbone: use --device cpu"
        )
    version = platform.mac_ver()[0] or "unknown"
    versions = {**onnx_session.versions("coreml"), "macos": version}
    return Started(session, versions, f"coreml (macOS {version})")
