"""One run of `embed`: list, plan, compute, commit; and what it says afterwards."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from featpipe._files import printable, slug
from featpipe.backbones import Backbone, load_backbone
from featpipe.embedding.engine import EmbeddedBatch, stream
from featpipe.embedding.plan import Plan, make_plan
from featpipe.errors import EXIT_OK, EXIT_SOME_FAILED, SourceError, StoreError, TooManyFailuresError
from featpipe.sources import Source, SourceLike, open_source
from featpipe.store import (
    MERGED,
    EmbeddingStore,
    Index,
    Manifest,
    Outcome,
    StoreWriter,
    label_conflicts,
)
from featpipe.types import Failure, ImageRef, Key, Progress, ProgressCallback

if TYPE_CHECKING:
    from featpipe.backbones.session import Session

DEFAULT_FOLDER = Path("embeddings")
_CHECKPOINT_SECONDS = 20.0


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

    def __post_init__(self) -> None:
        if self.dtype not in {None, "float32", "float16"}:
            raise ValueError(f"dtype must be float32 or float16, not {self.dtype!r}")
        for name in ("batch_size", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, not {value}")
        if self.max_failures is not None and self.max_failures < 0:
            raise ValueError(f"max_failures must be 0 or more, not {self.max_failures}")


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
    output : path, optional
        The store's folder; ``embeddings/<source>-<model>/`` by default.
    labels : path, optional
        A table with labels for the images.
    progress : callable, optional
        Called with a `Progress` now and then.
    **options
        ``device`` ("auto", "cpu", "cuda", "cuda:N", "tensorrt", "tensorrt:N", "openvino",
        "coreml"), ``precision`` ("auto", "fp32", "bf16", "fp16"), ``batch_size``, ``workers``,
        ``dtype`` ("float32", "float16"), ``strict`` (stop at the first failure),
        ``max_failures``, ``rehash`` (open every file again), ``prune`` (False keeps the rows
        of images that the source does not list), ``lock_timeout`` (seconds to wait for another
        writer), ``models_dir`` (a folder of backbones, before all others).

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
        source, model, output=output, labels=labels, options=asked, progress=progress
    ).store


def run_embedding(
    source: SourceLike,
    model: str | os.PathLike[str] | Backbone | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    labels: str | os.PathLike[str] | None = None,
    options: EmbedOptions | None = None,
    progress: ProgressCallback | None = None,
) -> EmbedReport:
    """Do what `embed` does, and tell what was done."""
    options = options or EmbedOptions()
    opened = open_source(source, labels)
    backbone = model if isinstance(model, Backbone) else load_backbone(model, options.models_dir)
    path = Path(output) if output is not None else default_store(opened, backbone)
    dtype = options.dtype or _dtype_of(path)
    _refuse_other_source(path, opened, explicit=not options.prune)
    session = backbone.open_session(options.device, options.precision)
    manifest = Manifest(
        backbone.card.to_json(),
        dtype,
        opened.location,
        ({"provider": session.provider, "precision": session.precision, **session.versions},),
    )
    with StoreWriter.opened(path, manifest, timeout=options.lock_timeout) as writer:
        return _Run(opened, backbone, session, writer, options, progress).go()


def default_store(source: Source, backbone: Backbone) -> Path:
    """Return ``embeddings/<source>-<model>``."""
    return DEFAULT_FOLDER / f"{slug(source.name, 'images')}-{backbone.card.name}"


def _dtype_of(path: Path) -> str:
    """Return the dtype of the store at ``path``, or the one for a new store."""
    return Manifest.read(path).dtype if (path / "store.json").exists() else "float32"


def _refuse_other_source(path: Path, source: Source, *, explicit: bool) -> None:
    """Keep a store from being overwritten by a namesake of its source."""
    if explicit or not (path / "store.json").exists():
        return
    former = Manifest.read(path).source
    # A merged store has several sources, which no single one may replace.
    if former != source.location and (MERGED in former or os.path.exists(former)):
        raise StoreError(
            f"{printable(str(path))} holds the images of {printable(former)}, not of "
            f"{printable(source.location)}: give another store with -o"
        )


@dataclass(slots=True)
class _Tally:
    computed: int = 0
    known: int = 0
    failed: int = 0
    done: int = 0
    claimed: set[Key] = field(default_factory=set)


class _Run:
    """The state of one run: the plan, what has come of it so far, the writer."""

    def __init__(
        self,
        source: Source,
        backbone: Backbone,
        session: Session,
        writer: StoreWriter,
        options: EmbedOptions,
        progress: ProgressCallback | None,
    ) -> None:
        self._source, self._backbone, self._session = source, backbone, session
        self._writer, self._options, self._progress = writer, options, progress
        self._tally, self._lock = _Tally(), Lock()
        self._failures: dict[Key, Failure] = {}
        self._waiting: list[tuple[int, Key, tuple[int, int] | None]] = []
        self._plan = Plan([], [], {})
        self._saved = time.monotonic()

    def go(self) -> EmbedReport:
        start = time.monotonic()
        self._plan = make_plan(
            self._source,
            self._writer.previous,
            self._writer.places,
            rehash=self._options.rehash,
            progress=self._progress,
        )
        if not self._plan.refs:
            raise SourceError(self._source.nothing_found())
        missing = self._plan.missing
        with self._committed():
            self._count_known()
            self._compute(missing)
        return EmbedReport(
            store=EmbeddingStore.open(self._writer.path),
            images=len(self._plan.refs),
            unchanged=len(self._plan.refs) - len(missing),
            opened=len(missing),
            computed=self._tally.computed,
            known=self._tally.known,
            failed=self._tally.failed,
            removed=len(self._plan.former) if self._options.prune else 0,
            seconds=time.monotonic() - start,
            device=self._session.why,
            notes=(*self._writer.notes, *self._source.notes, *self._two_labels()),
        )

    @contextmanager
    def _committed(self) -> Iterator[None]:
        """Commit the index at the end, or as much of it as there is when the run is stopped."""
        try:
            yield
        except (KeyboardInterrupt, TooManyFailuresError):
            # A copy of an image that failed is one failure more: it must not keep this from disk.
            with suppress(TooManyFailuresError):
                self._settle_waiting()
            self._writer.commit(self._index())
            raise
        self._writer.commit(self._index())

    def _count_known(self) -> None:
        for ref, outcome in zip(self._plan.refs, self._plan.outcomes, strict=True):
            if outcome is not None:
                self._tally.done += 1
                self._count_failure(ref, outcome)
        self._tell()

    def _compute(self, missing: list[int]) -> None:
        batches = stream(
            self._source,
            (self._plan.refs[i] for i in missing),
            self._backbone,
            self._session,
            batch_size=self._options.batch_size,
            workers=self._options.workers,
            wanted=self._claim,
        )
        position = 0
        with closing(batches):
            for batch in batches:
                self._take(batch, missing[position : position + len(batch.refs)])
                position += len(batch.refs)
                self._checkpoint()
        self._settle_waiting()
        self._tell()

    def _claim(self, key: Key) -> bool:
        """Tell a thread whether it should compute ``key``: nobody has, and nobody is at it."""
        with self._lock:
            if key in self._writer.places or key in self._tally.claimed:
                return False
            self._tally.claimed.add(key)
            return True

    def _take(self, batch: EmbeddedBatch, positions: list[int]) -> None:
        keys = [k for k, row in zip(batch.keys, batch.rows, strict=True) if row is not None]
        with self._lock:
            self._writer.append([key for key in keys if key is not None], batch.vectors)
            self._tally.claimed.difference_update(keys)
        self._tally.computed += len(keys)
        for at, key, shape, failure, row in zip(
            positions, batch.keys, batch.shapes, batch.failures, batch.rows, strict=True
        ):
            if failure is not None:
                self._fail(at, key, failure)
            elif row is None and key is not None:
                self._take_known(at, key, shape)
            elif key is not None:
                self._finish(at, key, shape)
        self._tell()

    def _take_known(self, at: int, key: Key, shape: tuple[int, int] | None) -> None:
        """Give an image the vector of its content, or let it wait for whoever computes that."""
        if key in self._writer.places:
            self._finish(at, key, shape)
            self._tally.known += 1
        else:
            self._waiting.append((at, key, shape))

    def _finish(self, at: int, key: Key, shape: tuple[int, int] | None) -> None:
        self._plan.outcomes[at] = Outcome("ok", key, *(shape or (None, None)))
        self._tally.done += 1

    def _fail(self, at: int, key: Key | None, failure: Failure) -> None:
        if key is not None:
            self._failures[key] = failure
        outcome = Outcome(failure.status, key, reason=failure.reason)
        self._plan.outcomes[at] = outcome
        self._tally.done += 1
        self._count_failure(self._plan.refs[at], outcome)

    def _settle_waiting(self) -> None:
        """Give the images whose content another image has brought in what that one got."""
        waiting, self._waiting = self._waiting, []
        for at, key, shape in waiting:
            if key not in self._failures:
                self._take_known(at, key, shape)
        for at, key, _ in waiting:
            if key in self._failures:
                self._fail(at, key, self._failures[key])

    def _count_failure(self, ref: ImageRef, outcome: Outcome) -> None:
        if outcome.status == "ok":
            return
        self._tally.failed += 1
        allowed = 0 if self._options.strict else self._options.max_failures
        if allowed is not None and self._tally.failed > allowed:
            asked = "--strict" if self._options.strict else f"--max-failures {allowed}"
            raise TooManyFailuresError(
                f"stopped, as {asked} asks, at {printable(ref.path)}: {outcome.reason}; "
                "what was finished is kept"
            )

    def _checkpoint(self) -> None:
        """Write the index now and then, as long as that takes little of the time."""
        begun = time.monotonic()
        if begun - self._saved < _CHECKPOINT_SECONDS:
            return
        self._writer.commit(self._index())
        took = time.monotonic() - begun
        self._saved = begun + 50 * took

    def _index(self) -> Index:
        """Return the index as it stands; files that are yet to be opened keep their old rows."""
        places = self._writer.places
        done = [
            (ref, outcome)
            for ref, outcome in zip(self._plan.refs, self._plan.outcomes, strict=True)
            if outcome is not None
        ]
        index = Index.build(done, places)
        keep = set() if self._options.prune else set(self._plan.former)
        if len(done) < len(self._plan.refs):
            pairs = zip(self._plan.refs, self._plan.outcomes, strict=True)
            keep |= {ref.path for ref, outcome in pairs if outcome is None}
        if not keep:
            return index
        previous = self._writer.previous
        rows = zip(previous.paths(), previous.values("key"), previous.values("status"), strict=True)
        kept = [path in keep and (s != "ok" or key in places) for path, key, s in rows]
        return index.joined(previous.where(kept).placed(places))

    def _two_labels(self) -> list[str]:
        pairs = zip(self._plan.refs, self._plan.outcomes, strict=True)
        return label_conflicts(
            (outcome.key, ref.path, ref.label) for ref, outcome in pairs if outcome is not None
        )

    def _tell(self) -> None:
        if self._progress is not None:
            reused = self._tally.done - self._tally.computed - self._tally.failed
            self._progress(
                Progress(self._tally.done, len(self._plan.refs), max(reused, 0), self._tally.failed)
            )
