"""The headers of a tar file: ustar, pax and GNU long names, read in order and nothing else.

The standard library's `tarfile` makes an object of each member and takes four times as long
(``benchmarks/listing.py``), which counts where ten million members are listed. What it does for
whoever unpacks (links, devices, permissions) is not wanted here; a test holds that both list
the same. The format: POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar
Format".
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BLOCK = 512
_ZEROS = bytes(BLOCK)
_MOST_EXTRA = 2**20
"""Bytes of a long name or a pax header; more of them are no name."""
_MOST_PADDING = 2**20
"""Bytes of zeros after the end mark behind which another archive is looked for."""
_ADLER = 65521
_SPARSE = ("GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.numblocks")
_USED = frozenset({"path", "size", "GNU.sparse.name", *_SPARSE})


class Member(NamedTuple):
    """One member: where its bytes lie, and what it is.

    ``kind`` is ``file``, ``folder``, ``link``, ``sparse`` or ``other`` (devices, pipes, what
    is unknown); ``offset`` that of its bytes in the archive.
    """

    name: str
    kind: str
    size: int
    mtime_ns: int
    offset: int


class DamagedTarError(ValueError):
    """An archive that cannot be read any further; the message is a clause."""


_KINDS = {
    **dict.fromkeys(b"0\0" + b"7", "file"),
    **dict.fromkeys(b"12", "link"),
    ord("5"): "folder",
    ord("S"): "sparse",
}
_WITHOUT_BYTES = frozenset(b"123456")


def read_headers(file: BinaryIO, size: int) -> Iterator[Member]:
    """Yield the members of a tar file, in their order.

    Archives that were joined end to end are read as one.

    Parameters
    ----------
    file : seekable binary file
        Its position may be changed between two members.
    size : int
        Bytes of the file.

    Raises
    ------
    DamagedTarError
        Where it cannot be read any further: what was yielded before is sound.
    OSError
        From the file.
    """
    at = 0
    extra: dict[str, str] = {}
    while at < size:
        file.seek(at)
        block = file.read(BLOCK)
        if block == _ZEROS:
            if extra or (at := _after_padding(file, at, size)) == size:
                break
            continue
        kind, length, at = _checked(block, at)
        if kind in b"xXLK":
            extra.update(_read_extra(file, kind, length, at, size))
            at += _padded(length)
            continue
        if kind == ord("g"):
            at += _padded(length)
            continue
        if kind == ord("S"):
            at = _after_sparse_map(file, block, at)
        member = _member(block, kind, length, at, extra)
        extra.clear()
        yield member
        at = member.offset + (0 if kind in _WITHOUT_BYTES else _padded(member.size))
    if extra:
        raise DamagedTarError("it ends after a header that belongs to another")


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def _checked(block: bytes, at: int) -> tuple[int, int, int]:
    """Return type and size from a sound header, and where its content begins."""
    if len(block) < BLOCK:
        raise DamagedTarError("it ends in the middle of a header")
    try:
        length = _number(block[124:136])
        # Adler-32 begins with the sum of all bytes modulo a prime: a tenth of the time of `sum`.
        found = (zlib.adler32(block) & 0xFFFF) - 1 - sum(block[148:156]) + 8 * ord(" ")
        stated = _number(block[148:156])
        is_sound = (found - stated) % _ADLER == 0 or _sums(block, stated)
    except ValueError as exc:
        raise DamagedTarError("a header of it holds no number where one belongs") from exc
    if not is_sound:
        raise DamagedTarError("the checksum of a header is wrong")
    return block[156], length, at + BLOCK


def _sums(block: bytes, stated: int) -> bool:
    """Tell whether a checksum is right, also as some old programs sum: with signed bytes."""
    rest = block[:148] + b" " * 8 + block[156:]
    total = sum(rest)
    return stated in {total, total - 256 * sum(byte > 127 for byte in rest)}


def _number(field: bytes) -> int:
    """Return a number in octal digits, or in base 256 where it is too large for them."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    if field[-1] == 0 and field[-2] != 0:  # as nearly all are written
        number = int(field[:-1], 8)
    else:
        number = int(field.partition(b"\0")[0].strip() or b"0", 8)
    if number < 0:
        raise ValueError("a negative number")
    return number


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _read_extra(file: BinaryIO, kind: int, length: int, at: int, size: int) -> dict[str, str]:
    """Read what a header in front of another says of that one."""
    if length > _MOST_EXTRA:
        raise DamagedTarError(f"a header of it has {length} bytes")
    if at + length > size:
        raise DamagedTarError("it ends in the middle of a header")
    data = file.read(length)
    if kind == ord("K"):  # the target of a link
        return {}
    if kind == ord("L"):
        return {"path": _text(data)}
    # What is not used is not kept: there may be any number of such headers in a row.
    return {key: value for key, value in _pax_records(data) if key in _USED}


def _pax_records(data: bytes) -> Iterator[tuple[str, str]]:
    """Yield the records of a pax header: each is its length, a key, ``=``, a value, a newline."""
    at, end = 0, len(data.rstrip(b"\0"))
    while at < end:
        digits = data[at : at + 20].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        record = data[at + len(digits) + 1 : at + length]
        key, equals, value = record.partition(b"=")
        if not equals or record[-1:] != b"\n" or at + length > len(data):
            raise DamagedTarError("a pax header of it is not well formed")
        yield key.decode("utf-8", "replace"), value[:-1].decode("utf-8", "surrogateescape")
        at += length


def _member(block: bytes, kind: int, length: int, at: int, extra: dict[str, str]) -> Member:
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and block[345]:
        name = f"{_text(block[345:500])}/{name}"
    what = _KINDS.get(kind, "other")
    if extra:
        name = extra.get("GNU.sparse.name") or extra.get("path") or name
        length = _pax_size(extra.get("size"), length)
        if any(key in extra for key in _SPARSE):
            what = "sparse"
    if what == "file" and name.endswith("/"):
        what = "folder"  # as tar wrote them before it had a type for them
    return Member(name, what, length, _mtime_ns(block[136:148]), at)


def _pax_size(text: str | None, length: int) -> int:
    if text is None:
        return length
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise DamagedTarError("a pax header of it is not well formed")
    return int(text)


def _mtime_ns(field: bytes) -> int:
    """Return the time of change; 0 where the header tells none that an int64 can hold."""
    try:
        seconds = _number(field)
    except ValueError:
        return 0
    return seconds * 10**9 if seconds < 2**33 else 0


def _after_sparse_map(file: BinaryIO, block: bytes, at: int) -> int:
    """Return where the bytes of an old GNU sparse member begin: its map may go on."""
    goes_on = block[482]
    while goes_on:
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            raise DamagedTarError("it ends in the middle of a header")
        at += BLOCK
        goes_on = block[504]
    return at


def _after_padding(file: BinaryIO, at: int, size: int) -> int:
    """Return where another archive begins behind an end mark, or the size where none does."""
    end = min(size, at + _MOST_PADDING)
    while at < end:
        file.seek(at)
        piece = file.read(min(2**16, end - at))
        begin = len(piece) - len(piece.lstrip(b"\0"))
        if begin < len(piece):
            at += begin // BLOCK * BLOCK
            file.seek(at)
            try:
                _checked(file.read(BLOCK), at)
            except DamagedTarError:
                return size  # what follows an end mark need not be anything
            return at
        if not piece:
            break
        at += len(piece)
    return size
