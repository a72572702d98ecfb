"""``featpipe drift``: whether what comes in is still what a head was trained on."""

from __future__ import annotations

from pathlib import Path

import click

from featpipe.commands._common import STORE, debug_option, print_json, probability, say

_TESTS = ("unknown", "strangeness", "rates", "confidence", "vectors")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("head", type=click.Path(path_type=Path))
@click.argument("incoming", metavar="STORE|SCORES", type=STORE)
@click.option(
    "--baseline",
    type=STORE,
    metavar="STORE|SCORES",
    help="Compare with these images, which were found in order, not with those of training.",
)
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    help="Look at this split of STORE alone.",
)
@click.option(
    "--skip",
    multiple=True,
    type=click.Choice(_TESTS),
    help="Leave a test out; may be given again.",
)
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.001,
    callback=probability,
    show_default=True,
    metavar="P",
    help="How often a check of unchanged images may alarm.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@debug_option
def drift(
    head: Path,
    incoming: Path | str,
    baseline: Path | str | None,
    split: str | None,
    skip: tuple[str, ...],
    alpha: float,
    as_json: bool,
) -> int:
    """Say whether new images are still like those that HEAD was trained on.

    The new images are those of a store, or of a file that 'featpipe score' has written (.csv,
    .jsonl, .parquet). Each test asks whether they differ beyond chance, and by enough to matter.
    The exit code is 9 where one of them alarms, 0 where none does, or where there are too few
    images to tell.
    """
    from featpipe.monitoring import drift as check

    found = check(head, incoming, baseline=baseline, split=split, skip=skip, alpha=alpha)
    for note in found.notes:
        say(f"Note: {note}.")
    if as_json:
        print_json(found.to_json())
    else:
        click.echo(found.table())
    return found.exit_code
