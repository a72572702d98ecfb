"""The demo from end to end: unpack, embed, fit, compare, score, draw."""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featpipe._files import printable, unescape_path
from featpipe.backbones import Backbone, load_backbone
from featpipe.demo.dataset import DemoFolder, unpack
from featpipe.demo.picture import draw_picture
from featpipe.demo.result import Accuracy, Answer, Comparison, DemoResult, NewImage
from featpipe.embedding import EmbedOptions, EmbedReport, run_embedding
from featpipe.heads import Head
from featpipe.scoring import score
from featpipe.store import EmbeddingStore
from featpipe.training import fit
from featpipe.types import ProgressCallback

HEADS = ("logreg", "svm", "knn")
"""The first one scores the new images."""

FOLDS = 3
"""Of tuning, on vectors and on raw pixels alike. Five gave the same figures on vectors and cost
several seconds more, most of them in a linear SVM that hardly converges on raw pixels."""

DEFAULT_FOLDER = "featpipe-demo"


@dataclass(frozen=True, slots=True)
class DemoEvent:
    """A step that is done: its name, and a sentence of what came of it."""

    step: str
    message: str


EventCallback = Callable[[DemoEvent], None]


def run_demo(
    folder: str | os.PathLike[str] = DEFAULT_FOLDER,
    *,
    on_event: EventCallback | None = None,
    progress: ProgressCallback | None = None,
) -> DemoResult:
    """Write the demo's images into ``folder``, learn from them, and measure.

    A second run keeps images and vectors, and computes only what is missing.

    Parameters
    ----------
    folder : path
        New, empty, or left by an earlier demo.
    on_event : callable, optional
        Called with a `DemoEvent` after every step.
    progress : callable, optional
        Called with a `Progress` while images are embedded.

    Raises
    ------
    WriteError
        When the folder holds other things, or the operating system refuses to write.

    Examples
    --------
    >>> run_demo("featpipe-demo").comparisons[0].vectors.value > 0.9    # doctest: +SKIP
    True
    """
    begun = time.monotonic()
    tell = _teller(on_event)
    place = unpack(Path(folder))
    tell("images", _images(place))
    baseline = _embed_raw_pixels(place)
    report = _embed(place, load_backbone(), "auto", progress)
    tell("vectors", f"{_vectors(report)}; {report.device}")
    heads = place.root / "heads"
    comparisons, head_path, head = _compare(report.store, baseline, heads, tell)
    output = place.root / "predictions.csv"
    new = _score(place, head, output)
    tell("predictions", f"{len(new)} new images → {_shown(output)}")
    answers = _answers(report.store, head, place.images)
    result = DemoResult(
        folder=place.root,
        backbone=report.store.manifest.name,
        images=report.images,
        computed=report.computed,
        comparisons=comparisons,
        chance=float(head.metrics["majority_class"]["accuracy"]),
        answers=answers,
        new=new,
        head=head_path,
        predictions=output,
        picture=place.root / "demo.png",
        seconds=time.monotonic() - begun,
    )
    draw_picture(result, result.picture)
    tell("picture", f"confusion matrix with examples → {_shown(result.picture)}")
    return result


def _teller(on_event: EventCallback | None) -> Callable[[str, str], None]:
    def tell(step: str, message: str) -> None:
        if on_event is not None:
            on_event(DemoEvent(step, message))

    return tell


def _images(place: DemoFolder) -> str:
    where = _shown(place.root)
    if not place.written:
        return f"{place.kept} images of eight surfaces are there already → {where}"
    return f"{place.written + place.kept} images of eight surfaces → {where}"


def _vectors(report: EmbedReport) -> str:
    if not report.computed:
        return f"{report.images} images unchanged and not opened"
    rate = report.computed / max(report.seconds, 1e-9)
    return f"{report.computed} images embedded ({rate:,.0f}/s)"


def _embed(
    place: DemoFolder, backbone: Backbone, device: str, progress: ProgressCallback | None = None
) -> EmbedReport:
    store = place.root / "embeddings" / f"images-{backbone.name}"
    options = EmbedOptions(device=device, strict=True)
    return run_embedding(place.images, backbone, output=store, options=options, progress=progress)


def _embed_raw_pixels(place: DemoFolder) -> EmbeddingStore:
    """Embed with the pixels themselves; first, so that `newest_store` finds the other store."""
    return _embed(place, load_backbone("raw_pixels"), "cpu").store


def _compare(
    store: EmbeddingStore,
    baseline: EmbeddingStore,
    folder: Path,
    tell: Callable[[str, str], None],
) -> tuple[tuple[Comparison, ...], Path, Head]:
    """Fit every head on both stores; keep those on vectors, the one that scores as the newest."""
    comparisons: list[Comparison] = []
    for name in reversed(HEADS):
        head = fit(store, name, cv=FOLDS, baselines=False)
        raw = fit(baseline, name, cv=FOLDS, check=False)
        path = folder / f"{store.name}-{name}"
        head.save(path)
        comparisons.insert(0, Comparison(name, _accuracy(head), _accuracy(raw)))
        tell("head", f"{name} tuned on vectors and on raw pixels → {_shown(path)}")
    return tuple(comparisons), path, head


def _accuracy(head: Head) -> Accuracy:
    """Return what `fit` has measured on the split ``test``, which it looks at once, at the end."""
    low, high = head.metrics["intervals_95"]["accuracy"]
    return Accuracy(float(head.metrics["accuracy"]), float(low), float(high))


def _answers(store: EmbeddingStore, head: Head, images: Path) -> tuple[Answer, ...]:
    held_out = np.flatnonzero(store.splits == "test")
    truths, labels = store.labels()[held_out], head.predict(np.asarray(store.X)[held_out])
    return tuple(
        Answer(images / store.paths[row], str(truth), str(label))
        for row, truth, label in zip(held_out, truths, labels, strict=True)
    )


def _score(place: DemoFolder, head: Head, output: Path) -> tuple[NewImage, ...]:
    score(place.new, head, output=output)
    with output.open(encoding="utf-8", newline="") as file:
        return tuple(
            NewImage(
                place.new / unescape_path(row["path"]), row["label"], float(row["probability"])
            )
            for row in csv.DictReader(file)
            if row["label"]
        )


def _shown(path: Path) -> str:
    return printable(str(path))
