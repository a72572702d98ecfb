"""Images that a head was never shown: which score tells them, and how well.

    PYTHONPATH=. FEATPIPE_SHARED=… python benchmarks/unknown.py [--stores DIR]

Another set  A score is fitted on the training images of one data set; the threshold is where 5 %
(and 1 %) of its images to measure on are rejected; the share of another data set's images that
are rejected at it, for each of the six pairs of hymenoptera_data, clothing_small and brain_mri.

Another class  Each class of clothing_small in turn is left out of training; AUROC of its images
among the images to measure on against those of the other nine.

p-values  With featpipe's own: the share of known images to measure on, and of the two
other sets', whose p-value is below 0.05 and 0.01.

``--stores`` is a folder with a store of each data set under its name, where they are embedded
already.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featpipe
from featpipe.ood import Novelty, fit_novelty, normalised
from featpipe.splits import divide
from featpipe.store import EmbeddingStore

SETS = ("hymenoptera_data", "clothing_small", "brain_mri")
HARD = "clothing_small"
SHARES = (0.05, 0.01)
Floats = NDArray[np.float64]
Scores = Mapping[str, Callable[[NDArray[np.float32]], Floats]]


@dataclass(frozen=True)
class Data:
    """Vectors of one data set: to learn on with their classes, to measure on, and all of them."""

    X: NDArray[np.float32]
    y: NDArray[Any]
    X_held: NDArray[np.float32]
    y_held: NDArray[Any]
    every: NDArray[np.float32]

    @classmethod
    def of(cls, store: EmbeddingStore) -> Data:
        """Divide a store as `fit` does."""
        labels, every = store.labels(), np.array(store.X, dtype=np.float32)
        cut = divide(store, labels)
        names = labels.astype(str)
        assert cut.held is not None
        return cls(every[cut.train], names[cut.train], every[cut.held], names[cut.held], every)

    def without(self, name: str) -> Data:
        """Return the same without one class to learn on."""
        kept = self.y != name
        return Data(self.X[kept], self.y[kept], self.X_held, self.y_held, self.every)


def novelty(data: Data) -> Novelty:
    """Return featpipe's own."""
    classes, y = np.unique(data.y, return_inverse=True)
    found = fit_novelty(data.X, y, np.arange(len(y)), n_classes=len(classes))
    assert found is not None
    return found


def candidates(data: Data) -> Scores:
    """Fit all scores; higher is stranger."""
    classes, y = np.unique(data.y, return_inverse=True)
    return {
        "featpipe": novelty(data).scores,
        **by_head(data.X, y),
        **by_means(data.X, y, len(classes)),
        **by_neighbours(data.X, y, len(classes)),
        **by_residual(data.X),
    }


def by_head(X: NDArray[np.float32], y: NDArray[np.int64]) -> Scores:
    """Return scores of a logistic regression: probability, logit, energy; ViM (Wang 2022)."""
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.001, max_iter=1000)).fit(X, y)

    def logits(V: NDArray[np.float32]) -> Floats:
        found = head.decision_function(V)
        return np.column_stack([-found / 2, found / 2]) if found.ndim == 1 else found

    def energy(V: NDArray[np.float32]) -> Floats:
        return -logsumexp(logits(V), axis=1)

    residual = by_residual(X)["residual, 64 directions"]
    scale = np.abs(logits(X).max(axis=1)).mean() / np.sqrt(residual(X)).mean()
    return {
        "maximum probability": lambda V: -head.predict_proba(V).max(axis=1),
        "maximum logit": lambda V: -logits(V).max(axis=1),
        "energy (Liu 2020)": energy,
        "ViM (Wang 2022)": lambda V: scale * np.sqrt(np.maximum(residual(V), 0)) + energy(V),
    }


def by_means(X: NDArray[np.float32], y: NDArray[np.int64], n_classes: int) -> Scores:
    """Return Mahalanobis distances (Lee 2018; relative: Ren 2021), and cosine to the means."""
    Z = unit(X)
    means = np.stack([Z[y == k].mean(axis=0) for k in range(n_classes)])
    centre = Z.mean(axis=0)
    within = np.linalg.cholesky(np.linalg.inv(ledoit_wolf(Z - means[y], assume_centered=True)[0]))
    total = np.linalg.cholesky(np.linalg.inv(ledoit_wolf(Z - centre, assume_centered=True)[0]))

    def nearest(V: NDArray[np.float32]) -> Floats:
        A, B = unit(V) @ within, means @ within
        return ((A**2).sum(1)[:, None] - 2 * A @ B.T + (B**2).sum(1)).min(axis=1)

    def background(V: NDArray[np.float32]) -> Floats:
        return (((unit(V) - centre) @ total) ** 2).sum(axis=1)

    return {
        "Mahalanobis (Lee 2018)": nearest,
        "relative Mahalanobis (Ren 2021)": lambda V: nearest(V) - background(V),
        "cosine to the nearest mean": lambda V: -(unit(V) @ unit(means).T).max(axis=1),
    }


def by_neighbours(X: NDArray[np.float32], y: NDArray[np.int64], n_classes: int) -> Scores:
    """Return distances to neighbours (Sun 2022), and by what factor another class is farther."""
    Z = unit(X)

    def kth(k: int) -> Callable[[NDArray[np.float32]], Floats]:
        return lambda V: -np.partition(unit(V) @ Z.T, -k, axis=1)[:, -k]

    def ratio(V: NDArray[np.float32]) -> Floats:
        cosines = unit(V) @ Z.T
        near = [np.sort(cosines[:, y == k], axis=1)[:, -3:].mean(axis=1) for k in range(n_classes)]
        apart = np.sort(1 - np.stack(near, axis=1), axis=1)
        return np.asarray(apart[:, 0] / apart[:, 1])

    found: dict[str, Callable[[NDArray[np.float32]], Floats]] = {
        f"neighbour {k} (Sun 2022)": kth(k) for k in (1, 5, 10, 50)
    }
    return {**found, "ratio of classes (Mendes Júnior 2017)": ratio}


def by_residual(X: NDArray[np.float32]) -> Scores:
    """Return what lies outside the first directions of the training vectors."""
    Z = unit(X)
    centre = Z.mean(axis=0)
    directions = np.linalg.svd(Z - centre, full_matrices=False)[2][:64]

    def outside(V: NDArray[np.float32]) -> Floats:
        A = unit(V) - centre
        return np.asarray((A**2).sum(axis=1) - ((A @ directions.T) ** 2).sum(axis=1))

    return {"residual, 64 directions": outside}


def unit(X: NDArray[Any]) -> Floats:
    """Return vectors of length 1."""
    return normalised(X).astype(np.float64)


def far(data: Mapping[str, Data]) -> dict[str, dict[str, dict[str, float]]]:
    """Return by score and pair what is rejected of the other set, by share of the known."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    fitted = {name: candidates(data[name]) for name in SETS}
    for known, other in permutations(SETS, 2):
        for score, function in fitted[known].items():
            held, strange = function(data[known].X_held), function(data[other].every)
            found.setdefault(score, {})[f"{known} → {other}"] = {
                str(share): float((strange > np.quantile(held, 1 - share)).mean())
                for share in SHARES
            }
    return found


def hard(data: Data) -> dict[str, dict[str, float]]:
    """Return by score and class how well the images of the class are told when it is left out."""
    found: dict[str, dict[str, float]] = {}
    for name in np.unique(data.y_held):
        for score, function in candidates(data.without(name)).items():
            auroc = roc_auc_score(data.y_held == name, function(data.X_held))
            found.setdefault(score, {})[str(name)] = float(auroc)
    return found


def p_values(data: Mapping[str, Data]) -> dict[str, dict[str, dict[str, float]]]:
    """Return what is below 0.05 and 0.01, by the set that was learnt and the one looked at."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for known in SETS:
        own = novelty(data[known])
        for name in SETS:
            p = own.p_values(data[name].X_held if name == known else data[name].every)
            found.setdefault(known, {})[name] = {
                str(share): float((p < share).mean()) for share in SHARES
            }
    return found


def show(content: Mapping[str, Any]) -> None:
    """Print three tables."""
    distant, near = content["another set"], content["another class"]
    order = sorted(near, key=lambda score: -np.mean(list(near[score].values())))
    print("Per cent of another set that is rejected when 5 % (1 %) of the known images are:\n")
    pairs = list(distant[order[0]])
    short = [" → ".join(word.split("_")[0] for word in pair.split(" → ")) for pair in pairs]
    print(f"| score | {' | '.join(short)} |\n|---|{'---|' * len(pairs)}")
    for score in order:
        cells = [
            f"{100 * distant[score][pair]['0.05']:.1f} ({100 * distant[score][pair]['0.01']:.0f})"
            for pair in pairs
        ]
        print(f"| {score} | {' | '.join(cells)} |")
    print("\nAUROC of images of a class of clothing_small that was left out:\n")
    classes = list(near[order[0]])
    print(f"| score | mean | {' | '.join(classes)} |\n|---|---|{'---|' * len(classes)}")
    for score in order:
        values = near[score]
        cells = " | ".join(f"{values[name]:.2f}" for name in classes)
        print(f"| {score} | {np.mean(list(values.values())):.3f} | {cells} |")
    print("\nPer cent of images with a p-value below 0.05 (0.01), by featpipe's score:\n")
    print("| learnt on | its images to measure on | other sets |\n|---|---|---|")
    for known, found in content["p-values"].items():
        others = ", ".join(
            f"{name} {_both(shares)}" for name, shares in found.items() if name != known
        )
        print(f"| {known} | {_both(found[known])} | {others} |")


def _both(shares: Mapping[str, float]) -> str:
    return f"{100 * shares['0.05']:.1f} ({100 * shares['0.01']:.1f})"


def opened(folder: Path, stores: Path | None) -> dict[str, Data]:
    """Return the data sets, embedded now where no stores are given."""
    found = {}
    for name in SETS:
        if stores is None:
            source = Path(os.environ["FEATPIPE_SHARED"]) / "datasets" / name
            store = featpipe.embed(source, output=folder / name)
        else:
            store = EmbeddingStore.open(stores / name)
        found[name] = Data.of(store)
    return found


def main() -> None:
    """Measure; write the figures where --json asks for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--stores", type=Path)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = opened(Path(folder), asked.stores)
    content = {
        "another set": far(data),
        "another class": hard(data[HARD]),
        "p-values": p_values(data),
    }
    show(content)
    if asked.json:
        asked.json.write_text(json.dumps({"unknown": content}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
