"""Numbers of a map in words, the same in every output."""

from __future__ import annotations

from collections.abc import Iterator

from featpipe._files import printable
from featpipe.inspection.records import MEANING, TITLES, ClassMap, Explained, Explanation


def percent(share: float) -> str:
    """Return a share in per cent.

    >>> percent(0.98214)
    '98.2 %'
    """
    return f"{100 * share:.1f} %"


def signed(value: float) -> str:
    r"""Return a number with its sign, three digits of it.

    >>> signed(12.345), signed(0.0), signed(-0.1234).replace("\N{MINUS SIGN}", "minus ")
    ('+12.3', '0', 'minus 0.123')
    """
    return "0" if value == 0 else f"{value:+.3g}".replace("-", "\N{MINUS SIGN}")


def sum_words(shown: ClassMap) -> str:
    """Say what a map and its bias come to."""
    if shown.bias is None:
        return f"{shown.measure} {signed(shown.score)}"
    bias = signed(shown.bias)
    return f"{signed(shown.total)} {bias[:1]} {bias[1:]} bias = {signed(shown.score)}"


def methods(explanation: Explanation) -> list[str]:
    """Say how the maps were made, each way once."""
    used = [i.seen.predicted.measure for i in explanation.images if i.seen is not None]
    return [MEANING[measure] for measure in dict.fromkeys(used)]


def lines(explanation: Explanation) -> Iterator[str]:
    """Yield a line an image, for a terminal."""
    for image in explanation.images:
        yield printable(f"{image.path}: {_said(image)}")


def _said(image: Explained) -> str:
    seen = image.seen
    if seen is None:
        return f"{image.status} ({image.reason})"
    first, second = seen.predicted, seen.runner_up
    x, y = first.peak
    said = (
        f"{first.label} {percent(first.probability)}, then {second.label} "
        f"{percent(second.probability)}; {TITLES[seen.method]}: most for {first.label} "
        f"at x {x:.0f}, y {y:.0f} of {seen.width} × {seen.height}"
    )
    if not seen.nearest:
        return said
    near = ", ".join(f"{near.label} {near.cosine:.2f}" for near in seen.nearest)
    return f"{said}; nearest: {near}"
