"""Measure the accuracy table of ``models/README.md`` with featpipe's own commands.

``python tools/make_model_card.py DATASETS``, where DATASETS holds hymenoptera_data,
clothing_small and brain_mri; everything is made in a temporary folder. Takes some minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CARD = ROOT / "models" / "README.md"
MARK = "<!-- accuracy: filled from the commands below -->"
SETS = ("hymenoptera_data", "clothing_small", "brain_mri")
ROWS = (
    ("raw_pixels", "logreg"),
    ("raw_pixels", "knn"),
    ("efficientnet_lite0", "logreg"),
    ("efficientnet_lite0", "svm"),
    ("efficientnet_lite0", "knn"),
)


def featpipe(*arguments: str, folder: Path) -> None:
    """Run one command in ``folder``; what it says goes to stderr."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "cli.py"), *arguments]
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=sys.stderr)


def measure(data: Path, folder: Path) -> dict[tuple[str, str], str]:
    """Embed one data set with both backbones and fit the heads; return the table's cells."""
    cells = {}
    for model in dict.fromkeys(model for model, _ in ROWS):
        store = f"{data.name}-{model}"
        featpipe("embed", str(data), "--model", model, "-o", store, folder=folder)
        for head in (head for other, head in ROWS if other == model):
            featpipe("fit", store, "--head", head, "-o", f"{store}-{head}", folder=folder)
            written = json.loads((folder / f"{store}-{head}" / "head.json").read_text())
            cells[model, head] = cell(written)
    return cells


def cell(head: dict[str, Any]) -> str:
    """Return held-out accuracy and its 95 % interval, per cent, from a ``head.json``."""
    estimate = head["report"]["estimate"]
    low, high = estimate["intervals_95"]["accuracy"]
    return f"{100 * estimate['accuracy']:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def main() -> None:
    """Measure all data sets and replace the table below the mark."""
    data = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        columns = [measure(data / name, Path(scratch)) for name in SETS]
    lines = [
        f"| backbone | head | {' | '.join(SETS)} |",
        "|---|---|" + "---|" * len(SETS),
        *(f"| {m} | {h} | {' | '.join(c[m, h] for c in columns)} |" for m, h in ROWS),
    ]
    before, _, rest = CARD.read_text(encoding="utf-8").partition(MARK)
    # The former table, if there is one, is what stands between the mark and the commands.
    after = rest[rest.index("```") :]
    table = "Per cent, with the 95 % interval.\n\n" + "\n".join(lines)
    CARD.write_text(f"{before}{MARK}\n\n{table}\n\n{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
