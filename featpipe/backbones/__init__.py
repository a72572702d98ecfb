"""Backbones: files that turn pixels into vectors, their contract, and the devices they run on."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from featpipe._files import printable
from featpipe._machine import usable_cores
from featpipe.backbones._runtime import broken_runtime
from featpipe.backbones.card import BackboneCard
from featpipe.backbones.contract import BackboneFile, read_backbone
from featpipe.backbones.on_demand import find_or_export
from featpipe.backbones.registry import BUILTIN, find_backbone, list_backbones
from featpipe.errors import BackboneError

if TYPE_CHECKING:
    from featpipe.backbones.session import Session

__all__ = [
    "BUILTIN",
    "Backbone",
    "BackboneCard",
    "broken_runtime",
    "find_backbone",
    "list_backbones",
    "load_backbone",
    "usable_cores",
]


@dataclass(frozen=True, slots=True)
class Backbone:
    """A backbone file that keeps the contract, and its card.

    >>> load_backbone()
    <Backbone efficientnet_lite0: 224 pixels to 1280 numbers, fingerprint ...>
    """

    card: BackboneCard
    path: Path
    # The bytes that were checked, for the first session: a large file is not read twice.
    _checked: list[BackboneFile] = field(default_factory=list, repr=False, compare=False)

    @property
    def name(self) -> str:
        """Name of the backbone."""
        return self.card.name

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return self.card.dimension

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that stand for graph, weights and preprocessing."""
        return self.card.fingerprint

    def open_session(self, device: str = "auto", precision: str = "auto") -> Session:
        """Make the backbone ready to run; see `featpipe.backbones.session.open_session`."""
        # ONNX Runtime is loaded only now: looking at a backbone does not need it.
        try:
            from featpipe.backbones.session import open_session  # noqa: PLC0415
        except (ImportError, AttributeError) as exc:
            raise broken_runtime(exc) from exc

        return open_session(self, device, precision)

    def take_file(self) -> BackboneFile:
        """Return the checked file: the first time as it was loaded, later as it is then.

        Raises
        ------
        BackboneError
            When the file has changed since it was loaded, or breaks the contract.
        """
        with suppress(IndexError):
            return self._checked.pop()
        file = read_backbone(self.path)
        if file.card.fingerprint != self.fingerprint:
            raise BackboneError(
                f"the backbone file {printable(str(self.path))} was replaced while it was in use "
                f"({self.fingerprint} before, {file.card.fingerprint} now): start again"
            )
        return file

    def __repr__(self) -> str:
        return (
            f"<Backbone {self.name}: {self.card.input_size} pixels to {self.dimension} numbers, "
            f"fingerprint {self.fingerprint}>"
        )


def load_backbone(
    model: str | os.PathLike[str] | None = None, models_dir: str | os.PathLike[str] | None = None
) -> Backbone:
    """Find a backbone and check its file; a known name is exported the first time.

    Parameters
    ----------
    model : str or path, optional
        A name, the path of an ``.onnx`` file, or None for the built-in backbone.
    models_dir : path, optional
        A folder that is searched for names before all others.

    Raises
    ------
    BackboneError
        When there is no such backbone, it cannot be exported here, or its file breaks the
        contract.

    >>> load_backbone().dimension
    1280
    """
    path = find_or_export(model, models_dir)
    file = read_backbone(path)
    return Backbone(file.card, path, [file])
