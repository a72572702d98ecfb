"""``featpipe bundle``: a head and its backbone as one ONNX file."""

from __future__ import annotations

from pathlib import Path

import click

from featpipe.commands._common import (
    debug_option,
    models_dir_option,
    print_json,
    progress_display,
    say,
)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("head", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE.onnx",
    help="The file. [default: <head>.onnx, in the working folder]",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="Of the backbone's weights: fp16 takes half the room, int8 a quarter and less time.",
)
@click.option(
    "--without-resize",
    is_flag=True,
    help="Take only the square that the backbone reads; the caller resizes.",
)
@click.option(
    "--images",
    metavar="SOURCE",
    help="Pictures to verify on, and to calibrate int8 with. [default: the training images]",
)
@click.option("--model", metavar="NAME|FILE.onnx", help="Backbone. [default: the head's own]")
@models_dir_option
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
@debug_option
def bundle(
    head: Path,
    output: Path | None,
    precision: str,
    without_resize: bool,
    images: str | None,
    model: str | None,
    models_dir: Path | None,
    as_json: bool,
) -> None:
    """Write HEAD and its backbone as one ONNX file that runs anywhere.

    Pictures go in (uint8, any size), label, probabilities and embedding come out; resize, crop,
    scaling and calibration are inside. The file is compared with scikit-learn on real pictures
    and written only when all labels are equal and probabilities agree to 1e-4.
    """
    from featpipe.bundling import BundleOptions
    from featpipe.bundling import bundle as make

    path = output if output is not None else Path(f"{head.resolve().name}.onnx")
    with progress_display("images") as progress:
        report = make(
            head,
            path,
            images=images,
            model=model,
            models_dir=models_dir,
            options=BundleOptions(precision, not without_resize),
            progress=progress,
        )
    if as_json:
        print_json(report.to_json())
    else:
        click.echo(str(report))
    say(f"bundle → {path}")
