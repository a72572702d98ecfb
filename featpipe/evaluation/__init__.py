"""A head measured on labelled vectors."""

from featpipe.evaluation.measure import Evaluation, evaluate
from featpipe.evaluation.table import metrics_table

__all__ = ["Evaluation", "evaluate", "metrics_table"]
