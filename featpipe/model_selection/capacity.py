"""Whether vectors are held in memory, or read from their store in each pass."""

from __future__ import annotations

from featpipe.errors import HeadError
from featpipe.heads import HeadSpec
from featpipe.model_selection.streaming import can_stream


def streams(spec: HeadSpec, n: int, dimension: int, available: int, wanted: bool | None) -> bool:
    """Decide whether a head is fitted in passes over a store.

    Parameters
    ----------
    n, dimension : int
        Shape of the vectors to learn on.
    available : int
        Bytes that the process may still take.
    wanted : bool, optional
        What the user wants; None lets the size decide.

    Raises
    ------
    HeadError
        When the head cannot be fitted in passes and that is wanted, or needed.
    """
    needed = spec.copies * 4 * n * dimension
    if can_stream(spec):
        return needed > available if wanted is None else wanted
    if wanted:
        raise HeadError(
            f"{spec.name} cannot be fitted in passes over a store: take --head logreg or svm, "
            "or leave out --stream"
        )
    if wanted is None and needed > available:
        raise HeadError(
            f"{spec.name} needs all {n:,} vectors in memory at once, {gigabytes(needed)} "
            f"with its copies of them, and {gigabytes(available)} are free: take --head logreg or "
            "svm, which read them from the store in each pass, fit on fewer images, or try it all "
            "the same with --no-stream"
        )
    return False


def said(n: int, dimension: int) -> str:
    """Say that vectors are read in each pass, and why."""
    return (
        f"{n:,} vectors are {gigabytes(4 * n * dimension)} as float32: they are read from the "
        "store in each pass"
    )


def gigabytes(size: float) -> str:
    """Return a size for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
