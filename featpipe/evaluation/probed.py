"""What a probe has measured: the record, as JSON, and as a table for a person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featpipe._files import printable
from featpipe.evaluation.figures import Figures, interval, share
from featpipe.evaluation.protocols import Protocol


@dataclass(frozen=True, slots=True)
class Probe:
    """What `probe` has measured.

    Attributes
    ----------
    protocol : Protocol
    store : str
        Where it lies.
    backbone : str
    split : str
        The split that was measured on.
    classes : tuple of str
    images : mapping
        How many were fitted on while choosing (``train``), chosen on (``val``), learnt on in
        the end (``final``) and measured on (``measured``).
    chosen : float
        Value of the protocol's parameter that is best on the validation images.
    tried : tuple of (float, float)
        Each value, and its accuracy on the validation images.
    reported : tuple of (float, Figures)
        Values that are measured, and what came of it: the chosen one, or every k.
    without_learnt : Figures or None
        The same for the chosen value without images that are learnt on, too; None where there
        are no such images, or no others.
    majority : (str, float)
        The commonest training label, and the accuracy of always saying it.
    target : str or None
    seed : int
    notes : tuple of str
    """

    protocol: Protocol
    store: str
    backbone: str
    split: str
    classes: tuple[str, ...]
    images: Mapping[str, int]
    chosen: float
    tried: tuple[tuple[float, float], ...]
    reported: tuple[tuple[float, Figures], ...]
    without_learnt: Figures | None
    majority: tuple[str, float]
    target: str | None
    seed: int
    notes: tuple[str, ...]

    @property
    def figures(self) -> Figures:
        """What came of the chosen value."""
        return dict(self.reported)[self.chosen]

    @property
    def accuracy(self) -> float:
        """Share of the measured images that are labelled correctly, by the chosen value."""
        return self.figures.accuracy

    def __repr__(self) -> str:
        low, high = self.figures.intervals["accuracy"]
        return (
            f"Probe({self.protocol.name}, {self.figures.n_samples} images, accuracy "
            f"{self.accuracy:.3f} [{low:.3f}, {high:.3f}])"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``featpipe probe --json`` prints them."""
        name = self.protocol.parameter
        without = self.without_learnt
        return {
            "protocol": self.protocol.name,
            "source": self.protocol.source,
            "store": self.store,
            "backbone": self.backbone,
            "target": self.target,
            "seed": self.seed,
            "split": self.split,
            "classes": list(self.classes),
            "images": dict(self.images),
            "chosen": {name: self.chosen},
            "tried": [{name: value, "accuracy": accuracy} for value, accuracy in self.tried],
            "figures": self.figures.to_json(),
            "reported": [{name: value, **found.to_json()} for value, found in self.reported],
            "without_learnt": None if without is None else without.to_json(),
            "majority_class": {"label": self.majority[0], "accuracy": self.majority[1]},
            "notes": list(self.notes),
        }

    def table(self) -> str:
        """Return the figures laid out for a person."""
        images, name = self.images, self.protocol.parameter
        what = f"{self.protocol.name} on {printable(self.backbone)}: {len(self.classes)} classes"
        where = f"on {images['measured']} images"
        columns = f"{'accuracy':>9}  {'95 % interval':<17}{'mean per class':>14}  95 % interval"
        lines = [
            f"{what}, {images['final']:,} training images",
            self.protocol.source,
            f"{name} = {self.chosen:.3g}, by the accuracy on {images['val']:,} validation images",
            "",
            f"{where:<18}{columns}",
        ]
        many = len(self.reported) > 1
        for value, found in self.reported:
            mark = " *" if many and value == self.chosen else ""
            lines.append(f"{f'{name} = {value:.3g}{mark}':<18}{_row(found)}")
        if self.without_learnt is not None:
            count = self.without_learnt.n_samples
            lines.append(f"{f'on {count} not learnt':<18}{_row(self.without_learnt)}")
        label, always = self.majority
        lines.append(f"{'always the same':<18}{share(always):>9}  ({printable(label)})")
        return "\n".join(lines)


def _row(found: Figures) -> str:
    accuracy, by_class = (
        interval(found.intervals[name]) for name in ("accuracy", "mean_per_class_accuracy")
    )
    return (
        f"{share(found.accuracy):>9}  {accuracy:<17}"
        f"{share(found.mean_per_class_accuracy):>14}  {by_class}"
    )
