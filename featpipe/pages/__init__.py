"""What the pages have in common: one style, one way to fill a template, pictures as data.

A page is one file that opens offline: nothing in it is fetched.
"""

from __future__ import annotations

import base64
import io
from importlib.resources import files

import jinja2
from PIL import Image

from featpipe._files import printable

__all__ = ["data_url", "page_environment", "percent"]

_SHARED = "featpipe.pages"


def page_environment(package: str) -> jinja2.Environment:
    """Return what fills the templates of a package; ``style.css`` is the same for all.

    Everything that is filled in is escaped. The filters ``percent`` and ``shown`` make shares
    and texts from outside fit to be read.
    """
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(lambda name: _part(package, name)),
    )
    environment.filters["percent"] = percent
    environment.filters["shown"] = lambda value: printable(str(value))
    return environment


def percent(share: float) -> str:
    """Return a share in per cent, on one line.

    >>> percent(0.98214).split()
    ['98.2', '%']
    """
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def data_url(image: Image.Image, quality: int) -> str:
    """Return a picture, with its transparency where it has some, as an address that holds it."""
    file = io.BytesIO()
    image.save(file, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _part(package: str, name: str) -> str:
    home = _SHARED if name == "style.css" else package
    return files(home).joinpath(name).read_text(encoding="utf-8")
