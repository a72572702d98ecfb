"""How often intervals hold the truth, and what tuning scores flatter: two tables.

    PYTHONPATH=. python benchmarks/honesty.py [--data-sets 500] [--seeds 100]

Intervals  `compute_metrics` measures a classifier whose true figures are known, on many data
sets: the share of intervals that hold the truth. Scores of an image are its class's, plus
noise; images of a unit share their class and half of the noise. The probabilities are
those of the generating model, so that the classifier is calibrated, or are made twice as sharp.
The truth is that of 300,000 images.

Estimates  `nested_probabilities` and `fit_tuned` on vectors whose labels are dealt at random,
equally many of two classes: nobody can be better than chance, and whatever lies above it is
selection's flattery. The vectors are those of the demo's photographs, or normal numbers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from featpipe.demo.dataset import unpack
from featpipe.embedding import embed
from featpipe.heads import HEADS
from featpipe.metrics import compute_metrics
from featpipe.model_selection import fit_tuned, make_folds, nested_probabilities

FIGURES = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "calibration_error")
TRUTH, BLOCKS = 100_000, 3
ROWS, DIMENSION = 80, 100
LEARNERS = ("logreg", "svm", "knn")


@dataclass(frozen=True, slots=True)
class Case:
    """What data sets are drawn from.

    Attributes
    ----------
    units : int
        A data set has so many.
    images : int
        Of a unit: 1, or as many on average, from 1 to twice that.
    shares : tuple of float
        Of the classes.
    signal : float
        How far the classes lie apart, in standard deviations of the noise.
    sharpness : float
        What the right scores are multiplied by: above 1 the classifier is too sure.
    """

    units: int
    images: int
    shares: tuple[float, ...]
    signal: float
    sharpness: float = 1.0

    def draw(
        self, rng: np.random.Generator, units: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
        """Return classes, probabilities and units of images."""
        n, n_classes = units or self.units, len(self.shares)
        sizes = rng.integers(1, 2 * self.images, n) if self.images > 1 else np.ones(n, int)
        unit = np.repeat(np.arange(n), sizes)
        y = rng.choice(n_classes, n, p=self.shares)[unit]
        shared = 0.5 if self.images > 1 else 0.0
        noise = (1 - shared) ** 0.5 * rng.normal(size=(len(y), n_classes))
        noise += shared**0.5 * rng.normal(size=(n, n_classes))[unit]
        scores = self.signal * np.eye(n_classes)[y] + noise
        return y, softmax(self.sharpness * self.signal * scores, axis=1), unit

    def truth(self) -> dict[str, float]:
        """Return every figure of very many images, one a unit: what a unit shares moves none."""
        alone = Case(self.units, 1, self.shares, self.signal, self.sharpness)
        rng = np.random.default_rng(0)
        drawn = [alone.draw(rng, TRUTH)[:2] for _ in range(BLOCKS)]
        y, p = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
        return figures_of(y, p)


TWO, FIVE, TEN = (0.5, 0.5), (0.2,) * 5, (0.1,) * 10
UNEVEN, RARE = (0.5, 0.25, 0.15, 0.05, 0.05), (0.95, 0.05)
CASES: dict[str, Case] = {
    "50 images, 2 classes": Case(50, 1, TWO, 2.1),
    "50 images, 2 classes, easy": Case(50, 1, TWO, 2.9),
    "100 images, 2 classes": Case(100, 1, TWO, 1.8),
    "100 images, a rare class": Case(100, 1, RARE, 2.2),
    "100 images, 5 classes": Case(100, 1, FIVE, 2.5),
    "100 images, 5 classes, easy": Case(100, 1, FIVE, 3.8),
    "100 images, 5 uneven classes": Case(100, 1, UNEVEN, 2.5),
    "100 images, 10 classes": Case(100, 1, TEN, 2.5),
    "100 images, 5 classes, too sure": Case(100, 1, FIVE, 2.5, 2.0),
    "400 images, 2 classes, easy": Case(400, 1, TWO, 2.9),
    "400 images, 5 classes": Case(400, 1, FIVE, 2.5),
    "400 images, 5 uneven classes": Case(400, 1, UNEVEN, 2.5),
    "400 images, 5 classes, too sure": Case(400, 1, FIVE, 2.5, 2.0),
    "6 units of 20, 2 classes": Case(6, 20, TWO, 1.8),
    "10 units of 10, 2 classes": Case(10, 10, TWO, 1.8),
    "20 units of 5, 2 classes, easy": Case(20, 5, TWO, 2.6),
    "40 units of 10, 5 classes": Case(40, 10, FIVE, 2.5),
    "100 units of 4, 5 classes": Case(100, 4, FIVE, 2.5),
}


def figures_of(y: NDArray[np.int64], p: NDArray[np.float64]) -> dict[str, float]:
    """Return every figure, without intervals' work: 1,000 resamples of so many rows."""
    from featpipe.metrics.classification import _terms

    found = _terms(y, p, p.shape[1]).figures(np.ones((1, len(y))))
    return {name: float(found[name][0]) for name in FIGURES}


def covered(case: Case, n_sets: int) -> dict[str, Any]:
    """Return the share of intervals that hold the truth, and their mean width."""
    truth, names = case.truth(), [str(k) for k in range(len(case.shares))]
    inside, widths = dict.fromkeys(FIGURES, 0), dict.fromkeys(FIGURES, 0.0)
    begun = time.perf_counter()
    for seed in range(n_sets):
        y, p, unit = case.draw(np.random.default_rng([1, seed]))
        found = compute_metrics(y, p, names, majority=0, groups=unit, seed=seed).intervals
        for name in FIGURES:
            low, high = found[name]
            inside[name] += low <= truth[name] <= high
            widths[name] += (high - low) / n_sets
    return {
        "truth": truth,
        "coverage": {name: inside[name] / n_sets for name in FIGURES},
        "width": widths,
        "milliseconds": 1e3 * (time.perf_counter() - begun) / n_sets,
    }


def intervals(n_sets: int) -> dict[str, Any]:
    """Measure all cases, print a table of coverages."""
    print(f"Per cent of {n_sets} intervals that hold the truth, and their mean width in brackets\n")
    titles = " | ".join(name.replace("_", " ") for name in FIGURES)
    print(f"| data set | true accuracy | {titles} |\n|---|---|{'---|' * len(FIGURES)}")
    results = {}
    for name, case in CASES.items():
        found = results[name] = covered(case, n_sets)
        cells = " | ".join(
            f"{100 * found['coverage'][figure]:.1f} ({found['width'][figure]:.3f})"
            for figure in FIGURES
        )
        print(f"| {name} | {100 * found['truth']['accuracy']:.1f} | {cells} |", flush=True)
    return results


def photographs() -> NDArray[np.float32]:
    """Return vectors of the demo's photographs, by the built-in backbone."""
    with tempfile.TemporaryDirectory() as folder:
        store = embed(unpack(Path(folder) / "photos").images, output=Path(folder) / "store")
        return np.array(store.X, dtype=np.float32)


def dealt(head: str, every: NDArray[np.float32], seed: int) -> dict[str, float]:
    """Return figures of one deal: by nested cross-validation, and of what tuning has chosen."""
    rng = np.random.default_rng([2, seed])
    vectors = every[rng.permutation(len(every))[:ROWS]]
    y = rng.permutation(np.arange(ROWS) % 2)
    units, classes = np.arange(ROWS), ["a", "b"]
    found = fit_tuned(HEADS[head], vectors, y, make_folds(y, units, 5, seed, classes), seed=seed)
    chosen = next(entry for entry in found.table if entry["parameters"] == found.parameters)
    p = nested_probabilities(
        HEADS[head], vectors, y, units, n_splits=5, classes=classes, seed=seed, calibration="auto"
    )
    own = p[np.arange(ROWS), y]
    return {
        "nested": float(np.mean(p.argmax(axis=1) == y)),
        "chosen": chosen["accuracy"],
        "best": max(entry["accuracy"] for entry in found.table),
        "nested_loss": float(-np.log(own).mean()),
        "chosen_loss": chosen["log_loss"],
    }


def estimates(seeds: int) -> dict[str, Any]:
    """Deal labels with every seed, print means and their standard errors."""
    print(
        f"\nAccuracy in per cent, ± standard error of {seeds} deals of random labels: "
        f"{ROWS} vectors, chance is 50 and log loss {np.log(2):.3f}\n"
    )
    print(
        "| vectors | head | nested | tuning, chosen | tuning, best of the table | log loss nested "
        "| log loss chosen |\n|---|---|---|---|---|---|---|"
    )
    normal = np.random.default_rng(0).normal(size=(4 * ROWS, DIMENSION)).astype(np.float32)
    results: dict[str, Any] = {}
    for kind, every in (("photographs", photographs()), ("normal numbers", normal)):
        for head in LEARNERS:
            runs = [dealt(head, every, seed) for seed in range(seeds)]
            found = {
                name: (
                    float(np.mean([run[name] for run in runs])),
                    float(np.std([run[name] for run in runs], ddof=1) / seeds**0.5),
                )
                for name in runs[0]
            }
            results[f"{kind}, {head}"] = found
            cells = [
                *(f"{100 * m:.1f} ± {100 * e:.1f}" for m, e in list(found.values())[:3]),
                *(f"{m:.3f} ± {e:.3f}" for m, e in list(found.values())[3:]),
            ]
            print(f"| {kind} | {head} | {' | '.join(cells)} |", flush=True)
    return results


def main() -> None:
    """Measure; write the figures where --json asks for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data-sets", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    content = {"intervals": intervals(asked.data_sets), "estimates": estimates(asked.seeds)}
    if asked.json:
        asked.json.write_text(json.dumps({"honesty": content}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
