"""Parts: immutable blocks of vectors, each with the keys of its rows beside it.

``00000.npy`` is a plain NumPy array (n, D). ``00000.keys`` is n keys of 16 bytes in the same
order, then the BLAKE2b-128 digest of the ``.npy`` file and these keys. The keys are written
last: a part without them was being written when the process ended, and counts for nothing.
"""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe._files import KEY_BYTES, atomic_file, printable
from featpipe.errors import StoreError
from featpipe.types import Key

FOLDER = "parts"
_BLOCK = 2**20


@dataclass(frozen=True, slots=True)
class PartShape:
    """What every part of one store has in common."""

    dimension: int
    dtype: str

    def header(self, rows: int) -> bytes:
        """Return the NumPy header of a part with so many rows."""
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            buffer,
            {
                "shape": (rows, self.dimension),
                "fortran_order": False,
                "descr": np.lib.format.dtype_to_descr(np.dtype(self.dtype)),
            },
        )
        return buffer.getvalue()

    def file_size(self, rows: int) -> int:
        """Return the size in bytes of a part with so many rows."""
        return len(self.header(rows)) + rows * self.dimension * np.dtype(self.dtype).itemsize


def vectors_path(store: Path, part: int) -> Path:
    """Return the path of a part's vectors."""
    return store / FOLDER / f"{part:05d}.npy"


def keys_path(store: Path, part: int) -> Path:
    """Return the path of a part's keys."""
    return store / FOLDER / f"{part:05d}.keys"


def list_parts(store: Path) -> list[int]:
    """Return the numbers of the finished parts, in order."""
    folder = store / FOLDER
    if not folder.is_dir():
        return []
    return sorted(
        int(name[: -len(".keys")])
        for name in os.listdir(folder)
        if name.endswith(".keys") and name[: -len(".keys")].isdigit()
    )


def write_part(
    store: Path, part: int, shape: PartShape, keys: list[Key], vectors: NDArray[Any]
) -> None:
    """Write one part: vectors, synced and renamed, then keys in the same way.

    Parameters
    ----------
    vectors : ndarray, (n, D), of the store's dtype
        C-contiguous; row ``i`` belongs to ``keys[i]``.

    Raises
    ------
    WriteError
        When the operating system refuses; the part does not exist then.
    """
    header = shape.header(len(keys))
    data = np.ascontiguousarray(vectors, dtype=shape.dtype).data.cast("B")
    digest = hashlib.blake2b(header, digest_size=KEY_BYTES)
    digest.update(data)
    digest.update(b"".join(keys))
    with atomic_file(vectors_path(store, part)) as file:
        file.write(header)
        file.write(data)
    with atomic_file(keys_path(store, part)) as file:
        file.write(b"".join(keys))
        file.write(digest.digest())


def read_key_bytes(store: Path, part: int) -> bytes:
    """Return the keys of a part's rows, one after the other.

    Raises
    ------
    StoreError
        When the file is missing or its length is not that of whole keys.
    """
    path = keys_path(store, part)
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise StoreError(f"cannot read {printable(str(path))}: {exc.strerror or exc}") from exc
    if len(data) % KEY_BYTES or not data:
        raise StoreError(damaged(path, "its length is wrong"))
    return data[:-KEY_BYTES]


def read_keys(store: Path, part: int) -> list[Key]:
    """Return the keys of a part's rows, as `read_key_bytes` does, each on its own."""
    data = read_key_bytes(store, part)
    return [data[i : i + KEY_BYTES] for i in range(0, len(data), KEY_BYTES)]


def is_whole(store: Path, part: int, shape: PartShape, rows: int) -> bool:
    """Tell whether the vectors' file has the length that ``rows`` rows need."""
    try:
        return vectors_path(store, part).stat().st_size == shape.file_size(rows)
    except OSError:
        return False


def map_vectors(store: Path, part: int, shape: PartShape) -> NDArray[Any]:
    """Map a part's vectors into memory, read-only, (n, D).

    Raises
    ------
    StoreError
        When the file is missing, or not the array that it should be.
    """
    path = vectors_path(store, part)
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise StoreError(damaged(path, "the file is missing")) from None
    except (OSError, ValueError, EOFError) as exc:
        raise StoreError(damaged(path, "it is not a whole NumPy array")) from exc
    if array.ndim != 2 or array.shape[1] != shape.dimension or array.dtype != shape.dtype:
        raise StoreError(damaged(path, f"it holds {array.dtype} {array.shape}"))
    return array


def check_digest(store: Path, part: int) -> str | None:
    """Compare a part's vectors with their digest; return what is wrong, or None."""
    path = vectors_path(store, part)
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    try:
        keys = keys_path(store, part).read_bytes()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as exc:
        return f"{printable(str(path))} cannot be read: {exc.strerror or exc}"
    digest.update(keys[:-KEY_BYTES])
    return None if digest.digest() == keys[-KEY_BYTES:] else damaged(path, "its bytes have changed")


def damaged(path: Path, why: str) -> str:
    """Say that a part is damaged, and how to have it made again."""
    return (
        f"{printable(str(path))} is damaged ({why}): delete it and run `featpipe embed` again; "
        "only its images are computed anew"
    )
