"""Whether what comes in is still what a head was trained on: tests, sizes, one sentence."""

from featpipe.monitoring.report import DriftReport, Finding
from featpipe.monitoring.run import TESTS, drift

__all__ = ["TESTS", "DriftReport", "Finding", "drift"]
