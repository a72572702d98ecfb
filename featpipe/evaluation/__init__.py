"""Heads measured on labelled vectors, and vectors measured by protocols of the literature."""

from featpipe.evaluation.few_shot import FewShotCurve, few_shot_curve
from featpipe.evaluation.measure import Evaluation, evaluate
from featpipe.evaluation.probed import Probe
from featpipe.evaluation.probing import probe
from featpipe.evaluation.protocols import PROTOCOLS, Protocol
from featpipe.evaluation.table import PLOT_FORMATS, metrics_table

__all__ = [
    "PLOT_FORMATS",
    "PROTOCOLS",
    "Evaluation",
    "FewShotCurve",
    "Probe",
    "Protocol",
    "evaluate",
    "few_shot_curve",
    "metrics_table",
    "probe",
]
