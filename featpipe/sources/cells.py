"""Values of tables as text, which is what labels are."""

from __future__ import annotations

import math
import os
from typing import Any


def as_text(value: Any) -> str | None:
    """Return the value of a cell as text; whole numbers without a point, nothing as None.

    >>> as_text(1.0), as_text(" ant "), as_text(float("nan"))
    ('1', 'ant', None)
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bytes):
        return os.fsdecode(value)
    return str(value).strip() or None
