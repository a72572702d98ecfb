"""What is said where ONNX Runtime itself cannot be loaded."""

from __future__ import annotations

from featpipe._files import printable
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
    reason = printable(str(error).splitlines()[0]) if str(error) else type(error).__name__
    return DeviceError(
        f"ONNX Runtime cannot be loaded ({reason}): run {MEND_WHEELS[0]}, then {MEND_WHEELS[1]}"
    )
