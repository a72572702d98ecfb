"""Exact nearest neighbours by cosine, on plain arrays: they know nothing of heads or images."""

from featpipe.neighbours.rows import Rows, widen
from featpipe.neighbours.searching import search

__all__ = ["Rows", "search", "widen"]
