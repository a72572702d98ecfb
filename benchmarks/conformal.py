"""Sets of labels: how often they hold the true label, against the promise, and how large they are.

    PYTHONPATH=. FEATPIPE_SHARED=… python benchmarks/conformal.py [--splits 20]

Held-out split  Each data set's own: what a head of its training split covers there. Whoever split
brain_mri put other patients into Testing, and nothing is promised for those.

Random splits  70 % to learn on and 30 % to measure on, drawn by units, so that equal images stay
together; of brain_mri's Training alone. Images of both sides are exchangeable, as the promise
wants it. Means over the splits, with the standard error of the mean.

Ways  The same splits, by images alone, with what featpipe does changed in one thing: the five folds
of tuning in place of more, and with it the calibrator fitted without the fold; or another
score, the sum of probabilities down to the label (APS, Romano, Sesia, Candès 2020, without their
draw of chance), and that with a penalty on large sets (RAPS, Angelopoulos et al. 2021, 0.01 a
further label).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import featpipe
from featpipe.conformal import fit_conformal, within
from featpipe.heads import head_spec
from featpipe.heads.registry import class_scores
from featpipe.labelled import LabelledRows, labelled_rows
from featpipe.model_selection import Fitted, fit_tuned, make_folds, unseen_by_folds
from featpipe.model_selection.calibrating import _FITS, _held_out
from featpipe.model_selection.tuning import held_out_scores
from featpipe.splits import divide
from featpipe.store import EmbeddingStore

DATA = ("hymenoptera_data", "clothing_small", "brain_mri")
COVERAGES = (0.8, 0.9, 0.95)
FOLDS, SHARE = 5, 0.3
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Scores = Callable[[Floats], Floats]


def stores(folder: Path) -> Iterator[tuple[str, EmbeddingStore]]:
    """Yield the vectors of each data set; embed those that the folder lacks."""
    for name in DATA:
        path = folder / name
        if not path.exists():
            featpipe.embed(
                Path(os.environ["FEATPIPE_SHARED"]) / "datasets" / name, output=path, device="cpu"
            )
        yield name, EmbeddingStore.open(path)


def tuned(rows: LabelledRows, at: Ints, head: str) -> Fitted:
    folds = make_folds(rows.y[at], rows.units[at], FOLDS, 0, rows.classes)
    return fit_tuned(head_spec(head), rows.X[at], rows.y[at], folds, calibration="auto")


def unseen(rows: LabelledRows, at: Ints, head: str, fitted: Fitted) -> Floats:
    spec = head_spec(head)
    y, units = rows.y[at], rows.units[at]
    return unseen_by_folds(
        spec, fitted, rows.X[at], y, units, rows.classes, n_splits=FOLDS
    ).probabilities


def new(fitted: Fitted, X: NDArray[np.float32]) -> Floats:
    return fitted.calibrator.probabilities(class_scores(fitted.pipeline, X))


def figures(inside: NDArray[np.bool_], y: Ints) -> tuple[float, float, float]:
    """Return coverage, mean size, share of empty sets."""
    sizes = inside.sum(axis=1)
    return (
        float(inside[np.arange(len(y)), y].mean()),
        float(sizes.mean()),
        float((sizes == 0).mean()),
    )


def sets_of(
    rows: LabelledRows, at: Ints, known: Floats, asked: Floats, coverage: float, per_class: bool
) -> Any:
    found = fit_conformal(known, rows.y[at], rows.units[at])
    return within(asked, found.limits(coverage, per_class=per_class))


def resplit(rows: LabelledRows, seed: int) -> tuple[Ints, Ints]:
    names = np.unique(rows.units)
    drawn = np.random.default_rng(seed).permutation(names)[: int(SHARE * len(names))]
    is_held = np.isin(rows.units, drawn)
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def own_split(name: str, store: EmbeddingStore, heads: list[str]) -> dict[str, Any]:
    division = divide(store, store.labels())
    assert division.held is not None
    rows = labelled_rows(store, division.train)
    places = {label: k for k, label in enumerate(rows.classes)}
    y = np.array([places[label] for label in store.labels()[division.held]])
    X, every = store.read(division.held), np.arange(len(rows.y))
    results = {}
    for head in heads:
        fitted = tuned(rows, every, head)
        known, asked = unseen(rows, every, head, fitted), new(fitted, X)
        for per_class in (False, True):
            found = [
                figures(sets_of(rows, every, known, asked, c, per_class), y) for c in COVERAGES
            ]
            results[f"{head}{', per class' if per_class else ''}"] = found
            cells = " | ".join(f"{100 * a:.1f} % | {size:.2f}" for a, size, _ in found)
            where = f"{name}, {division.held_name} ({len(y)})"
            print(
                f"| {where} | {head} | {'each class' if per_class else 'all'} | {cells} |",
                flush=True,
            )
    return results


def random_splits(
    name: str, store: EmbeddingStore, heads: list[str], splits: int
) -> dict[str, Any]:
    rows = everything(name, store)
    results = {}
    for head in heads:
        runs: dict[bool, list[Any]] = {False: [], True: []}
        for seed in range(splits):
            fit, held = resplit(rows, seed)
            fitted = tuned(rows, fit, head)
            known, asked = unseen(rows, fit, head, fitted), new(fitted, rows.X[held])
            for per_class, found in runs.items():
                found.append(
                    [
                        figures(sets_of(rows, fit, known, asked, c, per_class), rows.y[held])
                        for c in COVERAGES
                    ]
                )
        for per_class, found in runs.items():
            results[f"{head}{', per class' if per_class else ''}"] = np.mean(found, axis=0).tolist()
            what = "each class" if per_class else "all"
            print(f"| {name} | {head} | {what} | {mean_cells(np.array(found))} |", flush=True)
    return results


def everything(name: str, store: EmbeddingStore) -> LabelledRows:
    """Return all images; of brain_mri, whose splits are different patients, Training alone."""
    division = divide(store, store.labels())
    assert division.held is not None
    alone = name == "brain_mri"
    at = division.train if alone else np.concatenate([division.train, division.held])
    return labelled_rows(store, at)


def mean_cells(runs: Floats) -> str:
    """Return coverage with its error, size and share of empty sets, of (splits, coverages, 3)."""
    mean, error = runs.mean(axis=0), runs.std(axis=0, ddof=1) / len(runs) ** 0.5
    return " | ".join(
        f"{100 * m[0]:.1f} ± {100 * e[0]:.1f} % | {m[1]:.2f}, {100 * m[2]:.0f} % empty"
        for m, e in zip(mean, error, strict=True)
    )


def one_less(p: Floats) -> Floats:
    return 1 - p


def summed(p: Floats, penalty: float = 0.0) -> Floats:
    order = np.argsort(-p, axis=1, kind="stable")
    total = np.take_along_axis(p, order, axis=1).cumsum(axis=1) + penalty * np.arange(p.shape[1])
    found = np.empty_like(p)
    np.put_along_axis(found, order, total, axis=1)
    return found


def covered(known: Floats, y: Ints, asked: Floats, coverage: float, score: Scores) -> Any:
    own = np.sort(score(known)[np.arange(len(y)), y])
    place = int(np.ceil((len(own) + 1) * coverage - 1e-9))
    return score(asked) <= (own[place - 1] * (1 + 1e-6) if place <= len(own) else np.inf)


def ways(name: str, store: EmbeddingStore, head: str, splits: int) -> dict[str, Any]:
    """Change one thing at a time."""
    rows, spec = everything(name, store), head_spec(head)
    runs: dict[str, list[Any]] = {}
    for seed in range(splits):
        fit, held = resplit(rows, seed)
        X, y, units = rows.X[fit], rows.y[fit], rows.units[fit]
        fitted = tuned(rows, fit, head)
        known, asked = unseen(rows, fit, head, fitted), new(fitted, rows.X[held])
        folds = make_folds(y, units, FOLDS, 0, rows.classes)
        scores = held_out_scores(spec, fitted.parameters, X, y, folds)
        five = fitted.calibrator.probabilities(scores)
        crossed = _held_out(_FITS[fitted.calibration["method"]], scores, y, folds)
        tried: dict[str, tuple[Floats, Scores]] = {
            "featpipe": (known, one_less),
            "five folds": (five, one_less),
            "five folds, calibrator without the fold": (crossed, one_less),
            "APS": (known, summed),
            "RAPS": (known, lambda p: summed(p, 0.01)),
        }
        for way, (p, score) in tried.items():
            found = [figures(covered(p, y, asked, c, score), rows.y[held]) for c in COVERAGES]
            runs.setdefault(way, []).append(found)
    for way, found in runs.items():
        print(f"| {name} | {way} | {mean_cells(np.array(found))} |", flush=True)
    return {way: np.mean(found, axis=0).tolist() for way, found in runs.items()}


def table(*first: str) -> None:
    """Print the head of a table."""
    names = [*first, *(name for c in COVERAGES for name in (f"promised {100 * c:.0f} %", "labels"))]
    print(f"\n| {' | '.join(names)} |\n|{'---|' * len(names)}", flush=True)


def measure(folder: Path, heads: list[str], splits: int) -> dict[str, Any]:
    found: dict[str, Any] = {"own": {}, "random": {}, "ways": {}}
    print("The split of each data set that is held out: coverage, and mean number of labels.")
    table("data set", "head", "promise over")
    for name, store in stores(folder):
        found["own"][name] = own_split(name, store, heads)
    print(f"\n{splits} random splits into 70 % and 30 %.")
    table("data set", "head", "promise over")
    for name, store in stores(folder):
        found["random"][name] = random_splits(name, store, heads, splits)
    print(f"\nThe same splits in other ways, {heads[0]}.")
    table("data set", "way")
    for name, store in stores(folder):
        found["ways"][name] = ways(name, store, heads[0], splits)
    return found


def main() -> None:
    """Measure; write the figures where --json asks for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--heads", nargs="+", default=["logreg", "svm", "knn"])
    parser.add_argument("--stores", type=Path, help="where vectors are, or are put")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(asked.stores or Path(folder), asked.heads, asked.splits)
    if asked.json:
        asked.json.write_text(json.dumps({"conformal": found}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
