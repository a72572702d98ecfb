"""Exact nearest neighbours by cosine, on plain arrays: they know nothing of heads or images."""

from featpipe.neighbours.rows import Rows, widen
from featpipe.neighbours.searching import search
from featpipe.neighbours.threads import single_threads

__all__ = ["Rows", "search", "single_threads", "widen"]
