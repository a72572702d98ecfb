"""One run of `embed`: list, plan, compute, commit; and what it says afterwards."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from featpipe import storage
from featpipe._files import printable, slug
from featpipe.backbones import Backbone, load_backbone
from featpipe.embedding.choice import EngineName, check_engine, make_engine
from featpipe.embedding.engines import Engine
from featpipe.embedding.ledger import Ledger, Limit
from featpipe.embedding.plan import Plan, make_plan
from featpipe.errors import EXIT_OK, EXIT_SOME_FAILED, SourceError, StoreError, TooManyFailuresError
from featpipe.sources import (
    Source,
    SourceLike,
    empty_piece,
    grouped,
    open_source,
    require_images,
    sharded,
)
from featpipe.store import (
    MERGED,
    EmbeddingStore,
    Index,
    Manifest,
    Place,
    StoreWriter,
    index_conflicts,
    located,
    refuse_other_shard,
)
from featpipe.types import Progress, ProgressCallback, Shard

DEFAULT_FOLDER = Path("embeddings")
_CHECKPOINT_SECONDS = 20.0
_SURE = frozenset(product(("auto", "cpu"), ("auto", "fp32")))
"""Devices and precisions that every machine has."""
_DEFAULT_GROUPS = "are those of 'group' now, if there is one"
_NOT_STARTED = "nothing had to be computed, so no device was started"


@dataclass(frozen=True, slots=True)
class EmbedOptions:
    """What `embed` may be asked for beside source and backbone; see there."""

    device: str = "auto"
    precision: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    dtype: str | None = None
    strict: bool = False
    max_failures: int | None = None
    rehash: bool = False
    prune: bool = True
    lock_timeout: float = 0.0
    models_dir: str | os.PathLike[str] | None = None
    shard: Shard | str | None = None
    engine: EngineName = "local"
    address: str | None = None

    def __post_init__(self) -> None:
        check_engine(self.engine, self.address)
        if self.dtype not in {None, "float32", "float16"}:
            raise ValueError(f"dtype must be float32 or float16, not {self.dtype!r}")
        for name in ("batch_size", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, not {value}")
        if self.max_failures is not None and self.max_failures < 0:
            raise ValueError(f"max_failures must be 0 or more, not {self.max_failures}")
        _ = self.piece

    @property
    def piece(self) -> Shard | None:
        """The shard as a record."""
        return None if self.shard is None else Shard.parse(self.shard)

    @property
    def limit(self) -> Limit:
        """How many images may fail."""
        if self.strict:
            return Limit(0, "--strict")
        return Limit(self.max_failures, f"--max-failures {self.max_failures}")


@dataclass(frozen=True, slots=True)
class EmbedReport:
    """What one run has done.

    Attributes
    ----------
    store : EmbeddingStore
    images : int
        Images that the source lists.
    unchanged : int
        Of these, known by path, size and time of change: not opened.
    opened : int
        Opened: ``computed`` of them went through the backbone, ``known`` had contents that the
        store held already, the others failed.
    failed, removed : int
        Images without a vector, unchanged ones included; rows of images that are gone.
    seconds : float
        Of the whole run, after the backbone was loaded.
    device : str
        One line: which provider ran, and why.
    notes : tuple of str
        What a person should know, a sentence each.
    """

    store: EmbeddingStore
    images: int
    unchanged: int
    opened: int
    computed: int
    known: int
    failed: int
    removed: int
    seconds: float
    device: str
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0, or 3 where some images failed."""
        return EXIT_SOME_FAILED if self.failed else EXIT_OK

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``featpipe embed --json`` prints them."""
        manifest = self.store.manifest
        return {
            "store": str(self.store.path),
            "backbone": manifest.name,
            "fingerprint": manifest.fingerprint,
            "dimension": manifest.dimension,
            "dtype": manifest.dtype,
            "shard": None if manifest.shard is None else str(manifest.shard),
            "images": self.images,
            "unchanged": self.unchanged,
            "opened": self.opened,
            "computed": self.computed,
            "known": self.known,
            "failed": self.failed,
            "removed": self.removed,
            "seconds": round(self.seconds, 3),
            "device": self.device,
            "notes": list(self.notes),
            "failures": [
                {"path": printable(path), "status": status, "reason": reason}
                for path, status, reason in self.store.failures
            ],
        }


def embed(
    source: SourceLike,
    model: str | os.PathLike[str] | Backbone | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    group: str | None = None,
    progress: ProgressCallback | None = None,
    **options: Any,
) -> EmbeddingStore:
    """Turn every image of ``source`` into a vector, once, and return the store of them.

    A second run opens only what is new or has changed, and computes only contents that the
    store does not hold yet.

    Parameters
    ----------
    source : str, path, iterable of paths, or Source
        A folder, a file, a table, ``"-"``; see `featpipe.sources.open_source`.
    model : str, path or Backbone, optional
        Name or ``.onnx`` file of the backbone; the built-in one by default. A network of
        torchvision or timm is exported the first time that it is named.
    output : path, or address as a text, optional
        The store's folder, on this machine or in a bucket (``s3://bucket/stores/photos``);
        ``embeddings/<source>-<model>/`` by default.
    labels : path, optional
        A table with labels for the images.
    group : str, optional
        The column of these tables that names what belongs together (a patient, a video); the
        one of the run before by default, ``group`` in a new store. An empty name forgets it.
    progress : callable, optional
        Called with a `Progress` now and then.
    **options
        ``device`` ("auto", "cpu", "cuda", "cuda:N", "tensorrt", "tensorrt:N", "openvino",
        "coreml"), ``precision`` ("auto", "fp32", "bf16", "fp16"), ``batch_size``, ``workers``,
        ``dtype`` ("float32", "float16"), ``strict`` (stop at the first failure),
        ``max_failures``, ``rehash`` (open every file again), ``prune`` (False keeps the rows
        of images that the source does not list), ``lock_timeout`` (seconds to wait for another
        writer), ``models_dir`` (a folder of backbones, before all others), ``shard`` ("2/4" or
        a `Shard`: of the listing the second of four pieces alone; the default store is
        ``embeddings/<source>-<model>.shards/2-of-4/`` then, and `featpipe.store.merge_stores`
        joins them), ``engine`` ("local", "ray") and ``address`` (of a Ray cluster; see
        docs/scale.md).

    Returns
    -------
    EmbeddingStore
        `EmbeddingStore.failures` lists the images without a vector.

    Raises
    ------
    SourceError, BackboneError, DeviceError, StoreError, WriteError, TooManyFailuresError
        What was finished before is kept, whatever is raised.

    Examples
    --------
    >>> store = embed("photos/", output="photos.store")     # doctest: +SKIP
    """
    asked = EmbedOptions(**options)
    return run_embedding(
        source, model, output=output, labels=labels, group=group, options=asked, progress=progress
    ).store


def run_embedding(
    source: SourceLike,
    model: str | os.PathLike[str] | Backbone | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    group: str | None = None,
    options: EmbedOptions | None = None,
    progress: ProgressCallback | None = None,
) -> EmbedReport:
    """Do what `embed` does, and tell what was done."""
    options = options or EmbedOptions()
    opened = sharded(open_source(source, labels, group or None), options.piece)
    backbone = model if isinstance(model, Backbone) else load_backbone(model, options.models_dir)
    path = default_store(opened, backbone) if output is None else located(output)
    former = Manifest.find(path)
    dtype = options.dtype or (former.dtype if former else "float32")
    admit = partial(_refuse_other, path, opened) if options.prune else None
    if former is not None and admit is not None:
        admit(former)
    with closing(_engine(opened, backbone, options)) as engine:
        if not _can_wait(former, options):
            engine.open()
        opened, column, told = _grouped(opened, group, former.group if former else None)
        shard = _shard_held(former, opened.piece, options)
        whole = None if shard is None else opened.whole
        card, wait = backbone.card.to_json(), options.lock_timeout
        manifest = Manifest(card, dtype, opened.location, (), column, shard, whole)
        # Another process may have made the store meanwhile: what is there is looked at once more.
        with StoreWriter.opened(path, manifest, timeout=wait, admit=admit) as writer:
            report = _Run(opened, engine, writer, options, progress).go()
    return replace(report, notes=(*told, *report.notes))


def _grouped(
    source: Source, asked: str | None, former: str | None
) -> tuple[Source, str | None, list[str]]:
    """Return the source with its groups, the column to remember, and what has changed."""
    before = f"the groups came from the column {printable(former or '')!r} before"
    if asked is not None:
        now = f"come from {printable(asked)!r} now" if asked else _DEFAULT_GROUPS
        is_other = former not in {None, asked}
        return source, asked or None, [f"{before}, and {now}"] if is_other else []
    if former is None:
        return source, None, []
    if former in source.columns:
        return grouped(source, former), former, []
    missing = (
        f"{before}, which is not there now: give the table that has it, or choose another column "
        "with --group"
    )
    return source, former, [missing]


def _can_wait(former: Manifest | None, options: EmbedOptions) -> bool:
    """Tell whether a device is needed only if something turns out to be computed.

    What is asked for by name is had, or the run fails before it lists anything; and a run that
    fails at its device leaves no new store behind.
    """
    is_sure = (options.device, options.precision) in _SURE
    return is_sure and former is not None


def _engine(source: Source, backbone: Backbone, options: EmbedOptions) -> Engine:
    return make_engine(
        options.engine,
        source,
        backbone,
        address=options.address,
        device=options.device,
        precision=options.precision,
        batch_size=options.batch_size,
        workers=options.workers,
    )


def default_store(source: Source, backbone: Backbone) -> Path:
    """Return ``embeddings/<source>-<model>``, and for a shard ``….shards/2-of-4`` beside it.

    One folder deeper, a shard is not taken for the newest store by who names none.
    """
    name = f"{slug(source.name, 'images')}-{backbone.card.name}"
    if source.piece is None:
        return DEFAULT_FOLDER / name
    i, n = source.piece.i, source.piece.n
    return DEFAULT_FOLDER / f"{name}.shards" / f"{i:0{len(str(n))}d}-of-{n}"


def _refuse_other(path: Place, source: Source, former: Manifest) -> None:
    """Keep a store from being overwritten by a namesake of its source, or another piece of it."""
    held = former.source
    # A merged store has several sources, which no single one may replace.
    is_there = storage.is_url(held) or "{" in held or os.path.exists(held)
    if held != source.location and (MERGED in held or is_there):
        raise StoreError(
            f"{printable(str(path))} holds the images of {printable(held)}, not of "
            f"{printable(source.location)}: give another store with -o"
        )
    refuse_other_shard(path, former, source.piece)


def _shard_held(
    former: Manifest | None, asked: Shard | None, options: EmbedOptions
) -> Shard | None:
    """Return the shard that a store holds after the run; none where rows of others stay in it."""
    is_mixed = former is not None and former.shard != asked and not options.prune
    return None if is_mixed else asked


class _Run:
    """The state of one run: the plan, what has come of it so far, the writer."""

    def __init__(
        self,
        source: Source,
        engine: Engine,
        writer: StoreWriter,
        options: EmbedOptions,
        progress: ProgressCallback | None,
    ) -> None:
        self._source, self._engine = source, engine
        self._writer, self._options, self._progress = writer, options, progress
        self._saved = time.monotonic()

    def go(self) -> EmbedReport:
        start = time.monotonic()
        plan = make_plan(
            self._source,
            self._writer.previous,
            self._writer.places,
            rehash=self._options.rehash,
            progress=self._progress,
        )
        if not len(plan):
            require_images(self._source)
        ledger = Ledger(plan, self._writer, self._options.limit)
        with self._committed(ledger):
            ledger.count_known_failures()
            self._tell(plan, ledger)
            if len(plan.missing):
                self._compute(plan, ledger)
        listed = Index(self._writer.previous.table.slice(0, len(plan)))
        return EmbedReport(
            store=EmbeddingStore(self._writer.path, self._writer.manifest, self._writer.previous),
            images=len(plan),
            unchanged=len(plan) - len(plan.missing),
            opened=len(plan.missing),
            computed=ledger.computed,
            known=ledger.known,
            failed=ledger.failed,
            removed=len(plan.gone()) if self._options.prune else 0,
            seconds=time.monotonic() - start,
            device=self._engine.why or _NOT_STARTED,
            notes=(
                *self._writer.notes,
                *empty_piece(self._source, len(plan)),
                *self._source.notes,
                *index_conflicts(listed),
            ),
        )

    @contextmanager
    def _committed(self, ledger: Ledger) -> Iterator[None]:
        """Commit the index at the end, or as much of it as there is when the run is stopped."""
        try:
            yield
        except (KeyboardInterrupt, TooManyFailuresError, SourceError):
            # A copy of an image that failed is one failure more: it must not keep this from disk.
            with suppress(TooManyFailuresError):
                ledger.settle()
            self._commit(ledger)
            raise
        self._commit(ledger)

    def _commit(self, ledger: Ledger) -> None:
        self._writer.commit(ledger.index(prune=self._options.prune))

    def _compute(self, plan: Plan, ledger: Ledger) -> None:
        self._engine.open()
        self._writer.record(self._engine.versions)
        with closing(self._engine.fill(plan, ledger, self._writer)) as steps:
            for _ in steps:
                self._tell(plan, ledger)
                self._checkpoint(ledger)
        self._tell(plan, ledger)

    def _checkpoint(self, ledger: Ledger) -> None:
        """Write the index now and then, as long as that takes little of the time."""
        begun = time.monotonic()
        if begun - self._saved < _CHECKPOINT_SECONDS:
            return
        self._commit(ledger)
        took = time.monotonic() - begun
        self._saved = begun + 50 * took

    def _tell(self, plan: Plan, ledger: Ledger) -> None:
        if self._progress is not None:
            reused = ledger.done - ledger.computed - ledger.failed
            self._progress(Progress(ledger.done, len(plan), max(reused, 0), ledger.failed))
