"""Images a second: `featpipe.embed` beside what one would use instead, and beside its limit.

    python benchmarks/pipeline.py [--models-dir DIR] [--repetitions N] [--json FILE]

The built-in backbone, and ResNet-50 where ``--models-dir`` holds ``resnet50.onnx``
(`featpipe export resnet50`); their int8 versions where it holds those. Photographs from
``FEATPIPE_SHARED`` (about 500 × 375), and copies of 4000 × 3000 made of them. The limit of
`n` cores is ``n / (seconds to decode + seconds of the model)``, each measured alone on all; the
same with the seconds to hash the file, which `embed` does to know equal contents, stands beside.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.utils import Extractor
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from arena import PEERS, Contender, compete, machine

from featpipe.backbones import load_backbone

BUILTIN, RESNET = "efficientnet_lite0", "resnet50"
NETWORKS = {BUILTIN: "timm/tf_efficientnet_lite0", RESNET: "resnet50"}
LARGE_FEW = 12


def data() -> Path:
    """Return the folder of photographs: `train/` and a folder for each class in it."""
    return Path(os.environ["FEATPIPE_SHARED"]) / "datasets" / "hymenoptera_data"


def photographs() -> list[str]:
    """Return real photographs of about 500 × 375, the same ones everywhere."""
    return [str(path) for path in sorted(data().rglob("*.jpg"))]


def enlarged(paths: list[str], folder: Path) -> list[str]:
    """Write photographs as a camera of 12 megapixels would, grain included."""
    grain = np.random.default_rng(0).normal(0, 6, (3000, 4000, 1)).astype(np.int16)
    found = []
    for number, path in enumerate(paths):
        with Image.open(path) as image:
            large = np.asarray(image.convert("RGB").resize((4000, 3000))).astype(np.int16)
        pixels = Image.fromarray((large + grain).clip(0, 255).astype(np.uint8))
        found.append(str(folder / f"{number}.jpg"))
        pixels.save(found[-1], quality=88)
    return found


def for_fastembed(path: Path, folder: Path) -> None:
    """Write the same network as fastembed wants it: from normalised pixels on."""
    model = onnx.load(path)
    card = load_backbone(path).card
    first = next(node for node in model.graph.node if node.op_type == "Conv").input[0]
    side = card.input_size
    value = onnx.helper.make_tensor_value_info(
        first, onnx.TensorProto.FLOAT, ["batch", 3, side, side]
    )
    del model.graph.value_info[:]
    model.graph.value_info.append(value)
    cut = Extractor(model).extract_model([first], ["embedding"])
    onnx.save(cut, folder / "model.onnx")
    config = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": card.resize.resize},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": side,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": list(card.mean),
        "image_std": list(card.std),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config), encoding="utf-8")


def contenders(name: str, models: Path | None, fast: Path, few: int, many: int) -> list[Contender]:
    """Return everything that does the work with one backbone."""
    path = str(models / f"{name}.onnx") if name != BUILTIN and models else name
    rule = load_backbone(path).card.resize
    torch = {"network": NETWORKS[name], "resize": rule.resize, "crop": rule.crop}
    found = [
        Contender("featpipe, auto", "featpipe", {"model": path}, many),
        Contender("featpipe, CPU", "featpipe", {"model": path, "device": "cpu"}, many),
        Contender(
            "featpipe score, CPU",
            "score",
            {"model": path, "folder": str(data() / "train"), "device": "cpu"},
            many,
        ),
        Contender("naive onnxruntime loop", "naive", {"model": path}, few),
        Contender("model alone", "model", {"model": path}, many),
        Contender("decoding alone", "decode", {"model": path}, many),
        Contender("hashing alone", "hash", {}, many),
        Contender("Pillow's full decode alone", "reference", {"model": path}, many),
        Contender("usual torch script", "torch", torch, few, peer=True),
        Contender("expert's torch script", "expert", torch, few, peer=True),
    ]
    for_fastembed(load_backbone(path).path, fast)
    found.append(Contender("fastembed", "fastembed", {"folder": str(fast)}, few, peer=True))
    small = models / f"{name}_int8.onnx" if models else None
    if small is not None and small.exists():
        options = {"model": str(small), "device": "cpu"}
        found.append(Contender("featpipe, int8", "featpipe", options, many))
        found.append(Contender("int8 model alone", "model", {"model": str(small)}, many))
    return found


def limit(rates: dict[str, float], *stages: str) -> float:
    """Return images a second of cores that go through these stages, and do nothing else."""
    found = [rates.get(stage, 0.0) for stage in stages]
    return 1 / sum(1 / rate for rate in found) if all(found) else 0.0


def ratios(rates: dict[str, float]) -> Iterator[tuple[str, float]]:
    """Yield what the bars are about."""
    for ours in ("featpipe, auto", "featpipe, int8"):
        for theirs in (
            "usual torch script",
            "expert's torch script",
            "fastembed",
            "naive onnxruntime loop",
        ):
            if rates.get(ours) and rates.get(theirs):
                yield f"{ours} / {theirs}", rates[ours] / rates[theirs]
    for ours, model in (
        ("featpipe, CPU", "model alone"),
        ("featpipe, int8", "int8 model alone"),
    ):
        if bound := limit(rates, "decoding alone", model):
            yield f"{ours} / its limit", rates[ours] / bound
        if bound := limit(rates, "decoding alone", "hashing alone", model):
            yield f"{ours} / its limit, contents hashed", rates[ours] / bound
    if scored := rates.get("featpipe score, CPU"):
        yield "featpipe score / featpipe embed", scored / rates["featpipe, CPU"]
    if full := rates.get("Pillow's full decode alone"):
        yield "decoding alone / Pillow's full decode", rates["decoding alone"] / full


def measure(
    what: str, name: str, models: Path | None, paths: list[str], few: int, repetitions: int
) -> dict[str, Any]:
    """Let all contenders for one backbone and one kind of photograph run in turn."""
    print(f"{name}, {what}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        field = contenders(name, models, Path(folder), few, len(paths))
        compete(field, paths, repetitions)
    rates = {c.name: c.rate for c in field if c.rates}
    return {
        "backbone": name,
        "photographs": what,
        "repetitions": repetitions,
        "contenders": [c.to_json() for c in field],
        "limit": limit(rates, "decoding alone", "model alone"),
        "ratios": dict(ratios(rates)),
    }


def show(result: dict[str, Any]) -> None:
    """Print one result as a table."""
    print(f"\n{result['backbone']}, {result['photographs']}\n")
    print("| | images/s | spread | peak MB |\n|---|---|---|---|")
    for c in result["contenders"]:
        if c["problem"]:
            print(f"| {c['name']} | not run: {c['problem']} | | |")
        else:
            print(f"| {c['name']} | {c['rate']:.1f} | ± {c['spread']:.0%} | {c['memory'] >> 20} |")
    print("\n| ratio | |\n|---|---|")
    for name, value in result["ratios"].items():
        print(f"| {name} | {value:.2f} |")


def main() -> None:
    """Measure every backbone on both kinds of photographs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models-dir", type=Path)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--images", type=int, default=100, help="of a slow contender's run")
    parser.add_argument("--backbone", choices=[BUILTIN, RESNET], action="append")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if not PEERS.exists():
        print(f"no peers: there is no {PEERS}; `make bench-peers` makes it", file=sys.stderr)
    models = arguments.models_dir
    names = arguments.backbone or [BUILTIN, RESNET]
    if RESNET in names and not (models and (models / f"{RESNET}.onnx").exists()):
        print("no ResNet-50: give --models-dir with resnet50.onnx", file=sys.stderr)
        names.remove(RESNET)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        small = photographs()
        large = enlarged(small[: arguments.images], Path(folder))
        for name in names:
            for what, paths, few in (
                ("about 500 × 375", small[: 4 * arguments.images], arguments.images),
                ("4000 × 3000", large, min(LARGE_FEW, arguments.images)),
            ):
                results.append(measure(what, name, models, paths, few, arguments.repetitions))
                show(results[-1])
    if arguments.json:
        content = {"machine": machine(), "pipeline": results}
        arguments.json.write_text(json.dumps(content, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
