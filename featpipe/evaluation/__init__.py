"""A head measured on labelled vectors, and two heads on the same images."""

from featpipe.evaluation.against import HeadComparison, compare
from featpipe.evaluation.measure import Evaluation, evaluate
from featpipe.evaluation.table import PLOT_FORMATS, metrics_table

__all__ = [
    "PLOT_FORMATS",
    "Evaluation",
    "HeadComparison",
    "compare",
    "evaluate",
    "metrics_table",
]
