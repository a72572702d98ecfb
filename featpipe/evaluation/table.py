"""The figures of `fit` and `evaluate` as text for a person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featpipe._files import printable
from featpipe.evaluation.figures import interval, share

_ROWS = (
    ("accuracy", "accuracy", True),
    ("balanced_accuracy", "balanced accuracy", True),
    ("macro_f1", "macro F1", True),
    ("top5_accuracy", "top-5 accuracy", True),
    ("log_loss", "log loss", False),
    ("calibration_error", "calibration error", True),
)
_MOST_CLASSES = 30
PLOT_FORMATS = (".png", ".pdf", ".svg")
"""What `Evaluation.plot` draws; here, as the command line knows it without matplotlib."""


def metrics_table(metrics: Mapping[str, Any]) -> str:
    """Lay out what `Metrics.to_json` gives: figures with intervals, then a row a class.

    Confusions are named in words, the commonest first: a matrix of thirty columns helps
    nobody on a terminal; `--plot` draws it.
    """
    lines = [*_figures(metrics), "", *_classes(metrics["per_class"])]
    confusions = _confusions(metrics)
    if confusions:
        lines += ["", "most often confused", *confusions]
    return "\n".join(lines)


def without_line(count: int, what: str, metrics: Mapping[str, Any]) -> str:
    """Return one line: the accuracy without so many images."""
    accuracy, ends = share(metrics["accuracy"]), interval(metrics["intervals_95"]["accuracy"])
    return f"without the {count} that are {what}: accuracy {accuracy}, {ends}"


def _figures(metrics: Mapping[str, Any]) -> list[str]:
    lines = [f"{'on ' + str(metrics['n_samples']) + ' images':<22}{'':>8}   95 % interval"]
    for name, title, is_share in _ROWS:
        value = metrics.get(name)
        if value is None:
            continue
        low, high = metrics["intervals_95"][name]
        shown = [share(v) if is_share else f"{v:.3f}" for v in (value, low, high)]
        lines.append(f"{title:<22}{shown[0]:>8}   {shown[1]} to {shown[2]}")
    majority = metrics["majority_class"]
    label = printable(majority["label"])
    lines.append(f"{'always the commonest':<22}{share(majority['accuracy']):>8}   ({label})")
    return lines


def _classes(per_class: list[Mapping[str, Any]]) -> list[str]:
    width = max(5, *(len(printable(c["label"])) for c in per_class[:_MOST_CLASSES]))
    width = min(width, 40)
    lines = [f"{'class':<{width}}  precision   recall       F1   images"]
    lines += [
        f"{printable(c['label'])[:width]:<{width}}  {share(c['precision']):>9} "
        f"{share(c['recall']):>8} {share(c['f1']):>8} {c['support']:>8}"
        for c in per_class[:_MOST_CLASSES]
    ]
    if len(per_class) > _MOST_CLASSES:
        lines.append(f"… and {len(per_class) - _MOST_CLASSES} more classes; --json has them all")
    return lines


def _confusions(metrics: Mapping[str, Any], most: int = 5) -> list[str]:
    names = [printable(c["label"]) for c in metrics["per_class"]]
    pairs = [
        (count, true, predicted)
        for true, row in enumerate(metrics["confusion_matrix"])
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    pairs.sort(key=lambda pair: (-pair[0], pair[1], pair[2]))
    return [f"{n:>5} × {names[t]} taken for {names[p]}" for n, t, p in pairs[:most]]
