"""Published weights, fetched once into torch's own cache; nothing hangs where no network is."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse

import torch

from featpipe._files import make_folder, printable
from featpipe.errors import BackboneError

SECONDS = 20.0
"""How long one step of a connection may take before the network counts as not there."""


def fetch(url: str, what: str) -> Path:
    """Return the file of a URL, from torch's cache or the network.

    torch checks the bytes against the digest in the file's name, and puts the file in place
    only when it is whole.

    Raises
    ------
    BackboneError
        When it cannot be fetched; the message says which file to put where.
    """
    name = Path(urlparse(url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        return path
    make_folder(path.parent)
    digest = re.search(r"-([0-9a-f]{8,})\.", name)
    try:
        with patience():
            torch.hub.download_url_to_file(
                url, str(path), digest[1] if digest else None, progress=sys.stderr.isatty()
            )
    except (URLError, OSError, RuntimeError) as exc:
        raise BackboneError(no_network(what, url, path, exc)) from exc
    return path


def no_network(what: str, url: str, path: Path, error: BaseException) -> str:
    """Return the sentence for weights that cannot be fetched."""
    reason = getattr(error, "reason", None) or error
    lines = str(reason).strip().splitlines()
    return (
        f"the weights {what} cannot be fetched "
        f"({printable(lines[0][:200]) if lines else type(error).__name__}): fetch {url} on a "
        f"machine with a network and put it at {printable(str(path))}, or name it with "
        "--weights FILE"
    )


@contextmanager
def patience() -> Iterator[None]:
    """Give every connection that is opened in the block a time-out; torch gives none."""
    former = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(former)
