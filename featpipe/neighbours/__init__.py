"""Exact nearest neighbours by cosine, on plain arrays: they know nothing of heads or images."""

from featpipe.neighbours.rows import Rows, Values, widen
from featpipe.neighbours.searching import search

__all__ = ["Rows", "Values", "search", "widen"]
