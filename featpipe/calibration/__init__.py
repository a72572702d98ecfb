"""From scores to probabilities: a temperature, sigmoids or isotonic maps.

All are fitted on scores of rows that were held out. Each is a frozen record of plain numbers
with one method, ``probabilities(scores)``; the label is the class with the highest of them. A
temperature keeps the order of the scores; the others look at one class after the other, and with
three classes or more the likeliest class may be another than that of the highest score.
"""

from featpipe.calibration.isotonic import Isotonic, fit_isotonic
from featpipe.calibration.reading import Calibrator, read_calibrator
from featpipe.calibration.sigmoid import Sigmoid, fit_sigmoid
from featpipe.calibration.temperature import (
    Temperature,
    as_columns,
    fit_temperature,
    log_losses,
    to_probabilities,
)

__all__ = [
    "Calibrator",
    "Isotonic",
    "Sigmoid",
    "Temperature",
    "as_columns",
    "fit_isotonic",
    "fit_sigmoid",
    "fit_temperature",
    "log_losses",
    "read_calibrator",
    "to_probabilities",
]
