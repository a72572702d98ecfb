"""Equal images under two labels: a mistake in the labels that no classifier can make good."""

from __future__ import annotations

from collections.abc import Iterable

from featpipe._files import printable
from featpipe.types import Key

_SHOWN = 3


def label_conflicts(images: Iterable[tuple[Key | None, str, str | None]]) -> list[str]:
    """Name the images that have equal contents and different labels.

    Parameters
    ----------
    images : iterable of (key, path, label)
        Images without a key or a label are passed over.

    Returns
    -------
    list of str
        One sentence, or none.
    """
    first: dict[Key, tuple[str, str]] = {}
    clashes: list[str] = []
    for key, path, label in images:
        if key is None or label is None:
            continue
        other_path, other_label = first.setdefault(key, (path, label))
        if other_label != label:
            pair = f"{_named(other_path, other_label)} = {_named(path, label)}"
            clashes.append(pair)
    if not clashes:
        return []
    more = f" and {len(clashes) - _SHOWN} more" if len(clashes) > _SHOWN else ""
    shown = "; ".join(clashes[:_SHOWN])
    return [f"equal images under two labels: {shown}{more}: correct one label"]


def _named(path: str, label: str) -> str:
    return f"{printable(path)} ({printable(label)})"
