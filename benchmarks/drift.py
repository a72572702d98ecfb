"""Drift: whether unchanged images alarm, whether changed ones do, and from how many on.

    PYTHONPATH=. FEATPIPE_SHARED=… python benchmarks/drift.py [--splits 20]

Held-out split  `featpipe drift` with each data set's own split against a head of its training
split; of brain_mri these are other patients. Images that the head has learnt on, equal ones among
them, are left out by the command itself.

Unchanged  70 % of the training images to learn on, and 30 %, drawn by content, as what comes in: an
alarm is a false one. At the default of 0.001 there should be none in twenty; the table has the
smallest adjusted p-value and the largest effect of each test, too.

Power  Some of brain_mri's Testing images, drawn at random: how often they alarm.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from conformal import stores
from numpy.typing import NDArray

from featpipe.heads import Head
from featpipe.heads.persistence import short_key
from featpipe.monitoring import TESTS, drift
from featpipe.splits import divide
from featpipe.store import EmbeddingStore, Index, Manifest, Outcome, StoreWriter
from featpipe.training import fit
from featpipe.types import ImageRef

Ints = NDArray[np.int64]
SHARE = 0.3
SOME, DRAWS = (30, 40, 50, 75, 100), 20


def part(store: EmbeddingStore, path: Path, rows: Ints, splits: list[str]) -> EmbeddingStore:
    """Write some rows of a store into a new one, each in a split."""
    labels = store.labels()
    keys = [store.keys[i] for i in rows]
    listed = [
        (
            ImageRef(f"{n:05d}.jpg", 1, 1, label=labels[row], split=split),
            Outcome("ok", key, 8, 8),
        )
        for n, (row, key, split) in enumerate(zip(rows, keys, splits, strict=True))
    ]
    manifest = Manifest(store.manifest.backbone, "float32", "photographs")
    with StoreWriter.opened(path, manifest) as writer:
        # Equal images have one vector.
        first = np.unique([key.hex() for key in keys], return_index=True)[1]
        writer.append([keys[i] for i in first], store.read(rows[first]))
        writer.commit(Index.build(listed, writer.places))
    return EmbeddingStore.open(path)


def own_split(name: str, store: EmbeddingStore, head: Head) -> dict[str, Any]:
    division = divide(store, store.labels())
    found = drift(head, store, split=division.held_name)
    effects = {f.test: f for f in found.findings}
    cells = [
        f"{effects[t].effect:.2f}, {effects[t].p_adjusted:.1g}{' **alarm**' * effects[t].alarm}"
        for t in TESTS
    ]
    print(f"| {name}, {division.held_name} ({found.images}) | {' | '.join(cells)} |", flush=True)
    return {f.test: [f.effect, f.p_adjusted, f.alarm] for f in found.findings}


def unchanged(name: str, store: EmbeddingStore, kind: str, splits: int) -> dict[str, Any]:
    rows = divide(store, store.labels()).train
    keys = np.array([store.keys[i].hex() for i in rows])
    names = np.unique(keys)
    alarms, p, effects = 0, [], []
    for seed in range(splits):
        drawn = np.random.default_rng(seed).permutation(names)[: int(SHARE * len(names))]
        held = np.isin(keys, drawn)
        with tempfile.TemporaryDirectory() as folder:
            sides = ["test" if is_held else "train" for is_held in held]
            both = part(store, Path(folder) / "store", rows, sides)
            found = drift(fit(both, kind, check=False), both, split="test")
        alarms += bool(found.drifted)
        p.append([f.p_adjusted for f in found.findings])
        effects.append([f.effect for f in found.findings])
    least, most = np.min(p, axis=0), np.max(effects, axis=0)
    cells = " | ".join(f"{a:.2f}, {b:.2g}" for a, b in zip(most, least, strict=True))
    print(f"| {name}, {kind} | {alarms} of {splits} | {cells} |", flush=True)
    return {"alarms": alarms, "splits": splits, "effect": most.tolist(), "p": least.tolist()}


def power(store: EmbeddingStore, head: Head) -> dict[int, int]:
    """Count alarms of a few images that are new, vectors and all, and of their scores alone."""
    held = divide(store, store.labels()).held
    assert held is not None
    learnt = set(head.report["data"]["keys"])
    rows = np.array([row for row in held if short_key(store.keys[row]) not in learnt])
    found: dict[int, int] = {}
    print("\n| images of brain_mri's Testing | alarms | of scores alone |\n|---|---|---|")
    for n in SOME:
        alarms, alone = 0, 0
        for seed in range(DRAWS):
            drawn = np.random.default_rng([n, seed]).permutation(rows)[:n]
            with tempfile.TemporaryDirectory() as folder:
                few = part(store, Path(folder) / "store", np.sort(drawn), ["test"] * n)
                alarms += bool(drift(head, few).drifted)
                alone += bool(drift(head, few, skip=["vectors"]).drifted)
        found[n] = alarms
        print(f"| {n} | {alarms} of {DRAWS} | {alone} of {DRAWS} |", flush=True)
    return found


def measure(folder: Path, heads: list[str], splits: int) -> dict[str, Any]:
    found: dict[str, Any] = {"own": {}, "unchanged": {}}
    fitted = {}
    print("Held-out splits: effect, and p-value after Holm.\n")
    print(f"| what comes in | {' | '.join(TESTS)} |\n|{'---|' * (len(TESTS) + 1)}")
    for name, store in stores(folder):
        fitted[name] = fit(store, heads[0], check=False)
        found["own"][name] = own_split(name, store, fitted[name])
    print(f"\n{splits} random splits of the training images: the largest effect, the smallest p.\n")
    print(f"| learnt on | alarms | {' | '.join(TESTS)} |\n|{'---|' * (len(TESTS) + 2)}")
    for name, store in stores(folder):
        for kind in heads:
            found["unchanged"][f"{name}, {kind}"] = unchanged(name, store, kind, splits)
    store = EmbeddingStore.open(folder / "brain_mri")
    found["power"] = power(store, fitted["brain_mri"])
    return found


def main() -> None:
    """Measure; write the figures where --json asks for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--heads", nargs="+", default=["logreg", "knn"])
    parser.add_argument("--stores", type=Path, help="where vectors are, or are put")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(asked.stores or Path(folder), asked.heads, asked.splits)
    if asked.json:
        asked.json.write_text(json.dumps({"drift": found}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
