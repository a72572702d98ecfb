"""From a source to a store: plan what is missing, compute it, keep it."""

from featpipe.embedding.choice import EngineName, check_engine, make_engine
from featpipe.embedding.engine import EmbeddedBatch, stream
from featpipe.embedding.engines import Engine
from featpipe.embedding.run import EmbedOptions, EmbedReport, embed, run_embedding

__all__ = [
    "EmbedOptions",
    "EmbedReport",
    "EmbeddedBatch",
    "Engine",
    "EngineName",
    "check_engine",
    "embed",
    "make_engine",
    "run_embedding",
    "stream",
]
