"""Backbone and head as one ONNX file: pictures in, labels and probabilities out."""

from featpipe.bundling.run import BundleOptions, BundleReport, bundle
from featpipe.bundling.verify import Agreement

__all__ = ["Agreement", "BundleOptions", "BundleReport", "bundle"]
