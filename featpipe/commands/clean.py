"""``featpipe clean``: what may be amiss with a set of images."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featpipe._files import printable
from featpipe.commands._common import debug_option, print_json, progress_display, say

if TYPE_CHECKING:
    from featpipe.quality import Cleaning

_HELP = {"help_option_names": ["-h", "--help"]}
_HEADS = ("logreg", "svm", "svm-rbf", "knn", "ridge", "lda", "centroid")
_SHOWN = 10
_MEANING = {
    "unreadable": "cannot be read or decoded",
    "duplicate": "the same bytes as another",
    "near-duplicate": "resized or re-encoded copies of others",
    "two-labels": "copies under another label",
    "wrong-label": "labels that are likely wrong, likeliest first",
    "unlike-others": "look like no other image",
    "blank": "hold next to nothing",
    "dark": "are very dark",
    "blurred": "are blurred, beside the others",
    "odd-size": "are very small or very long",
}


@click.command(context_settings=_HELP)
@click.argument("store", required=False, type=click.Path(path_type=Path))
@click.option(
    "--head",
    type=click.Choice(_HEADS),
    default="ridge",
    show_default=True,
    help="What judges the labels.",
)
@click.option("--target", metavar="COLUMN", help="Label column, where there are several.")
@click.option("--all", "show_all", is_flag=True, help=f"List all images, not {_SHOWN} of a kind.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print what was found as CSV.")
@debug_option
def clean(
    store: Path | None,
    head: str,
    target: str | None,
    show_all: bool,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Find copies, wrong labels and poor images in STORE; change nothing.

    Without STORE, the newest under embeddings/. What is found is for a person to look at: an
    image that is unlike all others may be the most valuable one.
    """
    from featpipe.quality import clean as look
    from featpipe.store import EmbeddingStore, newest_store

    if as_json and as_csv:
        raise click.UsageError("give --json or --csv, not both")
    if store is None:
        opened = newest_store()
        say(f"using the newest store: {opened.path}")
    else:
        opened = EmbeddingStore.open(store)
    with progress_display("images") as progress:
        found = look(opened, head=head, target=target, progress=progress)
    for note in found.notes:
        say(f"Note: {note}.")
    if as_json:
        print_json(found.to_json())
    elif as_csv:
        _print_csv(found)
    else:
        click.echo("\n".join(_table(found, None if show_all else _SHOWN)))


def _print_csv(found: Cleaning) -> None:
    from featpipe.scoring.formats import guard_cell

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["kind", "path", "label", "other", "value", "detail"])
    for problem in found.problems:
        cells = problem.to_json().values()
        writer.writerow(["" if cell is None else guard_cell(str(cell)) for cell in cells])


def _table(found: Cleaning, most: int | None) -> Iterator[str]:
    """Yield a headline for each kind of problem, and the images below it."""
    yield f"{found.images:,} images in {printable(found.store)}"
    yield f"copies: {found.threshold}"
    for kind, meaning in _MEANING.items():
        problems = found.of(kind)  # type: ignore[arg-type]  # the keys are `KINDS`
        if not problems:
            continue
        yield ""
        yield f"{kind}: {len(problems):,} {meaning}"
        for problem in problems[:most]:
            label = "" if problem.label is None else f" ({printable(problem.label)})"
            is_copy = kind in {"duplicate", "near-duplicate", "two-labels"}
            beside = f" = {printable(problem.other)}" if is_copy and problem.other else ""
            yield f"    {printable(problem.path)}{label}{beside}: {printable(problem.detail)}"
        if most is not None and len(problems) > most:
            yield f"    … and {len(problems) - most:,} more: --all, --csv or --json lists them"
    if not found.problems:
        yield "nothing was found amiss"
