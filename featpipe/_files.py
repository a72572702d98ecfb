"""Files that are whole or not there: atomic replacement, locks, hashes, names.

Everything here works on local paths; the layers above say what the files mean.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from featpipe.errors import FeatpipeError, LockedError, WriteError
from featpipe.types import Key

KEY_BYTES = 16
_ELSEWHERE = "choose another place (-o, or --models-dir for backbones)"
_REMEDIES = {
    errno.ENOSPC: "no space is left on the disk: free some and run the same command again",
    errno.EDQUOT: "the disk quota is used up: free some space and run the same command again",
    errno.EFBIG: "the system's limit on file sizes is reached: raise it (ulimit -f) and run again",
    errno.EACCES: f"permission denied: {_ELSEWHERE}, or change the permissions",
    errno.EPERM: f"permission denied: {_ELSEWHERE}, or change the permissions",
    errno.EROFS: f"the disk is read-only: {_ELSEWHERE}",
}
_FORMULA = frozenset("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")

DISK_ERRORS = frozenset(_REMEDIES)
"""Numbers of the system's errors that a full or closed disk gives."""


def content_key(data: bytes) -> Key:
    """BLAKE2b-128 of ``data``: 16 bytes, equal for equal contents.

    >>> content_key(b"").hex()
    'cae66941d9efbd404e4d88758ea67670'
    """
    return hashlib.blake2b(data, digest_size=KEY_BYTES).digest()


def file_key(path: Path) -> Key:
    """BLAKE2b-128 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=KEY_BYTES)).digest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes in hexadecimal, as publishers of weights state it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_regular(path: Path, most: int) -> bytes | None:
    """Read a regular file; None where it is larger than ``most`` bytes.

    Raises
    ------
    OSError
        When it cannot be read, or is something else: a device may have no end, and a pipe
        is waited for.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise OSError("it is a device or a pipe: give the path of a file")
    if found.st_size > most:
        return None
    with path.open("rb") as file:
        # Some files of the kernel have no end either; their size is 0.
        return file.read(found.st_size)


def escape_path(path: str) -> str:
    r"""Give ``path`` a form that is valid Unicode, and that `unescape_path` turns back.

    A byte that is not UTF-8 becomes ``\xNN``; a backslash that would read as such an escape
    becomes ``\x5c``. Every other path stays as it is.

    >>> escape_path("caf\udce9.jpg")
    'caf\\xe9.jpg'
    """
    if "\\x" in path:
        path = path.replace("\\x", "\\x5cx")
    return re.sub("[\udc80-\udcff]", lambda m: f"\\x{ord(m.group()) - 0xDC00:02x}", path)


def unescape_path(text: str) -> str:
    r"""Undo `escape_path`.

    >>> unescape_path(escape_path("caf\udce9.jpg")) == "caf\udce9.jpg"
    True
    """

    def char(match: re.Match[str]) -> str:
        code = int(match.group(1), 16)
        return chr(code) if code < 0x80 else chr(0xDC00 + code)

    return re.sub(r"\\x([0-9a-f]{2})", char, text)


def printable(text: str) -> str:
    r"""Make ``text`` fit for one line of a terminal: control characters become escapes.

    >>> printable("a\nb\x1b[31m")
    'a\\nb\\x1b[31m'
    """
    text = escape_path(text) if any("\udc80" <= c <= "\udcff" for c in text) else text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def guard_cell(text: str) -> str:
    """Keep a spreadsheet from reading ``text`` as a formula; `unguard_cell` undoes it.

    Text that begins (after spaces) with ``=``, ``+``, ``-``, ``@``, a full-width form of
    these, a tab or a line break gets a leading ``'``; so does text that begins with ``'``,
    so that one leading ``'`` can always be dropped.

    >>> guard_cell("=1+1.jpg"), guard_cell("a.jpg")
    ("'=1+1.jpg", 'a.jpg')
    """
    risky = text[:1] in _FORMULA or text.lstrip()[:1] in _FORMULA or text[:1] == "'"
    return f"'{text}" if text and risky else text


def unguard_cell(cell: str) -> str:
    """Undo `guard_cell`."""
    return cell[1:] if cell[:1] == "'" else cell


def show_path(path: Path) -> str:
    """Return a path fit for a message."""
    return printable(str(path))


def first_line(error: BaseException) -> str:
    r"""Return what an error says: its first line, fit for a terminal, or the name of its class.

    >>> first_line(ValueError("no\x1b such node\nat line 3")), first_line(KeyError())
    ('no\\x1b such node', 'KeyError')
    """
    lines = str(error).strip().splitlines()
    return printable(lines[0][:300]) if lines else type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the three known names that are nearest to one; empty where none is near.

    >>> nearest("resnet51", ["resnet50", "resnet152", "vgg16"])
    'resnet50 or resnet152'
    >>> nearest("resnet51", ["vgg16"])
    ''
    """
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return " or ".join(printable(found) for found in near)


def slug(text: str, otherwise: str) -> str:
    """Return ``text`` as the name of a file: letters, digits, ``.``, ``_``, ``+`` and ``-``.

    >>> slug("my photos/2026", "images")
    'my_photos_2026'
    """
    return re.sub(r"[^\w.+-]+", "_", printable(text)).strip("_") or otherwise


def write_error(path: Path, error: OSError) -> WriteError:
    """Turn a failed write into a sentence that names the file and the way out."""
    why = _REMEDIES.get(error.errno or 0, f"{error.strerror or error}")
    return WriteError(f"cannot write {printable(str(path))}: {why}")


def fsync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable, where the system can."""
    if os.name == "nt":  # pragma: no cover - Windows has no handle on a folder to sync
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems refuse; the rename stands anyway
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


_ADDRESS = re.compile(r"(s3|gs|gcs|https?):(?:/|$)")
"""What a `Path` makes of ``s3://bucket/…``."""


def refuse_address(path: Path) -> None:
    """Raise `WriteError` where ``path`` was an address: the folder ``s3:`` would be made here."""
    address = _ADDRESS.match(path.as_posix())
    if address:
        # Not all of it: an address may hold credentials.
        raise WriteError(
            f"cannot write below an address ({address[1]}://…): stores alone can lie in a bucket; "
            "give a path of this machine, and copy the file from there"
        )


def make_folder(folder: Path) -> None:
    """Create ``folder`` and its parents, or raise `WriteError`."""
    refuse_address(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise write_error(folder, exc) from exc


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that takes ``path``'s place, whole and synced, at the end.

    If the block raises, nothing of it is left and a former ``path`` stays untouched.

    Raises
    ------
    WriteError
        When the operating system refuses to write.
    """
    make_folder(path.parent)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=".tmp", dir=path.parent
        )
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _apply_umask(temporary)
        os.replace(temporary, path)
        temporary = None
        fsync_folder(path.parent)
    except OSError as exc:
        raise write_error(path, exc) from exc
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def _apply_umask(temporary: str) -> None:
    """Give a file made by `mkstemp` (0600) the permissions of any other new file."""
    os.chmod(temporary, 0o666 & ~_UMASK)


def _read_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


# Read once, at import: there is no call that reads it without changing it for a moment.
_UMASK = _read_umask()


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` atomically by ``value`` as indented JSON with a final newline."""
    data = json_bytes(value)
    with atomic_file(path) as file:
        file.write(data)


def json_bytes(value: Any) -> bytes:
    """Return ``value`` as indented JSON with a final newline."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.encode("utf-8", "backslashreplace")


def read_json(path: Path, error: Callable[[str], FeatpipeError]) -> dict[str, Any]:
    """Read a JSON object, or raise ``error`` with a sentence that names the file."""
    shown = printable(str(path))
    try:
        data = path.read_bytes()
    except FileNotFoundError as exc:
        raise error(f"{shown} is missing") from exc
    except OSError as exc:
        raise error(f"cannot read {shown}: {exc.strerror or exc}") from exc
    except ValueError as exc:  # the path of a stranger may be none
        raise error(f"cannot read {shown}: {exc}") from exc
    return json_object(data, shown, error)


def json_object(data: bytes, shown: str, error: Callable[[str], FeatpipeError]) -> dict[str, Any]:
    """Return the JSON object that ``data`` holds, or raise ``error``, which names ``shown``."""
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise error(f"{shown} is damaged: it is not valid JSON") from exc
    if not isinstance(value, dict):
        raise error(f"{shown} is damaged: it does not hold a JSON object")
    return value


@contextmanager
def lock(path: Path, *, what: str, timeout: float = 0.0, remove: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` for the time of the block.

    The lock belongs to the open file, so it goes with its process, however that ends; the
    empty file stays, unless ``remove`` asks for its end with the block's. ``what`` names the
    thing in the message.

    Raises
    ------
    LockedError
        When another process holds it for longer than ``timeout`` seconds.
    """
    make_folder(path.parent)
    with _locked_file(path, what, time.monotonic() + timeout) as file:
        try:
            yield
        finally:
            if remove:
                with suppress(OSError):  # Windows does not remove what is open
                    path.unlink()
            _unlock(file)


def _locked_file(path: Path, what: str, deadline: float) -> IO[bytes]:
    while True:
        try:
            file = path.open("a+b")
        except OSError as exc:
            raise write_error(path, exc) from exc
        try:
            locked = _try_lock(file)
        except OSError as exc:  # a network file system that knows no locks
            file.close()
            raise write_error(path, exc) from exc
        if locked and _is_at(file, path):
            return file
        file.close()
        if locked:
            continue  # its former holder has removed it: the lock that counts is on a new file
        if time.monotonic() >= deadline:
            raise LockedError(
                f"{printable(what)} is being written by another process: "
                "wait until it has finished, or give another place with -o"
            )
        time.sleep(0.05)


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Tell whether ``path`` still is the open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


if os.name == "nt":  # pragma: no cover - the tests run on Linux
    import msvcrt

    def _try_lock(file: IO[bytes]) -> bool:
        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except OSError:
            return False
        return True

    def _unlock(file: IO[bytes]) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)  # type: ignore[attr-defined,unused-ignore]

else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_UN)
