"""What can be exported by name: the networks that torchvision, timm and PyPI's packages publish.

The list stands in ``catalog.json``, made by ``tools/make_catalog.py`` from the libraries
themselves; reading it needs neither of them. How images are prepared is not in it: that comes
from the library at export.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

_FILE = Path(__file__).parent / "catalog.json"
TIMM = "timm/"


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One set of published weights.

    Attributes
    ----------
    name : str
        What ``--model`` and ``featpipe export`` take.
    weights : str
        Their publisher's name for them, or where they are.
    dimension : int
        Length D of an embedding.
    pixels : int
        Side of the square that the network reads.
    parameters : int or None
        Without the classifier.
    gflops, imagenet_top1 : float or None
        As published: multiply-adds of an image in billions, per cent.
    license : str
        Of the weights, as their publisher states it.
    default : bool
        These are what the network's name alone stands for.
    """

    name: str
    weights: str
    dimension: int
    pixels: int
    parameters: int | None
    gflops: float | None
    imagenet_top1: float | None
    license: str
    default: bool

    @property
    def file_name(self) -> str:
        """Name of the backbone that its export writes."""
        return self.name.replace("/", "-")

    @property
    def network(self) -> str:
        """Name of the network, without the weights."""
        if self.name.startswith(TIMM):
            return self.name.partition(".")[0]
        suffix = f"-{self.weights.lower()}"
        return self.name.removesuffix(suffix)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@lru_cache(maxsize=1)
def read_catalog() -> tuple[CatalogEntry, ...]:
    """Return every set of weights that can be exported by name.

    >>> next(entry for entry in read_catalog() if entry.name == "resnet50").dimension
    2048
    """
    content = json.loads(_FILE.read_text(encoding="utf-8"))
    return tuple(CatalogEntry(*row) for row in content["rows"])


def find_entry(name: str) -> CatalogEntry | None:
    """Return the weights that a name stands for, or None.

    >>> find_entry("timm/resnet50").name == find_entry("timm/resnet50.a1_in1k").name
    True
    """
    entries = read_catalog()
    # `timm-NAME` is how the file is called that `timm/NAME` is exported to.
    exact = (e for e in entries if name in {e.name, e.file_name})
    default = (e for e in entries if e.default and name in {e.network, e.network.replace("/", "-")})
    return next(exact, None) or next(default, None)
