"""What an export may be asked for, and what it answers."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from torch import nn

from featpipe._files import printable
from featpipe.backbones.card import BackboneCard, Triple, check_name
from featpipe.backbones.registry import check_name_is_free
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
    replace : bool
        Overwrite a file of that name that holds another backbone.
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
    replace: bool = False
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
    published : bool
        These are the weights that the name stands for, and not somebody's own.
    unused : tuple of str
        Modules of ``headless`` that the embedding does not need: they do not count.
    crop_part : float or None
        Part of the resized side that the crop is, where the publisher states that and rounds
        down, as timm does.
    """

    name: str
    headless: nn.Module
    card: BackboneCard
    layer: str | None = None
    published: bool = True
    unused: tuple[str, ...] = ()
    crop_part: float | None = None

    def parameters(self) -> int:
        """Return the number of weights that the embedding needs."""
        counted = self.headless.named_parameters()
        below = tuple(f"{module}." for module in self.unused)
        return sum(p.numel() for name, p in counted if not name.startswith(below))


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


def asked_card(network: Network, options: ExportOptions) -> BackboneCard:
    """Return the card with what the flags ask for in place of what the weights say."""
    card = network.card
    changed: Mapping[str, Any] = {
        field: value
        for field, value in (
            ("license", options.license),
            ("mean", options.mean),
            ("std", options.std),
        )
        if value is not None
    }
    resize = asked_resize(card.resize, options, network.crop_part)
    if resize.crop != card.resize.crop:
        # Published for another size.
        changed = {**changed, "imagenet_top1": None, "gflops": None}
    return replace(card, resize=resize, **changed)


def asked_resize(
    rule: ResizeRule, options: ExportOptions, crop_part: float | None = None
) -> ResizeRule:
    """Return the rule for another size, resize or interpolation; the proportion is kept.

    >>> asked_resize(ResizeRule(256, 224), ExportOptions(size=448)).resize
    512
    """
    crop = options.size or rule.crop
    resize = options.resize or _proportional(rule, crop, crop_part)
    interpolation: Any = options.interpolation or rule.interpolation
    return replace(rule, resize=resize, crop=crop, interpolation=interpolation)


def _proportional(rule: ResizeRule, crop: int, crop_part: float | None) -> int:
    if crop == rule.crop:
        return rule.resize
    if crop_part is not None:
        return math.floor(crop / crop_part)
    return math.floor(rule.resize * crop / rule.crop + 0.5)


def asked_name(network: Network, options: ExportOptions) -> str:
    """Return the name that was asked for, or one that tells what is unusual.

    What changes vectors or images stands in the default name: whoever finds the file must
    not take it for the usual backbone.

    Raises
    ------
    BackboneError
        When the name stands for other, published weights.
    """
    usual = "-".join([network.name, *_unusual(network, options)])
    name = usual if options.name is None else options.name
    check_name(name)
    if not (network.published and name == usual):
        check_name_is_free(name)
    return name


def _unusual(network: Network, options: ExportOptions) -> Iterator[str]:
    """Yield a word for each option that makes another backbone of the same weights."""
    card = network.card
    if options.layer is not None:
        yield ascii_slug(options.layer)
    if options.size not in {None, card.resize.crop}:
        yield f"{options.size}px"
    if options.resize not in {None, card.resize.resize}:
        yield f"resize{options.resize}"
    if options.interpolation not in {None, card.resize.interpolation}:
        yield str(options.interpolation)
    normalised = (options.mean or card.mean, options.std or card.std)
    if normalised != (card.mean, card.std):
        yield f"norm{hashlib.sha256(repr(normalised).encode()).hexdigest()[:4]}"


def ascii_slug(text: str) -> str:
    """Return a text as a part of a backbone's name, which knows no other letters.

    >>> ascii_slug("my weights/é")
    'my_weights'
    """
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", text).strip("_.") or "own"
