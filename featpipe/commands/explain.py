"""``featpipe explain``: where in an image a head finds what it says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from featpipe._files import printable
from featpipe.commands._common import (
    STORE,
    debug_option,
    device_options,
    models_dir_option,
    newest_head_said,
    print_json,
    progress_display,
    say,
)

if TYPE_CHECKING:
    from featpipe.inspection import Explanation

_SUFFIXES = (".png", ".html", ".htm")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--head",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The head. [default: the newest under heads/]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A .png picture, a row an image, 50 at most, or a .html page that opens offline, 500.",
)
@click.option("--json", "as_json", is_flag=True, help="Print maps and figures as JSON.")
@click.option(
    "--store",
    type=STORE,
    metavar="DIR",
    help="Where the nearest training images are looked for. [default: what the head was fitted on]",
)
@click.option(
    "--nearest",
    type=click.IntRange(0, 10),
    default=3,
    show_default=True,
    metavar="N",
    help="Training images beside each.",
)
@click.option("--model", metavar="NAME|FILE.onnx", help="Backbone. [default: the head's own]")
@models_dir_option
@device_options
@debug_option
def explain(
    images: tuple[str, ...],
    head: Path | None,
    output: Path | None,
    as_json: bool,
    store: Path | str | None,
    nearest: int,
    model: str | None,
    models_dir: Path | None,
    device: str,
    precision: str,
    batch_size: int | None,
    workers: int | None,
) -> int:
    """Say where in each IMAGE a head finds what it says, and for which class.

    IMAGE is an image file; a single one may be a folder, a table or -, as for `featpipe
    score`. Linear heads are explained exactly, by class activation maps; others by covering
    one patch of the image after the other. Beside it stand the runner-up, with a map of its
    own, and the training images that look most like it to the backbone. An image that fails
    is a line that says why, and the exit code is 3 then.
    """
    from featpipe.inspection import explain as run_explain
    from featpipe.inspection.picture import MOST_ROWS
    from featpipe.inspection.run import MOST_IMAGES

    _check_name(output)
    is_picture = output is not None and output.suffix.lower() == ".png"
    with progress_display(quiet=as_json) as progress:
        found = run_explain(
            images[0] if len(images) == 1 else images,
            head if head is not None else newest_head_said(),
            store=store,
            model=model,
            progress=progress,
            n_nearest=nearest,
            most=MOST_ROWS if is_picture else MOST_IMAGES,
            device=device,
            precision=precision,
            batch_size=batch_size,
            workers=workers,
            models_dir=models_dir,
        )
    _write(found, output)
    _tell(found, output, as_json)
    return found.exit_code


def _check_name(output: Path | None) -> None:
    """Refuse a name that is neither a picture's nor a page's, before anything is loaded."""
    if output is not None and output.suffix.lower() not in _SUFFIXES:
        raise click.BadParameter(
            f"cannot write {printable(str(output))}: give a name that ends in .png or .html",
            param_hint="'-o' / '--output'",
        )


def _write(found: Explanation, output: Path | None) -> None:
    if output is None:
        return
    if output.suffix.lower() == ".png":
        from featpipe.inspection.picture import draw_explanation

        draw_explanation(found, output)
    else:
        from featpipe.inspection.page import write_page

        write_page(found, output)


def _tell(found: Explanation, output: Path | None, as_json: bool) -> None:
    if as_json:
        print_json(found.to_json())
    else:
        from featpipe.inspection.words import lines

        for line in lines(found):
            click.echo(line)
    for note in found.notes:
        say(f"Note: {note}.")
    for image in found.images:
        if image.seen is None:
            say(f"Failed: {image.path}: {image.reason}")
    say(found.device)
    if output is not None:
        say(f"explained → {output}")
