"""Export a backbone the first time that somebody asks for it by name."""

from __future__ import annotations

import importlib.util
import logging
import os
from pathlib import Path

from featpipe._files import printable
from featpipe.backbones.card import MAX_NAME
from featpipe.backbones.catalog import TIMM, CatalogEntry, find_entry
from featpipe.backbones.registry import list_backbones, models_folder, search, unknown
from featpipe.errors import BackboneError

_log = logging.getLogger("featpipe.export")
NEEDED = ("torch", "torchvision", "timm", "onnxscript", "safetensors")
"""What an export imports; the extra `export` brings all of it."""


def find_or_export(
    model: str | os.PathLike[str] | None, models_dir: str | os.PathLike[str] | None = None
) -> Path:
    """Return the file of a backbone, exported just now where that has not been done.

    Raises
    ------
    BackboneError
        When there is no such backbone, or it cannot be exported here; the message says what
        is missing.
    """
    path = search(model, models_dir)
    if path is not None:
        return path
    name = str(model)
    entry = find_entry(name)
    if entry is None and (not name.startswith(TIMM) or len(name) > MAX_NAME):
        raise BackboneError(unknown(name, models_dir))
    folder = None if models_dir is None else Path(models_dir)
    path = _under_full_name(name, entry, models_dir)
    if path is not None:
        return path
    check_installed(name, models_folder(folder))
    _log.info(
        "%s is not exported yet: that is done now, once, and takes a minute or so", printable(name)
    )
    return _export(name, entry, folder)


def _under_full_name(
    name: str, entry: CatalogEntry | None, models_dir: str | os.PathLike[str] | None
) -> Path | None:
    """Return the file of one of timm's networks that was exported with the name of its weights.

    Raises
    ------
    BackboneError
        When several were, and nothing says which is meant.
    """
    if entry is not None:
        return search(entry.file_name, models_dir)
    start = f"{name.replace('/', '-')}."
    found = {n: path for n, path in list_backbones(models_dir).items() if n.startswith(start)}
    if len(found) > 1:
        raise BackboneError(
            f"several backbones were made of {printable(name)}: name one of {', '.join(found)}"
        )
    return next(iter(found.values()), None)


def check_installed(name: str, folder: Path) -> None:
    """Raise a sentence where the packages that an export needs are not installed.

    Raises
    ------
    BackboneError
        With the command that installs them.
    """
    missing = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        raise BackboneError(
            f"{printable(name)} is not exported yet, and exporting needs "
            f"{', '.join(missing)}: run pip install 'featpipe[export]' and the same command "
            f"again, or put the file that another machine has exported into "
            f"{printable(str(folder))}"
        )


def _export(name: str, entry: CatalogEntry | None, folder: Path | None) -> Path:
    # torch takes seconds to import; whoever has the file never waits for it.
    from featpipe.backbones.export import ExportOptions, export_backbone  # noqa: PLC0415

    if entry is None:
        return export_backbone(name, ExportOptions(models_dir=folder)).path
    if entry.name.startswith(TIMM) or entry.default:
        # By the full name: another version of timm may have another default.
        return export_backbone(entry.name, ExportOptions(models_dir=folder)).path
    options = ExportOptions(weights=entry.weights, models_dir=folder)
    return export_backbone(entry.network, options).path
