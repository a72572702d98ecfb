"""Folds that keep together what belongs together, tuning, and nested estimates."""

from featpipe.model_selection.folds import Fold, make_folds, units_of
from featpipe.model_selection.tuning import Fitted, fit_tuned, nested_probabilities

__all__ = ["Fitted", "Fold", "fit_tuned", "make_folds", "nested_probabilities", "units_of"]
