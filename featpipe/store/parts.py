"""Parts: immutable blocks of vectors, each with the keys of its rows beside it.

``00000.npy`` is a plain NumPy array (n, D). ``00000.keys`` is n keys of 16 bytes in the same
order, then the BLAKE2b-128 digest of the ``.npy`` file and these keys. The keys are written
last: a part without them was being written when the process ended, and counts for nothing.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe import storage
from featpipe._files import KEY_BYTES, printable
from featpipe.errors import StoreError
from featpipe.storage import StorageGoneError
from featpipe.store.folder import Place, at_once, cannot_read, folder_of
from featpipe.types import Key

FOLDER = "parts"


@dataclass(frozen=True, slots=True)
class PartShape:
    """What every part of one store has in common."""

    dimension: int
    dtype: str

    @property
    def row_size(self) -> int:
        """Bytes of one vector."""
        return self.dimension * np.dtype(self.dtype).itemsize

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
        return len(self.header(rows)) + rows * self.row_size


def vectors_name(part: int) -> str:
    """Return the name of a part's vectors in the store."""
    return f"{FOLDER}/{part:05d}.npy"


def keys_name(part: int) -> str:
    """Return the name of a part's keys in the store."""
    return f"{FOLDER}/{part:05d}.keys"


def vectors_path(store: Place, part: int) -> Place:
    """Return where a part's vectors lie."""
    return folder_of(store).place(vectors_name(part))


def keys_path(store: Place, part: int) -> Place:
    """Return where a part's keys lie."""
    return folder_of(store).place(keys_name(part))


def list_parts(store: Place) -> list[int]:
    """Return the numbers of the finished parts, in order."""
    return numbers_in(folder_of(store).files(FOLDER), ".keys")


def numbers_in(names: Iterable[str], *endings: str) -> list[int]:
    """Return the numbers of files with one of these endings, in order.

    >>> numbers_in(["00001.keys", "00000.keys", "00002.npy"], ".keys")
    [0, 1]
    """
    split = (name.partition(".") for name in names)
    return sorted(
        {int(stem) for stem, dot, end in split if stem.isdigit() and dot + end in endings}
    )


def write_part(
    store: Place,
    part: int,
    shape: PartShape,
    keys: list[Key],
    vectors: NDArray[Any],
    *,
    claim: bool = False,
) -> None:
    """Write one part: vectors, whole and durable, then keys in the same way.

    Parameters
    ----------
    store : path, or address as a text
    vectors : ndarray, (n, D), of the store's dtype
        C-contiguous; row ``i`` belongs to ``keys[i]``.
    claim : bool
        In a bucket, where nothing keeps two writers apart: leave a part of this number alone.
        Otherwise the number is known to be the caller's.

    Raises
    ------
    WriteError
        When the operating system or the storage refuses; the part does not exist then.
    FileExistsError
        With ``claim``, when another writer has the number; nothing was written.
    """
    folder = folder_of(store)
    header = shape.header(len(keys))
    data = np.ascontiguousarray(vectors, dtype=shape.dtype).data.cast("B")
    digest = hashlib.blake2b(header, digest_size=KEY_BYTES)
    digest.update(data)
    digest.update(b"".join(keys))
    with folder.written(vectors_name(part), is_new=claim) as file:
        file.write(header)
        file.write(data)
    with folder.written(keys_name(part)) as file:
        file.write(b"".join(keys))
        file.write(digest.digest())


def read_key_bytes(store: Place, part: int) -> bytes:
    """Return the keys of a part's rows, one after the other.

    Raises
    ------
    StoreError
        When the file is missing or its length is not that of whole keys.
    """
    path = keys_path(store, part)
    try:
        data = folder_of(store).read(keys_name(part))
    except OSError as exc:
        raise cannot_read(path, exc) from exc
    if len(data) % KEY_BYTES or not data:
        raise StoreError(damaged(path, "its length is wrong"))
    return data[:-KEY_BYTES]


def read_keys(store: Place, part: int) -> list[Key]:
    """Return the keys of a part's rows, as `read_key_bytes` does, each on its own."""
    data = read_key_bytes(store, part)
    return [data[i : i + KEY_BYTES] for i in range(0, len(data), KEY_BYTES)]


def is_whole(store: Place, part: int, shape: PartShape, rows: int) -> bool:
    """Tell whether the vectors' file has the length that ``rows`` rows need."""
    try:
        entry = storage.look_at(str(vectors_path(store, part)))
    except OSError:
        return False
    return entry.size == shape.file_size(rows)


def map_vectors(store: Place, part: int, shape: PartShape) -> NDArray[Any]:
    """Map a part's vectors into memory, read-only, (n, D); from a bucket they are fetched.

    Raises
    ------
    StoreError
        When the file is missing, or not the array that it should be.
    """
    path = vectors_path(store, part)
    if not isinstance(path, Path):
        return _fetched(store, part, shape)
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise StoreError(damaged(path, "the file is missing")) from None
    except (OSError, ValueError, EOFError) as exc:
        raise StoreError(damaged(path, "it is not a whole NumPy array")) from exc
    if array.ndim != 2 or array.shape[1] != shape.dimension or array.dtype != shape.dtype:
        raise StoreError(damaged(path, f"it holds {array.dtype} {array.shape}"))
    return array


def map_parts(store: Place, numbers: Iterable[int], shape: PartShape) -> Iterator[NDArray[Any]]:
    """Do what `map_vectors` does for many parts, in order; those of a bucket are read ahead."""
    return at_once(store, lambda number: map_vectors(store, number, shape), numbers)


def _fetched(store: Place, part: int, shape: PartShape) -> NDArray[Any]:
    """Return the vectors of a part of a bucket as they stand in its bytes, without a copy."""
    path = vectors_path(store, part)
    try:
        data = folder_of(store).read(vectors_name(part))
    except FileNotFoundError:
        raise StoreError(damaged(path, "the file is missing")) from None
    except OSError as exc:
        raise cannot_read(path, exc) from exc
    rows = check_header(data, path, shape)
    if len(data) != shape.file_size(rows):
        raise StoreError(damaged(path, "its length is wrong"))
    array: NDArray[Any] = np.frombuffer(data, shape.dtype, offset=len(shape.header(rows)))
    return array.reshape(rows, shape.dimension)


def check_header(data: bytes, path: Place, shape: PartShape) -> int:
    """Return the number of rows that the first bytes of a part tell of.

    Raises
    ------
    StoreError
        When they are not those of an array of this dimension and dtype.
    """
    try:
        file = io.BytesIO(data[: 2 * len(shape.header(0))])
        np.lib.format.read_magic(file)
        size, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except (ValueError, EOFError) as exc:
        raise StoreError(damaged(path, "it is not a whole NumPy array")) from exc
    if size[1:] != (shape.dimension,) or dtype != shape.dtype or is_fortran:
        raise StoreError(damaged(path, f"it holds {dtype} {size}"))
    return int(size[0])


def check_digest(store: Place, part: int) -> str | None:
    """Compare a part's vectors with their digest; return what is wrong, or None.

    Raises
    ------
    StoreError
        When the storage does not answer any more.
    """
    folder, path = folder_of(store), vectors_path(store, part)
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    try:
        keys = folder.read(keys_name(part))
        for block in folder.blocks(vectors_name(part)):
            digest.update(block)
    except (
        StorageGoneError
    ) as exc:  # says nothing of this part, and the next one would be as silent
        raise cannot_read(path, exc) from exc
    except OSError as exc:
        return f"{printable(str(path))} cannot be read: {exc.strerror or exc}"
    digest.update(keys[:-KEY_BYTES])
    return None if digest.digest() == keys[-KEY_BYTES:] else damaged(path, "its bytes have changed")


def check_digests(store: Place, numbers: Iterable[int]) -> Iterator[str | None]:
    """Do what `check_digest` does for many parts."""
    return at_once(store, lambda number: check_digest(store, number), numbers)


def damaged(path: Place, why: str) -> str:
    """Say that a part is damaged, and how to have it made again."""
    return (
        f"{printable(str(path))} is damaged ({why}): delete it and run `featpipe embed` again; "
        "only its images are computed anew"
    )
