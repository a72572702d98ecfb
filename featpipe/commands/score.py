"""``featpipe score``: new images to labels and probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from featpipe.commands._common import (
    check_address,
    debug_option,
    device_options,
    engine_options,
    models_dir_option,
    newest_head_said,
    probability,
    progress_display,
    say,
    shard_option,
)

if TYPE_CHECKING:
    from featpipe.scoring import ScoreSummary
    from featpipe.types import Shard


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("source")
@click.option(
    "--head",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The head. [default: the newest under heads/]",
)
@click.option("--model", metavar="NAME|FILE.onnx", help="Backbone. [default: the head's own]")
@models_dir_option
@click.option(
    "-o",
    "--output",
    default="-",
    show_default=True,
    metavar="FILE|-",
    help="A .csv, .jsonl or .parquet file; - is standard output, line by line.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "jsonl", "parquet"]),
    help="Of the output. [default: what its suffix says; csv for -]",
)
@click.option(
    "--top-k",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="N",
    help="List the N most probable classes, too.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    callback=probability,
    metavar="P",
    help="Below this probability the label stays empty, and the status is 'uncertain'.",
)
@click.option(
    "--reject",
    type=click.FloatRange(0, 1),
    callback=probability,
    metavar="P",
    help="An image that is stranger than all but this share of known ones, such as 0.05, gets no "
    "label, and the status 'unknown'.",
)
@click.option(
    "--conformal",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    callback=probability,
    metavar="P",
    help="Add a set of labels to each row: of images like those of training, this share of the "
    "sets, such as 0.9, holds the true label.",
)
@click.option(
    "--conformal-per-class",
    is_flag=True,
    help="Keep the promise of --conformal in each class, not over all images together.",
)
@shard_option
@device_options
@engine_options
@debug_option
def score(
    source: str,
    head: Path | None,
    model: str | None,
    models_dir: Path | None,
    output: str,
    form: str | None,
    top_k: int,
    threshold: float | None,
    reject: float | None,
    conformal: float | None,
    conformal_per_class: bool,
    shard: Shard | None,
    device: str,
    precision: str,
    batch_size: int | None,
    workers: int | None,
    engine: str,
    address: str | None,
) -> int:
    """Classify the images of SOURCE, one row each.

    SOURCE is a folder, an image, a CSV or Parquet table with a column 'path', or - for a
    list of paths on standard input. An image that fails is a row that says why, and the
    exit code is 3 then. An interrupted run goes on where it was when the same command is
    given again.
    """
    from featpipe.scoring import score as run_score
    from featpipe.scoring.formats import format_of

    try:
        format_of(output, form)
    except ValueError as exc:
        raise click.BadParameter(str(exc), param_hint="'-o' / '--output'") from exc
    if conformal_per_class and conformal is None:
        raise click.UsageError(
            "--conformal-per-class says how --conformal is meant: give that, too"
        )
    check_address(engine, address)
    with progress_display(quiet=output == "-") as progress:
        summary = run_score(
            source,
            head if head is not None else newest_head_said(),
            output=output,
            format=form,
            model=model,
            progress=progress,
            top_k=top_k,
            threshold=threshold,
            reject=reject,
            conformal=conformal,
            conformal_per_class=conformal_per_class,
            device=device,
            precision=precision,
            batch_size=batch_size,
            workers=workers,
            models_dir=models_dir,
            shard=shard,
            engine=engine,
            address=address,
        )
    tell(summary)
    return summary.exit_code


def tell(summary: ScoreSummary) -> None:
    """Say what a run of `score` has done: notes, failures, one line of summary."""
    for note in summary.notes:
        say(f"Note: {note}.")
    for row in summary.failures:
        say(f"Failed: {row.path}: {row.reason}")
    if (more := summary.failed - len(summary.failures)) > 0:
        say(f"Failed: {more} more; the rows say why.")
    say(summary.device)
    say(str(summary))
