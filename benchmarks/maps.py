"""How far the sum of an activation map and the bias is from the score of the head itself.

    PYTHONPATH=. FEATPIPE_SHARED=… python benchmarks/maps.py --stores FOLDER

FOLDER holds stores of the three data sets by their names, embedded with the built-in backbone. All
images to measure on, all classes, every linear head with its default parameters, fp32 on the CPU.
The score is scikit-learn's, on the vector of the same run.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from featpipe.backbones import load_backbone
from featpipe.heads import HEADS
from featpipe.heads.registry import class_scores
from featpipe.images import decode_image
from featpipe.inspection.looking import Looker
from featpipe.training import fit
from featpipe.types import Failure, Pixels

ROOT = Path(os.environ["FEATPIPE_SHARED"]) / "datasets"
SETS = {"hymenoptera_data": "val", "clothing_small": "test", "brain_mri": "Testing"}


def squares(folder: Path) -> Pixels:
    """Return every image of a folder as the built-in backbone reads it."""
    rule = load_backbone().card.resize
    found = (decode_image(path.read_bytes(), rule) for path in sorted(folder.glob("*/*")))
    return np.stack([one.pixels for one in found if not isinstance(one, Failure)])


def main() -> None:
    """Print a line for every set and head."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stores", type=Path, required=True)
    stores = parser.parse_args().stores
    session = load_backbone().open_session("cpu", "fp32")
    for name, part in SETS.items():
        pixels = squares(ROOT / name / part)
        for kind in HEADS:
            if kind in {"knn", "svm-rbf"}:
                continue
            head = fit(stores / name, kind, tune=False, check=False)
            n = len(head.classes)
            classes = np.tile(np.arange(n), (len(pixels), 1))
            worst = 0.0
            for sight in Looker(head, session).look(pixels, classes):
                assert sight is not None
                assert sight.bias is not None
                scores = class_scores(head.pipeline, sight.vector[None])[0]
                wanted = scores - scores[::-1] if n == 2 else scores - scores.mean()
                apart = sight.values.sum(axis=(1, 2)) + sight.bias - wanted
                worst = max(worst, float(np.abs(apart).max()))
            print(f"{name:<17} {len(pixels):>4} images  {kind:<9} {worst:.1e}", flush=True)


if __name__ == "__main__":
    main()
