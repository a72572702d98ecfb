"""Make a backbone of a foreign ONNX file; it needs onnx and ONNX Runtime, and no torch."""

from featpipe.backbones.importing.options import ImportOptions, ImportReport
from featpipe.backbones.importing.run import import_backbone

__all__ = ["ImportOptions", "ImportReport", "import_backbone"]
