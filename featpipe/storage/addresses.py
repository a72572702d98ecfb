"""Addresses: what they name, and how they are shown without their secrets."""

from __future__ import annotations

import os
import re

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
    r"x-(amz|goog|ms)-[^=&]*|awsaccesskeyid|googleaccessid|signature|sig|expires|policy|key-pair-id|"
    r"[^=&]*(token|secret|passw|credential|api-?_?key|auth)[^=&]*",
    re.IGNORECASE,
)
"""Parts of a query that sign or authorise, and say nothing of what is asked for."""
_NAME_IN_TEXT = _SECRET_NAME.pattern.replace("[^=&]", r"[^=&\s]")
_SECRET_PAIR = re.compile(rf"[?&](?:{_NAME_IN_TEXT})=[^&#\s'\"<>]*", re.IGNORECASE)
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
    return _after_host(url if has_folders(url) else re.split("[?#]", url, maxsplit=1)[0])


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
    # Not `urlsplit`: it refuses some addresses, and those must not come to look all the same.
    scheme, _, rest = url.partition("://")
    rest = _without_user(rest)
    if scheme.lower() not in {"http", "https"}:
        # Names in a bucket may hold any character, and these addresses have no query.
        return f"{scheme}://{rest}"
    rest, mark, fragment = rest.partition("#")
    path, _, query = rest.partition("?")
    kept = [pair for pair in query.split("&") if not _SECRET_NAME.fullmatch(pair.partition("=")[0])]
    asked = "&".join(kept)
    return f"{scheme}://{path}{'?' if asked else ''}{asked}{mark}{fragment}"


def host_of(url: str) -> str:
    """Return the host of an address, or its bucket."""
    return re.split("[/?#]", _without_user(url.partition("://")[2]), maxsplit=1)[0]


def _without_user(rest: str) -> str:
    """Return what follows ``://`` without what opens it.

    A password should not hold a ``/``; one that does is none of the path for that.
    """
    place = re.split("[/?#]", rest, maxsplit=1)[0]
    user, _, after = place.partition(":")
    is_open = "@" not in place and after and not after.isdigit() and user.lower() != "arn"
    if is_open and not place.startswith("["):
        return rest.rpartition("@")[2]
    return place.rpartition("@")[2] + rest[len(place) :]


def _after_host(url: str) -> str:
    rest = url.partition("://")[2]
    return rest[rest.index("/") :] if "/" in rest else ""


def without_secrets(text: str) -> str:
    """Return a message without what may open a storage to those who read it.

    >>> without_secrets("403 for https://example.org/1.jpg?sig=abc")
    '403 for https://example.org/1.jpg'
    """
    text = _URL.sub(lambda found: shown(found.group()), text)
    # An address may hold what ends it here, such as a space.
    text = _SECRET_PAIR.sub("", text)
    for name in _SECRET_VARIABLES:
        value = os.environ.get(name)
        if value:
            text = text.replace(value, f"${name}")
    return text
