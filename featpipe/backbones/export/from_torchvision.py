"""torchvision's classification networks, with the weights and transforms that it publishes.

The default weights are the first published ones, ``IMAGENET1K_V1`` wherever they exist. The
newer recipes (label smoothing, mixup, long schedules) raise the accuracy on ImageNet and
lower what the features are worth elsewhere: Kornblith et al. 2021, "Why do better loss
functions lead to less transferable features?".
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torchvision
from torch import nn
from torchvision.models import get_model_builder, get_model_weights, list_models

from featpipe._files import printable
from featpipe.backbones.card import BackboneCard, triple
from featpipe.backbones.export.checkpoints import fit_weights, read_weights
from featpipe.backbones.export.download import fetch
from featpipe.backbones.export.options import ExportOptions, Network, ascii_slug
from featpipe.errors import BackboneError
from featpipe.types import ResizeRule

LICENSE = "not stated (torchvision itself is BSD-3-Clause; trained on ImageNet)"
AUXILIARY = ("AuxLogits", "aux1", "aux2")
"""Heads that only training uses."""
_HASH = re.compile(r"-([0-9a-f]{8,})\.")


def names() -> list[str]:
    """Return the names of torchvision's classification networks."""
    found: list[str] = list_models(module=torchvision.models)
    return found


def build(name: str, options: ExportOptions) -> Network:
    """Build a network with published weights, or with those of a file.

    Raises
    ------
    BackboneError
        When the weights are unknown, cannot be had, or do not fit.
    """
    published = list(get_model_weights(name))
    chosen, file = choose_weights(name, options.weights)
    model = untrained(name)
    head = remove_classifier(model)
    by_name = file is None
    if file is None:
        file = fetch(chosen.url, f"{chosen} of {name}")
    weights = read_weights(file)
    known = next((w for w in published if is_file_of(weights.sha256, w.url)), None)
    if known is not None:
        chosen = known
    elif by_name:
        raise BackboneError(
            f"{printable(str(file))} is not the file that torchvision publishes as {chosen} "
            f"(its SHA-256 begins with {weights.sha256[:8]}): delete it and run the same command "
            "again"
        )
    # What is averaged for training only, and the classifier: neither reaches the embedding.
    prefix = fit_weights(model, weights, (head, *AUXILIARY), name)
    own = f"{weights.origin(prefix)}, prepared as {chosen}"
    origin = f"torchvision {chosen}" if known else own
    card = BackboneCard(
        name=name,
        weights=f"{origin}, SHA-256 {weights.sha256}",
        license=license_of(chosen) if known else "that of the checkpoint, which names none",
        dimension=1,
        resize=resize_rule(chosen),
        mean=triple(chosen.transforms().mean),
        std=triple(chosen.transforms().std),
        imagenet_top1=top1(chosen) if known else None,
        gflops=chosen.meta.get("_ops"),
    )
    called = published_name(name, published, chosen) if known else _own_name(name, file)
    # These weights come without a trained classifier, and without the layers before it.
    layer = "features" if chosen.meta.get("categories") is None else None
    return Network(called, model.eval(), card, layer, published=known is not None)


def choose_weights(name: str, asked: str | None) -> tuple[Any, Path | None]:
    """Return the entry of torchvision's list whose transforms count, and the file, if one is asked.

    Raises
    ------
    BackboneError
        When there are no such weights.
    """
    published = list(get_model_weights(name))
    if asked is None:
        return published[0], None
    named = {w.name: w for w in published}
    wanted = asked.rpartition(".")[2].upper()
    if wanted in named:
        return named[wanted], None
    path = Path(asked)
    if path.suffix or path.exists():
        return published[0], path
    raise BackboneError(
        f"there are no weights '{printable(asked)}' for {name}: use {', '.join(named)}, or the "
        "path of a .pth or .safetensors file"
    )


def untrained(name: str) -> nn.Module:
    """Build the network as the published weights expect it, with random weights.

    Inception and GoogLeNet were trained on pixels of another normalisation and change those
    of torchvision's transform by themselves (``transform_input``).
    """
    extra: dict[str, Any] = {}
    if name in {"inception_v3", "googlenet"}:
        extra = {"transform_input": True, "aux_logits": True, "init_weights": False}
    model: nn.Module = get_model_builder(name)(weights=None, **extra)
    return model.eval()


def remove_classifier(model: nn.Module) -> str:
    """Put nothing in the place of the last linear layer, and return the layer's name.

    Heads that only training uses go, too.

    SqueezeNet has a convolution there, after which it averages: the convolution, its
    activation and nothing else go, so the average is that of the features.
    """
    if isinstance(model, torchvision.models.SqueezeNet):
        classifier: Any = model.classifier
        model.classifier = nn.Sequential(classifier[0], nn.Identity(), nn.Identity(), classifier[3])
        return "classifier"
    for auxiliary in AUXILIARY:
        if hasattr(model, auxiliary):
            setattr(model, auxiliary, None)
    if isinstance(model, torchvision.models.DenseNet):
        # Its activation before the pool is a call of its forward: as a module it can be seen.
        model.features.append(nn.ReLU())
    name: str = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, nn.Identity())
    return name


def is_file_of(sha256: str, url: str) -> bool:
    """Tell whether a digest is the one whose beginning stands in the published file's name."""
    match = _HASH.search(url.rpartition("/")[2])
    return match is not None and sha256.startswith(match[1])


def published_name(name: str, published: list[Any], chosen: Any) -> str:
    """Return the network's name for its default weights, and one of their own for others."""
    return name if chosen is published[0] else f"{name}-{chosen.name.lower()}"


def _own_name(name: str, file: Path) -> str:
    """Return a name that nobody takes for the published weights."""
    stem = ascii_slug(file.stem)
    if stem == name:
        return f"{name}-own"
    return stem if stem.startswith(name) else f"{name}-{stem}"


def license_of(weights: Any) -> str:
    """Return what torchvision says of the weights' licence."""
    link = weights.meta.get("license")
    return f"the weights' own: {link}" if link else LICENSE


def top1(weights: Any) -> float | None:
    """Return the published accuracy on ImageNet, per cent."""
    metrics = weights.meta.get("_metrics", {}).get("ImageNet-1K", {})
    value = metrics.get("acc@1")
    return None if value is None else float(value)


def resize_rule(weights: Any) -> ResizeRule:
    """Return the resize and crop of the weights' own transform."""
    transform = weights.transforms()
    return ResizeRule(
        resize=transform.resize_size[0],
        crop=transform.crop_size[0],
        interpolation=transform.interpolation.value,
        antialias=bool(transform.antialias),
    )
