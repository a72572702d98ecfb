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
