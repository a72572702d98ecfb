"""Stream new images through a backbone and a head; one row an image, whatever happens."""

from featpipe.scoring.prediction import Prediction, PredictionStatus
from featpipe.scoring.run import ScoreOptions, ScoreSummary, predictions, score

__all__ = [
    "Prediction",
    "PredictionStatus",
    "ScoreOptions",
    "ScoreSummary",
    "predictions",
    "score",
]
