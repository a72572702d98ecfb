"""Figures of merit on plain arrays, with 95 % intervals."""

from featpipe.metrics.bootstrap import confidence_intervals
from featpipe.metrics.classification import (
    ClassMetrics,
    Metrics,
    compute_metrics,
    expected_calibration_error,
    metrics_of_blocks,
    reliability,
)
from featpipe.metrics.paired import mcnemar, paired_difference, sign_flips

__all__ = [
    "ClassMetrics",
    "Metrics",
    "compute_metrics",
    "confidence_intervals",
    "expected_calibration_error",
    "mcnemar",
    "metrics_of_blocks",
    "paired_difference",
    "reliability",
    "sign_flips",
]
