"""Folds that keep together what belongs together, tuning, nested estimates; fits in passes."""

from featpipe.model_selection.calibrating import METHODS, calibrate
from featpipe.model_selection.capacity import said, streams
from featpipe.model_selection.folds import Fold, make_folds, units_of
from featpipe.model_selection.streaming import fit_streamed
from featpipe.model_selection.tuning import (
    Fitted,
    OnFit,
    fit_tuned,
    nested_probabilities,
    quiet_and_single,
)
from featpipe.model_selection.unseen import Unseen, unseen_by_folds, unseen_by_head

__all__ = [
    "METHODS",
    "Fitted",
    "Fold",
    "OnFit",
    "Unseen",
    "calibrate",
    "fit_streamed",
    "fit_tuned",
    "make_folds",
    "nested_probabilities",
    "quiet_and_single",
    "said",
    "streams",
    "units_of",
    "unseen_by_folds",
    "unseen_by_head",
]
