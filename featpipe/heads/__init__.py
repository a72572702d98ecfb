"""Heads: what learns on the vectors, how it is kept, and how it is read back safely."""

from featpipe.heads.head import Head
from featpipe.heads.persistence import check_head_folder, load_head, newest_head, save_head
from featpipe.heads.registry import HEADS, HeadSpec, head_spec

__all__ = [
    "HEADS",
    "Head",
    "HeadSpec",
    "check_head_folder",
    "head_spec",
    "load_head",
    "newest_head",
    "save_head",
]
