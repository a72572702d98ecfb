"""Confusion matrix and reliability diagram as one picture."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featpipe._files import atomic_file, printable
from featpipe.errors import FeatpipeError
from featpipe.evaluation.table import PLOT_FORMATS
from featpipe.metrics import reliability

if TYPE_CHECKING:
    from featpipe.evaluation.measure import Evaluation

_NUMBERS_UP_TO = 20


def plot_evaluation(evaluation: Evaluation, path: Path) -> Path:
    """Draw an evaluation into a PNG, PDF or SVG file.

    Rows of the matrix are true classes; its colours are shares of the row, its numbers
    counts. The diagram beside it has the accuracy of the labels against their probability.

    Raises
    ------
    FeatpipeError
        When matplotlib is not installed (extra ``report``), or the suffix is another.
    WriteError
        When the operating system refuses to write.
    """
    if path.suffix.lower() not in PLOT_FORMATS:
        raise FeatpipeError(
            f"cannot draw {printable(str(path))}: give a name that ends in "
            f"{', '.join(PLOT_FORMATS)}"
        )
    # The base installation has no matplotlib; who asks for a picture needs it.
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError:
        raise FeatpipeError(
            "--plot needs matplotlib: install it with pip install 'featpipe[report]'"
        ) from None
    n_classes = len(evaluation.classes)
    side = float(np.clip(2.4 + 0.34 * n_classes, 4.2, 14))
    figure = Figure(figsize=(side + 4.8, max(side, 4.6)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[side, 4.2])
    _draw_confusion(left, figure, evaluation)
    _draw_reliability(right, evaluation)
    with atomic_file(path) as file, warnings.catch_warnings():
        # A class may be named in a script that the font lacks: a box is drawn then.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(file, format=path.suffix[1:].lower())
    return path


def _draw_confusion(axes: Any, figure: Any, evaluation: Evaluation) -> None:
    counts = np.array(evaluation.metrics.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    # A dollar would begin a formula.
    names = [printable(name)[:24].replace("$", r"\$") for name in evaluation.classes]
    size = 9 if len(names) <= 12 else 7 if len(names) <= 40 else 4
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    accuracy = 100 * evaluation.metrics.accuracy
    axes.set_title(f"{evaluation.metrics.n_samples} images, {accuracy:.1f} % right", fontsize=10)
    if len(names) <= _NUMBERS_UP_TO:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(
                    column, row, str(count), ha="center", va="center", color=colour, fontsize=size
                )
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")


def _draw_reliability(axes: Any, evaluation: Evaluation) -> None:
    edges, confidence, accuracy, share = reliability(evaluation.y, evaluation.probabilities)
    filled = share > 0
    width = 1 / len(edges)
    axes.bar(edges, share, width, align="edge", color="0.85", label="share of the images")
    axes.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1, label="perfect")
    axes.plot(confidence[filled], accuracy[filled], marker="o", color="#08519c", label="this head")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
    axes.set_xlabel("probability of the label")
    axes.set_ylabel("share that is right")
    error = 100 * evaluation.metrics.calibration_error
    axes.set_title(f"calibration error {error:.1f} %", fontsize=10)
    axes.legend(loc="upper left", fontsize=8, frameon=False)
