"""Stores of shards: pieces of one source, each embedded by a process of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from featpipe._files import printable
from featpipe.errors import StoreError
from featpipe.store.folder import Place
from featpipe.store.manifest import MERGED, Manifest
from featpipe.store.store import EmbeddingStore
from featpipe.types import Shard

_SHOWN = 10


def refuse_other_shard(path: Place, former: Manifest, asked: Shard | None) -> None:
    """Keep what a store holds from being dropped as what another piece does not list.

    Raises
    ------
    StoreError
        When ``former``, the record of the store at ``path``, is of another shard or of none.
    """
    if former.shard == asked:
        return
    shown, source = printable(str(path)), printable(former.source)
    if former.shard is None:
        message = f"{shown} holds {source} as a whole, and not shard {asked} of it: {_ELSEWHERE}"
    elif asked is None:
        message = (
            f"{shown} holds shard {former.shard} of {source} alone: {_ELSEWHERE}, or join the "
            "shards with featpipe merge"
        )
    else:
        message = f"{shown} holds shard {former.shard} of {source}, not {asked}: {_ELSEWHERE}"
    raise StoreError(message)


_ELSEWHERE = "give another store with -o"


def in_source_order(stores: Sequence[EmbeddingStore]) -> list[EmbeddingStore]:
    """Return the shards of one source in the order of its listing; others stay as they are."""
    if not _are_shards([store.manifest for store in stores]):
        return list(stores)
    return sorted(stores, key=lambda store: store.manifest.shard.i if store.manifest.shard else 0)


def merged_manifest(stores: Sequence[EmbeddingStore]) -> Manifest:
    """Return the record of a store into which all these are merged.

    Shards of one source give a store of that source, which `featpipe.embed` goes on from;
    others one of several sources, which no single one of them may replace.
    """
    manifests = [store.manifest for store in stores]
    # What one of them has promised to workers is nothing to the parts of another store.
    first = replace(manifests[0], next_part=0)
    if _are_shards(manifests):
        groups = {manifest.group for manifest in manifests}
        group = first.group if len(groups) == 1 else None
        merged = replace(first, group=group, shard=None, whole=None)
    else:
        sources = MERGED.join(manifest.source for manifest in manifests)
        merged = replace(first, source=sources, group=None, shard=None, whole=None)
    for manifest in manifests:
        for engine in manifest.engines:
            merged = merged.with_engine(engine)
    return merged


def shard_notes(manifests: Sequence[Manifest]) -> list[str]:
    """Say what is amiss with a set of shards: some are missing, given twice, or do not fit.

    Returns
    -------
    list of str
        A sentence each; empty where the stores are no shards of one source, or all of them.
    """
    if not _are_shards(manifests):
        return _mixed(manifests)
    shards = [manifest.shard for manifest in manifests if manifest.shard is not None]
    n, given = shards[0].n, Counter(shard.i for shard in shards)
    notes = []
    if missing := [i for i in range(1, n + 1) if i not in given]:
        notes.append(
            f"{_named(missing, n)} {'is' if len(missing) == 1 else 'are'} missing: "
            "`featpipe embed` with the merged store computes what it lacks"
        )
    if repeated := sorted(i for i, times in given.items() if times > 1):
        notes.append(f"{_named(repeated, n)} {'is' if len(repeated) == 1 else 'are'} given twice")
    counts = sorted({manifest.whole for manifest in manifests if manifest.whole is not None})
    if len(counts) > 1:
        notes.append(
            f"the source listed {counts[0]} images for one shard and {counts[-1]} for another, so "
            "some may be missing: `featpipe embed` with the merged store computes what it lacks"
        )
    return notes


def _mixed(manifests: Sequence[Manifest]) -> list[str]:
    if not any(manifest.shard for manifest in manifests):
        return []
    why = "shards are merged with stores that are no shards of the same source and number"
    return [f"{why}: the result is a store of several sources"]


def _named(numbers: list[int], n: int) -> str:
    shown = ", ".join(str(Shard(i, n)) for i in numbers[:_SHOWN])
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    return f"shard{'' if len(numbers) == 1 else 's'} {shown}{more}"


def _are_shards(manifests: Sequence[Manifest]) -> bool:
    """Tell whether all are shards of one source and of one number of shards."""
    found = {(m.source, m.shard.n) if m.shard is not None else None for m in manifests}
    return len(found) == 1 and None not in found
