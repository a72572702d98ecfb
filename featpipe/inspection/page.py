"""An explanation as one HTML file that opens offline, on a desk and on a phone."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import Any

from PIL import Image

from featpipe._files import atomic_file, printable
from featpipe.errors import FeatpipeError
from featpipe.inspection import colours
from featpipe.inspection.records import TITLES, ClassMap, Explained, Explanation, Seen
from featpipe.inspection.words import methods, signed, sum_words
from featpipe.pages import data_url, page_environment, percent

_SIDE = 224
_QUALITY, _NEAR_QUALITY = 80, 72


def write_page(explanation: Explanation, path: str | os.PathLike[str]) -> Path:
    """Write what a head sees into one self-contained HTML file.

    Raises
    ------
    FeatpipeError
        When the file's name does not end in ``.html``.
    WriteError
        When the operating system refuses to write.
    """
    target = Path(path)
    if target.suffix.lower() not in {".html", ".htm"}:
        raise FeatpipeError(
            f"cannot write a page to {printable(str(target))}: give a name that ends in .html"
        )
    template = page_environment("featpipe.inspection").get_template("page.html.j2")
    with atomic_file(target) as file:
        file.write(template.render(_values(explanation)).encode("utf-8", "replace"))
    return target


def _values(explanation: Explanation) -> dict[str, Any]:
    """Return everything that the template names."""
    against, for_ = ("#{:02x}{:02x}{:02x}".format(*colours.scale()[at]) for at in (0, -1))
    return {
        "title": f"What {explanation.head} on {printable(explanation.backbone)} looks at",
        "made": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "methods": methods(explanation),
        "two": len(explanation.classes) == 2,
        "notes": [printable(note) for note in explanation.notes],
        "bar": data_url(colours.bar(488, 12), 90),
        "against": against,
        "for_": for_,
        "images": [_image(image) for image in explanation.images],
    }


def _image(image: Explained) -> dict[str, Any]:
    seen = image.seen
    if seen is None:
        return {
            "path": printable(image.path),
            "failed": True,
            "status": image.status,
            "reason": printable(image.reason or ""),
        }
    return {
        "path": printable(image.path),
        "failed": False,
        "size": f"{seen.width} × {seen.height} pixels",
        "method": TITLES[seen.method],
        "picture": data_url(_square(seen.pixels), _QUALITY),
        "predicted": _map(seen, seen.predicted),
        "runner_up": _map(seen, seen.runner_up),
        "low": signed(-seen.limit),
        "high": signed(seen.limit),
        "nearest": [
            {
                "path": printable(near.path),
                "label": printable(near.label),
                "cosine": f"{near.cosine:.2f}",
                "picture": None
                if near.pixels is None
                else data_url(_square(near.pixels), _NEAR_QUALITY),
            }
            for near in seen.nearest
        ],
    }


def _map(seen: Seen, shown: ClassMap) -> dict[str, Any]:
    x, y = shown.peak
    over = colours.layer(shown.values, seen.limit, _SIDE)
    return {
        "label": printable(shown.label),
        "probability": percent(shown.probability),
        "sum": sum_words(shown),
        "words": f"map for {printable(shown.label)}, its maximum at x {x:.0f}, y {y:.0f}",
        "picture": data_url(colours.laid_over(seen.pixels, over), _QUALITY),
    }


def _square(pixels: Any) -> Image.Image:
    """Return pixels as a picture, no larger than it is shown."""
    image = Image.fromarray(pixels)
    image.thumbnail((2 * _SIDE, 2 * _SIDE), Image.Resampling.LANCZOS)
    return image
