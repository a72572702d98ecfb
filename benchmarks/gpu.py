"""ResNet-50 on a GPU: end to end, and the model alone at several batch sizes, beside torch.

    python benchmarks/gpu.py --models-dir DIR [--device cuda] [--json FILE]

``DIR`` holds ``resnet50.onnx`` (`featpipe export resnet50`). Untrained weights serve torch:
their values cost no time. With ``--device cpu`` it runs anywhere, to see that it does.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from arena import Contender, compete, machine
from pipeline import photographs

BATCHES = [1, 8, 32, 128, 256]
SIDE = 224


def contenders(model: str, device: str, batches: list[int], images: int) -> list[Contender]:
    """Return featpipe end to end, then models alone: ours, torch eager, torch compiled."""
    half = device != "cpu"
    precisions = ("fp32", "fp16") if half else ("fp32",)
    found = [
        Contender(
            f"featpipe, {precision}, end to end",
            "featpipe",
            {"model": model, "device": device, "precision": precision},
            images,
        )
        for precision in precisions
    ]
    found.append(Contender("decoding alone", "decode", {"model": model}, images))
    for size in batches:
        for precision in precisions:
            options = {"model": model, "device": device, "precision": precision}
            found.append(
                Contender(
                    f"featpipe's model, {precision}, batch {size}",
                    "model",
                    {**options, "batch_size": size},
                    max(images, 4 * size),
                )
            )
        for compiled in (False, True):
            torch = {"network": "resnet50", "crop": SIDE, "batch_size": size, "device": device}
            found.append(
                Contender(
                    f"torch {'compiled' if compiled else 'eager'}, batch {size}",
                    "torch model",
                    {**torch, "compiled": compiled, "half": half},
                    max(images, 4 * size),
                    peer=True,
                )
            )
    return found


def main() -> None:
    """Measure in turn, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models-dir", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--images", type=int, default=396)
    parser.add_argument("--batch", type=int, action="append", help=f"default: {BATCHES}")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = str(arguments.models_dir / "resnet50.onnx")
    field = contenders(model, arguments.device, arguments.batch or BATCHES, arguments.images)
    compete(field, photographs(), arguments.repetitions)
    print("| | images/s | spread |\n|---|---|---|")
    for c in field:
        shown = f"{c.rate:,.1f} | ± {c.spread:.0%}" if c.rates else f"not run: {c.problem} |"
        print(f"| {c.name} | {shown} |")
    if arguments.json:
        rows = [c.to_json() for c in field]
        content = {"machine": machine(), "gpu": rows}
        arguments.json.write_text(json.dumps(content, indent=2), encoding="utf-8")
    if not any(c.rates for c in field):
        sys.exit(1)


if __name__ == "__main__":
    main()
