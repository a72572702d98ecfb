"""``featpipe import``: a foreign ONNX file becomes a backbone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from featpipe.commands._common import (
    debug_option,
    how_to_use,
    models_dir_option,
    normalisation_options,
    print_json,
    say,
)
from featpipe.types import Interpolation

if TYPE_CHECKING:
    from featpipe.backbones.importing import ImportReport


@click.command(name="import", context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", metavar="FILE.onnx", type=click.Path(path_type=Path))
@click.option("--name", metavar="NAME", help="Name of the backbone. [default: the file's]")
@click.option(
    "--output",
    metavar="TENSOR",
    help="The tensor that becomes the embedding. [default: what the classifier reads]",
)
@click.option("--size", type=click.IntRange(1), help="Pixels, where the file leaves them open.")
@click.option(
    "--resize",
    type=click.IntRange(1),
    help="Shorter side before the central crop. [default: size / 0.875]",
)
@normalisation_options("[default: ImageNet's]")
@click.option(
    "--layout",
    type=click.Choice(["nchw", "nhwc"]),
    help="Order of the input's axes, where its shape does not tell.",
)
@click.option(
    "--interpolation",
    type=click.Choice(list(get_args(Interpolation))),
    default="bilinear",
    show_default=True,
    help="Of the resize.",
)
@click.option("--bgr", is_flag=True, help="The file reads B, G, R; --mean and --std stay R, G, B.")
@click.option("--weights", metavar="TEXT", help="Where the weights come from, for the card.")
@click.option("--license", metavar="TEXT", help="Licence of the weights, for the card.")
@models_dir_option
@click.option("--replace", is_flag=True, help="Overwrite a backbone of that name.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@debug_option
def import_(file: Path, as_json: bool, **options: Any) -> int:
    """Make a backbone of a foreign ONNX file.

    Its classifier is cut off, normalisation is put in front, and the new file is compared
    with the old one on photographs before it is written. The mean and std that the network
    was trained with cannot be read from the file: where they are not ImageNet's, give them.
    """
    from featpipe.backbones.importing import ImportOptions, import_backbone

    report = import_backbone(file, ImportOptions(**options))
    tell(report, options["models_dir"])
    if as_json:
        print_json(report.to_json())
    return 0


def tell(report: ImportReport, models_dir: Path | None) -> None:
    """Say what an import has found, assumed and written."""
    for note in report.notes:
        say(f"Note: {note}.")
    say(report.embedding)
    say(f"feature map: {report.feature_map or 'none, the embedding is not the mean of one'}")
    say(
        f"same as the original file on photographs, batches of 1, 2, 8 and 33: "
        f"cosine {report.cosine:.7f} or better"
    )
    say(f"{report.card.name} → {report.path} ({how_to_use(report.card.name, models_dir)})")
