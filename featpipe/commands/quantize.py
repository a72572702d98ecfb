"""``featpipe quantize``: a smaller backbone of one that is there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from featpipe._files import printable
from featpipe.commands._common import (
    debug_option,
    models_dir_option,
    print_json,
    progress_display,
    say,
)

if TYPE_CHECKING:
    from featpipe.quantization import Comparison, QuantizeReport


def _number_or_auto(_: click.Context, __: click.Parameter, value: str) -> int | None:
    if value == "auto":
        return None
    if not value.isascii() or not value.isdigit() or len(value) > 6:
        raise click.BadParameter(f"'{printable(value)}' is neither a number of layers nor auto")
    return int(value)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", metavar="NAME|FILE.onnx")
@click.option(
    "--calibrate",
    metavar="FOLDER",
    help="Images of the kind that will be embedded. int8 needs them.",
)
@click.option(
    "--precision",
    type=click.Choice(["int8", "fp16"]),
    default="int8",
    show_default=True,
    help="8-bit integers, or weights stored as 16-bit floats.",
)
@click.option(
    "--method",
    type=click.Choice(["auto", "minmax", "percentile", "entropy"]),
    default="auto",
    show_default=True,
    help="How the ranges of int8 are chosen; auto tries all.",
)
@click.option(
    "--images",
    type=click.IntRange(20, 10_000),
    default=128,
    show_default=True,
    metavar="N",
    help="Images to calibrate with, at most.",
)
@click.option(
    "--float-layers",
    callback=_number_or_auto,
    default="auto",
    metavar="N|auto",
    help="Layers left in float, those that cost most. [default: auto, as few as it takes]",
)
@click.option("--name", help="Of the new backbone. [default: NAME_int8 or NAME_fp16]")
@click.option(
    "--compare",
    metavar="SOURCE",
    help="Labelled images: a head's accuracy before and after, image by image.",
)
@click.option(
    "--head",
    "heads",
    multiple=True,
    default=("logreg",),
    show_default=True,
    type=click.Choice(["logreg", "svm", "svm-rbf", "knn", "ridge", "lda", "centroid"]),
    help="What is compared; may be given more than once.",
)
@models_dir_option
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@debug_option
def quantize(
    model: str,
    calibrate: str | None,
    precision: str,
    method: str,
    images: int,
    float_layers: int | None,
    name: str | None,
    compare: str | None,
    heads: tuple[str, ...],
    models_dir: Path | None,
    as_json: bool,
) -> None:
    """Make a smaller backbone of NAME: int8, or fp16.

    The new backbone has a name and a fingerprint of its own, so stores and heads of the old
    one do not mix with it. It is written into DIR, or the first folder of one's own
    (`featpipe doctor` prints them).

    \b
    featpipe quantize efficientnet_lite0 --calibrate photos/
    featpipe quantize resnet50 --calibrate photos/ --compare photos/
    featpipe quantize resnet50 --precision fp16
    """
    from featpipe.quantization import QuantizeOptions
    from featpipe.quantization import quantize as run

    options = QuantizeOptions(
        precision=precision,
        method=method,
        images=images,
        float_layers=float_layers,
        name=name,
        heads=heads,
    )
    with progress_display("steps") as progress:
        report = run(
            model,
            calibrate,
            compare=compare,
            options=options,
            models_dir=models_dir,
            progress=progress,
        )
    for line in _lines(report):
        say(line)
    if as_json:
        print_json(report.to_json())


def _lines(report: QuantizeReport) -> Iterator[str]:
    for note in report.notes:
        yield f"Note: {note}."
    for path, reason in report.failures[:10]:
        yield f"Failed: {path}: {reason}"
    if len(report.failures) > 10:
        yield f"Failed: {len(report.failures) - 10} more; --json lists them."
    if report.precision == "int8":
        left = ", ".join(report.float_layers)
        in_float = f"{len(report.float_layers)} of {report.layers} layers in float"
        yield (
            f"int8, ranges by {report.chosen.method} from {report.images} images; {in_float}"
            f"{f' ({left})' if left else ''}"
        )
    others = "other images" if report.images else "images"
    yield (
        f"cosine to {report.source} on {report.held} {others}: mean "
        f"{report.cosine_mean:.4f}, minimum {report.cosine_min:.4f}"
    )
    yield (
        f"{_rate(report.speed_after)} images/s on one core of this machine instead of "
        f"{_rate(report.speed_before)}"
    )
    yield from (_comparison(comparison) for comparison in report.comparisons)
    yield (
        f"{report.card.name}: {report.size_after / 1e6:.1f} MB instead of "
        f"{report.size_before / 1e6:.1f} MB → {report.path}"
    )


def _rate(speed: float) -> str:
    return f"{speed:,.0f}" if speed >= 20 else f"{speed:.2g}"


def _comparison(found: Comparison) -> str:
    low, high = found.interval
    verdict = "within half a point" if found.kept else "more than half a point lost"
    return (
        f"{found.head} on {found.source} ({found.estimate}, {found.images} images): "
        f"{found.before:.1f} % before, {found.after:.1f} % after; difference "
        f"{found.difference:+.1f} points (95 % interval {low:+.1f} to {high:+.1f}): {verdict}"
    )
