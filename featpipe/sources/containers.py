"""Files that hold many images each as one source: tar archives, Parquet files.

`ContainerSource` names the images, keeps a bounded number of listings in memory (the others in
the user's cache) and finds the row of a path again.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from featpipe._columns import (
    BLOCK_ROWS,
    LABEL_PREFIX,
    LISTED,
    VERSION,
    constant_column,
    path_column,
    text_column,
)
from featpipe._files import escape_path, printable, unescape_path
from featpipe._threads import Threads
from featpipe.errors import SourceError
from featpipe.sources.base import REMOTE_READERS, Source
from featpipe.sources.container import Container, Listing, listing_of
from featpipe.sources.pieces import Pieces
from featpipe.sources.places import Tree, note_left_out, splits_of_names
from featpipe.storage import StorageGoneError, is_url
from featpipe.types import ImageRef, Shard

_ROWS_IN_MEMORY = 2**21
"""Rows of listings that are kept in memory, of at least two containers."""
_MOST_OPEN = 64
_LISTED_AT_ONCE = 8
_BATCH_ROWS = 2**16


class ContainerSource(Source):
    """The images of one or many containers, in their order, each once.

    The path of an image is its name in its container; where there are several, after the name
    of that and a ``/``. The split of a file's name (``train-0000.tar``) is that of its images
    where these tell none themselves. A container that cannot be opened is one row with the
    reason where there are several, and an error where it is the only one.

    Parameters
    ----------
    containers : sequence of Container
        With distinct names.
    name, location : str
        See `Source`.
    group : str, optional
        The label column that holds the groups, in place of ``group``.
    own : range, optional
        Positions of the containers whose images are listed, all by default. The others are
        known by name, and are looked into where folders in all of them decide what is a class.

    Raises
    ------
    SourceError
        When the only container cannot be opened, while listing it.
    """

    def __init__(
        self,
        containers: Sequence[Container],
        *,
        name: str,
        location: str,
        group: str | None = None,
        own: range | None = None,
    ) -> None:
        super().__init__()
        self.name, self.location, self._group = name, location, group
        self.containers = list(containers)
        self._own = range(len(self.containers)) if own is None else own
        self._by_name = {container.name: at for at, container in enumerate(self.containers)}
        self._depths = sorted({c.name.count("/") for c in self.containers}, reverse=True)
        self._begin()

    def _begin(self) -> None:
        self._listings = Pieces(_ROWS_IN_MEMORY)
        self._in_use: OrderedDict[int, None] = OrderedDict()
        self._lock = threading.Lock()
        self._tree: Tree | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what a reader elsewhere needs: it lists the containers of its own images."""
        lost = {"_listings", "_in_use", "_lock", "_tree"}
        return {name: value for name, value in vars(self).items() if name not in lost}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._begin()

    @property
    def readers(self) -> int:
        """Many, where a container lies behind an address."""
        return REMOTE_READERS if self._is_far else 0

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that may hold the groups: what stands beside the images but label and split."""
        found: dict[str, None] = {}
        for listing in self._all_listings(self._own):
            if isinstance(listing, Exception):
                continue  # it is a row with a problem
            table = listing.table
            if table.column("group").null_count < len(table):
                found["group"] = None
            found |= {name.removeprefix(LABEL_PREFIX): None for name in _label_columns(table)}
        return tuple(found)

    def with_groups(self, column: str) -> ContainerSource:
        """Return the same with the groups of another column."""
        return self._like(None if column == "group" else column, self._own)

    def shard(self, i: int, n: int) -> ContainerSource | None:
        """Return a piece of whole containers, where there are enough: no other is read then."""
        if len(self.containers) < n:
            return None
        return self._like(self._group, range(*Shard(i, n).bounds(len(self.containers))))

    def _like(self, group: str | None, own: range) -> ContainerSource:
        return ContainerSource(
            self.containers, name=self.name, location=self.location, group=group, own=own
        )

    def nothing_found(self) -> str:
        """Say that the listing was empty, and what else was there."""
        detail = f" ({'; '.join(self.notes)})" if self.notes else ""
        return f"there is no image in {printable(self.location)}{detail}"

    def __iter__(self) -> Iterator[ImageRef]:
        for table in self.batches():
            for start in range(0, len(table), BLOCK_ROWS):
                yield from _refs(table.slice(start, BLOCK_ROWS))

    def batches(self) -> Iterator[pa.Table]:
        """List the same in columns."""
        self.notes.clear()
        self._tree = None
        left_out: Counter[str] = Counter()
        notes: list[str] = []
        splits = splits_of_names([container.name for container in self.containers])
        listings = self._all_listings(self._own, fresh=True)
        for at, listing in zip(self._own, listings, strict=True):
            container = self.containers[at]
            if isinstance(listing, Exception):
                yield self._unopened(container, listing)
                continue
            left_out.update(listing.left_out)
            notes += [f"{container.shown}: {note}" for note in listing.notes]
            table = self._emitted(container, listing, container.split or splits[at])
            for start in range(0, len(table), _BATCH_ROWS):
                yield table.slice(start, _BATCH_ROWS)
        self._tell(notes, left_out)

    def _tell(self, notes: list[str], left_out: Counter[str]) -> None:
        self.notes += self._tree.notes if self._tree is not None else []
        self.notes += notes[:5]
        if len(notes) > 5:
            self.notes.append(f"{len(notes) - 5} more notes of this kind")
        note_left_out(left_out, self.notes)

    def _unopened(self, container: Container, exc: Exception) -> pa.Table:
        reason = getattr(exc, "strerror", None) or str(exc)
        if len(self.containers) == 1:
            raise SourceError(
                f"cannot read the {container.kind} {container.shown}: {reason}"
            ) from exc
        problem = f"the {container.kind} cannot be opened: {reason}"
        ref = {"path": [escape_path(container.name)], "problem": [problem]}
        return pa.Table.from_pydict(
            {name: ref.get(name, [None]) for name in LISTED.names}, schema=LISTED
        )

    def _emitted(self, container: Container, listing: Listing, split: str | None) -> pa.Table:
        """Return a listing as the stages after this know it."""
        own = [name for name in listing.table.column_names if name.startswith("_")]
        table = listing.table.drop_columns(own).replace_schema_metadata(None)
        table = _with_groups(self._with_places(table), self._group)
        if listing.mtime_ns is not None:
            times = pc.fill_null(table.column("mtime_ns"), listing.mtime_ns)
            times = pc.if_else(pc.is_null(table.column("problem")), times, None)
            table = _replaced(table, "mtime_ns", times)
        if split is not None:
            table = _replaced(table, "split", pc.fill_null(table.column("split"), split))
        table = _replaced(table, "path", self._full_paths(container, table.column("path")))
        if listing.version is None:
            # Times in an archive may all be the same: where nobody tells whether it has changed,
            # only its images do.
            table = _replaced(table, "mtime_ns", pa.nulls(len(table), pa.int64()))
        else:
            table = table.append_column(VERSION, constant_column(listing.version, len(table)))
        return table

    def _full_paths(self, container: Container, paths: Any) -> Any:
        """Return paths as the source names them; an empty one means the container itself."""
        name, prefix = path_column([container.name, f"{container.name}/"])
        full = paths
        if len(self.containers) > 1:
            full = pc.binary_join_element_wise(prefix, paths, "")
        return pc.if_else(pc.equal(paths, ""), name, full)

    def _with_places(self, table: pa.Table) -> pa.Table:
        """Add labels and splits from folders, where nothing else tells labels."""
        if not pc.any(pc.match_substring(table.column("path"), "/")).as_py():
            return table
        folders = _folders(table.column("path"))
        names = pc.unique(folders).to_pylist()
        if self._tree is None:
            self._tree = self._grown()
        places = [self._tree.place(unescape_path(name)) for name in names]
        which = pc.index_in(folders, value_set=pa.array(names, pa.string()))
        splits = pa.array([place.split for place in places], pa.string()).take(which)
        table = _replaced(table, "split", pc.coalesce(table.column("split"), splits))
        if table.column("label").null_count < len(table):
            return table
        labels = text_column([place.label for place in places]).take(which)
        return _replaced(table, "label", labels)

    def _grown(self) -> Tree:
        """Look at the folders in all containers: together they are one tree."""
        found: set[str] = set()
        for listing in self._all_listings(range(len(self.containers))):
            if isinstance(listing, Exception):
                continue  # it is a row with a problem when its turn comes
            usable = listing.table.filter(pc.is_null(listing.table.column("problem")))
            found.update(pc.unique(_folders(usable.column("path"))).to_pylist())
        return Tree(unescape_path(folder) for folder in found)

    def read(self, ref: ImageRef) -> bytes:
        """Return the bytes of one image; raise OSError where that cannot be done."""
        at, name = self._split_path(ref.path)
        listing = self._listing(at)
        row = listing.find(name)
        if row is None:
            raise FileNotFoundError(f"there is no such image in {self.containers[at].shown}")
        problem = listing.table.column("problem")[row].as_py()
        if problem is not None:
            raise OSError(problem)
        self._use(at)
        return self.containers[at].read(listing, row)

    def _use(self, at: int) -> None:
        """Keep few containers open: a process may not open as many files as there are shards."""
        with self._lock:
            self._in_use[at] = None
            self._in_use.move_to_end(at)
            last = self._in_use.popitem(last=False)[0] if len(self._in_use) > _MOST_OPEN else None
        if last is not None:
            self.containers[last].release()

    def _split_path(self, path: str) -> tuple[int, str]:
        if len(self.containers) == 1:
            return 0, path
        parts = path.split("/")
        for depth in self._depths:
            at = self._by_name.get("/".join(parts[: depth + 1]))
            if at is not None:
                return at, "/".join(parts[depth + 1 :])
        raise FileNotFoundError("there is no file of that name in the source")

    @property
    def _is_far(self) -> bool:
        return any(is_url(container.place) for container in self.containers)

    def _all_listings(
        self, positions: range, *, fresh: bool = False
    ) -> Iterator[Listing | Exception]:
        """Yield listings in order, or why there is none; several at a time from far away."""
        looked_up = partial(self._attempt, fresh=fresh)
        if not self._is_far or not positions:
            yield from map(looked_up, positions)
            return
        with Threads(min(_LISTED_AT_ONCE, len(positions))) as pool:
            yield from pool.stream(looked_up, positions)

    def _attempt(self, at: int, *, fresh: bool) -> Listing | Exception:
        try:
            return self._listing(at, fresh=fresh)
        except StorageGoneError as exc:
            # The others would be waited for as long, and fail as well.
            raise SourceError(str(exc)) from exc
        except (OSError, ValueError) as exc:
            return exc

    def _listing(self, at: int, *, fresh: bool = False) -> Listing:
        """Return the listing of a container: from memory, the cache, or the container itself.

        ``fresh`` asks whether the container has changed.
        """
        container = self.containers[at]
        former = self._listings.peek(at) if fresh else None
        if former is not None and (former.version or "") != container.version():
            self._listings.drop(at)

        def load() -> tuple[Listing, int]:
            listing = listing_of(container)
            return listing, len(listing.table)

        listing: Listing = self._listings.get(at, load)
        return listing


def _folders(paths: Any) -> Any:
    """Return the folders of paths: what stands before the last ``/``."""
    return pc.replace_substring_regex(paths, r"/?[^/]*$", "")


def _replaced(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), table.schema.field(name), values)


def _label_columns(table: pa.Table) -> list[str]:
    return [name for name in table.column_names if name.startswith(LABEL_PREFIX)]


def _with_groups(table: pa.Table, column: str | None) -> pa.Table:
    """Take the groups from a label column; what were groups becomes a label column."""
    if column is None:
        return table
    former, name = table.column("group"), LABEL_PREFIX + column
    groups = pa.nulls(len(table), pa.string())
    if name in table.column_names:
        groups = table.column(name)
        table = table.drop_columns([name])
    if former.null_count < len(table):
        table = table.append_column(LABEL_PREFIX + "group", former)
    return _replaced(table, "group", groups)


def _refs(table: pa.Table) -> Iterator[ImageRef]:
    names = _label_columns(table)
    for row in table.to_pylist():
        yield ImageRef(
            unescape_path(row["path"]),
            row["size"],
            row["mtime_ns"],
            row["label"],
            row["split"],
            row["group"],
            {name.removeprefix(LABEL_PREFIX): row[name] for name in names},
            row["problem"],
            row.get(VERSION),
        )
