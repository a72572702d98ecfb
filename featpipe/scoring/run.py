"""One run of `score`: from a source to predictions, and what it says afterwards."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import Any

from featpipe._files import printable
from featpipe.backbones import Backbone
from featpipe.embedding import Engine, EngineName, check_engine, make_engine
from featpipe.errors import (
    EXIT_OK,
    EXIT_SOME_FAILED,
    HeadError,
    TooManyFailuresError,
)
from featpipe.heads import Head, load_head, newest_head
from featpipe.scoring.formats import Format, format_of
from featpipe.scoring.journal import Identity
from featpipe.scoring.output import open_target
from featpipe.scoring.predict import Batch, Rule, backbone_of, predict
from featpipe.scoring.prediction import ANSWERED, Prediction
from featpipe.scoring.sets import Sets, said
from featpipe.sources import Source, SourceLike, empty_piece, open_source, require_images, sharded
from featpipe.types import ImageRef, Progress, ProgressCallback, Shard

_SHOWN_FAILURES = 10
_ROWS_A_CALL = 32
_log = logging.getLogger("featpipe.scoring")


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What `score` may be asked for beside source, head and output; see there."""

    top_k: int = 0
    threshold: float | None = None
    reject: float | None = None
    device: str = "auto"
    precision: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    max_failures: int | None = None
    models_dir: str | os.PathLike[str] | None = None
    conformal: float | None = None
    conformal_per_class: bool = False
    shard: Shard | str | None = None
    engine: EngineName = "local"
    address: str | None = None

    def __post_init__(self) -> None:
        check_engine(self.engine, self.address)
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 or more, not {self.top_k}")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must lie between 0 and 1, not {self.threshold:g}")
        if self.reject is not None and not 0 <= self.reject <= 1:
            raise ValueError(f"reject must lie between 0 and 1, not {self.reject:g}")
        if self.conformal_per_class and self.conformal is None:
            raise ValueError("conformal_per_class says how conformal is meant: give that, too")
        _ = self.piece

    @property
    def piece(self) -> Shard | None:
        """The shard as a record."""
        return None if self.shard is None else Shard.parse(self.shard)


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """What one run has done.

    Attributes
    ----------
    output : str or None
        Where the rows are; ``-`` for standard output, None where nothing was written.
    images, ok, uncertain, failed, unknown : int
        Rows, and how many of each kind; the last four add up to the first.
    resumed : int
        Of these, taken over from an interrupted run.
    seconds : float
        Of the whole run, after head and backbone were loaded.
    device : str
        One line: which provider ran, and why.
    failures : tuple of Prediction
        The first ten of the images that failed in this run.
    predictions : tuple of Prediction
        All rows where no output was given; empty otherwise, for memory's sake.
    notes : tuple of str
        What a person should know, a sentence each.
    set_sizes : mapping
        Where sets of labels were asked for: how many have 0, 1, 2 … labels.
    """

    output: str | None
    images: int
    ok: int
    uncertain: int
    failed: int
    resumed: int
    seconds: float
    device: str
    failures: tuple[Prediction, ...] = ()
    predictions: tuple[Prediction, ...] = ()
    notes: tuple[str, ...] = ()
    unknown: int = 0
    set_sizes: Mapping[int, int] | None = None

    @property
    def exit_code(self) -> int:
        """0, or 3 where some images failed."""
        return EXIT_SOME_FAILED if self.failed else EXIT_OK

    def __str__(self) -> str:
        counts = [
            f"{self.ok} ok",
            f"{self.unknown} unknown",
            f"{self.uncertain} uncertain",
            f"{self.failed} failed",
        ]
        done = self.images - self.resumed
        rate = f" ({done / self.seconds:,.0f}/s)" if done and self.seconds > 0 else ""
        taken = f", {self.resumed} taken over from an interrupted run" if self.resumed else ""
        where = "" if self.output is None else f" → {self.output}"
        shown = ", ".join(c for c in counts if not c.startswith("0 ")) or "none"
        sets = "" if self.set_sizes is None else f"; sets: {said(Counter(self.set_sizes))}"
        return f"{self.images} images: {shown}{taken}{sets}; {self.seconds:.1f} s{rate}{where}"


def score(
    source: SourceLike,
    head: Head | str | os.PathLike[str] | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    format: str | None = None,  # noqa: A002 - the word that every table library uses
    model: str | os.PathLike[str] | Backbone | None = None,
    progress: ProgressCallback | None = None,
    **options: Any,
) -> ScoreSummary:
    """Classify every image of ``source``: one row each, in its order.

    An image that fails is a row with status and reason. An interrupted run leaves
    ``<output>.partial``, and the same call goes on from there; ``output`` itself appears
    whole, at the end.

    Parameters
    ----------
    source : str, path, iterable of paths, or Source
        See `featpipe.sources.open_source`.
    head : Head or path, optional
        The newest under ``heads/`` by default.
    output : path, optional
        A ``.csv``, ``.jsonl`` or ``.parquet`` file, or ``"-"`` for standard output, row by
        row. Without it nothing is written, and the summary holds the predictions.
    format : str, optional
        ``csv``, ``jsonl`` or ``parquet``, where the output's suffix does not say it.
    model : str, path or Backbone, optional
        The backbone; by default the one whose name the head carries.
    progress : callable, optional
        Called with a `Progress` after every batch.
    **options
        ``top_k`` (list the so many best classes), ``threshold`` (below this probability the
        label is withheld and the status is ``uncertain``), ``reject`` (where fewer known images
        than this share look as strange, the label is withheld and the status is ``unknown``; see
        `Head.ood_p_values`), ``conformal`` (a coverage: each row has a set of labels, so many of
        which hold the true one; see `Head.predict_sets`) and ``conformal_per_class`` (in each
        class), ``device``, ``precision``,
        ``workers`` (as in `featpipe.embed`), ``batch_size`` (images a call of backbone and
        head: rows leave batch by batch), ``max_failures``, ``models_dir`` (a folder of
        backbones, before all others), ``shard`` ("2/4" or a `Shard`: the second of four pieces
        of the listing alone; each needs an output of its own), ``engine`` and ``address`` (as in
        `featpipe.embed`).

    Returns
    -------
    ScoreSummary

    Raises
    ------
    FingerprintError
        When the head was fitted on another backbone's vectors; both are named.
    HeadError
        When the head is none, ``reject`` is more than it can tell, or it knows no sets.
    SourceError, BackboneError, DeviceError, LockedError, WriteError
        What was finished before is kept, whatever is raised.
    TooManyFailuresError
        When more than ``max_failures`` images have failed.
    ValueError
        When an option makes no sense, or no format can be told.

    Examples
    --------
    >>> summary = score("new/", "heads/photos-logreg", output="new.csv")   # doctest: +SKIP
    >>> print(summary)                                                     # doctest: +SKIP
    372 images: 372 ok; 2.4 s (155/s) → new.csv
    """
    asked = ScoreOptions(**options)
    name = None if output is None else os.fspath(output)
    form = "jsonl" if name is None else format_of(name, format)
    run = _Run(_Setup.of(source, head, model, asked), asked, progress)
    return run.into(name, form)


def predictions(
    source: SourceLike,
    head: Head | str | os.PathLike[str] | None = None,
    *,
    model: str | os.PathLike[str] | Backbone | None = None,
    **options: Any,
) -> Iterator[Prediction]:
    """Yield what `score` would write, image by image, with bounded memory.

    Parameters and errors are those of `score`; head, backbone and options are looked at
    before the first image is asked for.

    Examples
    --------
    >>> for row in predictions("new/", "heads/photos-logreg"):   # doctest: +SKIP
    ...     print(row.path, row.label)
    """
    asked = ScoreOptions(**options)
    setup = _Setup.of(source, head, model, asked)
    run = _Run(setup, asked, None)
    try:
        listed = run.listed()
    except BaseException:
        setup.engine.close()
        raise
    return run.rows(listed)


@dataclass(frozen=True, slots=True)
class _Setup:
    """What must fit together before the first image is opened."""

    source: Source
    head: Head
    backbone: Backbone
    engine: Engine
    sets: Sets | None

    @classmethod
    def of(
        cls,
        source: SourceLike,
        head: Head | str | os.PathLike[str] | None,
        model: str | os.PathLike[str] | Backbone | None,
        options: ScoreOptions,
    ) -> _Setup:
        loaded = _load(head)
        _check_rejecting(loaded, options.reject)
        sets = Sets.of(loaded, options.conformal, per_class=options.conformal_per_class)
        backbone = backbone_of(loaded, model, options.models_dir)
        opened = sharded(open_source(source), options.piece)
        engine = make_engine(
            options.engine,
            opened,
            backbone,
            address=options.address,
            device=options.device,
            precision=options.precision,
            batch_size=options.batch_size,
            workers=options.workers,
        )
        engine.open()
        return cls(opened, loaded, backbone, engine, sets)


def _load(head: Head | str | os.PathLike[str] | None) -> Head:
    if isinstance(head, Head):
        return head
    return load_head(newest_head() if head is None else head)


def _check_rejecting(head: Head, reject: float | None) -> None:
    """Refuse what would reject no image, whatever it is."""
    if reject is None:
        return
    novelty = head.knows_strangers()
    if reject <= novelty.smallest_p:
        raise HeadError(
            f"below {reject:g} no image can be rejected: the head compares each with "
            f"{len(novelty.calibration)} training images, and the smallest share is "
            f"{novelty.smallest_p:.2g}; reject at more than that, or fit on more images"
        )


class _Run:
    """The state of one run."""

    def __init__(
        self, setup: _Setup, options: ScoreOptions, progress: ProgressCallback | None
    ) -> None:
        self._setup, self._options, self._progress = setup, options, progress
        classes = tuple(str(name) for name in setup.head.classes_)
        top_k = min(options.top_k, len(classes))
        limits = None if setup.sets is None else setup.sets.limits
        self._rule = Rule(classes, top_k, options.threshold, options.reject, limits)
        self._counts: Counter[str] = Counter()
        self._sizes: Counter[int] = Counter()
        self._failures: list[Prediction] = []

    def into(self, output: str | None, form: Format) -> ScoreSummary:
        """Do all of it, and write the rows batch by batch."""
        with closing(self._setup.engine):
            return self._into(output, form)

    def _into(self, output: str | None, form: Format) -> ScoreSummary:
        begun = time.monotonic()
        setup, listed = self._setup, self.listed()
        with open_target(output, form, self._rule.top_k, self._identity()) as target:
            rest = target.resume(listed, self._step)
            self._counts.update(target.counts)
            self._sizes.update(target.sizes)
            if resumed := self._counts.total():
                _log.info("%d rows are taken over from an interrupted run", resumed)
            with closing(self.batches(rest)) as batches:
                for batch in batches:
                    target.take(batch.refs, batch.rows)
                    self._check_failures()
        return ScoreSummary(
            output=target.name,
            images=self._counts.total(),
            ok=self._counts["ok"],
            uncertain=self._counts["uncertain"],
            unknown=self._counts["unknown"],
            failed=self._failed,
            resumed=resumed,
            seconds=time.monotonic() - begun,
            device=setup.engine.why or "",
            failures=tuple(self._failures),
            predictions=tuple(target.predictions),
            notes=(
                *self._notes(),
                *target.notes,
                *empty_piece(setup.source, self._counts.total()),
                *setup.source.notes,
            ),
            set_sizes=None if setup.sets is None else dict(sorted(self._sizes.items())),
        )

    def _notes(self) -> Iterator[str]:
        if self._setup.sets is not None and self._setup.sets.note is not None:
            yield self._setup.sets.note

    def listed(self) -> Iterator[ImageRef]:
        """List the source; refuse an empty one before anything is written."""
        refs = iter(self._setup.source)
        first = next(refs, None)
        if first is None:
            require_images(self._setup.source)
            return refs
        return chain((first,), refs)

    def rows(self, refs: Iterable[ImageRef]) -> Iterator[Prediction]:
        """Yield row by row what is not written anywhere."""
        with closing(self._setup.engine), closing(self.batches(refs)) as batches:
            for batch in batches:
                yield from batch.rows

    def batches(self, refs: Iterable[ImageRef]) -> Generator[Batch, None, None]:
        """Score images in order, and count."""
        setup = self._setup
        embedded = setup.engine.stream(refs, self._step)
        for batch in predict(
            embedded, setup.head, self._rule, group=self._group, novelty=setup.head.novelty
        ):
            for row in batch.rows:
                self._count(row)
            if self._progress is not None:
                done = self._counts.total()
                self._progress(Progress(done, None, failed=self._failed, stage="scoring"))
            yield batch

    @property
    def _group(self) -> int:
        """Batches of the backbone that the head classifies at once; one where asked for."""
        if self._options.batch_size is not None:
            return 1
        return max(1, _ROWS_A_CALL // self._setup.engine.batch_size)

    @property
    def _step(self) -> int:
        """Images that the head classifies at once."""
        return self._setup.engine.batch_size * self._group

    @property
    def _failed(self) -> int:
        return self._counts.total() - sum(self._counts[status] for status in ANSWERED)

    def _count(self, row: Prediction) -> None:
        self._counts[row.status] += 1
        self._sizes.update(row.set_size)
        if row.failed and len(self._failures) < _SHOWN_FAILURES:
            self._failures.append(row)

    def _check_failures(self) -> None:
        """Stop after too many failures; called when the rows of a batch are safe."""
        allowed = self._options.max_failures
        if allowed is None or self._failed <= allowed:
            return
        last = self._failures[-1] if self._failures else None
        where = "" if last is None else f", among them {printable(last.path)}: {last.reason}"
        raise TooManyFailuresError(
            f"stopped after {self._failed} failures, as no more than {allowed} are allowed{where}; "
            "what was finished is kept"
        )

    def _identity(self) -> Identity:
        setup, options = self._setup, self._options
        novelty, versions = setup.head.novelty, setup.engine.versions
        return Identity(
            head=setup.head.digest + ("" if novelty is None else f"-{novelty.digest}"),
            backbone=setup.backbone.fingerprint,
            source=setup.source.location,
            shard=None if options.piece is None else str(options.piece),
            device=versions["provider"],
            precision=versions["precision"],
            top_k=self._rule.top_k,
            threshold=options.threshold,
            reject=options.reject,
            conformal=None if setup.sets is None else setup.sets.identity,
        )
