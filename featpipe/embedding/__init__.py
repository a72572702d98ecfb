"""From a source to a store: plan what is missing, compute it, keep it."""

from featpipe.embedding.engine import EmbeddedBatch, stream
from featpipe.embedding.run import EmbedOptions, EmbedReport, embed, run_embedding

__all__ = ["EmbedOptions", "EmbedReport", "EmbeddedBatch", "embed", "run_embedding", "stream"]
