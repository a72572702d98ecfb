"""Published weights, fetched once into torch's own cache; nothing hangs where no network is."""

from __future__ import annotations

import logging
import re
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from huggingface_hub import get_session, hf_hub_download, try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
from huggingface_hub.errors import EntryNotFoundError

from featpipe._files import first_line, make_folder, printable
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


def fetch_from_hub(repository: str, names: Sequence[str], what: str) -> Path:
    """Return a file of a repository of the Hugging Face hub, from its cache or the network.

    The hub's client tries again and again where there is no network, a minute or more for
    each file; so one request tells first whether there is one.

    Raises
    ------
    BackboneError
        When none of ``names`` can be fetched; the message says which file to give.
    """
    for name in names:
        cached = try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    address = f"{ENDPOINT}/{repository}"
    with _quiet_hub():
        try:
            # Through the client's own session: it knows of proxies and certificates.
            get_session().head(address, timeout=SECONDS)
            for name in names:
                with suppress(EntryNotFoundError):
                    return Path(hf_hub_download(repository, name))
        # What the client raises depends on its version and on what it is built on.
        except Exception as exc:
            reason = "HF_HUB_OFFLINE is set" if HF_HUB_OFFLINE else first_line(exc)
            raise BackboneError(_no_hub(what, reason, names[0], address)) from exc
    raise BackboneError(_no_hub(what, f"{repository} holds no such file", names[0], address))


def _no_hub(what: str, reason: str, name: str, address: str) -> str:
    return (
        f"the weights {what} cannot be fetched ({reason}): fetch {name} from {address} on a "
        "machine with a network, and name the file with --weights FILE"
    )


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Keep the client's own lines back; what goes wrong is said in one sentence."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def no_network(what: str, url: str, path: Path, error: BaseException) -> str:
    """Return the sentence for weights that cannot be fetched."""
    reason = getattr(error, "reason", None)
    why = first_line(reason if isinstance(reason, BaseException) else error)
    return (
        f"the weights {what} cannot be fetched ({why}): fetch {url} on a machine with a network "
        f"and put it at {printable(str(path))}, or name it with --weights FILE"
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
