"""``featpipe info``, ``merge``, ``gc``, ``to-parquet``: what is done to whole stores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from featpipe._files import printable
from featpipe.commands._common import STORE, debug_option, print_json, say

if TYPE_CHECKING:
    from featpipe.store import EmbeddingStore

_HELP = {"help_option_names": ["-h", "--help"]}


@click.command(context_settings=_HELP)
@click.argument("store", required=False, type=STORE)
@click.option("--verify", is_flag=True, help="Read every byte and compare it with its digest.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@debug_option
def info(store: Path | str | None, verify: bool, as_json: bool) -> int:
    """Describe STORE: images, labels, splits, failures, backbone, size.

    Without STORE, the newest under embeddings/. With --verify the exit code is 7 where a
    file is damaged.
    """
    from featpipe.errors import StoreError
    from featpipe.store import EmbeddingStore, newest_store, verify_store

    opened = EmbeddingStore.open(store) if store is not None else newest_store()
    described = describe(opened)
    if verify:
        described["damaged"] = verify_store(opened)
    if as_json:
        print_json(described)
    else:
        click.echo("\n".join(printable(line) for line in _lines(described)))
    return StoreError.exit_code if described.get("damaged") else 0


def describe(store: EmbeddingStore) -> dict[str, Any]:
    """Return what ``featpipe info --json`` prints."""
    from featpipe.store import disk_usage

    return {
        "store": str(store.path),
        "source": store.source,
        "shard": None if store.manifest.shard is None else str(store.manifest.shard),
        "backbone": store.manifest.name,
        "fingerprint": store.fingerprint,
        "dimension": store.dimension,
        "dtype": store.manifest.dtype,
        "engines": [dict(engine) for engine in store.manifest.engines],
        "images": len(store.index),
        "vectors": len(store),
        "distinct_contents": store.distinct_contents,
        "labels": {printable(name): count for name, count in store.counts("label").items()},
        "label_columns": store.label_columns,
        "splits": store.counts("split"),
        "groups": len(store.counts("group")),
        "group_column": store.manifest.group,
        "bytes": disk_usage(store.path),
        "failures": [
            {"path": printable(path), "status": status, "reason": reason}
            for path, status, reason in store.failures
        ],
    }


def _lines(described: dict[str, Any]) -> list[str]:
    """Lay a description out for a person; its parts come from file names, so are escaped."""
    labels, splits = described["labels"], described["splits"]
    groups, column = str(described["groups"] or "none"), described["group_column"]
    lines = [
        f"store      {printable(described['store'])} ({described['bytes'] / 1e6:,.1f} MB)",
        f"source     {printable(described['source'])}"
        + (f" (shard {described['shard']})" if described["shard"] else ""),
        f"backbone   {printable(described['backbone'])} ({described['fingerprint'][:12]})",
        f"vectors    {described['vectors']} × {described['dimension']} {described['dtype']}",
        f"contents   {described['distinct_contents']} distinct",
        f"labels     {_counts(labels) or 'none'}",
        f"splits     {_counts(splits) or 'none'}",
        f"groups     {groups}" + (f" (column {printable(column)})" if column else ""),
    ]
    lines += [
        "engine     " + ", ".join(f"{k} {v}" for k, v in engine.items())
        for engine in described["engines"]
    ]
    lines += [
        f"failed     {failure['path']}: {printable(failure['reason'])}"
        for failure in described["failures"]
    ]
    if "damaged" in described:
        lines += [f"damaged    {problem}" for problem in described["damaged"]]
        lines += [] if described["damaged"] else ["verified   every byte is as it was written"]
    return lines


def _counts(counts: dict[str, int]) -> str:
    shown = [f"{name} {count}" for name, count in list(counts.items())[:20]]
    return ", ".join(shown) + (f" and {len(counts) - 20} more" if len(counts) > 20 else "")


@click.command(context_settings=_HELP)
@click.argument("output", type=STORE)
@click.argument("stores", nargs=-1, required=True, type=STORE)
@debug_option
def merge(output: Path | str, stores: tuple[Path | str, ...]) -> None:
    """Join STORES of one backbone into OUTPUT.

    Shards of one source (featpipe embed --shard i/n) may be given in any order: OUTPUT is what
    one run over the whole source would have written, and featpipe embed SOURCE -o OUTPUT goes on
    from it. A shard that is missing is named.
    """
    from featpipe.store import Manifest, located, merge_stores, shard_notes

    merged = merge_stores(output, stores)
    for note in shard_notes([Manifest.read(located(store)) for store in stores]):
        say(f"Note: {note}.")
    what = "store" if len(stores) == 1 else "stores"
    say(f"{len(merged)} images from {len(stores)} {what} → {output}")


@click.command(context_settings=_HELP)
@click.argument("store", type=STORE)
@debug_option
def gc(store: Path | str) -> None:
    """Drop the vectors in STORE that no image refers to, and join its small parts."""
    from featpipe.store import collect_garbage

    done = collect_garbage(store)
    say(f"{done.kept} vectors kept, {done.dropped} dropped, {done.freed / 1e6:,.1f} MB freed")


@click.command("to-parquet", context_settings=_HELP)
@click.argument("store", type=STORE)
@click.argument("output", type=click.Path(path_type=Path))
@debug_option
def to_parquet(store: Path | str, output: Path) -> None:
    """Write the vectors and labels of STORE as one Parquet file, OUTPUT."""
    from featpipe.store import EmbeddingStore, write_parquet

    rows = write_parquet(EmbeddingStore.open(store), output)
    say(f"{rows} rows → {output}")
