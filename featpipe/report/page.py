"""From contents to one HTML file: what is said, in which words; the form is the template's."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import shlex
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from featpipe._files import atomic_file, printable
from featpipe.errors import FeatpipeError
from featpipe.heads import Head, head_spec, load_head
from featpipe.pages import page_environment
from featpipe.quality.looks import first_rows
from featpipe.report import charts
from featpipe.report.contents import MOST_PAIRS, Contents, gather
from featpipe.report.maps import mistake_maps
from featpipe.report.pictures import COLUMNS, SPRITE, pictures, sprite_sheet
from featpipe.report.recorded import Recorded
from featpipe.store import EmbeddingStore
from featpipe.training import Trained
from featpipe.types import ProgressCallback

_MOST_CELLS = 20
"""Classes up to which the confusion matrix is a table of numbers."""
_MOST_CONFUSIONS = 12
_COVERAGES = (1.0, 0.9, 0.8, 0.5)
_VERSIONS = ("featpipe", "scikit-learn", "numpy", "onnxruntime-gpu", "onnxruntime", "pillow")


def write_report(
    head: Head | str | os.PathLike[str],
    store: EmbeddingStore | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    trained: Trained | None = None,
    head_path: str | os.PathLike[str] | None = None,
    progress: ProgressCallback | None = None,
) -> Path:
    """Write one self-contained HTML file on a head and the images it was fitted on.

    It opens offline and needs no script but for sorting, and for pictures on the map. Figures
    are those of `featpipe.fit`: from the split ``test`` (or ``val``), from images that were not
    learnt on, or from nested cross-validation, which is then made again.

    Parameters
    ----------
    head : Head or path
    store : EmbeddingStore or path
        Of the same backbone; its images are opened where they are still there.
    path : path
        The file to write; an existing one is replaced.
    trained : Trained, optional
        What `featpipe.training.train` gave, so that nothing is measured twice.
    head_path : path, optional
        Where the head was saved, for the page; known where ``head`` is a path.
    progress : callable, optional
        Called with a `Progress` now and then.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    FeatpipeError
        When the file's name does not end in ``.html``.
    FingerprintError
        When head and store come from different backbones.
    LabelError
        When there is no labelled image to measure on.
    WriteError
        When the file cannot be written.
    """
    if not _is_page(path):
        raise FeatpipeError(
            f"cannot write a report to {printable(str(path))}: give a name that ends in .html"
        )
    fitted = head if isinstance(head, Head) else load_head(head)
    saved = head_path if isinstance(head, Head) else head
    opened = store if isinstance(store, EmbeddingStore) else EmbeddingStore.open(store)
    contents = gather(fitted, opened, trained, progress)
    text = render(contents, None if saved is None else Path(saved), progress)
    with atomic_file(Path(path)) as file:
        file.write(text.encode("utf-8", "replace"))
    return Path(path)


def _is_page(path: str | os.PathLike[str]) -> bool:
    """Tell whether a name is one of a page; no other is written to."""
    return Path(path).suffix.lower() in {".html", ".htm"}


def render(
    contents: Contents, head_path: Path | None, progress: ProgressCallback | None = None
) -> str:
    """Return the page."""
    page = _Page(contents, head_path, progress)
    environment = page_environment("featpipe.report")
    return environment.get_template("page.html.j2").render(page.values())


class _Page:
    """What the template is given: names, numbers and drawings."""

    def __init__(
        self, contents: Contents, head_path: Path | None, progress: ProgressCallback | None
    ) -> None:
        self._contents, self._head_path, self._progress = contents, head_path, progress
        self._head, self._store = contents.head, contents.store
        self._all_pairs = list(_pairs(contents))
        self._pairs = self._all_pairs[:MOST_PAIRS]
        self._baselines = contents.record.baselines if contents.is_own else None
        self._pictures = pictures(self._store, list(self._shown_rows()))
        self._maps = mistake_maps(self._head, self._store, contents.mistakes)

    def _shown_rows(self) -> Iterator[int]:
        for mistake in self._contents.mistakes:
            yield mistake.row
            yield from (row for row, _ in mistake.nearest)
        yield from (suspect.row for suspect in self._contents.suspects)
        for pair in self._pairs:
            yield from pair["rows"]

    def values(self) -> dict[str, Any]:
        """Return everything that the template names."""
        contents, head = self._contents, self._head
        estimate = contents.estimate.to_json()
        return {
            "title": f"{head.name} on {printable(str(head.backbone['name']))}",
            "source": printable(self._store.source),
            "made": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "kind": head_spec(head.name).title,
            "classes": [printable(name) for name in head.classes],
            "n_learnt": sum(head.class_counts),
            "estimate": estimate,
            "rest": next((estimate[k] for k in _RESTS if estimate.get(k)), None),
            "rest_words": _rest_words(estimate),
            "notes": [printable(note) for note in contents.notes],
            "is_own": contents.is_own,
            "baselines": self._baselines,
            "baseline_chart": self._baseline_chart(),
            "confusion": self._confusion(),
            "confusions": list(self._confusions()),
            "per_class": list(self._per_class()),
            "reliability": charts.reliability_chart(contents.y, contents.probabilities),
            "coverage": charts.coverage_chart(contents.y, contents.probabilities),
            "coverages": list(self._coverages()),
            "calibration": contents.record.calibrated,
            "mistakes": [self._mistake(mistake) for mistake in contents.mistakes],
            "maps": self._maps,
            "is_nested": contents.estimate.probabilities is not None,
            "n_mistakes": estimate["n_samples"]
            - int(np.trace(contents.estimate.metrics.confusion)),
            "suspects": [self._suspect(suspect) for suspect in contents.suspects],
            "duplicates": [self._pair(pair) for pair in self._pairs],
            "n_pairs": len(self._all_pairs),
            "quality": contents.quality.to_json(),
            "looked": contents.quality.near is not None,
            "map": self._map(),
            "curve": contents.curve
            and {
                "chart": charts.curve_chart(contents.curve),
                "words": contents.curve.words,
                "points": contents.curve.points,
            },
            "repeat": self._repeat(),
        }

    def _baseline_chart(self) -> Markup | None:
        found = self._baselines
        if not found:
            return None
        low, high = found["interval_95"]
        ours = charts.Bar(f"{self._head.name}, transfer", found["accuracy"], low, high, True)
        others = [
            charts.Bar(b["name"], b["accuracy"], *b["interval_95"]) for b in found["baselines"]
        ]
        return charts.bars("Accuracy with and without transfer", [ours, *others])

    def _confusion(self) -> dict[str, Any]:
        counts = np.array(self._contents.estimate.metrics.confusion)
        if len(counts) > _MOST_CELLS:
            names = [printable(name) for name in self._head.classes]
            return {"chart": charts.heatmap(counts, names)}
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        return {
            "rows": [
                [(int(n), round(float(share), 3)) for n, share in zip(row, of_row, strict=True)]
                for row, of_row in zip(counts, shares, strict=True)
            ]
        }

    def _confusions(self) -> Iterator[tuple[int, str, str]]:
        counts = np.array(self._contents.estimate.metrics.confusion)
        np.fill_diagonal(counts, 0)
        for at in np.argsort(-counts, axis=None, kind="stable")[:_MOST_CONFUSIONS].tolist():
            row, column = divmod(at, len(counts))
            if counts[row, column]:
                classes = self._head.classes
                yield int(counts[row, column]), printable(classes[row]), printable(classes[column])

    def _per_class(self) -> Iterator[dict[str, Any]]:
        counts = np.array(self._contents.estimate.metrics.confusion)
        np.fill_diagonal(counts, 0)
        for at, found in enumerate(self._contents.estimate.metrics.per_class):
            most = int(counts[at].argmax())
            yield {
                "name": printable(found.label),
                "learnt": self._head.class_counts[at],
                "support": found.support,
                "precision": found.precision,
                "recall": found.recall,
                "f1": found.f1,
                "confused": printable(self._head.classes[most]) if counts[at, most] else "",
                "confused_count": int(counts[at, most]),
            }

    def _coverages(self) -> Iterator[tuple[float, int, float]]:
        answered, accuracy = charts.coverage(self._contents.y, self._contents.probabilities)
        for share in _COVERAGES:
            count = max(1, round(share * len(answered)))
            yield share, count, float(accuracy[count - 1])

    def _image(self, row: int) -> dict[str, Any]:
        label = self._contents.labels[row]
        return {
            "path": printable(self._store.paths[row]),
            "label": "" if label is None else printable(str(label)),
            "picture": self._pictures.get(row),
        }

    def _mistake(self, mistake: Any) -> dict[str, Any]:
        classes = self._head.classes
        return {
            **self._image(mistake.row),
            "maps": self._maps.pairs.get(mistake.row),
            "predicted": printable(classes[mistake.predicted]),
            "probability": mistake.probability,
            "given_probability": mistake.given_probability,
            "nearest": [{**self._image(row), "cosine": cosine} for row, cosine in mistake.nearest],
        }

    def _suspect(self, suspect: Any) -> dict[str, Any]:
        return {
            **self._image(suspect.row),
            "suggested": printable(suspect.suggested),
            "confidence": suspect.confidence,
        }

    def _pair(self, pair: Mapping[str, Any]) -> dict[str, Any]:
        return {**pair, "images": [self._image(row) for row in pair["rows"]]}

    def _map(self) -> dict[str, Any]:
        found, labels = self._contents.map, self._contents.labels
        order = np.argsort([-n for n in self._head.class_counts], kind="stable").tolist()
        coloured = {self._head.classes[k]: at for at, k in enumerate(order[: charts.N_COLOURS])}
        names = ["" if labels[row] is None else str(labels[row]) for row in found.rows]
        colours = [coloured.get(name, charts.N_COLOURS) for name in names]
        paths = [self._store.paths[row] for row in found.rows.tolist()]
        titles = [
            f"{printable(name)}: {printable(path)}" for name, path in zip(names, paths, strict=True)
        ]
        sheet = sprite_sheet(self._store, found.rows.tolist(), self._progress)
        legend = [(at, printable(name)) for name, at in coloured.items()]
        if charts.N_COLOURS in colours:
            legend.append((charts.N_COLOURS, "other classes"))
        return {
            "chart": charts.scatter(found.places, colours, titles),
            "method": found.method,
            "images": len(found.rows),
            "legend": legend,
            "sheet": None if sheet is None else sheet[0],
            "there": "" if sheet is None else json.dumps([int(v) for v in sheet[1]]),
            "columns": min(COLUMNS, max(1, len(found.rows))),
            "side": SPRITE,
        }

    def _repeat(self) -> dict[str, Any]:
        contents, head, store = self._contents, self._head, self._store
        place = shlex.quote(printable(str(store.path)))
        model = shlex.quote(printable(str(head.backbone["name"])))
        source = shlex.quote(printable(store.source))
        digest = head.report.get("data", {}).get("digest", "")
        return {
            "commands": [
                f"featpipe embed {source} --model {model} -o {place}",
                " ".join(["featpipe fit", place, "--head", head.name, *_options(contents.record)]),
            ],
            "facts": [
                ("Head", str(self._head_path) if self._head_path else head.name),
                ("Parameters", ", ".join(f"{k} = {v:g}" for k, v in head.parameters.items())),
                ("Backbone", f"{head.backbone['name']} ({head.backbone.get('weights', '')})"),
                ("Licence of the weights", str(head.backbone.get("license", ""))),
                ("Fingerprint", head.fingerprint),
                ("Images learnt on", str(sum(head.class_counts))),
                ("Digest of these", str(digest)),
                ("Versions", ", ".join(_versions())),
            ],
        }


def _options(record: Recorded) -> Iterator[str]:
    """Yield what `featpipe fit` was asked for, as its options."""
    if record.target is not None:
        yield f"--target {shlex.quote(printable(record.target))}"
    yield f"--cv {record.cv} --seed {record.seed} --calibration {record.calibration}"
    yield from (
        flag
        for flag, is_so in (
            ("--no-tune", not record.tune),
            ("--no-check", not record.check),
            ("--stream", record.in_passes),
        )
        if is_so
    )


_RESTS = ("without_training_images", "without_copies")


def _rest_words(estimate: Mapping[str, Any]) -> str:
    for name, words in zip(
        _RESTS, ("copies of training images", "copies of other images"), strict=True
    ):
        if estimate.get(name):
            count = estimate["n_samples"] - estimate[name]["n_samples"]
            return f"without the {count:,} images that are {words}"
    return ""


def _pairs(contents: Contents) -> Iterator[dict[str, Any]]:
    """Yield pairs of equal images, then of copies: first those across what is measured on."""
    store, near = contents.store, contents.quality.near
    held = set() if contents.division.held is None else set(contents.division.held.tolist())
    used = held | set(contents.division.train.tolist())
    firsts = first_rows(store)
    found = [
        (int(firsts[row]), row, "the same bytes")
        for row in np.flatnonzero(firsts != np.arange(len(firsts))).tolist()
    ]
    if near is not None:
        found += [
            (i, j, f"cosine {cosine:.3f}, {bits} of 63 bits apart")
            for (i, j), cosine, bits in zip(
                near.pairs.tolist(), near.cosines.tolist(), near.bits.tolist(), strict=True
            )
        ]
    for is_across in (True, False):
        for i, j, detail in found:
            if i in used and j in used and ((i in held) != (j in held)) == is_across:
                yield {"rows": (i, j), "detail": detail, "is_leak": is_across}


def _versions() -> Iterator[str]:
    yield f"Python {platform.python_version()}"
    for name in _VERSIONS:
        try:
            yield f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
