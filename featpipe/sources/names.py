"""Names of many files in one text: brace ranges, and what to call each of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import product, takewhile
from pathlib import Path

from featpipe._files import printable
from featpipe.errors import SourceError
from featpipe.storage import is_url, path_of, shown

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})(?:\.\.(\d{1,18}))?")
_MOST_FILES = 10**6


def expanded(text: str) -> list[str]:
    """Return what a text with braces stands for, as a shell would expand it.

    >>> expanded("shard-{08..10}.tar")
    ['shard-08.tar', 'shard-09.tar', 'shard-10.tar']
    >>> expanded("{train,val}.tar"), expanded("plain.tar")
    (['train.tar', 'val.tar'], ['plain.tar'])

    Raises
    ------
    SourceError
        When these would be more than a million names.
    """
    pieces = _BRACES.split(text)
    choices: list[list[str]] = []
    total = 1
    for at, piece in enumerate(pieces):
        choices.append([piece] if at % 2 == 0 else _choices(piece))
        total *= len(choices[-1])
        if total > _MOST_FILES:
            raise SourceError(
                f"{printable(text)} stands for more than a million files: give fewer at a time"
            )
    return ["".join(parts) for parts in product(*choices)]


def has_braces(text: str) -> bool:
    """Tell whether a text stands for several names."""
    return any(piece != f"{{{piece}}}" and len(_choices(piece)) > 1 for piece in _inside(text))


def _inside(text: str) -> Iterator[str]:
    return (found.group(1) for found in _BRACES.finditer(text))


def _choices(piece: str) -> list[str]:
    found = _RANGE.fullmatch(piece)
    if found is None:
        return piece.split(",") if "," in piece else [f"{{{piece}}}"]
    first, last, step = found.groups()
    is_padded = any(len(end) > 1 and end[0] == "0" for end in (first, last))
    width = max(len(first), len(last)) if is_padded else 0
    begin, end, by = int(first), int(last), max(int(step or 1), 1)
    if abs(end - begin) // by > _MOST_FILES:
        raise SourceError(f"{{{piece}}} stands for more than a million files: give fewer at a time")
    numbers = range(begin, end + 1, by) if begin <= end else range(begin, end - 1, -by)
    return [f"{number:0{width}d}" for number in numbers]


def has_suffix(text: str, suffixes: tuple[str, ...]) -> bool:
    """Tell whether a path, or the path of an address, ends in one of these.

    >>> has_suffix("https://example.org/x.TAR?token=1", (".tar",))
    True
    """
    return _path(text).lower().endswith(suffixes)


def places_of(text: str) -> list[str]:
    """Return the files that a text names: one, or those of its braces.

    Raises
    ------
    SourceError
        When none of them is there, as far as that can be told without asking far away.
    """
    if not has_braces(text) or os.path.isfile(text):
        return [text]
    places = expanded(text)
    if not is_url(text) and not any(map(os.path.isfile, places)):
        raise SourceError(
            f"there is none of the {len(places)} files {printable(text)}: check the path (it is "
            f"looked for from {printable(str(Path.cwd()))})"
        )
    return places


def location_of(text: str) -> str:
    """Return where these files are, in full and without secrets; it can be opened again."""
    if is_url(text):
        return shown(text)
    return str(Path(text).resolve()) if os.path.exists(text) else os.path.abspath(text)


def _path(text: str) -> str:
    return path_of(text) if is_url(text) else text.replace(os.sep, "/")


def distinct_names(places: Sequence[str]) -> list[str]:
    """Return short names: what follows the folder that all places have in common.

    >>> distinct_names(["s3://b/x/train/0.tar", "s3://b/x/val/0.tar"])
    ['train/0.tar', 'val/0.tar']
    """
    paths = [_path(place) for place in places]
    folders = [path.split("/")[:-1] for path in paths]
    # Of all, what the first and the last in order share, part by part.
    ends = zip(min(folders), max(folders), strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], ends))
    return ["/".join(path.split("/")[shared:]) for path in paths]


def stem_of(text: str) -> str:
    """Return what to call a source of this name, without braces and suffix.

    >>> stem_of("data/train-{0000..0099}.tar"), stem_of("x/{a,b}.tar")
    ('train', 'x')
    """
    parts = _BRACES.sub("", _path(text)).split("/")
    name = parts.pop()
    stem = name[: name.rfind(".")] if "." in name else name
    above = [part for part in parts if part]
    return stem.strip("-_. ") or (above[-1] if above else "images")
