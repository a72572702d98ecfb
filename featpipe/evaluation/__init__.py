"""Heads measured on labelled vectors, two on the same images, vectors by protocols of papers."""

from featpipe.evaluation.against import HeadComparison, compare
from featpipe.evaluation.few_shot import FewShotCurve, few_shot_curve
from featpipe.evaluation.measure import Evaluation, evaluate
from featpipe.evaluation.probed import Probe
from featpipe.evaluation.probing import probe
from featpipe.evaluation.protocols import PROTOCOLS, Protocol
from featpipe.evaluation.table import PLOT_FORMATS, metrics_table, without_line

__all__ = [
    "PLOT_FORMATS",
    "PROTOCOLS",
    "Evaluation",
    "FewShotCurve",
    "HeadComparison",
    "Probe",
    "Protocol",
    "compare",
    "evaluate",
    "few_shot_curve",
    "metrics_table",
    "probe",
    "without_line",
]
