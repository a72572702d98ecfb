"""Backbone and head as one ONNX file: pictures in, labels and probabilities out."""

from featpipe.bundle.run import BundleOptions, BundleReport, bundle
from featpipe.bundle.verify import Agreement

__all__ = ["Agreement", "BundleOptions", "BundleReport", "bundle"]
