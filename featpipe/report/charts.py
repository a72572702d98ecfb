"""Charts as plain SVG: they need no script, scale with the page, and take its colours.

Colours are CSS variables of the page, so that one drawing serves light and dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from featpipe.evaluation.learning_curve import LearningCurve
from featpipe.metrics import reliability

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

N_COLOURS = 10
"""Classes with a colour of their own on the map; the others share a grey."""
_WIDTH, _HEIGHT = 480, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 82, 26, 16, 48
_BAR = 44
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class Bar:
    """A share with its interval, and its name."""

    name: str
    value: float
    low: float
    high: float
    is_ours: bool = False


def bars(title: str, items: Sequence[Bar]) -> Markup:
    """Draw shares as horizontal bars, with their intervals as whiskers."""
    height = _BAR * len(items) + _BOTTOM
    left, right = 150, _WIDTH - 62
    span = right - left
    parts = [
        _line(left + span * t, 4, left + span * t, _BAR * len(items) + 4, "grid")
        + _text(left + span * t, height - 22, f"{100 * t:.0f} %", "tick")
        for t in _TICKS
    ]
    for at, item in enumerate(items):
        y = _BAR * at + 12
        css = "ours" if item.is_ours else "other"
        middle = y + 12
        parts += [
            _text(left - 8, middle + 5, _short(item.name), "name"),
            f'<rect class="{css}" x="{left}" y="{y}" width="{span * item.value:.1f}" height="24"/>',
            _line(left + span * item.low, middle, left + span * item.high, middle, "whisker"),
            _text(right + 8, middle + 5, f"{100 * item.value:.1f}", "value"),
        ]
    said = "; ".join(
        f"{b.name} {100 * b.value:.1f} % ({100 * b.low:.1f} to {100 * b.high:.1f} %)" for b in items
    )
    return _svg(title, said, height, parts)


def reliability_chart(y: Ints, probabilities: Floats) -> Markup:
    """Draw how often labels are right against how probable they were said to be."""
    edges, confidence, accuracy, share = reliability(y, probabilities)
    filled = share > 0
    parts = [*_axes("probability of the label", "share that is right")]
    width = (_WIDTH - _LEFT - _RIGHT) / len(edges)
    for edge, part in zip(edges, share, strict=True):
        height = part * (_HEIGHT - _TOP - _BOTTOM)
        parts.append(
            f'<rect class="share" x="{_x(edge):.1f}" y="{_y(0) - height:.1f}" '
            f'width="{width - 1:.1f}" height="{height:.1f}"/>'
        )
    parts.append(_line(_x(0), _y(0), _x(1), _y(1), "ideal"))
    points = list(zip(confidence[filled], accuracy[filled], strict=True))
    parts.append(_path(points, "thin"))
    # What few images say of themselves is mostly chance: small dots.
    parts += [
        f'<circle class="dot" cx="{_x(x):.1f}" cy="{_y(y):.1f}" r="{2 + 10 * np.sqrt(part):.1f}"/>'
        for (x, y), part in zip(points, share[filled], strict=True)
    ]
    said = "; ".join(f"said {100 * c:.0f} %, right {100 * a:.0f} %" for c, a in points)
    return _svg("Reliability: what is said against what is true", said, _HEIGHT, parts)


def coverage(y: Ints, probabilities: Floats) -> tuple[Floats, Floats]:
    """Return the share of images that are answered, the surest first, and the accuracy on them."""
    right = probabilities.argmax(axis=1) == y
    order = np.argsort(-probabilities.max(axis=1), kind="stable")
    count = np.arange(1, len(y) + 1)
    return count / len(y), np.cumsum(right[order]) / count


def coverage_chart(y: Ints, probabilities: Floats) -> Markup:
    """Draw the accuracy on the images that the head is surest of, by how many these are."""
    answered, accuracy = coverage(y, probabilities)
    # What few images show is chance; and a line of ten thousand points is no clearer.
    start = min(len(answered) - 1, max(9, len(answered) // 20))
    at = np.unique(np.linspace(start, len(answered) - 1, 200).astype(int))
    low = min(0.5, float(np.floor(10 * accuracy[at].min()) / 10))
    parts = [*_axes("share of the images that is answered", "accuracy on these", low)]
    points = [(answered[i], (accuracy[i] - low) / (1 - low)) for i in at]
    parts.append(_path(points, "trace"))
    said = "; ".join(
        f"{100 * answered[i]:.0f} % answered, {100 * accuracy[i]:.1f} % right"
        for i in at[:: max(1, len(at) // 8)]
    )
    return _svg("Accuracy against coverage", said, _HEIGHT, parts)


def curve_chart(curve: LearningCurve) -> Markup:
    """Draw the accuracy by the number of images that were learnt on."""
    first, last = np.log2(curve.points[0].images), np.log2(curve.points[-1].images)
    span = max(float(last - first), 1e-9)
    low = min(0.9, float(np.floor(10 * min(point.low for point in curve.points)) / 10))
    parts = [*_axes("images that were learnt on", "accuracy", low, x_ticks=False)]
    points = []
    for point in curve.points:
        x = 0.04 + 0.92 * float(np.log2(point.images) - first) / span
        worst, mean, best = ((v - low) / (1 - low) for v in (point.low, point.mean, point.high))
        parts.append(_line(_x(x), _y(worst), _x(x), _y(best), "whisker"))
        parts.append(_text(_x(x), _HEIGHT - 28, f"{point.images:,}", "tick"))
        points.append((x, mean))
    parts += _trace(points)
    said = "; ".join(f"{p.images:,} images, {100 * p.mean:.1f} %" for p in curve.points)
    return _svg("Learning curve", said, _HEIGHT, parts)


def scatter(places: Floats, colours: Sequence[int], names: Sequence[str]) -> Markup:
    """Draw images as points; each has its name as a title, and its number for the script."""
    side, margin = 720, 12
    radius = 5 if len(places) <= 1000 else 3.5 if len(places) <= 4000 else 2.5
    parts = []
    for at, ((x, y), colour, name) in enumerate(zip(places, colours, names, strict=True)):
        parts.append(
            f'<circle class="c{colour}" data-at="{at}" r="{radius}" '
            f'cx="{margin + x * (side - 2 * margin):.1f}" '
            f'cy="{margin + (1 - y) * (side - 2 * margin):.1f}"><title>{escape(name)}</title>'
            "</circle>"
        )
    body = "".join(parts)
    # No text and no rows: a reader of the screen is told what the page says beside it.
    return _markup(
        f'<svg id="map" viewBox="0 0 {side} {side}" role="img" '
        f'aria-label="Map of {len(places)} images">{body}</svg>'
    )


def heatmap(confusion: Ints, classes: Sequence[str]) -> Markup:
    """Draw a confusion matrix of many classes: rows are true classes."""
    n = len(classes)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = 600 / n
    parts = ['<rect class="empty" x="0" y="0" width="600" height="600"/>']
    for row, column in zip(*np.nonzero(confusion), strict=True):
        share = shares[row, column]
        label = f"{classes[row]} taken for {classes[column]}: {confusion[row, column]}"
        if row == column:
            label = f"{classes[row]}: {confusion[row, column]} right"
        parts.append(
            f'<rect class="{"hit" if row == column else "miss"}" x="{column * side:.2f}" '
            f'y="{row * side:.2f}" width="{side:.2f}" height="{side:.2f}" '
            f'fill-opacity="{0.12 + 0.88 * share:.2f}"><title>{escape(label)}</title></rect>'
        )
    return _markup(
        f'<svg viewBox="0 0 600 600" role="img" aria-label="Confusion matrix of {n} classes; the '
        f'table below has the commonest confusions">{"".join(parts)}</svg>'
    )


def _axes(x_title: str, y_title: str, low: float = 0.0, *, x_ticks: bool = True) -> list[str]:
    parts = []
    step = 0.25 if low == 0 else 0.2 if low < 0.4 else 0.1 if low < 0.8 else 0.05
    for value in np.arange(1.0, low - 1e-6, -step):
        y = _y((value - low) / (1 - low))
        parts.append(_line(_x(0), y, _x(1), y, "grid"))
        parts.append(_text(_LEFT - 8, y + 5, f"{100 * value:.0f} %", "name"))
    if x_ticks:
        parts += [_text(_x(t), _HEIGHT - 28, f"{100 * t:.0f} %", "tick") for t in _TICKS]
    parts.append(_text((_x(0) + _x(1)) / 2, _HEIGHT - 8, x_title, "tick"))
    middle = (_y(0) + _y(1)) / 2
    parts.append(
        f'<text class="tick" transform="translate(16 {middle:.0f}) rotate(-90)">'
        f"{escape(y_title)}</text>"
    )
    return parts


def _trace(points: Sequence[tuple[float, float]]) -> list[str]:
    dots = [f'<circle class="dot" cx="{_x(x):.1f}" cy="{_y(y):.1f}" r="4"/>' for x, y in points]
    return [_path(points, "trace"), *dots]


def _path(points: Sequence[tuple[float, float]], css: str) -> str:
    steps = " ".join(f"{_x(x):.1f},{_y(y):.1f}" for x, y in points)
    return f'<polyline class="{css}" points="{steps}"/>'


def _x(value: float) -> float:
    return _LEFT + value * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float) -> float:
    return _HEIGHT - _BOTTOM - value * (_HEIGHT - _TOP - _BOTTOM)


def _line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, css: str) -> str:
    return f'<text class="{css}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _short(name: str, most: int = 20) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _svg(title: str, said: str, height: int, parts: Sequence[str]) -> Markup:
    body = "".join(parts)
    return _markup(
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}: {escape(said)}">{body}</svg>'
    )


def _markup(drawing: str) -> Markup:
    """Hand a drawing to the page as it is: all that came from outside was escaped there."""
    return Markup(drawing)  # noqa: S704
