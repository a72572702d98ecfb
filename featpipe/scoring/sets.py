"""Sets of labels of a promised coverage, as a run of `score` makes and counts them."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from featpipe._files import printable
from featpipe.heads import Head


@dataclass(frozen=True)
class Sets:
    """How strange a label may be to be in a set, and how that was asked for.

    Attributes
    ----------
    coverage : float
    per_class : bool
    limits : ndarray of float, (K,)
    classes : tuple of str
    """

    coverage: float
    per_class: bool
    limits: NDArray[np.float64]
    classes: tuple[str, ...]

    @classmethod
    def of(cls, head: Head, coverage: float | None, *, per_class: bool) -> Self | None:
        """Return what was asked for, or None; raises as `Head.predict_sets`."""
        if coverage is None:
            return None
        limits = head.set_limits(coverage, per_class=per_class)
        return cls(coverage, per_class, limits, head.classes)

    @property
    def identity(self) -> str:
        """What tells rows with these sets from others."""
        digest = hashlib.blake2b(self.limits.tobytes(), digest_size=8).hexdigest()
        return f"{self.coverage:g}{' per class' if self.per_class else ''} {digest}"

    @property
    def note(self) -> str | None:
        """Say which labels no set can leave out, as too few images speak for them."""
        unlimited = [c for c, limit in zip(self.classes, self.limits, strict=True) if limit > 1.5]
        if not unlimited:
            return None
        # Of n scores the place is ⌈(n + 1) · coverage⌉, which must be no more than n.
        least = math.ceil(self.coverage / (1 - self.coverage) - 1e-9)
        if not self.per_class:
            return (
                f"every set holds all labels: a coverage of {self.coverage:g} takes {least:,} "
                "training images, or groups, at least"
            )
        shown = ", ".join(printable(name) for name in unlimited[:5])
        return (
            f"every set holds {len(unlimited)} of {len(self.classes)} labels ({shown}): a coverage "
            f"of {self.coverage:g} in each class takes {least:,} training images, or groups, of it"
        )


def said(sizes: Counter[int]) -> str:
    """Count the sets by their size, for people.

    >>> said(Counter({1: 340, 0: 3, 2: 20, 5: 9}))
    '3 without a label, 340 of one, 29 of more'
    """
    more = sum(count for size, count in sizes.items() if size > 1)
    parts = ((sizes[0], "without a label"), (sizes[1], "of one"), (more, "of more"))
    return ", ".join(f"{count:,} {what}" for count, what in parts if count) or "none"
