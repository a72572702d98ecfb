"""One table of all backbones: those that are files already, and those that can be exported."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featpipe._files import show_path
from featpipe.backbones.card import BackboneCard
from featpipe.backbones.catalog import TIMM, CatalogEntry, read_catalog
from featpipe.backbones.contract import peek_card
from featpipe.backbones.registry import list_backbones
from featpipe.errors import BackboneError


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One backbone.

    Attributes
    ----------
    name : str
        What ``--model`` takes.
    weights, license : str
    dimension, pixels : int
        Length of an embedding; side of the square that is read.
    parameters : int or None
        Without the classifier.
    gflops, imagenet_top1 : float or None
        As published.
    path : Path or None
        The file; None where it is yet to be exported.
    bytes : int or None
        Its size on disk.
    problem : str or None
        Why the file cannot be used.
    """

    name: str
    weights: str
    license: str
    dimension: int | None
    pixels: int | None
    parameters: int | None = None
    gflops: float | None = None
    imagenet_top1: float | None = None
    path: Path | None = None
    bytes: int | None = None
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values; ``exported`` tells whether there is a file."""
        value = asdict(self)
        return {**value, "path": None if self.path is None else str(self.path)} | {
            "exported": self.path is not None
        }


def list_models(
    word: str | None = None,
    models_dir: str | os.PathLike[str] | None = None,
    *,
    everything: bool = False,
) -> list[ModelRow]:
    """Return the backbones whose name, weights or licence hold ``word``.

    Without a word, timm's hundreds are left out unless ``everything`` is asked for, and so
    are published weights that are not their network's default.

    Returns
    -------
    list of ModelRow
        Files first, in both parts by name.
    """
    files = [_from_file(name, path) for name, path in list_backbones(models_dir).items()]
    there = {row.name for row in files}
    entries: Iterable[CatalogEntry] = (e for e in read_catalog() if e.file_name not in there)
    if word is None and not everything:
        entries = (e for e in entries if e.default and not e.name.startswith(TIMM))
    rows = [*files, *sorted((_from_entry(e) for e in entries), key=lambda row: row.name)]
    return [row for row in rows if word is None or _holds(row, word)]


def find_card(
    name: str, models_dir: str | os.PathLike[str] | None = None
) -> tuple[Path, BackboneCard] | None:
    """Return file and card of the backbone of exactly that name, or None."""
    path = list_backbones(models_dir).get(name.replace("/", "-"))
    return None if path is None else (path, peek_card(path))


def _holds(row: ModelRow, word: str) -> bool:
    return any(word.lower() in text.lower() for text in (row.name, row.weights, row.license))


def _from_entry(entry: CatalogEntry) -> ModelRow:
    return ModelRow(
        name=entry.name,
        weights=entry.weights,
        license=entry.license,
        dimension=entry.dimension,
        pixels=entry.pixels,
        parameters=entry.parameters,
        gflops=entry.gflops,
        imagenet_top1=entry.imagenet_top1,
    )


def _from_file(name: str, path: Path) -> ModelRow:
    size = None
    try:
        size = path.stat().st_size
        card = peek_card(path)
    except OSError as exc:
        problem = f"cannot read {show_path(path)}: {exc.strerror or exc}"
        return ModelRow(name, "", "", None, None, path=path, problem=problem)
    except BackboneError as exc:
        return ModelRow(name, "", "", None, None, path=path, bytes=size, problem=str(exc))
    return ModelRow(
        name=name,
        weights=card.weights,
        license=card.license,
        dimension=card.dimension,
        pixels=card.input_size,
        parameters=card.parameters,
        gflops=card.gflops,
        imagenet_top1=card.imagenet_top1,
        path=path,
        bytes=size,
    )
