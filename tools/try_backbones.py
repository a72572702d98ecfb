"""Export and gate every CNN of torchvision and timm with random weights; say which cannot be.

    python tools/try_backbones.py tried.jsonl [--only WORD] [--seconds N] [--part I/N]
    python tools/try_backbones.py tried.jsonl --table

Each network is built untrained, given weights and statistics that are neither trivial nor
exploding (`conditioned`), exported at 96 pixels (at its own size where it takes no other),
and compared with torch at batch 1, 2 and 33, both outputs. What is in the file or in the
documents already is not tried again, so the run can be interrupted, and go on elsewhere.
Two processes of ``--part 1/2`` and ``--part 2/2``, a file each, share the work; their files
are put together before the table is made.
``--table`` writes the table of ``docs/backbones.md`` and ``docs/backbones-tried.csv``.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import sys
import tempfile
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.models._registry import _model_to_module
from torch import nn
from torchvision.models import get_model_weights

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from featpipe.backbones.card import BackboneCard
from featpipe.backbones.catalog import find_entry
from featpipe.backbones.export import ExportOptions, export_network, from_timm, from_torchvision
from featpipe.backbones.export.options import Network
from featpipe.backbones.writing import (
    EXPORT_COSINE,
    compare,
    gate_images,
    require_one_file,
)
from featpipe.errors import BackboneError
from featpipe.types import ResizeRule

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "backbones.md"
CSV = ROOT / "docs" / "backbones-tried.csv"
MARK = "<!-- tried: made by tools/try_backbones.py --table -->"
END = "<!-- tried: end -->"
SMALL = 96
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
BATCHES = (1, 2, 33)
# timm's modules that hold convolutional networks; the others are transformers or mixers.
CNN_MODULES = frozenset(
    """
    byobnet convmixer convnext cspnet cspnext densenet dla dpn edgenext efficientnet fasternet
    fastvit focalnet ghostnet hardcorenas hgnet hrnet inception_next inception_resnet_v2
    inception_v3 inception_v4 lcnetv2 mambaout mobilenetv3 nasnet nfnet pnasnet rdnet regnet
    repghost repvit res2net resnest resnet resnetv2 rexnet selecsls senet sknet starnet tresnet
    vgg vovnet xception xception_aligned
    """.split()  # noqa: SIM905
)
NOT_CNN = ("vit_", "swin_", "maxvit_")


@dataclass(frozen=True)
class Norms:
    """What weights (uniform) and biases (normal) of normalisations are drawn from."""

    low: float
    high: float
    bias: float


LIVELY = Norms(1.0, 2.0, 0.1)
CALM = Norms(0.5, 1.0, 1.0)
"""For networks in which the lively ones let one image outgrow the others from block to block."""


def conditioned(model: Any, size: int, drawn: Norms = LIVELY) -> Any:
    """Give an untrained network weights and statistics that let every layer matter.

    Untrained, many branches are multiplied by zero or 1e-6 and every normalisation is the
    identity: an export could lose them and nobody would see it.
    """
    torch.manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            norm = "Norm" in type(module).__name__
            for name, parameter in module.named_parameters(recurse=False):
                low, high = parameter.min(), parameter.max()
                if norm and name == "weight":
                    parameter.uniform_(drawn.low, drawn.high)
                elif norm and name == "bias":
                    parameter.normal_(0, drawn.bias)
                elif low == high and abs(float(low)) <= 1e-4 and name != "bias":
                    parameter.uniform_(0.1, 0.3)
        norms = [m for m in model.modules() if isinstance(m, NORMS) and m.track_running_stats]
        for module in norms:
            module.reset_running_stats()
            module.momentum = None
            module.train()
        # The gate's own images: what lies far from them could grow from layer to layer, until
        # rounding decides (torch in 32 and in 64 bits then disagree, too).
        images = np.concatenate([gate_images(n, size, seed) for seed, n in enumerate(BATCHES)])
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        model((pixels / 255 - 0.45) / 0.25)
        for module in norms:
            # A channel that hardly varies would be multiplied until rounding is all there is.
            variance = module.running_var
            variance.clamp_(min=0.5 * float(variance.median()))
    return model.eval()


def untrained_network(name: str, size: int | None, drawn: Norms = LIVELY) -> Any:
    """Return a `Network` with conditioned weights, and the size it is to be tried at."""
    torch.manual_seed(0)
    if name.startswith("timm/"):
        model: Any = from_timm.untrained(name.removeprefix("timm/"))
        size = size or int(model.pretrained_cfg["input_size"][1])
        headless: Any = from_timm.TimmHeadless(conditioned(model, size, drawn))
        unused = from_timm.unused(model)
    else:
        model = from_torchvision.untrained(name)
        size = size or int(next(iter(get_model_weights(name))).transforms().crop_size[0])
        headless = conditioned(model, size, drawn)
        from_torchvision.remove_classifier(headless)
        unused = ()
    card = BackboneCard(
        name=name.replace("/", "-"),
        weights="random, seed 0",
        license="none needed",
        dimension=1,
        resize=ResizeRule(resize=size, crop=size),
        mean=(0.45,) * 3,
        std=(0.25,) * 3,
    )
    return Network(card.name, headless, card, unused=unused)


def is_decided_by_rounding(network: Any, size: int) -> bool:
    """Tell whether torch in 32 bits does not give what torch in 64 bits gives."""
    images = torch.from_numpy(gate_images(BATCHES[-1], size, 2)).permute(0, 3, 1, 2).float()
    images = (images / 255 - 0.45) / 0.25
    with torch.no_grad():
        narrow = network.headless(images)
        wide = network.headless.double()(images.double())
    return compare(narrow.numpy(), wide.numpy()) < EXPORT_COSINE


def _exported(network: Any, options: ExportOptions) -> Any:
    """Export a network; return None where its own weights make it a matter of rounding."""
    try:
        return export_network(network, options, batches=BATCHES)
    except BackboneError:
        if not is_decided_by_rounding(network, network.card.resize.crop):
            raise
    return None


def attempt(name: str, size: int | None) -> dict[str, Any]:
    """Export one network into a temporary folder; return what came of it."""
    entry = find_entry(name)
    # What the export would say, too, after the network was built and conditioned.
    require_one_file(name, 4 * ((entry.parameters if entry else None) or 0))
    with tempfile.TemporaryDirectory() as folder:
        options = ExportOptions(models_dir=Path(folder))
        remark = ""
        done = _exported(untrained_network(name, size, LIVELY), options)
        if done is None:
            remark = "with calmer normalisations than the others"
            done = export_network(untrained_network(name, size, CALM), options, batches=BATCHES)
        card, megabytes = done.card, done.path.stat().st_size / 1e6
    return {
        "ok": True,
        "dimension": card.dimension,
        "feature_map": done.has_feature_map,
        "parameters": card.parameters,
        "pixels": card.input_size,
        "megabytes": round(megabytes, 1),
        "reason": remark,
    }


def work(channel: Connection) -> None:
    """Try the networks that come through ``channel``, one after the other."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    while True:
        name = channel.recv()
        begun = time.perf_counter()
        result: dict[str, Any] = {}
        for size in (SMALL, None):
            try:
                result = attempt(name, size)
                break
            except Exception as exc:  # noqa: BLE001 - whatever keeps a network from it is a row
                lines = (str(exc).strip() or type(exc).__name__).splitlines()
                result = {"ok": False, "reason": lines[0][:300]}
                if "does not reproduce" in lines[0]:
                    break  # it does run at this size
        channel.send({"name": name, **result, "seconds": round(time.perf_counter() - begun, 1)})


def names() -> list[str]:
    """Return the networks: torchvision's, then one of each of timm's modules, then all.

    Small ones first: an interrupted run has then seen as much as it could.
    """

    def size(name: str) -> int:
        entry = find_entry(name)
        return (entry.parameters if entry else None) or 0

    ours = [n for n in from_torchvision.names() if not n.startswith(NOT_CNN)]
    families: dict[str, list[str]] = defaultdict(list)
    for name in timm.list_models():
        if _model_to_module[name] in CNN_MODULES:
            families[_model_to_module[name]].append(f"timm/{name}")
    for family in families.values():
        family.sort(key=size)
    rounds = max(len(f) for f in families.values())
    mixed = [f[i] for i in range(rounds) for f in families.values() if i < len(f)]
    return sorted(ours, key=size) + mixed


def run(path: Path, only: str, seconds: float, part: tuple[int, int]) -> None:
    """Try what is not in the file yet."""
    known = {record["name"] for record in records(path)}
    index, parts = part
    mine = [n for n in names() if only in n and zlib.crc32(n.encode()) % parts == index - 1]
    todo = [n for n in mine if n not in known]
    context = multiprocessing.get_context("spawn")
    process, channel = _start(context)
    with path.open("a", encoding="utf-8") as file:
        for number, name in enumerate(todo, start=1):
            channel.send(name)
            if channel.poll(seconds):
                try:
                    record = channel.recv()
                except EOFError:
                    record = {"name": name, "ok": False, "reason": "the process died (memory?)"}
                    process, channel = _start(context)
            else:
                process.kill()
                record = {"name": name, "ok": False, "reason": f"took more than {seconds:.0f} s"}
                process, channel = _start(context)
            file.write(json.dumps(record) + "\n")
            file.flush()
            print(f"{number}/{len(todo)} {record}", file=sys.stderr, flush=True)
    process.kill()


def _start(context: Any) -> tuple[Any, Connection]:
    ours, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def records(path: Path) -> list[dict[str, Any]]:
    """Return what stands in the file, and what stands in the documents alone."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines]
    new = {record["name"] for record in found}
    return [*(record for record in documented() if record["name"] not in new), *found]


def documented() -> list[dict[str, Any]]:
    """Return the rows of ``docs/backbones-tried.csv``; what failed there is tried again."""
    if not CSV.exists():
        return []
    with CSV.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["ok"] == "True"]
    return [{**row, "ok": True} for row in rows]


def table(found: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of the table: a row a family."""
    families: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in found:
        library, _, name = record["name"].rpartition("/")
        family = f"timm, {_model_to_module[name]}" if library else "torchvision"
        families[family].append(record)
    good = sum(record["ok"] for record in found)
    yield f"{len(found)} networks tried, {good} exported and gated:"
    yield ""
    yield "| family | tried | exported | not, and why |"
    yield "|---|---|---|---|"
    for family in sorted(families, key=lambda f: (f != "torchvision", f)):
        rows = families[family]
        bad = [f"{r['name'].rpartition('/')[2]}: {r['reason']}" for r in rows if not r["ok"]]
        shown = "; ".join(bad).replace("|", "\\|")
        yield f"| {family} | {len(rows)} | {sum(r['ok'] for r in rows)} | {shown} |"


def write_table(path: Path) -> None:
    """Put the table into the page, and every network into the CSV file."""
    found = records(path)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARK)
    _, _, after = rest.partition(END)
    lines = "\n".join(table(found))
    PAGE.write_text(f"{before}{MARK}\n\n{lines}\n\n{END}{after}", encoding="utf-8")
    columns = ["name", "ok", "dimension", "feature_map", "parameters", "pixels", "megabytes"]
    with CSV.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*columns, "reason"], extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(sorted(found, key=lambda r: r["name"]))


def main() -> None:
    """Try, or write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", default="", help="names that hold this word")
    parser.add_argument("--seconds", type=float, default=400.0, help="for one network")
    parser.add_argument("--part", default="1/1", help="do only the I-th of N equal shares")
    parser.add_argument("--table", action="store_true", help="write the documents")
    arguments = parser.parse_args()
    if arguments.table:
        write_table(arguments.file)
    else:
        index, parts = map(int, arguments.part.split("/"))
        run(arguments.file, arguments.only, arguments.seconds, (index, parts))


if __name__ == "__main__":
    main()
