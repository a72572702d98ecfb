"""What an export may be asked for, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from torch import nn

from featpipe._files import printable, slug
from featpipe.backbones.card import BackboneCard, Triple
from featpipe.backbones.catalog import find_entry
from featpipe.errors import BackboneError
from featpipe.types import Interpolation, ResizeRule


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What `export_backbone` may be asked for beside the network's name.

    Attributes
    ----------
    weights : str or None
        Name of published weights (``IMAGENET1K_V2``), or a file; None: the default ones.
    layer : str or None
        Module whose output is the embedding; None: what the classifier reads.
    size : int or None
        Side of the square that the backbone reads, in pixels; None: as the weights say. The
        resize before the crop keeps its proportion to it.
    resize : int or None
        Length of the shorter side before the crop; None: as the weights say.
    interpolation : str or None
        "bilinear", "bicubic", "nearest" or "lanczos"; None: as the weights say.
    mean, std : three floats or None
        On the scale 0 to 1; None: as the weights say.
    name : str or None
        Name of the backbone; None: made of network, weights and layer.
    license : str or None
        Licence of the weights; None: what their publisher says.
    models_dir : Path or None
        Where the file goes; None: the folder that `registry.models_folder` names.
    """

    weights: str | None = None
    layer: str | None = None
    size: int | None = None
    resize: int | None = None
    interpolation: str | None = None
    mean: Triple | None = None
    std: Triple | None = None
    name: str | None = None
    license: str | None = None
    models_dir: Path | None = None

    def __post_init__(self) -> None:
        for what in ("size", "resize"):
            value = getattr(self, what)
            if value is not None and not 1 <= value <= 4096:
                raise BackboneError(f"{what} must be between 1 and 4096 pixels, not {value}")
        if self.interpolation is not None and self.interpolation not in get_args(Interpolation):
            raise BackboneError(
                f"there is no interpolation '{printable(self.interpolation)}': use "
                f"{', '.join(get_args(Interpolation))}"
            )


@dataclass(frozen=True, slots=True)
class Network:
    """A network with its weights, before anything is cut off it.

    Attributes
    ----------
    name : str
        As the backbone will be called by default, layer and size left out.
    headless : torch.nn.Module
        In eval mode; normalised float32 (N, 3, H, W) to the embedding (N, D).
    card : BackboneCard
        What its publisher says; ``dimension`` is not known yet.
    layer : str or None
        Module whose output is the embedding, where that is not the module's own.
    """

    name: str
    headless: nn.Module
    card: BackboneCard
    layer: str | None = None


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export.

    Attributes
    ----------
    path : Path
    card : BackboneCard
    has_feature_map : bool
        Whether the file gives the map before pooling, too.
    """

    path: Path
    card: BackboneCard
    has_feature_map: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``featpipe export --json`` prints them."""
        return {
            "path": str(self.path),
            "feature_map": self.has_feature_map,
            **self.card.to_json(),
        }


def asked_card(card: BackboneCard, options: ExportOptions) -> BackboneCard:
    """Return the card with what the flags ask for in place of what the weights say."""
    changed: Mapping[str, Any] = {
        field: value
        for field, value in (
            ("license", options.license),
            ("mean", options.mean),
            ("std", options.std),
        )
        if value is not None
    }
    resize = asked_resize(card.resize, options)
    if resize.crop != card.resize.crop:
        # Published for another size.
        changed = {**changed, "imagenet_top1": None, "gflops": None}
    return replace(card, resize=resize, **changed)


def asked_resize(rule: ResizeRule, options: ExportOptions) -> ResizeRule:
    """Return the rule for another size, resize or interpolation; the proportion is kept.

    >>> asked_resize(ResizeRule(256, 224), ExportOptions(size=448)).resize
    512
    """
    crop = options.size or rule.crop
    resize = options.resize or math.floor(rule.resize * crop / rule.crop + 0.5)
    interpolation: Any = options.interpolation or rule.interpolation
    return replace(rule, resize=resize, crop=crop, interpolation=interpolation)


def asked_name(network: Network, options: ExportOptions) -> str:
    """Return the name that was asked for, or one that tells what is unusual.

    What another option could change without a trace in the name would be taken for the usual
    backbone by whoever finds the file.

    Raises
    ------
    BackboneError
        When the name that was asked for stands for other, published weights.
    """
    if options.name is not None:
        entry = find_entry(options.name)
        if entry is not None and network.name != entry.file_name:
            raise BackboneError(
                f"'{printable(options.name)}' stands for published weights "
                f"({printable(entry.weights)}), which these are not: give another --name"
            )
        return options.name
    parts = [network.name]
    if options.layer is not None:
        parts.append(slug(options.layer, "layer"))
    if options.size is not None and options.size != network.card.resize.crop:
        parts.append(f"{options.size}px")
    return "-".join(parts)
