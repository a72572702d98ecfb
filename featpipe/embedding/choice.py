"""Which engine embeds: the one that was asked for by name."""

from __future__ import annotations

from typing import Any, Literal

from featpipe.backbones import Backbone
from featpipe.embedding.engines import Engine, LocalEngine
from featpipe.embedding.ray_engine import RayEngine
from featpipe.sources import Source

EngineName = Literal["local", "ray"]


def check_engine(engine: str, address: str | None) -> None:
    """Raise ValueError where there is no such engine, or none that has an address."""
    if engine not in {"local", "ray"}:
        raise ValueError(f"engine must be local or ray, not {engine!r}")
    if address is not None and engine != "ray":
        raise ValueError("address is that of a Ray cluster: give engine='ray', too")


def make_engine(
    engine: EngineName, source: Source, backbone: Backbone, *, address: str | None, **options: Any
) -> Engine:
    """Return an engine that is not open yet.

    Parameters
    ----------
    **options
        ``device``, ``precision``, ``batch_size`` and ``workers``, as in `featpipe.embed`.
    """
    if engine == "ray":
        return RayEngine(source, backbone, address=address, **options)
    return LocalEngine(source, backbone, **options)
