"""The work on one block: a table of images in, a part of the store and a table of outcomes out.

It runs in a process of its own, on any machine that sees the images and the store, and does
not know which engine has sent the block. An error comes back as a table, an image that fails as
a row.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from featpipe import __version__
from featpipe._files import KEY_BYTES, printable
from featpipe._machine import take_share
from featpipe.backbones import Backbone, find_backbone, load_backbone
from featpipe.embedding.ahead import ReadAhead
from featpipe.embedding.blocks import Became, Block, problem_table, result_table, with_vectors
from featpipe.embedding.engine import EmbeddedBatch, Embedder
from featpipe.errors import (
    BackboneError,
    DeviceError,
    FeatpipeError,
    FingerprintError,
    StoreError,
)
from featpipe.images import decoder_versions
from featpipe.sources import Source
from featpipe.store import Manifest, Place, parts
from featpipe.store.places import Words, holds
from featpipe.types import Failure, ImageRef, Key, Vectors

if TYPE_CHECKING:
    from featpipe.backbones.session import Session

DEADLY = Failure("unreadable", "the process that opened it died, twice: it may be a hostile file")
_MOST_UNEXPLAINED = 5
_CHANGED = Failure("unreadable", "the file was written to while it was read: run again")


@dataclass(frozen=True, slots=True)
class Destination:
    """The store that parts are written into, as its writer knows it.

    ``next_part`` is that of the manifest: a worker that sees another number there sees another
    folder of the same name. No number from there on is promised to a block.
    """

    path: Place
    shape: parts.PartShape
    next_part: int


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that a worker needs beside blocks; small, and fit to travel by pickle.

    Attributes
    ----------
    source : Source
        What `Source.reader` has returned.
    path, name, fingerprint
        The backbone: the file is looked for at the path, then under the name, and must have the
        fingerprint.
    device, precision, batch_size
        As in `EmbedOptions`.
    destination : Destination or None
        None: vectors come back with the outcomes.
    """

    source: Source
    path: Path
    name: str
    fingerprint: str
    device: str
    precision: str
    batch_size: int | None
    destination: Destination | None = None

    @classmethod
    def of(
        cls,
        source: Source,
        backbone: Backbone,
        device: str,
        precision: str,
        batch_size: int | None,
    ) -> Recipe:
        """Return what embeds the images of a source with a backbone."""
        reader, path = source.reader(), backbone.path.absolute()
        return cls(reader, path, backbone.name, backbone.fingerprint, device, precision, batch_size)

    def backbone(self) -> Backbone:
        """Return the backbone as this machine has it.

        Raises
        ------
        BackboneError, FingerprintError
            When it is not here, or is another one.
        """
        try:
            # By its name it is looked for, not exported: that would be another's choice of weights.
            found = load_backbone(self.path if self.path.exists() else find_backbone(self.name))
        except BackboneError as exc:
            raise BackboneError(f"{_here()}: {exc}") from exc
        if found.fingerprint != self.fingerprint:
            raise FingerprintError(
                f"{_here()}: {printable(str(found.path))} is {printable(found.name)} "
                f"({found.fingerprint[:12]}), not {printable(self.name)} "
                f"({self.fingerprint[:12]}): put the same file on every machine"
            )
        return found


@dataclass(frozen=True, slots=True)
class Started:
    """What a worker has opened: what a store records of it, and one line for a person.

    Attributes
    ----------
    provider, precision, why
        As in `Session`.
    batch_size : int
        Images a call.
    engine : tuple of (str, str)
        Provider, precision and every version that decides the bits of a vector.
    featpipe : str
        The version that runs there.
    """

    provider: str
    precision: str
    why: str
    batch_size: int
    engine: tuple[tuple[str, str], ...]
    featpipe: str = __version__


class Before(NamedTuple):
    """What was tried of a block before.

    Attributes
    ----------
    tries : int
        How often it was begun.
    deadly : frozenset of int
        Positions of the images over which two workers have died.
    unexplained : int
        How many have died over it at no image that is known.
    """

    tries: int = 0
    deadly: frozenset[int] = frozenset()
    unexplained: int = 0


class Watch(Protocol):
    """Knows of every block what was tried before; it outlives the workers."""

    def begin(self, block: int) -> Before:
        """Note that the block is begun, and tell what was before."""
        ...

    def opening(self, block: int, position: int) -> None:
        """Note which image is about to be opened."""
        ...

    def end(self, block: int) -> None:
        """Note that the block is done."""
        ...


class Witness:
    """What a `Watch` notes; two deaths at one image make it deadly.

    >>> witness = Witness()
    >>> for _ in range(2):
    ...     _ = witness.begin(7)
    ...     witness.opening(7, 123)
    >>> witness.begin(7)
    Before(tries=2, deadly=frozenset({123}), unexplained=0)
    """

    def __init__(self) -> None:
        self._before: dict[int, Before] = {}
        self._opening: dict[int, int] = {}
        self._deaths: dict[tuple[int, int], int] = {}

    def begin(self, block: int) -> Before:
        """See `Watch.begin`."""
        found = self._before.get(block, Before())
        last = self._opening.pop(block, None)
        if last is not None:
            self._deaths[block, last] = self._deaths.get((block, last), 0) + 1
            if self._deaths[block, last] > 1:
                found = found._replace(deadly=found.deadly | {last})
        elif found.tries:
            found = found._replace(unexplained=found.unexplained + 1)
        self._before[block] = found._replace(tries=found.tries + 1)
        return found

    def opening(self, block: int, position: int) -> None:
        """See `Watch.opening`."""
        self._opening[block] = position

    def end(self, block: int) -> None:
        """See `Watch.end`."""
        self._opening.pop(block, None)


class BlockWorker:
    """Does the work on blocks, one after the other, on one core; opens the session for the first.

    Parameters
    ----------
    recipe : Recipe
    known : ndarray of uint64, (2, n)
        Contents that the store holds already, as `Places.known` gives them.
    watch : Watch
    """

    def __init__(self, recipe: Recipe, known: Words, watch: Watch) -> None:
        self._recipe, self._known, self._watch = recipe, known, watch
        self._opened: tuple[Backbone, Session] | None = None

    def __call__(self, table: pa.Table) -> pa.Table:
        """Take a table of `BLOCK`, return one of `RESULT`."""
        try:
            return self._done(Block.of(table))
        except FeatpipeError as exc:
            return problem_table(exc)

    def _done(self, block: Block) -> pa.Table:
        before = self._watch.begin(block.number)
        if before.unexplained > _MOST_UNEXPLAINED:
            raise DeviceError(
                f"{before.unexplained} workers have died, one after the other, at no image: run "
                "featpipe doctor on their machines, or look into the logs of Ray"
            )
        backbone, session = self._opened = self._opened or self._open()
        work = _Work(self._recipe, self._known, block, before.deadly)
        if before.tries:
            work.take_over()
        embedder = Embedder(self._recipe.source, backbone, session, work.wanted)
        size = 1 if before.tries else self._recipe.batch_size or session.batch_size
        if before.tries:
            for positions, refs in work.batches(size):
                # A process has died over this block: the next time it is known at which image.
                self._watch.opening(block.number, positions[0])
                work.add(positions, embedder(refs))
        else:
            with ReadAhead(self._recipe.source) as ahead:
                for positions, refs, readings in ahead.of(work.batches(size)):
                    work.add(positions, embedder(refs, readings))
        result = work.finish(backbone.dimension)
        self._watch.end(block.number)
        return result

    def _open(self) -> tuple[Backbone, Session]:
        if self._recipe.destination is not None:
            _check_store(self._recipe.destination)
        return open_here(self._recipe)


def open_here(recipe: Recipe) -> tuple[Backbone, Session]:
    """Open the session of a worker, which has one core to itself."""
    take_share(1)
    backbone = recipe.backbone()
    return backbone, backbone.open_session(recipe.device, recipe.precision)


def started_here(recipe: Recipe) -> Started:
    """Open a session, as the first of all workers, and tell what it is."""
    _, session = open_here(recipe)
    engine = {
        "provider": session.provider,
        "precision": session.precision,
        **session.versions,
        **decoder_versions(),
    }
    return Started(
        session.provider,
        session.precision,
        session.why,
        session.batch_size,
        tuple(engine.items()),
    )


class _Work:
    """What has come of one block so far."""

    def __init__(self, recipe: Recipe, known: Words, block: Block, deadly: frozenset[int]) -> None:
        self._destination, self._known, self._block = recipe.destination, known, block
        self._deadly = deadly
        self._became: dict[int, Became] = {}
        self._claimed: set[Key] = set()
        self._rows: dict[Key, int] = {}
        self._failures: dict[Key, Failure] = {}
        self._vectors: list[Vectors] = []
        self._has_part = False

    def take_over(self) -> None:
        """Keep the part that a former try has written whole before it died."""
        if self._destination is None:
            return
        number, path, shape = self._block.number, self._destination.path, self._destination.shape
        try:
            keys = parts.read_keys(path, number)
        except StoreError:
            return
        if parts.is_whole(path, number, shape, len(keys)):
            self._rows = {key: row for row, key in enumerate(keys)}
            self._has_part = True

    def wanted(self, key: Key) -> bool:
        """Tell whether the vector of a content is to be computed; see `stream`."""
        if self._destination is None:
            return True
        if key in self._claimed or key in self._rows or holds(self._known, key):
            return False
        self._claimed.add(key)
        return True

    def batches(self, size: int) -> Iterator[tuple[tuple[int, ...], tuple[ImageRef, ...]]]:
        """Yield positions and images of a call, but for the deadly ones, which become rows."""
        images = []
        for at, ref in zip(self._block.positions, self._block.refs, strict=True):
            if at in self._deadly:
                self._became[at] = Became(None, None, DEADLY, None)
            else:
                images.append((at, ref))
        for start in range(0, len(images), size):
            some = images[start : start + size]
            yield tuple(at for at, _ in some), tuple(ref for _, ref in some)

    def add(self, positions: tuple[int, ...], batch: EmbeddedBatch) -> None:
        """Note what became of the images of one call."""
        first = sum(map(len, self._vectors))
        if len(batch.vectors):
            self._vectors.append(batch.vectors)
        columns = (batch.keys, batch.shapes, batch.failures, batch.rows)
        for at, key, shape, failure, row in zip(positions, *columns, strict=True):
            own = None if row is None else first + row
            self._became[at] = Became(key, shape, failure, own)
            if key is not None and failure is not None:
                self._failures[key] = failure
            elif key is not None and own is not None and self._destination is not None:
                self._rows[key] = own

    def finish(self, dimension: int) -> pa.Table:
        """Write the part, and return what became of the images."""
        became = [self._settled(self._became[at]) for at in self._block.positions]
        vectors = np.concatenate([np.empty((0, dimension), np.float32), *self._vectors])
        if self._destination is None:
            return with_vectors(result_table(self._block, became, part=None), vectors)
        part = self._block.number
        if len(vectors) and self._has_part:
            # A part never changes: what was not in it then is left to the next run.
            computed = {b.key for b in became if b.row is not None and b.key in self._claimed}
            became = [
                replace(b, failure=_CHANGED, row=None) if b.key in computed else b for b in became
            ]
        elif len(vectors):
            part = _write(self._destination, part, list(self._rows), vectors)
        return result_table(self._block, became, part=part)

    def _settled(self, became: Became) -> Became:
        """Give an image whose content another image of the block has brought what that one got."""
        if became.key is None or became.row is not None or became.failure is not None:
            return became
        if (failure := self._failures.get(became.key)) is not None:
            return replace(became, shape=None, failure=failure)
        return replace(became, row=self._rows.get(became.key))


def _write(destination: Destination, number: int, keys: list[Key], vectors: Vectors) -> int:
    """Write a part, and return its number: another one only where a bucket has it already."""
    assert all(len(key) == KEY_BYTES for key in keys)
    # As in `StoreWriter.append`: a value beyond float16 becomes infinite.
    with np.errstate(over="ignore"):
        stored = vectors.astype(destination.shape.dtype, copy=False)
    # In a bucket no lock keeps other writers out, who know nothing of what was promised; nor does
    # a part count whose keys were not written before its worker died.
    for part in chain([number], count(destination.next_part)):
        try:
            parts.write_part(destination.path, part, destination.shape, keys, stored, claim=True)
        except FileExistsError:
            continue
        break
    return part


def _check_store(destination: Destination) -> None:
    """Make sure that this machine sees the store itself, and no folder of the same name."""
    shown = printable(str(destination.path))
    try:
        seen = Manifest.read(destination.path).next_part
    except StoreError:
        seen = None
    # In a bucket another writer may have given numbers away meanwhile.
    most = destination.next_part if isinstance(destination.path, Path) else seen
    if seen is None or most is None or not destination.next_part <= seen <= most:
        raise StoreError(
            f"{_here()} does not see the store {shown}: put it (-o) and the images where every "
            "machine sees them under the same path, such as a shared file system"
        )


def _here() -> str:
    return f"the machine {printable(platform.node() or 'without a name')}"
