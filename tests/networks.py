"""Untrained networks with weights in which every layer matters; shared by tests of exports."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

_TOOL = runpy.run_path(str(Path(__file__).parent.parent / "tools" / "try_backbones.py"))


def untrained_network(name: str, size: int | None) -> Any:
    """Return a `Network` of torchvision, or of timm for ``timm/NAME``."""
    return _TOOL["untrained_network"](name, size)


def conditioned(model: Any, size: int) -> Any:
    """Give an untrained network statistics of real-looking images."""
    return _TOOL["conditioned"](model, size)


def assert_is_timms(name: str, path: Path) -> None:
    """Compare a file made of a package's checkpoint with timm's network and the same weights."""
    import torch

    from featpipe.backbones import load_backbone
    from featpipe.backbones.export.packages import PACKAGES, build_lite, find_checkpoint
    from featpipe.backbones.gate import compare, photographs

    backbone = load_backbone(path)
    size = backbone.card.input_size
    assert backbone.card.license == "Apache-2.0"
    assert size == PACKAGES[name].crop
    images = photographs(3, size)
    network = build_lite(name, find_checkpoint(PACKAGES[name]).path)
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.no_grad():
        expected = network.forward_features(pixels).mean((2, 3)).numpy()
    assert compare(expected, backbone.open_session("cpu").run(images)) > 0.99999
