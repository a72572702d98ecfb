"""timm's networks, with the weights and the data configuration that it publishes."""

from __future__ import annotations

import difflib
import importlib.metadata
import math
import re
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_model_data_config
from torch import nn

from featpipe._files import file_sha256, printable
from featpipe.backbones.card import BackboneCard, triple
from featpipe.backbones.export.checkpoints import fit_weights, read_weights
from featpipe.backbones.export.download import fetch, fetch_from_hub
from featpipe.backbones.export.options import ExportOptions, Network, ascii_slug
from featpipe.errors import BackboneError
from featpipe.types import ResizeRule

PREFIX = "timm/"
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def build(name: str, options: ExportOptions) -> Network:
    """Build a network with its published weights, or with those of a file.

    Parameters
    ----------
    name : str
        Without ``timm/``: an architecture, or an architecture and the tag of its weights
        (``resnet50.a1_in1k``).

    Raises
    ------
    BackboneError
        When there is no such network, or its weights cannot be had or do not fit.
    """
    architecture, tag = split_name(name)
    asked = options.weights
    if asked is not None and not Path(asked).suffix and asked in tags(architecture):
        tag, asked = asked, None
    published = timm.get_pretrained_cfg(f"{architecture}.{tag}" if tag else architecture)
    version = importlib.metadata.version("timm")
    if asked is None:
        file, called = _published_file(architecture, published)
        model = _trained(called, file)
        origin = f"timm {version}, {called}, SHA-256 {file_sha256(file)}"
        license_ = published.license or "not stated by timm"
    else:
        # The tag says how images were prepared, also for weights of one's own.
        full = f"{architecture}.{tag}" if tag else architecture
        model = untrained(full)
        weights = read_weights(Path(asked))
        prefix = fit_weights(model, weights, classifier_names(model), f"{PREFIX}{full}")
        origin = f"{weights.origin(prefix)}, prepared as timm's {full}, SHA-256 {weights.sha256}"
        called = f"{full}-{ascii_slug(weights.path.stem)}"
        license_ = "that of the checkpoint, which names none"
    config = resolve_model_data_config(model)
    card = BackboneCard(
        name=f"timm-{called}",
        weights=origin,
        license=license_,
        dimension=1,
        resize=resize_rule(called, config),
        mean=triple(config["mean"]),
        std=triple(config["std"]),
    )
    return Network(
        card.name,
        TimmHeadless(model).eval(),
        card,
        published=asked is None,
        crop_part=config["crop_pct"],
    )


def split_name(name: str) -> tuple[str, str | None]:
    """Return architecture and tag of a name that timm knows.

    Raises
    ------
    BackboneError
        When timm knows no such network, or no such weights of it.
    """
    architecture, _, tag = name.partition(".")
    if architecture not in timm.list_models():
        near = _near(architecture)
        hint = f"did you mean {' or '.join(f'timm/{n}' for n in near)}?" if near else ""
        raise BackboneError(
            f"timm {timm.__version__} has no network '{printable(architecture)}'"
            + (f": {hint}" if hint else ": featpipe models timm/ lists the networks")
        )
    if tag and tag not in tags(architecture):
        raise BackboneError(
            f"timm {timm.__version__} publishes no weights '{printable(tag)}' for {architecture}: "
            f"use {', '.join(tags(architecture)) or 'a file, with --weights FILE'}"
        )
    return architecture, tag or None


def tags(architecture: str) -> list[str]:
    """Return the names of timm's weights for an architecture, the default first."""
    full = timm.list_pretrained(f"{architecture}.*")
    found = [name.partition(".")[2] for name in full if name.partition(".")[0] == architecture]
    default = timm.get_pretrained_cfg(architecture).tag
    return sorted(found, key=lambda tag: (tag != default, tag))


def untrained(architecture: str) -> nn.Module:
    """Build an architecture (or one with a tag, for its configuration) with random weights."""
    model: nn.Module = timm.create_model(architecture, pretrained=False, exportable=True)
    return model.eval()


def classifier_names(model: Any) -> tuple[str, ...]:
    """Return the names of the modules that are the classifier, as timm's configuration has them."""
    named = model.pretrained_cfg.get("classifier") or "head"
    return (named,) if isinstance(named, str) else tuple(named)


def resize_rule(name: str, config: dict[str, Any]) -> ResizeRule:
    """Turn timm's data configuration into a rule, as its evaluation transform does.

    Raises
    ------
    BackboneError
        When the images are prepared in a way that featpipe does not know.
    """
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise BackboneError(
            f"timm/{name} reads images of {height} × {width} pixels and {channels} channels: "
            "featpipe gives a backbone squares of three channels"
        )
    if config["crop_mode"] not in {"center", "squash"}:
        raise BackboneError(
            f"timm/{name} prepares images by '{config['crop_mode']}', which featpipe does not: "
            "it knows the centre crop and the squashed square"
        )
    return ResizeRule(
        resize=math.floor(height / config["crop_pct"]),
        crop=height,
        interpolation=config["interpolation"],
        squash=config["crop_mode"] == "squash",
    )


class TimmHeadless(nn.Module):  # type: ignore[misc]  # mypy does not follow torch
    """A timm network up to what its classifier reads."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Any) -> Any:
        """Return the embedding (N, D) of normalised float32 (N, 3, H, W)."""
        return self.model.forward_head(self.model.forward_features(pixels), pre_logits=True)


def _published_file(architecture: str, published: Any) -> tuple[Path, str]:
    """Return the file of published weights, and the weights' full name."""
    if published is None or not published.has_weights:
        raise BackboneError(
            f"timm {timm.__version__} publishes no weights for {architecture}: give a file with "
            "--weights FILE"
        )
    full = f"{architecture}.{published.tag}" if published.tag else architecture
    what = f"of {PREFIX}{full}"
    if not published.hf_hub_id:
        return fetch(published.url, what), full
    named = published.hf_hub_filename
    return fetch_from_hub(published.hf_hub_id, (named,) if named else _HUB_FILES, what), full


def _trained(full: str, file: Path) -> nn.Module:
    """Build a network with published weights, by timm's own loader."""
    # The file is in timm's own form, also where its first publisher's was another one.
    overlay = {"file": str(file), "custom_load": False}
    model: nn.Module = timm.create_model(
        full, pretrained=True, pretrained_cfg_overlay=overlay, exportable=True
    )
    return model.eval()


def _near(name: str) -> list[str]:
    near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
    start = re.split(r"[\d_]", name)[0]
    return near or [n for n in timm.list_models() if start and n.startswith(start)][:3]
