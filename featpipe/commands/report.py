"""``featpipe report``: one page on a head, its mistakes, and its images."""

from __future__ import annotations

from pathlib import Path

import click

from featpipe.commands._common import STORE, check_page, debug_option, progress_display, say


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("head", type=click.Path(path_type=Path))
@click.argument("store", type=STORE)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="The page. [default: <head>.html, beside the head]",
)
@debug_option
def report(head: Path, store: Path | str, output: Path | None) -> None:
    """Write a page on HEAD and the images in STORE, which it was fitted on.

    One file that opens offline: figures with their intervals, what the head takes for what,
    its worst mistakes beside the training images nearest to them, labels that may be wrong,
    copies and leaks, a map of the images, and whether more labels would help. `featpipe fit
    --report` writes the same without measuring twice.
    """
    from featpipe.report import write_report

    check_page(output, "--output")
    path = output if output is not None else _beside(head)
    with progress_display("steps") as progress:
        write_report(head, store, path, progress=progress)
    say(f"report → {path}")


def _beside(head: Path) -> Path:
    """Return where a page goes: beside the head's folder, which may be the working folder."""
    return head.with_name(f"{head.name}.html") if head.name else head.resolve().with_suffix(".html")
