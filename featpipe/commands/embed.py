"""``featpipe embed``: images to vectors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from featpipe.commands._common import (
    STORE,
    check_address,
    debug_option,
    device_options,
    engine_options,
    models_dir_option,
    print_json,
    progress_display,
    say,
    shard_option,
)

if TYPE_CHECKING:
    from featpipe.embedding import EmbedReport
    from featpipe.types import Shard


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source")
@click.option(
    "--model",
    metavar="NAME|FILE.onnx",
    help="Backbone; featpipe models lists them. [default: efficientnet_lite0]",
)
@models_dir_option
@click.option(
    "-o",
    "--output",
    type=STORE,
    metavar="STORE",
    help="Where the vectors go: a folder, or s3://bucket/folder. [default: "
    "embeddings/<source>-<model>/; for a shard embeddings/<source>-<model>.shards/<i>-of-<n>/]",
)
@click.option("--labels", type=click.Path(path_type=Path), metavar="TABLE", help="CSV or Parquet.")
@click.option(
    "--group",
    metavar="COLUMN",
    help="Column of a table that names what belongs together, such as a patient; '' forgets it. "
    "[default: that of the last run, else group]",
)
@device_options
@engine_options
@click.option("--dtype", type=click.Choice(["float32", "float16"]), help="Of the stored vectors.")
@click.option("--strict", is_flag=True, help="Stop at the first image that fails.")
@click.option("--max-failures", type=click.IntRange(0), metavar="N", help="Stop after more than N.")
@shard_option
@click.option("--rehash", is_flag=True, help="Open every file, even where it looks unchanged.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@debug_option
def embed(
    source: str,
    model: str | None,
    models_dir: Path | None,
    output: Path | str | None,
    labels: Path | None,
    group: str | None,
    device: str,
    precision: str,
    batch_size: int | None,
    workers: int | None,
    engine: Literal["local", "ray"],
    address: str | None,
    dtype: str | None,
    strict: bool,
    max_failures: int | None,
    shard: Shard | None,
    rehash: bool,
    as_json: bool,
) -> int:
    """Turn the images of SOURCE into vectors, once.

    SOURCE is a folder (class folders give labels; train, val and test folders above them
    the splits), an image, a CSV or Parquet table with a column 'path', a tar archive, a
    Parquet file with images, a folder of Hugging Face's datasets, several files as
    'shard-{0000..0099}.tar', each on this machine or behind an address (s3://, gs://,
    https://), or - for a list of paths on standard input. A second run opens only what is
    new or has changed.
    """
    from featpipe.embedding import EmbedOptions, run_embedding

    check_address(engine, address)
    options = EmbedOptions(
        device=device,
        precision=precision,
        batch_size=batch_size,
        workers=workers,
        dtype=dtype,
        strict=strict,
        max_failures=max_failures,
        rehash=rehash,
        models_dir=models_dir,
        shard=shard,
        engine=engine,
        address=address,
    )
    with progress_display() as progress:
        report = run_embedding(
            source,
            model,
            output=output,
            labels=labels,
            group=group,
            options=options,
            progress=progress,
        )
    tell(report)
    if as_json:
        print_json(report.to_json())
    return report.exit_code


def tell(report: EmbedReport) -> None:
    """Say what a run of `embed` has done: notes, failures, one line of summary."""
    for note in report.notes:
        say(f"Note: {note}.")
    failures = report.store.failures
    for path, _, reason in failures[:10]:
        say(f"Failed: {path}: {reason}")
    if len(failures) > 10:
        say(f"Failed: {len(failures) - 10} more; `featpipe info {report.store.path}` lists them.")
    say(report.device)
    say(summary(report))


def summary(report: EmbedReport) -> str:
    """Return the one line that stands for a run."""
    parts = [f"{report.images} images: {report.computed} embedded"]
    if report.computed and report.seconds > 0:
        parts[0] += f" ({report.computed / report.seconds:,.0f}/s)"
    if report.unchanged:
        parts.append(f"{report.unchanged} unchanged and not opened")
    if report.known:
        parts.append(f"{report.known} with known contents")
    if report.removed:
        parts.append(f"{report.removed} gone since the last run")
    if report.failed:
        parts.append(f"{report.failed} failed")
    return f"{', '.join(parts)}; {report.seconds:.1f} s → {report.store.path}"
