"""What is said where ONNX Runtime itself cannot be loaded."""

from __future__ import annotations

from featpipe._files import first_line
from featpipe.errors import DeviceError

MEND_WHEELS = (
    "pip uninstall -y onnxruntime onnxruntime-gpu",
    "pip install onnxruntime-gpu",
)
"""The commands that put the one wheel in place where two have overwritten each other."""


def broken_runtime(error: ImportError | AttributeError) -> DeviceError:
    """Turn a failed import of ONNX Runtime into a sentence with its remedy.

    It is what is left when one of two wheels that share a folder has been removed.
    """
    return DeviceError(
        f"ONNX Runtime cannot be loaded ({first_line(error)}): "
        f"run {MEND_WHEELS[0]}, then {MEND_WHEELS[1]}"
    )
