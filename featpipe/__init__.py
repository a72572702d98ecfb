"""Transfer learning by feature extraction.

A pretrained CNN turns every image into a vector, once; the vectors are cached; a
scikit-learn head learns on them in seconds.

    >>> import featpipe
    >>> store = featpipe.embed("photos/")            # doctest: +SKIP
    >>> head = featpipe.fit(store)                   # doctest: +SKIP
    >>> featpipe.evaluate(head, store).accuracy      # doctest: +SKIP
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

# ONNX Runtime reports its use over the network unless this stands in the environment before
# it is imported; afterwards is too late. Nothing of featpipe's leaves the machine.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__version__ = "0.1.0"

if TYPE_CHECKING:
    from featpipe.backbones import Backbone, load_backbone
    from featpipe.bundling import bundle
    from featpipe.embedding import embed
    from featpipe.evaluation import compare, evaluate, few_shot_curve, probe
    from featpipe.heads import Head, load_head
    from featpipe.inspection import explain
    from featpipe.monitoring import drift
    from featpipe.scoring import score
    from featpipe.store import EmbeddingStore
    from featpipe.training import fit
    from featpipe.transformer import ImageEmbedder

_HOMES = {
    "Backbone": "featpipe.backbones",
    "EmbeddingStore": "featpipe.store",
    "Head": "featpipe.heads",
    "ImageEmbedder": "featpipe.transformer",
    "bundle": "featpipe.bundling",
    "compare": "featpipe.evaluation",
    "drift": "featpipe.monitoring",
    "embed": "featpipe.embedding",
    "evaluate": "featpipe.evaluation",
    "explain": "featpipe.inspection",
    "few_shot_curve": "featpipe.evaluation",
    "fit": "featpipe.training",
    "load_backbone": "featpipe.backbones",
    "load_head": "featpipe.heads",
    "probe": "featpipe.evaluation",
    "score": "featpipe.scoring",
}

__all__ = [
    "Backbone",
    "EmbeddingStore",
    "Head",
    "ImageEmbedder",
    "__version__",
    "bundle",
    "compare",
    "drift",
    "embed",
    "evaluate",
    "explain",
    "few_shot_curve",
    "fit",
    "load_backbone",
    "load_head",
    "probe",
    "score",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: ``import featpipe`` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'featpipe' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
