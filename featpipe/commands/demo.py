"""``featpipe demo``: the whole way on images that come along."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from featpipe._files import printable
from featpipe.commands._common import debug_option, print_json, progress_display, say

if TYPE_CHECKING:
    from featpipe.demo import DemoEvent, DemoResult

_OWN_FOLDER = """\
Now with a folder of your own, one subfolder a class:

  featpipe embed photos/             turn the images into vectors, once
  featpipe fit                       learn a classifier on them and measure it
  featpipe score new/ -o new.csv     classify new images"""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", metavar="[DIR]", default="featpipe-demo", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print what was measured as JSON.")
@debug_option
def demo(folder: Path, as_json: bool) -> int:
    """See featpipe work on a small set of images that comes along.

    Writes 160 training and 200 held-out images of eight surfaces into DIR (default:
    featpipe-demo), embeds them, fits three classifiers, measures them beside the same
    classifiers on raw pixels, scores a few new images and draws a picture. Nothing is
    fetched from a network; a second run keeps what is there.
    """
    from featpipe.demo import run_demo

    with progress_display() as progress:
        result = run_demo(folder, on_event=_tell, progress=progress)
    if as_json:
        print_json(result.to_json())
    else:
        click.echo(report(result))
    return 0


def _tell(event: DemoEvent) -> None:
    say(event.message)


def report(result: DemoResult) -> str:
    """Return what the command prints: the table, where things are, what to do next."""
    places = (
        (printable(str(result.picture)), "the picture: look at it"),
        (printable(str(result.predictions)), "what the new images show"),
        (printable(str(result.head)), "the classifier that said so"),
    )
    width = max(len(path) for path, _ in places)
    listed = "\n".join(f"  {path:<{width}}   {what}" for path, what in places)
    took = f"All of it took {result.seconds:.1f} s; everything is in {result.folder}:"
    return f"\n{result.table()}\n\n{printable(took)}\n{listed}\n\n{_OWN_FOLDER}"
