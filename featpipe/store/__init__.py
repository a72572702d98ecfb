"""Vectors on disk: immutable parts, one index, nothing that a crash can break."""

from featpipe.store.conflicts import index_conflicts, label_conflicts, repeated_keys
from featpipe.store.folder import Place, located
from featpipe.store.index import Index
from featpipe.store.maintenance import (
    collect_garbage,
    disk_usage,
    merge_stores,
    verify_store,
    write_parquet,
)
from featpipe.store.manifest import MERGED, Manifest
from featpipe.store.outcomes import Outcome, Outcomes
from featpipe.store.places import Places
from featpipe.store.shards import refuse_other_shard, shard_notes
from featpipe.store.store import EmbeddingStore, newest_store
from featpipe.store.writer import StoreWriter

__all__ = [
    "MERGED",
    "EmbeddingStore",
    "Index",
    "Manifest",
    "Outcome",
    "Outcomes",
    "Place",
    "Places",
    "StoreWriter",
    "collect_garbage",
    "disk_usage",
    "index_conflicts",
    "label_conflicts",
    "located",
    "merge_stores",
    "newest_store",
    "refuse_other_shard",
    "repeated_keys",
    "shard_notes",
    "verify_store",
    "write_parquet",
]
