"""What the head looked at in its mistakes: for what it said, and for the label, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from featpipe._files import printable
from featpipe._threads import threads
from featpipe.backbones import Backbone, load_backbone
from featpipe.backbones.registry import find_backbone
from featpipe.errors import FeatpipeError
from featpipe.heads import Head
from featpipe.inspection import colours
from featpipe.inspection.looking import Looker, Sight
from featpipe.inspection.occlusion import COARSE
from featpipe.inspection.records import MEANING
from featpipe.inspection.squares import squares
from featpipe.pages import data_url
from featpipe.report.mistakes import Mistake
from featpipe.report.pictures import SIDE
from featpipe.scoring.predict import backbone_of
from featpipe.store import EmbeddingStore
from featpipe.types import Pixels

_QUALITY = 60


@dataclass(frozen=True, slots=True)
class MistakeMaps:
    """Pictures with maps over them.

    Attributes
    ----------
    pairs : mapping of int to (str, str)
        By row of the store the data URLs of two pictures: what speaks for the class that the
        head named, and for the label.
    method : str
        How they were made; empty where there are none.
    missing : str
        Why there are none, where that is not for want of pictures or mistakes.
    """

    pairs: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    method: str = ""
    missing: str = ""


def mistake_maps(head: Head, store: EmbeddingStore, mistakes: Sequence[Mistake]) -> MistakeMaps:
    """Return maps of those mistakes whose pictures can be opened.

    The backbone must be there: nothing is exported for a picture. It runs on the CPU, which a few
    images are no burden for.
    """
    if not mistakes:
        return MistakeMaps()
    try:
        backbone = _backbone(head)
        pixels = dict(squares(store, [m.row for m in mistakes], backbone.card.resize))
        shown = [mistake for mistake in mistakes if mistake.row in pixels]
        sights = _sights(head, backbone, [pixels[m.row] for m in shown], shown)
    except FeatpipeError as exc:
        return MistakeMaps(missing=printable(str(exc)))
    found = [(m.row, sight) for m, sight in zip(shown, sights, strict=True) if sight is not None]
    methods = dict.fromkeys(MEANING[sight.measure] for _, sight in found)
    pairs = {row: _pair(pixels[row], sight) for row, sight in found}
    return MistakeMaps(pairs, " or ".join(methods))


def _backbone(head: Head) -> Backbone:
    """Return the head's backbone where it is already a file here."""
    return backbone_of(head, load_backbone(find_backbone(str(head.backbone["name"]))))


def _sights(
    head: Head, backbone: Backbone, pixels: Sequence[Pixels], mistakes: Sequence[Mistake]
) -> list[Sight | None]:
    if not mistakes:
        return []
    classes = np.array([(m.predicted, m.given) for m in mistakes])
    session = backbone.open_session("cpu")
    with threads() as pool:
        return Looker(head, session, pool, patches=COARSE).look(np.stack(pixels), classes)


def _pair(pixels: Pixels, sight: Sight) -> tuple[str, str]:
    limit = float(np.abs(sight.values).max())
    first, second = (
        data_url(_laid_over(pixels, values, limit), _QUALITY) for values in sight.values
    )
    return first, second


def _laid_over(pixels: Pixels, values: np.ndarray, limit: float) -> Image.Image:
    return colours.laid_over(pixels, colours.layer(values, limit, SIDE))
