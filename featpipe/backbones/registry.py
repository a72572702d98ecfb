"""Where backbones are found: by name in a few folders, or by the path of a file.

Searched in this order, the first file named ``NAME.onnx`` counts:

1. the folder that is named, where one is (``--models-dir``)
2. the folders in the environment variable ``FEATPIPE_MODELS`` (separated as in ``PATH``)
3. ``featpipe/models`` in the user's data folder
4. the models that came with featpipe
5. the folders that other installed packages offer

New backbones are written into the first of these that is the user's own: `models_folder`.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from platformdirs import user_data_path

from featpipe._files import nearest, printable
from featpipe.backbones.card import MAX_NAME
from featpipe.backbones.catalog import find_entry, read_catalog
from featpipe.errors import BackboneError

BUILTIN = "efficientnet_lite0"
SUFFIX = ".onnx"
ENTRY_POINTS = "featpipe.backbones"
_log = logging.getLogger("featpipe.backbones")
_PACKAGE = Path(__file__).resolve().parent.parent


def find_backbone(
    model: str | os.PathLike[str] | None = None, models_dir: str | os.PathLike[str] | None = None
) -> Path:
    """Return the file of a backbone that is there already.

    Parameters
    ----------
    model : str or path, optional
        A name, the path of an ``.onnx`` file, or None for the built-in backbone.
    models_dir : path, optional
        A folder that is searched first.

    Raises
    ------
    BackboneError
        When there is no such backbone; the message has the nearest names.
    """
    path = search(model, models_dir)
    if path is None:
        raise BackboneError(unknown(str(model), models_dir))
    return path


def search(
    model: str | os.PathLike[str] | None = None, models_dir: str | os.PathLike[str] | None = None
) -> Path | None:
    """Return the file of a backbone, or None where a name has none.

    Raises
    ------
    BackboneError
        When a path is given and there is no such file.
    """
    name = BUILTIN if model is None else os.fspath(model)
    if not isinstance(model, str | None) or _looks_like_path(name):
        return _existing_file(Path(name))
    if len(name) > MAX_NAME:  # the system would refuse to look for such a file
        return None
    file = f"{name.replace('/', '-')}{SUFFIX}"
    files = (folder / file for folder in _all_folders(models_dir))
    return next((path for path in files if os.path.isfile(path)), None)


def list_backbones(models_dir: str | os.PathLike[str] | None = None) -> dict[str, Path]:
    """Return every backbone that can be named, and its file, sorted by name."""
    found: dict[str, Path] = {}
    for folder in _all_folders(models_dir):
        for path in sorted(folder.glob(f"*{SUFFIX}")) if os.path.isdir(folder) else ():
            if os.path.isfile(path):  # neither a pipe, nor a link to nowhere
                found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def model_folders(models_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """Return the folders that are searched for backbones, first one first."""
    return [*_own_folders(models_dir), _shipped_folder()]


def _all_folders(models_dir: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Yield the folders; other packages are asked only when nobody before them had the name."""
    yield from model_folders(models_dir)
    yield from plugged_folders()


@lru_cache(maxsize=1)
def plugged_folders() -> tuple[Path, ...]:
    """Return the folders that installed packages offer.

    A package offers one by an entry point of the group ``featpipe.backbones`` whose value is
    a path, or a function that returns one. One that fails is left out, with a warning. They
    are asked once a process.
    """
    folders = []
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            value = point.load()
            folders.append(Path(value() if callable(value) else value))
        # Somebody else's code; whatever goes wrong there must not keep featpipe from its work.
        except Exception as exc:  # noqa: BLE001
            _log.warning("the backbones of %s are left out: %s", point.value, exc)
    return tuple(folders)


def models_folder(models_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder that new backbones are written into."""
    return _own_folders(models_dir)[0]


def _own_folders(models_dir: str | os.PathLike[str] | None) -> list[Path]:
    asked = [] if models_dir is None else [Path(models_dir)]
    named = [Path(p) for p in os.environ.get("FEATPIPE_MODELS", "").split(os.pathsep) if p]
    return [*asked, *named, user_data_path("featpipe", appauthor=False) / "models"]


def check_name_is_free(name: str) -> None:
    """Raise where a name stands for a backbone that comes with featpipe or can be exported.

    Raises
    ------
    BackboneError
        Weights of another origin must not be found under such a name.
    """
    if os.path.exists(_shipped_folder() / f"{name}{SUFFIX}"):
        raise BackboneError(
            f"'{printable(name)}' is a backbone that came with featpipe: give another name with "
            "--name"
        )
    entry = find_entry(name)
    if entry is not None:
        raise BackboneError(
            f"'{printable(name)}' stands for published weights ({printable(entry.weights)}): give "
            "another name with --name"
        )


def _shipped_folder() -> Path:
    """Return ``featpipe/_models`` of an installed featpipe, or ``models/`` of a checkout."""
    installed = _PACKAGE / "_models"
    # Not Path's own questions: they raise where a folder may not be entered.
    return installed if os.path.isdir(installed) else _PACKAGE.parent / "models"


def _looks_like_path(name: str) -> bool:
    # timm/NAME is how timm's networks are named, also where a folder is called timm.
    if re.fullmatch(r"timm/[^/\\]+", name) and not name.lower().endswith(SUFFIX):
        return False
    separators = {os.sep, os.altsep or os.sep, "/"}
    return name.lower().endswith(SUFFIX) or any(separator in name for separator in separators)


def _existing_file(path: Path) -> Path:
    shown = printable(str(path))
    if path.suffix.lower() != SUFFIX:
        raise BackboneError(
            f"{shown} is neither the name of a backbone nor an {SUFFIX} file: "
            f"give one of {', '.join(list_backbones()) or 'no installed names'}, "
            f"or the path of an {SUFFIX} file"
        )
    if not os.path.isfile(path):
        raise BackboneError(f"there is no backbone file {shown}: check the path")
    return path


def unknown(name: str, models_dir: str | os.PathLike[str] | None = None) -> str:
    """Return the sentence for a name that nobody knows, with the nearest ones."""
    there = list(list_backbones(models_dir))
    known = list(dict.fromkeys([*there, *(entry.name for entry in read_catalog())]))
    near = nearest(name.lower(), known)
    hint = f"did you mean {near}?" if near else f"there are: {', '.join(there) or 'none'}."
    return (
        f"there is no backbone '{printable(name[:MAX_NAME])}': {hint} "
        f"featpipe models lists all that can be had; the path of an {SUFFIX} file that featpipe "
        "has written may be given, too"
    )
