"""Every head behind every scaling, on the real data sets: a table for `docs/heads.md`.

    FEATPIPE_SHARED=... python benchmarks/heads.py [STORES]

Parameters are chosen by cross-validation on the training split; the test split is looked at
once. STORES is a folder that keeps the vectors between runs.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler

from featpipe import embed
from featpipe.heads import HEADS, HeadSpec
from featpipe.heads.registry import class_scores
from featpipe.labelled import labelled_rows
from featpipe.model_selection import fit_tuned, make_folds
from featpipe.store import EmbeddingStore
from featpipe.vectors import finite_vectors

DATA_SETS = ("hymenoptera_data", "clothing_small", "brain_mri")
SCALINGS = {"raw": FunctionTransformer, "standardised": StandardScaler, "L2": Normalizer}
POWER = {"C": -1, "alpha": 1, "gamma": -1}
"""How a parameter goes with the mean square of the vectors' length, for the same model."""


def with_scaling(spec: HeadSpec, scaling: str, lengths: Mapping[str, float]) -> HeadSpec:
    """Return a head with another scaling, and its grid moved to that scaling's lengths."""
    own = next(name for name, kind in SCALINGS.items() if spec.scaler is kind)
    ratio = lengths[scaling] / lengths[own]

    def moved(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        # C of an RBF machine does not depend on the length of the vectors: its kernel has none.
        fixed = {"C"} if "gamma" in parameters else set()
        return {
            key: value * ratio ** POWER[key] if key in POWER and key not in fixed else value
            for key, value in parameters.items()
        }

    return replace(spec, scaler=SCALINGS[scaling], grid=tuple(moved(p) for p in spec.grid))


def measure(store: EmbeddingStore) -> dict[tuple[str, str], str]:
    """Return "held-out accuracy → test accuracy, seconds" of every head and scaling."""
    train = np.flatnonzero(store.splits == "train")
    rows = labelled_rows(store, train)
    test = np.flatnonzero(store.splits != "train")
    y = np.array([rows.classes.index(label) for label in store.labels()[test]])
    vectors = finite_vectors(store, test)
    folds = make_folds(rows.y, rows.units, 5, 0, rows.classes)
    lengths = {
        name: float(np.square(kind().fit_transform(rows.X)).sum(axis=1).mean())
        for name, kind in SCALINGS.items()
    }
    found = {}
    for name, spec in HEADS.items():
        for scaling in SCALINGS:
            started = time.perf_counter()
            fitted = fit_tuned(with_scaling(spec, scaling, lengths), rows.X, rows.y, folds)
            seconds = time.perf_counter() - started
            held = next(e for e in fitted.table if e["parameters"] == fitted.parameters)
            accuracy = np.mean(class_scores(fitted.pipeline, vectors).argmax(axis=1) == y)
            found[name, scaling] = (
                f"{100 * held['accuracy']:.1f} → {100 * accuracy:.1f} ({seconds:.1f} s)"
            )
            print(store.path.name, name, scaling, found[name, scaling], file=sys.stderr)
    return found


def main(stores: Path) -> None:
    """Embed what is not there yet, measure, print a Markdown table."""
    root = Path(os.environ["FEATPIPE_SHARED"]) / "datasets"
    columns = {
        name: measure(embed(root / name, output=stores / f"{name}.store")) for name in DATA_SETS
    }
    print("| head | scaling | " + " | ".join(DATA_SETS) + " |")
    print("|---|---|" + "---|" * len(DATA_SETS))
    for name, spec in HEADS.items():
        for scaling, kind in SCALINGS.items():
            chosen = " (chosen)" if spec.scaler is kind else ""
            cells = " | ".join(columns[data][name, scaling] for data in DATA_SETS)
            print(f"| {name} | {scaling}{chosen} | {cells} |")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
