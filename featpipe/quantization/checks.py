"""What is checked around a quantisation: names and places before the work, integers after it."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import numpy as np

from featpipe._files import printable, write_error
from featpipe.backbones import Backbone
from featpipe.backbones.card import MAX_NAME
from featpipe.backbones.quantize import Runner
from featpipe.errors import BackboneError
from featpipe.types import Pixels


def default_name(name: str, precision: str) -> str:
    """Return the name of the new backbone where none is given.

    Raises
    ------
    BackboneError
        When it would be too long.
    """
    made = f"{name}_{precision}"
    if len(made) > MAX_NAME:
        raise BackboneError(
            f"{made} would be the name of the new backbone, {len(made)} letters where {MAX_NAME} "
            "are the most: give a shorter one with --name"
        )
    return made


def check_is_another(path: Path, backbone: Backbone) -> None:
    """Refuse to write over the backbone that the new one is made of.

    Raises
    ------
    BackboneError
        The file is named.
    """
    if os.path.exists(path) and os.path.samefile(path, backbone.path):
        raise BackboneError(
            f"the new backbone would take the place of the one that it is made of, "
            f"{printable(str(path))}: give another --name"
        )


def check_integers(data: bytes, images: Pixels, name: str) -> None:
    """Refuse a model whose integers overflow on this processor: others would differ.

    Raises
    ------
    BackboneError
        With the share of numbers that differ.
    """
    own, exact = Runner(data).embed(images), Runner(data, exact=True).embed(images)
    if not np.array_equal(own, exact):
        raise BackboneError(
            f"the int8 form of {name} gives other vectors with this processor's integer kernels "
            f"than with exact ones ({100 * np.mean(own != exact):.0f} % of the numbers): nothing "
            "was written; take --precision fp16, and report it"
        )


def check_writable(path: Path) -> None:
    """Find out before minutes of work, and not after, that a file cannot be written.

    A folder that is not there is made at the end: what fails leaves none behind.

    Raises
    ------
    WriteError
        The file is named.
    """
    folder = path.parent
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, "there is a folder of that name")
    except OSError as exc:
        raise write_error(path, exc) from exc
