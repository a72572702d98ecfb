"""`explain`: from images and a head to what the head sees in them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from featpipe._files import content_key
from featpipe._threads import Threads, threads
from featpipe.backbones import Backbone
from featpipe.embedding.ahead import read_bytes
from featpipe.errors import FeatpipeError, SourceError
from featpipe.heads import Head, load_head, newest_head
from featpipe.images import Box, Decoded, crop_box, decode_image
from featpipe.inspection.looking import Looker, Sight
from featpipe.inspection.nearest import N_NEAREST
from featpipe.inspection.peaks import peak_of
from featpipe.inspection.records import ClassMap, Explained, Explanation, Seen
from featpipe.inspection.training_images import TrainingImages
from featpipe.scoring.predict import backbone_of
from featpipe.sources import Source, SourceLike, open_source
from featpipe.store import EmbeddingStore
from featpipe.types import Failure, ImageRef, Key, Progress, ProgressCallback, ResizeRule

if TYPE_CHECKING:
    from featpipe.backbones.session import Session

MOST_IMAGES = 500
"""Every image is kept, with its pixels."""
_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class ExplainOptions:
    """What `explain` may be asked for beside images, head and store; see there."""

    n_nearest: int = N_NEAREST
    most: int = MOST_IMAGES
    device: str = "auto"
    precision: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    models_dir: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.n_nearest <= 10:
            raise ValueError(f"n_nearest must lie between 0 and 10, not {self.n_nearest}")
        if not 1 <= self.most <= MOST_IMAGES:
            raise ValueError(f"most must lie between 1 and {MOST_IMAGES}, not {self.most}")


def explain(
    images: SourceLike,
    head: Head | str | os.PathLike[str] | None = None,
    *,
    store: EmbeddingStore | str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | Backbone | None = None,
    progress: ProgressCallback | None = None,
    **options: Any,
) -> Explanation:
    """Say what a head sees in some images: where, for which class, and like which others.

    A linear head on a backbone with global average pooling is explained exactly, by class
    activation maps; any other head, or backbone, by covering one patch after the other.

    Parameters
    ----------
    images : str, path, iterable of paths, or Source
        500 at most.
    head : Head or path, optional
        The newest under ``heads/`` by default.
    store : EmbeddingStore or path, optional
        Where the nearest training images are looked for; by default the store that the head was
        fitted on, where it still is.
    model : str, path or Backbone, optional
        The backbone; by default the one whose name the head carries.
    progress : callable, optional
        Called with a `Progress` now and then.
    **options
        ``n_nearest`` (training images beside each; 3), ``most`` (refuse more images than this),
        ``device``, ``precision``, ``workers``, ``batch_size``, ``models_dir``, as in
        `featpipe.score`.

    Returns
    -------
    Explanation
        An image that cannot be read or decoded is a record that says why.

    Raises
    ------
    FingerprintError
        When the head was fitted on another backbone's vectors, or ``store`` holds such.
    SourceError, HeadError, StoreError, BackboneError, DeviceError
        When what is needed cannot be had.
    ValueError
        When an option makes no sense.

    References
    ----------
    Zhou et al. 2016, "Learning Deep Features for Discriminative Localization", equation 2;
    Zeiler, Fergus 2014, "Visualizing and Understanding Convolutional Networks", section 4.2.

    Examples
    --------
    >>> found = explain(["ant.jpg"], "heads/photos-logreg")        # doctest: +SKIP
    >>> found.images[0].seen.predicted.peak                        # doctest: +SKIP
    (203.6, 187.5)
    """
    asked = ExplainOptions(**options)
    loaded = head if isinstance(head, Head) else load_head(newest_head() if head is None else head)
    backbone = backbone_of(loaded, model, asked.models_dir)
    source = open_source(images)
    refs = _listed(source, asked.most)
    training = TrainingImages.of(loaded, store) if asked.n_nearest else ""
    session = backbone.open_session(asked.device, asked.precision)
    run = _Run(source, loaded, backbone.card.resize, training, asked)
    found = []
    for explained in run.go(session, refs):
        found.append(explained)
        if progress is not None:
            failed = sum(image.seen is None for image in found)
            progress(Progress(len(found), len(refs), failed=failed, stage="explaining"))
    notes = [training] if isinstance(training, str) and training else []
    return Explanation(
        head=loaded.name,
        backbone=backbone.name,
        classes=loaded.classes,
        images=tuple(found),
        device=session.why,
        notes=(*notes, *source.notes),
    )


def _listed(source: Source, most: int) -> list[ImageRef]:
    refs = list(islice(source, most + 1))
    if not refs:
        raise SourceError(source.nothing_found())
    if len(refs) > most:
        raise FeatpipeError(
            f"there are more than {most} images to explain at once: name some of them"
        )
    return refs


@dataclass(frozen=True, slots=True)
class _Loaded:
    """One image, ready for the backbone."""

    key: Key
    decoded: Decoded


class _Run:
    """One call of `explain`."""

    def __init__(
        self,
        source: Source,
        head: Head,
        rule: ResizeRule,
        training: TrainingImages | str,
        options: ExplainOptions,
    ) -> None:
        self._source, self._head, self._rule = source, head, rule
        self._training, self._options = training, options

    def go(self, session: Session, refs: Sequence[ImageRef]) -> Iterator[Explained]:
        """Yield what there is to be said of every image, in order."""
        with threads(self._options.workers) as pool:
            looker = Looker(self._head, session, pool, batch_size=self._options.batch_size)
            for start in range(0, len(refs), _AT_ONCE):
                yield from self._block(refs[start : start + _AT_ONCE], looker, pool)

    def _block(
        self, refs: Sequence[ImageRef], looker: Looker, pool: Threads | None
    ) -> Iterator[Explained]:
        loaded = list(map(self._load, refs) if pool is None else pool.stream(self._load, refs))
        good = [one for one in loaded if not isinstance(one, Failure)]
        sights = looker.look(np.stack([one.decoded.pixels for one in good])) if good else []
        records = iter(self._seen(good, sights))
        for ref, one in zip(refs, loaded, strict=True):
            if isinstance(one, Failure):
                yield Explained(ref.path, one.status, one.reason)
                continue
            seen = next(records)
            if seen is None:
                reason = "the backbone gave a vector that is not finite"
                yield Explained(ref.path, "unscorable", reason)
            else:
                yield Explained(ref.path, "ok", None, seen)

    def _load(self, ref: ImageRef) -> _Loaded | Failure:
        data = read_bytes(self._source, ref)
        if isinstance(data, Failure):
            return data
        decoded = decode_image(data, self._rule)
        return decoded if isinstance(decoded, Failure) else _Loaded(content_key(data), decoded)

    def _seen(self, good: Sequence[_Loaded], sights: Sequence[Sight | None]) -> list[Seen | None]:
        found = [(one, sight) for one, sight in zip(good, sights, strict=True) if sight is not None]
        near: list[Any] = [()] * len(found)
        if found and isinstance(self._training, TrainingImages):
            vectors = np.stack([sight.vector for _, sight in found])
            keys = [one.key for one, _ in found]
            near = self._training.near(vectors, keys, self._options.n_nearest)
        records = iter(
            self._record(one.decoded, sight, nearest)
            for (one, sight), nearest in zip(found, near, strict=True)
        )
        return [None if sight is None else next(records) for sight in sights]

    def _record(self, decoded: Decoded, sight: Sight, nearest: Any) -> Seen:
        box = crop_box(decoded.width, decoded.height, self._rule)
        predicted, runner_up = (class_map(self._head, sight, at, box) for at in range(2))
        return Seen(
            pixels=decoded.pixels,
            width=decoded.width,
            height=decoded.height,
            box=box,
            method=sight.method,
            predicted=predicted,
            runner_up=runner_up,
            nearest=nearest,
        )


def class_map(head: Head, sight: Sight, at: int, box: Box) -> ClassMap:
    """Return one of the maps of a sight as a record; ``box`` is the part of the picture seen."""
    k = int(sight.classes[at])
    values = sight.values[at]
    row, column = peak_of(values)
    left, top, right, bottom = box
    return ClassMap(
        label=head.classes[k],
        probability=float(sight.probabilities[k]),
        measure=sight.measure,
        score=float(sight.scores[at]),
        bias=None if sight.bias is None else float(sight.bias[at]),
        values=values,
        peak=(
            left + column * (right - left) / values.shape[1],
            top + row * (bottom - top) / values.shape[0],
        ),
    )
