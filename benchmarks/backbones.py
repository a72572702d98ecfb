"""Accuracy and fidelity of exported backbones: real weights, real photographs.

    FEATPIPE_SHARED=… python benchmarks/backbones.py [accuracy] [fidelity] [--models a,b,c]

``accuracy`` embeds the three data sets with each backbone and fits three heads: the table of
`docs/backbones.md`. ``fidelity`` compares the vectors of all 1,270 photographs of two sets
with those of the library that the weights come from: its own transform on Pillow's images,
its own network in eager torch. Needs the extras `export` and `lite`; takes half an hour.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file

import featpipe
from featpipe.backbones.export.packages import PACKAGES, build_lite, find_checkpoint

SHARED = Path(os.environ["FEATPIPE_SHARED"]).resolve()
SETS = ("hymenoptera_data", "clothing_small", "brain_mri")
HEADS = ("logreg", "svm", "knn")
MODELS = ("resnet50", "resnet18", "efficientnet_lite2")


def cli(*arguments: str, folder: Path) -> None:
    """Run one command in ``folder``; what it says goes to stderr."""
    command = [sys.executable, "-m", "featpipe", *arguments]
    subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)


def unpacked(name: str, folder: Path) -> Path:
    """Unpack the weights of a ResNet, once."""
    path = folder / f"{name}-pqf.safetensors"
    if not path.exists():
        packed = next((SHARED / "weights").glob(f"{name}*.safetensors.xz"))
        with lzma.open(packed) as source, path.open("wb") as file:
            shutil.copyfileobj(source, file)
    return path


def export(name: str, folder: Path) -> str:
    """Export one backbone with real weights into ``folder``, and return its name."""
    weights = ("--weights", str(unpacked(name, folder))) if name.startswith("resnet") else ()
    called = f"{name}-pqf" if weights else name
    if not (folder / f"{called}.onnx").exists():
        cli("export", name, *weights, "--models-dir", str(folder), folder=folder)
    return called


def accuracy(name: str, folder: Path) -> list[str]:
    """Return a row of the table for each head."""
    cells: dict[str, list[str]] = {head: [] for head in HEADS}
    for data in SETS:
        store = f"{data}-{name}"
        source = str(SHARED / "datasets" / data)
        where = ("--models-dir", str(folder), "-o", store)
        cli("embed", source, "--model", name, *where, folder=folder)
        for head in HEADS:
            cli("fit", store, "--head", head, "-o", f"{store}-{head}", folder=folder)
            report = json.loads((folder / f"{store}-{head}" / "head.json").read_text())["report"]
            low, high = report["estimate"]["intervals_95"]["accuracy"]
            value = report["estimate"]["accuracy"]
            cells[head].append(f"{100 * value:.1f} ({100 * low:.1f}–{100 * high:.1f})")
    return [f"| {name} | {head} | {' | '.join(cells[head])} |" for head in HEADS]


def library(name: str, folder: Path) -> tuple[Any, Callable[[Image.Image], torch.Tensor]]:
    """Return network and transform as the library has them: images to vectors."""
    if name in PACKAGES:
        model: Any = build_lite(name, find_checkpoint(PACKAGES[name]).path)
        # timm rounds the authors' mean 127 and deviation 128 to a half each; theirs counts.
        own = {"mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
        config = {**timm.data.resolve_model_data_config(model), **own}
        model.reset_classifier(0)
        return model.eval(), timm.data.create_transform(**config)
    model = getattr(torchvision.models, name)()
    model.load_state_dict(load_file(unpacked(name, folder)))
    model.fc = torch.nn.Identity()
    weights = next(iter(torchvision.models.get_model_weights(name)))
    return model.eval(), weights.transforms()


def fidelity(name: str, called: str, folder: Path) -> str:
    """Return a line with the cosines of all photographs of two sets."""
    model, transform = library(name, folder)
    cosines = []
    for data in SETS[:2]:
        root = SHARED / "datasets" / data
        store = featpipe.embed(
            root, called, output=folder / f"f-{data}-{called}", models_dir=folder
        )
        for start in range(0, len(store), 16):
            paths = store.paths[start : start + 16]
            batch = torch.stack([transform(Image.open(root / p).convert("RGB")) for p in paths])
            with torch.inference_mode():
                wanted = model(batch).numpy()
            found = np.asarray(store.X[start : start + 16])
            norms = np.linalg.norm(wanted, axis=1) * np.linalg.norm(found, axis=1)
            cosines.append((wanted * found).sum(axis=1) / norms)
    every = np.concatenate(cosines)
    return f"| {called} | {len(every)} | {every.mean():.6f} | {every.min():.6f} |"


def main() -> None:
    """Measure what is asked for, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", nargs="*", default=["accuracy", "fidelity"])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--folder", type=Path, help="keep exports and stores there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.folder or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        names = arguments.models.split(",")
        called = {name: export(name, folder) for name in names}
        if "accuracy" in arguments.what:
            print(f"| backbone | head | {' | '.join(SETS)} |\n|---|---|---|---|---|", flush=True)
            for name in names:
                print("\n".join(accuracy(called[name], folder)), flush=True)
        if "fidelity" in arguments.what:
            print("\n| backbone | photographs | cosine, mean | minimum |\n|---|---|---|---|")
            for name in names:
                print(fidelity(name, called[name], folder), flush=True)


if __name__ == "__main__":
    main()
