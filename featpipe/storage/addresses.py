"""Addresses: what they name, and how they are shown without their secrets."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit, urlunsplit

from featpipe.errors import SourceError

PACKAGES = {
    "s3": ("s3fs", "s3"),
    "gs": ("gcsfs", "gs"),
    "gcs": ("gcsfs", "gs"),
    "http": ("aiohttp", "http"),
    "https": ("aiohttp", "http"),
}
"""Schemes that are read: the package that does it, and the extra that installs it."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_SECRET_NAME = re.compile(
    r"x-(amz|goog|ms)-.*|awsaccesskeyid|googleaccessid|signature|sig|expires|policy|key-pair-id|"
    r".*(token|secret|passw|credential|api-?_?key|auth).*",
    re.IGNORECASE,
)
"""Parts of a query that sign or authorise, and say nothing of what is asked for."""
_SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def is_url(text: str) -> bool:
    r"""Tell whether a text is an address rather than a local path.

    >>> is_url("s3://bucket/photos"), is_url("photos/ants"), is_url(r"C:\photos")
    (True, False, False)
    """
    return _URL.match(text) is not None


def scheme_of(url: str) -> str:
    """Return the scheme of an address, in lower case.

    Raises
    ------
    SourceError
        When featpipe does not read such addresses.
    """
    scheme = url.partition("://")[0].lower()
    if scheme not in PACKAGES:
        known = ", ".join(f"{name}://" for name in PACKAGES)
        raise SourceError(f"featpipe does not read {scheme}:// addresses: it reads {known}")
    return scheme


def has_folders(url: str) -> bool:
    """Tell whether what is behind an address can be listed."""
    return scheme_of(url) not in {"http", "https"}


def path_of(url: str) -> str:
    """Return the path in an address, without query and fragment.

    >>> path_of("https://example.org/photos/1.jpg?size=2")
    '/photos/1.jpg'
    """
    return urlsplit(url).path if not has_folders(url) else _after_host(url)


def joined(root: str, name: str) -> str:
    """Return the address of ``name`` below ``root``.

    >>> joined("s3://bucket/photos/", "ants/1.jpg")
    's3://bucket/photos/ants/1.jpg'
    """
    return f"{root.rstrip('/')}/{name}" if name else root


def shown(url: str) -> str:
    """Return an address without user, password, and signatures in its query.

    >>> shown("https://me:pw@example.org/1.jpg?size=2&X-Amz-Signature=ab&token=x")
    'https://example.org/1.jpg?size=2'
    """
    if "@" not in url and "?" not in url:
        return url
    try:
        scheme, place, path, query, fragment = urlsplit(url)
    except ValueError:
        return url.partition("://")[0] + "://…"
    if scheme not in {"http", "https"}:
        # Names in a bucket may hold any character, and these addresses have no query.
        return urlunsplit((scheme, place.rpartition("@")[2], "", "", "")) + _after_host(url)
    kept = [pair for pair in query.split("&") if not _SECRET_NAME.fullmatch(pair.partition("=")[0])]
    return urlunsplit((scheme, place.rpartition("@")[2], path, "&".join(kept), fragment))


def _after_host(url: str) -> str:
    rest = url.partition("://")[2]
    return rest[rest.index("/") :] if "/" in rest else ""


def without_secrets(text: str) -> str:
    """Return a message without what may open a storage to those who read it.

    >>> without_secrets("403 for https://example.org/1.jpg?sig=abc")
    '403 for https://example.org/1.jpg'
    """
    text = _URL.sub(lambda found: shown(found.group()), text)
    for name in _SECRET_VARIABLES:
        value = os.environ.get(name)
        if value:
            text = text.replace(value, f"${name}")
    return text
