"""What the demo found out, as records and as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Accuracy on held-out images, 0 to 1, and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % ({100 * self.low:.1f}–{100 * self.high:.1f})"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One head on the backbone's vectors, and the same head on raw pixels."""

    head: str
    vectors: Accuracy
    raw_pixels: Accuracy


@dataclass(frozen=True, slots=True)
class Answer:
    """What the head says of one held-out image whose class is known."""

    path: Path
    truth: str
    label: str


@dataclass(frozen=True, slots=True)
class NewImage:
    """What the head says of one new image, and how probable it holds it."""

    path: Path
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What one run of the demo has made and measured.

    Attributes
    ----------
    folder : Path
        Everything lies below it.
    backbone : str
        Name of the built-in backbone.
    images, computed : int
        Labelled images, and how many of them went through the backbone in this run.
    comparisons : tuple of Comparison
        One a head, best known first.
    chance : float
        Accuracy of always naming the most frequent class.
    answers : tuple of Answer
        Of the head that scores the new images, on the held-out ones.
    new : tuple of NewImage
    head, predictions, picture : Path
        The head's folder, the CSV file and the picture.
    seconds : float
        Of the whole run.
    """

    folder: Path
    backbone: str
    images: int
    computed: int
    comparisons: tuple[Comparison, ...]
    chance: float
    answers: tuple[Answer, ...]
    new: tuple[NewImage, ...]
    head: Path
    predictions: Path
    picture: Path
    seconds: float

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, sorted."""
        return tuple(sorted({answer.truth for answer in self.answers}))

    def confusion(self) -> NDArray[np.int64]:
        """Count the held-out images by true class (rows) and answer (columns)."""
        at = {name: number for number, name in enumerate(self.classes)}
        counts = np.zeros((len(at), len(at)), np.int64)
        for answer in self.answers:
            counts[at[answer.truth], at[answer.label]] += 1
        return counts

    def table(self) -> str:
        """Return the table of accuracies, and below it what they are worth."""
        title = f"Accuracy on {len(self.answers)} held-out images (95 % interval)"
        rows = [("head", self.backbone, "raw pixels")]
        rows += [(c.head, str(c.vectors), str(c.raw_pixels)) for c in self.comparisons]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["   ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in rows]
        rule = "   ".join("─" * width for width in widths)
        below = (
            f"Always naming the most frequent class: {100 * self.chance:.1f} %.",
            "The images are crops of eight photographs: left halves to learn, right ones to test.",
        )
        return "\n".join(
            line.rstrip() for line in (title, "", lines[0], rule, *lines[1:], "", *below)
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``featpipe demo --json`` prints them."""
        return {
            "folder": str(self.folder),
            "backbone": self.backbone,
            "images": self.images,
            "computed": self.computed,
            "accuracy": [asdict(comparison) for comparison in self.comparisons],
            "chance": self.chance,
            "classes": list(self.classes),
            "confusion": self.confusion().tolist(),
            "new": [{**asdict(image), "path": str(image.path)} for image in self.new],
            "head": str(self.head),
            "predictions": str(self.predictions),
            "picture": str(self.picture),
            "seconds": round(self.seconds, 3),
        }
