"""Blocks: some images of a plan as one table, and the table of what became of them.

A block is what a worker on another machine takes at a time. Its images carry their positions,
as blocks come back in any order, and its vectors make up one part of the store at most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from featpipe import errors
from featpipe._columns import in_objects, text_column
from featpipe.embedding.engine import EmbeddedBatch
from featpipe.errors import FeatpipeError
from featpipe.store.outcomes import SCHEMA
from featpipe.store.writer import PART_ROWS
from featpipe.types import Failure, ImageRef, Key, Vectors

LARGEST = PART_ROWS
"""Images of a block at most: a worker that dies loses no more."""
_SMALLEST = 16
_BLOCKS_EACH = 4

BLOCK = pa.schema(
    [
        pa.field("number", pa.int32(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("size", pa.int64()),
        pa.field("mtime_ns", pa.int64()),
        pa.field("problem", pa.string()),
    ]
)
"""The columns of a block: its number, the same in every row, and the images of a listing."""

RESULT = pa.schema([BLOCK.field("number"), BLOCK.field("position"), *SCHEMA])
"""The columns of what became of a block; ``part`` and ``row`` where its own part has the vector.

Where an image is ok and has no place, its content was known before. A column ``embedding``,
float32 lists of D numbers, follows where vectors are asked for in place of a part.
"""

_PROBLEM_AT = -1


@dataclass(frozen=True, slots=True)
class Block:
    """A block as objects; ``positions`` are those of ``refs`` among the images to be opened."""

    number: int
    positions: tuple[int, ...]
    refs: tuple[ImageRef, ...]

    @classmethod
    def of(cls, table: pa.Table) -> Block:
        """Return the block that a table of `BLOCK` holds."""
        number = table.column("number")[0].as_py()
        return cls(number, tuple(table.column("position").to_pylist()), tuple(in_objects(table)))


@dataclass(frozen=True, slots=True)
class Became:
    """What became of one image of a block; ``row`` is that of the block's own vectors."""

    key: Key | None
    shape: tuple[int, int] | None
    failure: Failure | None
    row: int | None


def block_sizes(total: int, workers: int, step: int = 1) -> list[int]:
    """Cut ``total`` images into blocks, so that all workers are done at about the same time.

    Each block is a share of what is left, so the last ones are small: guided self-scheduling
    (Polychronopoulos and Kuck, IEEE Transactions on Computers C-36(12), 1987), with a quarter of
    a worker's share a block. All but the last are multiples of ``step``.

    >>> block_sizes(100, 2)
    [16, 16, 16, 16, 16, 16, 4]
    >>> block_sizes(100_000, 2)[:2], sum(block_sizes(100_000, 2))
    ([2048, 2048], 100000)
    """
    sizes = []
    while total:
        share = -(-total // (_BLOCKS_EACH * workers))
        size = max(_SMALLEST, min(share, LARGEST))
        sizes.append(min(total, -(-size // step) * step))
        total -= sizes[-1]
    return sizes


def in_blocks(listed: pa.Table, sizes: Sequence[int], numbers: Sequence[int]) -> Iterator[pa.Table]:
    """Yield a listing as tables of `BLOCK`, of these sizes and with these numbers."""
    columns = [field.name for field in BLOCK][2:]
    start = 0
    for size, number in zip(sizes, numbers, strict=True):
        images = listed.select(columns).slice(start, size)
        positions = pa.array(np.arange(start, start + size, dtype=np.int64))
        numbered = pa.repeat(pa.scalar(number, pa.int32()), size)
        yield pa.table([numbered, positions, *images.columns], schema=BLOCK)
        start += size


def result_table(block: Block, became: Sequence[Became], *, part: int | None) -> pa.Table:
    """Return what became of a block's images as a table of `RESULT`; ``part`` has the vectors."""
    count = len(block.refs)
    failures = [b.failure for b in became]
    columns: dict[str, pa.Array] = {
        "number": pa.repeat(pa.scalar(block.number, pa.int32()), count),
        "position": pa.array(block.positions, pa.int64()),
        "key": pa.array([b.key for b in became], SCHEMA.field("key").type),
        "width": pa.array([None if b.shape is None else b.shape[0] for b in became], pa.int32()),
        "height": pa.array([None if b.shape is None else b.shape[1] for b in became], pa.int32()),
        "status": pa.array(["ok" if f is None else f.status for f in failures], pa.string()),
        "reason": text_column([None if f is None else f.reason for f in failures]),
        "part": pa.array([None if b.row is None else part for b in became], pa.int32()),
        "row": pa.array([b.row for b in became], pa.int32()),
    }
    return pa.table(list(columns.values()), schema=RESULT)


def with_vectors(result: pa.Table, vectors: Vectors) -> pa.Table:
    """Add the vectors, (k, D), that the column ``row`` counts; images without one get none."""
    kind = pa.list_(pa.float32(), vectors.shape[1])
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=kind)
    return result.append_column("embedding", lists.take(result.column("row").combine_chunks()))


def in_batches(result: pa.Table, refs: Sequence[ImageRef], size: int) -> Iterator[EmbeddedBatch]:
    """Yield a table of `with_vectors` as batches of ``size`` images, for its ``refs``."""
    for start in range(0, len(result), size):
        some = result.slice(start, size)
        column = some.column("embedding").combine_chunks()
        vectors = np.asarray(column.flatten(), dtype=np.float32)
        used = np.asarray(column.is_valid())
        rows = np.cumsum(used) - 1
        yield EmbeddedBatch(
            tuple(refs[start : start + size]),
            tuple(some.column("key").to_pylist()),
            tuple(_shapes(some)),
            tuple(_failures(some)),
            tuple(int(row) if is_used else None for row, is_used in zip(rows, used, strict=True)),
            vectors.reshape(-1, column.type.list_size),
        )


def _shapes(result: pa.Table) -> Iterator[tuple[int, int] | None]:
    sides = (result.column(name).to_pylist() for name in ("width", "height"))
    return (
        None if width is None else (width, height) for width, height in zip(*sides, strict=True)
    )


def _failures(result: pa.Table) -> Iterator[Failure | None]:
    columns = (result.column(name).to_pylist() for name in ("status", "reason"))
    for status, reason in zip(*columns, strict=True):
        yield None if status == "ok" else Failure(status, reason)


def problem_table(problem: FeatpipeError) -> pa.Table:
    """Return an error as a table of `RESULT`: a worker cannot raise what its driver should say."""
    empty = {field.name: None for field in RESULT}
    row = {
        **empty,
        "number": 0,
        "position": _PROBLEM_AT,
        "status": type(problem).__name__,
        "reason": str(problem),
    }
    return pa.Table.from_pylist([row], schema=RESULT)


def raise_problem(result: pa.Table) -> None:
    """Raise the error that `problem_table` has put into a table, where there is one."""
    if not len(result) or result.column("position")[0].as_py() != _PROBLEM_AT:
        return
    row = result.slice(0, 1).to_pylist()[0]
    raise error_named(row["status"], row["reason"])


def error_named(name: str, message: str) -> FeatpipeError:
    """Return an error of our tree by the name of its class."""
    kind = getattr(errors, name, FeatpipeError)
    return kind(message) if issubclass(kind, FeatpipeError) else FeatpipeError(message)
