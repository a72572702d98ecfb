"""A head measured on labelled vectors."""

from featpipe.evaluation.measure import Evaluation, evaluate
from featpipe.evaluation.table import PLOT_FORMATS, metrics_table

__all__ = ["PLOT_FORMATS", "Evaluation", "evaluate", "metrics_table"]
