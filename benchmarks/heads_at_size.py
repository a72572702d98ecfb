"""Tuned linear heads against scikit-learn's grid search, on vectors like those of a CNN.

    python benchmarks/heads_at_size.py [--size NAME ...] [--head NAME ...] [--json FILE]

Three ways to the same table of held-out accuracies and the same final classifier, with equal
values of C and equal folds, in turn, and medians of it:

featpipe  `fit_tuned`, with the temperatures that it fits for every value of C
pinned    `GridSearchCV` with one BLAS thread a fit, as many fits at once as there are cores
plain     `GridSearchCV` as one writes it: default threads, one fit after the other

Where a grid takes too long, some of its cells are timed (those of one fold, for a few values of
C), and the rest is taken to last as long: such figures are marked with ~.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from featpipe.heads import HEADS
from featpipe.model_selection import fit_tuned
from featpipe.solvers.losses import Loss, Softmax, SquaredHinge
from featpipe.solvers.problems import whole

Array = NDArray[Any]


@dataclass(frozen=True)
class Size:
    """How many rows and classes; how far apart these are; which cells are timed, None for all."""

    rows: int
    classes: int
    spread: float
    cells: tuple[int, ...] | None = None


SIZES = {
    "500 x 2048 x 10": Size(500, 10, 0.4),
    "5000 x 2048 x 10": Size(5000, 10, 0.3),
    "7300 x 2048 x 102": Size(7300, 102, 0.45, (0, 2, 4, 6)),
    "50000 x 2048 x 100": Size(50000, 100, 0.35, (1, 4)),
}
VALUES = {
    "logreg": [float(c) for c in np.logspace(-4, 4, 9)],
    "svm": [float(f"{c:.3g}") for c in 10 ** np.arange(-2.5, 1.6, 0.5)],
}


def vectors(size: Size, dimension: int = 2048, seed: int = 0) -> tuple[Array, Array]:
    """Return float32 vectors as a CNN pools them, and classes.

    Latent factors of decaying strength, whose means differ by class, mixed, scaled by image,
    put through a ReLU: non-negative, correlated, heavy-tailed. Spectrum, kurtosis and
    scikit-learn's numbers of iterations are those of the built-in backbone's vectors of
    clothing_small and brain_mri.
    """
    rng = np.random.default_rng(seed)
    strength = (1 + np.arange(256)) ** -0.5
    centres = rng.normal(size=(size.classes, 256)) * strength * size.spread
    y = rng.permutation(np.arange(size.rows) % size.classes)
    mix = rng.normal(size=(256, dimension)).astype(np.float32) / np.sqrt(8)
    bias = rng.normal(-0.7, 0.5, size=dimension).astype(np.float32)
    gain = 0.4 * np.exp(rng.normal(0, 0.5, size=dimension)).astype(np.float32)
    X = np.empty((size.rows, dimension), dtype=np.float32)
    for start in range(0, size.rows, 4096):
        rows = slice(start, min(start + 4096, size.rows))
        n = rows.stop - start
        latent = centres[y[rows]] + rng.normal(size=(n, 256)) * strength
        noise = 0.5 * rng.standard_normal((n, dimension), dtype=np.float32)
        contrast = np.exp(0.3 * rng.normal(size=(n, 1))).astype(np.float32)
        activation = (latent.astype(np.float32) @ mix + noise) * contrast + bias
        X[rows] = np.maximum(activation, 0) * gain
    return X, y.astype(np.int64)


def peer(head: str) -> Pipeline:
    """Return what a user of scikit-learn writes; for svm, featpipe's own scaling and solver."""
    if head == "logreg":
        return Pipeline([("scale", StandardScaler()), ("head", LogisticRegression())])
    return Pipeline([("scale", Normalizer()), ("head", LinearSVC(dual=False, tol=1e-3))])


class Case:
    """One head on one size."""

    def __init__(self, head: str, size: Size) -> None:
        self.head, self.size = head, size
        self.X, self.y = vectors(size)
        splitter = StratifiedKFold(5, shuffle=True, random_state=0)
        self.folds = list(splitter.split(self.X, self.y))
        self.found: dict[str, Any] = {}

    def featpipe(self) -> float:
        """Return the seconds that featpipe takes."""
        grid = tuple({"C": value} for value in VALUES[self.head])
        spec = replace(HEADS[self.head], grid=grid)
        started = time.perf_counter()
        fitted = fit_tuned(spec, self.X, self.y, self.folds)
        seconds = time.perf_counter() - started
        self.found["featpipe"] = fitted
        return seconds

    def pinned(self) -> float:
        """Return the seconds of a grid search with one thread a fit."""
        with threadpool_limits(1), joblib.parallel_config("threading", n_jobs=joblib.cpu_count()):
            return self._grid()

    def plain(self) -> float:
        """Return the seconds of a grid search with default threads."""
        return self._grid()

    def _grid(self) -> float:
        if self.size.cells is not None:
            return self._sampled(self.size.cells)
        search = GridSearchCV(peer(self.head), {"head__C": VALUES[self.head]}, cv=self.folds)
        started = time.perf_counter()
        search.fit(self.X, self.y)
        seconds = time.perf_counter() - started
        scores = search.cv_results_["mean_test_score"]
        self.found["peer"] = dict(zip(VALUES[self.head], map(float, scores), strict=True))
        return seconds

    def _sampled(self, cells: tuple[int, ...]) -> float:
        fit, held = self.folds[0]

        def cell(number: int) -> float:
            value = VALUES[self.head][number]
            model = clone(peer(self.head)).set_params(head__C=value)
            return float(model.fit(self.X[fit], self.y[fit]).score(self.X[held], self.y[held]))

        started = time.perf_counter()
        scores = joblib.Parallel()(joblib.delayed(cell)(number) for number in cells)
        seconds = time.perf_counter() - started
        self.found["peer"] = {
            VALUES[self.head][number]: score for number, score in zip(cells, scores, strict=True)
        }
        # And one fit on all rows at the end.
        return seconds * (len(VALUES[self.head]) * len(self.folds) + 1) / len(cells)

    def gap(self) -> float:
        """Return how far the final fit's objective lies above that of a tight one, relatively.

        scikit-learn starts from it where the whole way would take too long.
        """
        pipeline = self.found["featpipe"].pipeline
        rows = pipeline[0].transform(self.X).astype(np.float64)
        own = pipeline[-1]
        if self.head == "logreg":
            tight = LogisticRegression(C=own.C, tol=1e-7, max_iter=3000, warm_start=True)
            if self.size.cells is not None:
                tight.set_params(max_iter=40)
                tight.coef_, tight.intercept_ = own.coef_.copy(), own.intercept_.copy()
                tight.classes_, tight.n_iter_ = own.classes_, own.n_iter_
        else:
            tight = LinearSVC(C=own.C, dual=False, tol=1e-8, max_iter=100000)
        with threadpool_limits(1):
            tight.fit(rows, self.y)
            return self._objective(own, rows) / self._objective(tight, rows) - 1

    def _objective(self, model: Any, rows: Array) -> float:
        loss: Loss = Softmax() if self.head == "logreg" else SquaredHinge()
        weights = np.concatenate([model.coef_.T, model.intercept_[None]])[None]
        objective = whole(rows, self.y, loss, self.size.classes)
        return float(objective.value(weights, model.C).loss.sum())


def measure(
    head: str, name: str, repetitions: int, ways: list[str], *, gap: bool
) -> dict[str, Any]:
    """Return medians, ratios, accuracies and the gap of one case."""
    case = Case(head, SIZES[name])
    run: dict[str, Callable[[], float]] = {
        "featpipe": case.featpipe, "pinned": case.pinned, "plain": case.plain,
    }  # fmt: skip
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for repetition in range(repetitions):
        for way in ways:
            seconds[way].append(run[way]())
            print(head, name, way, repetition, f"{seconds[way][-1]:.2f} s", file=sys.stderr)
    fitted = case.found["featpipe"]
    own = {entry["parameters"]["C"]: entry["accuracy"] for entry in fitted.table}
    peers = case.found.get("peer", {})
    result = {
        "head": head,
        "size": name,
        "cells": "all" if case.size.cells is None else len(case.size.cells),
        "seconds": seconds,
        "C": fitted.parameters["C"],
        "values_tried": len(own),
        "accuracy": own[fitted.parameters["C"]],
        "peer_accuracy": peers.get(fitted.parameters["C"]),
        "peer_best_accuracy": max(peers.values(), default=None),
        "load": os.getloadavg()[0],
        "cores": joblib.cpu_count(),
    }
    for way in ways[1:]:
        ratios = [b / a for a, b in zip(seconds["featpipe"], seconds[way], strict=True)]
        result[f"ratio_{way}"] = median(ratios)
    if gap:
        result["gap"] = case.gap()
    return result


def row(result: dict[str, Any]) -> str:
    """Return a row of the Markdown table."""
    mark = "" if result["cells"] == "all" else "~"

    def part(way: str) -> str:
        if way not in result["seconds"]:
            return ""
        return (
            f"{mark}{median(result['seconds'][way]):.1f} s ({mark}{result[f'ratio_{way}']:.1f} x)"
        )

    def per_cent(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.1f}"

    gap = f"{result['gap']:.0e}" if "gap" in result else ""
    return (
        f"| {result['head']} | {result['size']} | {median(result['seconds']['featpipe']):.1f} s "
        f"| {part('pinned')} | {part('plain')} | {result['C']:g} | {per_cent(result['accuracy'])} "
        f"| {per_cent(result['peer_accuracy'])} | {gap} | {result['load']:.1f} |"
    )


def main() -> None:
    """Measure what is asked for, print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", action="append", choices=list(SIZES))
    parser.add_argument("--head", action="append", choices=list(VALUES))
    parser.add_argument("--way", action="append", choices=["pinned", "plain"])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--no-gap", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    results = [
        measure(
            head,
            size,
            options.repetitions,
            ["featpipe", *(options.way or ["pinned", "plain"])],
            gap=not options.no_gap,
        )
        for size in options.size or SIZES
        for head in options.head or VALUES
    ]
    print(
        "| head | size | featpipe | pinned | plain | C | accuracy | peer's at that C | gap | load |"
    )
    print("|" + "---|" * 10)
    for result in results:
        print(row(result))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
