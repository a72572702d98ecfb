"""The arrays inside a fitted pipeline: what is written down of them, and compared later."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

_BLOCK = 2**24


def arrays_of(pipeline: Pipeline) -> dict[str, NDArray[Any]]:
    """Return every array of the steps by ``step.attribute``, sorted.

    Without those that the step's class keeps apart: they have a file of their own.
    """
    found = {
        f"{name}.{attribute}": array
        for name, step in pipeline.steps
        for attribute, array in _arrays(vars(step))
        # The class is asked, not the object, whose attributes a forger may have written.
        if attribute not in getattr(type(step), "kept_apart", ())
    }
    return dict(sorted(found.items()))


def _arrays(attributes: Mapping[str, Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    for name, value in attributes.items():
        if isinstance(value, np.ndarray):
            yield name, value
        elif isinstance(value, dict):
            yield from ((f"{name}.{inner}", array) for inner, array in _arrays(value))
        elif isinstance(value, tuple | list) and any(isinstance(v, np.ndarray) for v in value):
            yield from (
                (f"{name}.{i}", v) for i, v in enumerate(value) if isinstance(v, np.ndarray)
            )


def arrays_table(arrays: Mapping[str, NDArray[Any]]) -> dict[str, dict[str, Any]]:
    """Return dtype and shape of every array, as ``head.json`` holds them."""
    return {
        name: {"dtype": str(array.dtype), "shape": list(array.shape)}
        for name, array in arrays.items()
    }


def arrays_digest(arrays: Mapping[str, NDArray[Any]], identity: str) -> str:
    """Return BLAKE2b-128 of ``identity`` and of name, dtype, shape and bytes of every array."""
    digest = hashlib.blake2b(identity.encode("utf-8", "backslashreplace"), digest_size=16)
    for name, array in arrays.items():
        digest.update(title(name, array))
        for block in blocks(array):
            digest.update(block.tobytes())
    return digest.hexdigest()


def title(name: str, array: NDArray[Any]) -> bytes:
    """Return what a digest takes in of an array before its numbers."""
    return f"\n{name} {array.dtype.str} {array.shape}\n".encode()


def blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Yield an array in pieces of some megabytes, in order."""
    if array.ndim == 0 or not array.size:
        yield array
        return
    step = max(1, _BLOCK * len(array) // array.nbytes)
    for start in range(0, len(array), step):
        yield array[start : start + step]
