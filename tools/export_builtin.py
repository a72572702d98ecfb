"""Rebuild ``models/efficientnet_lite0.onnx``, byte for byte: ``make model``.

Needs an environment with ``tools/requirements-export.txt``. With ``--check`` nothing is
replaced: the file is rebuilt elsewhere and compared with the committed one.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import sys
import tempfile
from importlib.metadata import distribution
from pathlib import Path

# One thread, no GPU: nothing about the machine may reach the bytes. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

# featpipe need not be installed, only what its export needs.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from featpipe._files import write_json
from featpipe.backbones.export import export_module
from featpipe.backbones.export.packages import PACKAGES, lite_features

MODELS = Path(__file__).resolve().parent.parent / "models"
NAME = "efficientnet_lite0"
PACKAGE = PACKAGES[NAME].distribution


def build(folder: Path) -> list[Path]:
    """Write model, card and licence into ``folder``; return the three files."""
    model = folder / f"{NAME}.onnx"
    features, card = lite_features(NAME)
    card = export_module(features, card, model)
    write_json(folder / f"{NAME}.json", card.to_json())
    licence = folder / f"LICENSE-{NAME}.txt"
    licence.write_bytes(licence_text())
    return [model, folder / f"{NAME}.json", licence]


def licence_text() -> bytes:
    """Return the licence that the weights' package carries."""
    for file in distribution(PACKAGE).files or ():
        if file.name == "LICENSE":
            return Path(str(file.locate())).read_bytes()
    raise SystemExit(f"{PACKAGE} carries no LICENSE file")


def main() -> int:
    """Build into a temporary folder; then compare, or put the files in place."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare, replace nothing")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        different = []
        for built in build(Path(scratch)):
            committed = MODELS / built.name
            if committed.is_file() and filecmp.cmp(built, committed, shallow=False):
                print(f"{built.name}: the same, byte for byte")
                continue
            different.append(built.name)
            print(f"{built.name}: different" if check else f"{built.name}: written")
            if not check:
                shutil.copyfile(built, committed)
    return 1 if check and different else 0


if __name__ == "__main__":
    sys.exit(main())
