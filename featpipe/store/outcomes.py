"""What became of images that were opened, in columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featpipe._columns import text_column
from featpipe._files import KEY_BYTES
from featpipe.types import Key, Status

SCHEMA = pa.schema(
    [
        pa.field("key", pa.binary(KEY_BYTES)),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("part", pa.int32()),
        pa.field("row", pa.int32()),
    ]
)
_STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one image; ``width`` and ``height`` are in pixels, upright."""

    status: Status
    key: Key | None = None
    width: int | None = None
    height: int | None = None
    reason: str | None = None


class Outcomes:
    """What has become of ``count`` images so far: some thirty bytes an image."""

    def __init__(self, count: int) -> None:
        self._status = np.full(count, -1, dtype=np.int8)
        self._keys = np.zeros((count, KEY_BYTES), dtype=np.uint8)
        self._has_key = np.zeros(count, dtype=bool)
        self._numbers = np.full((count, 4), -1, dtype=np.int32)
        self._reasons: dict[int, str] = {}

    @property
    def done(self) -> NDArray[np.bool_]:
        """Tell for every image whether anything has become of it."""
        return self._status >= 0

    def put(self, at: int, outcome: Outcome, place: tuple[int, int] | None) -> None:
        """Note what became of one image, and part and row of its vector where it has one."""
        if outcome.key is not None:
            self._keys[at] = np.frombuffer(outcome.key, dtype=np.uint8)
            self._has_key[at] = True
        numbers = (outcome.width, outcome.height, *(place or (None, None)))
        self._numbers[at] = [-1 if number is None else number for number in numbers]
        if outcome.reason is not None:
            self._reasons[at] = outcome.reason
        # Last: an interrupt may come between any two lines, and this one makes it count.
        self._status[at] = _STATUSES.index(outcome.status)

    def table(self) -> pa.Table:
        """Return the rows of the images that are done, in their order."""
        at = np.flatnonzero(self.done)
        width, height, part, row = (
            pa.array(column, mask=column < 0) for column in self._numbers[at].T
        )
        reasons = (
            text_column([self._reasons.get(i) for i in at.tolist()])
            if self._reasons
            else pa.nulls(len(at), pa.string())
        )
        statuses = pa.array(_STATUSES).take(pa.array(self._status[at]))
        columns = [self._key_column(at), width, height, statuses, reasons, part, row]
        return pa.table(columns, schema=SCHEMA)

    def _key_column(self, at: NDArray[np.int64]) -> pa.Array:
        # The bits of a column of booleans are what Arrow marks missing values with.
        valid = pa.array(self._has_key[at]).buffers()[1]
        data = pa.py_buffer(self._keys[at])
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(KEY_BYTES), len(at), [valid, data])
