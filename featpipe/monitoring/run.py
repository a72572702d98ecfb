"""`drift`: whether what comes in still looks like what a head was trained on."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from featpipe._files import printable
from featpipe.errors import HeadError, SourceError
from featpipe.evaluation.measure import require_same_backbone
from featpipe.heads import Head, load_head
from featpipe.monitoring.observed import Observed, observe_store
from featpipe.monitoring.reading import SUFFIXES, read_scores
from featpipe.monitoring.report import DriftReport, Finding
from featpipe.monitoring.samples import (
    Ints,
    beyond_rank,
    holm,
    how_much_below_uniform,
    how_much_lower,
    more_often,
    rates_differ,
)
from featpipe.monitoring.vectors import told_apart, training_vectors
from featpipe.store import EmbeddingStore, located

ALPHA = 0.001
"""A job that runs every night alarms for nothing less than once in two and a half years."""
LEAST_IMAGES = 30
STRANGE = 0.05
"""A p-value up to this makes an image a strange one: as many of known images are."""

Outcome: TypeAlias = tuple[float, float, str]
"""Effect, p-value, and what was seen."""
Asked: TypeAlias = "EmbeddingStore | str | os.PathLike[str]"


@dataclass(frozen=True, slots=True)
class _Sides:
    """What is compared, and with what: with a baseline, or with what the head has kept."""

    head: Head
    new: Observed
    before: Observed | None
    seed: int


def drift(
    head: Head | str | os.PathLike[str],
    incoming: Asked,
    *,
    baseline: Asked | None = None,
    split: str | None = None,
    skip: Collection[str] = (),
    alpha: float = ALPHA,
    seed: int = 0,
) -> DriftReport:
    """Compare images that have come in with those that a head was trained on.

    Up to five tests are made, each on its own question; their p-values are adjusted for their
    number (Holm). One alarms where chance is ruled out at ``alpha`` **and** the difference is
    large enough to matter: see docs/drift.md.

    Parameters
    ----------
    head : Head or path
    incoming : EmbeddingStore or path
        A store, of which images that the head was fitted on are left out, or a file that
        `featpipe.score` has written.
    baseline : EmbeddingStore or path, optional
        Images that were found in order, in the same forms: compared with instead of training.
    split : str, optional
        Of the store that has come in.
    skip : collection of str
        Tests to leave out, of `TESTS`.
    alpha : float
        How often a check of unchanged images may alarm, between 0 and 1.

    Raises
    ------
    FingerprintError
        When head and store come from different backbones.
    SourceError, LabelError, StoreError, HeadError
        When there is nothing to compare, or it cannot be read.
    ValueError
        When alpha or the name of a test makes no sense.

    References
    ----------
    Rabanser, Günnemann, Lipton 2019, "Failing Loudly: An Empirical Study of Methods for
    Detecting Dataset Shift", NeurIPS: tests on a classifier's outputs find most of what tests
    on vectors find.

    Examples
    --------
    >>> found = drift("heads/photos-logreg", "night.parquet")   # doctest: +SKIP
    >>> found.drifted, str(found)                               # doctest: +SKIP
    (False, 'No drift found in the 9,600 images of night.parquet, beside the training images')
    """
    _check(skip, alpha)
    fitted = head if isinstance(head, Head) else load_head(head)
    new = _observed(fitted, incoming, split, seed)
    before = None if baseline is None else _observed(fitted, baseline, None, seed)
    return _report(_Sides(fitted, new, before, seed), head, skip, alpha)


def _check(skip: Collection[str], alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha:g}")
    unknown = [name for name in skip if name not in TESTS]
    if unknown:
        raise ValueError(f"there is no test {unknown[0]!r}: there are {', '.join(TESTS)}")


def _observed(head: Head, asked: Asked, split: str | None, seed: int) -> Observed:
    if isinstance(asked, EmbeddingStore) or _is_store(asked):
        store = asked if isinstance(asked, EmbeddingStore) else EmbeddingStore.open(asked)
        require_same_backbone(head, store)
        return observe_store(head, store, split=split, seed=seed)
    path = Path(asked)
    if not path.exists():
        raise SourceError(
            f"{printable(str(path))} does not exist: name a store or a file of scores"
        )
    if not path.is_file():
        raise SourceError(
            f"{printable(str(path))} is a device or a pipe: write the scores into a file first"
        )
    if path.suffix.lower() not in SUFFIXES:
        raise SourceError(
            f"{printable(str(path))} is neither a store nor a file of scores: name a folder that "
            f"`featpipe embed` has written, or a file that ends in {', '.join(SUFFIXES)}"
        )
    if split is not None:
        raise SourceError(
            f"{printable(str(path))} knows no splits: leave out --split, or give the store"
        )
    return read_scores(path, head.classes)


def _is_store(asked: str | os.PathLike[str]) -> bool:
    """Tell a store from a file of scores, which lies on this machine."""
    return isinstance(located(asked), str) or Path(asked).is_dir()


def _report(sides: _Sides, head: object, skip: Collection[str], alpha: float) -> DriftReport:
    outcomes: dict[str, Outcome] = {}
    left_out: list[tuple[str, str]] = []
    new, before = sides.new, sides.before
    fewest = min((side for side in (new, before) if side), key=lambda side: side.n_images)
    enough = fewest.n_images >= LEAST_IMAGES
    for name, test in TESTS.items():
        found = "as asked for" if name in skip else test(sides) if enough else ""
        if isinstance(found, tuple):
            outcomes[name] = found
        elif found:
            left_out.append((name, found))
    if not outcomes and FITTED_BEFORE in dict(left_out).values():
        # A job that finds nothing every night, because it compares nothing, must not go unseen.
        raise HeadError(
            "the head was fitted by a former featpipe, which kept nothing to compare with: fit it "
            "again, or name images that were in order with --baseline"
        )
    return DriftReport(
        head=repr(sides.head) if isinstance(head, Head) else str(head),
        incoming=new.name,
        compared_with="the training images" if before is None else f"those of {before.name}",
        images=new.n_images,
        failed=new.failed,
        alpha=alpha,
        findings=_judged(outcomes, alpha),
        left_out=tuple(left_out),
        notes=(*new.notes, *(before.notes if before else ())),
        too_few="" if enough else _too_few(fewest, "in the baseline " * (fewest is before)),
    )


def _too_few(side: Observed, where: str) -> str:
    return f"Too few images {where}to say anything: {side.n_images}, and {LEAST_IMAGES} are needed"


def _judged(outcomes: Mapping[str, Outcome], alpha: float) -> tuple[Finding, ...]:
    adjusted = holm([p for _, p, _ in outcomes.values()])
    return tuple(
        Finding(
            test=name,
            p=p,
            p_adjusted=p_adjusted,
            effect=effect,
            least=LEAST[name],
            alarm=p_adjusted < alpha and effect >= LEAST[name],
            words=words,
        )
        for (name, (effect, p, words)), p_adjusted in zip(outcomes.items(), adjusted, strict=True)
    )


def _unknown(sides: _Sides) -> Outcome | str:
    """Ask whether more images are strange than one in twenty, or than were before."""
    new, before, novelty = sides.new, sides.before, sides.head.novelty
    if new.ood_p is None or (before is not None and before.ood_p is None):
        return "the images have no ood_p"
    if before is not None and before.ood_p is not None:
        count, usual = _strange(new, STRANGE), _strange(before, STRANGE)
        share, expected = count / new.n_images, usual / before.n_images
        p = more_often(count, new.n_images, usual, before.n_images)
    else:
        n = 0 if novelty is None else len(novelty.calibration)
        rank = math.floor(STRANGE * (n + 1))
        if not rank:
            return "the head has left out too few training images to know what is strange"
        expected = rank / (n + 1)
        count = _strange(new, expected)
        share, p = count / new.n_images, beyond_rank(count, new.n_images, rank, n)
    words = (
        f"{_percent(share)} are strange (ood_p up to {STRANGE:g}), where {_percent(expected)} "
        "should be"
    )
    return share - expected, p, words


def _strange(of: Observed, level: float) -> int:
    assert of.ood_p is not None
    # The file has six decimals.
    return int((of.ood_p <= level + 1e-6).sum())


def _strangeness(sides: _Sides) -> Outcome | str:
    """Ask whether images are stranger all in all; that they are nearer is no alarm."""
    new, before, novelty = sides.new, sides.before, sides.head.novelty
    if new.ood_p is None or (before is not None and before.ood_p is None):
        return "the images have no ood_p"
    if before is not None and before.ood_p is not None:
        effect, p = how_much_lower(new.ood_p, np.sort(before.ood_p), before.n_images)
    elif novelty is not None:
        effect, p = how_much_below_uniform(new.ood_p, len(novelty.calibration))
    else:
        return "the head cannot tell strange images"
    return effect, p, f"they are stranger as a whole (distance {effect:.2f} of 1)"


def _rates(sides: _Sides) -> Outcome | str:
    """Ask whether other classes are predicted than out of fold in training."""
    new, before = sides.new, _counts_before(sides)
    if new.counts is None:
        return "labels are withheld"
    if isinstance(before, str):
        return before
    found = rates_differ(new.counts, before)
    if found is None:
        return "too few images of each class are to be expected"
    shares = new.counts / new.counts.sum() - before / before.sum()
    most = int(np.abs(shares).argmax())
    now, once = new.counts[most] / new.counts.sum(), before[most] / before.sum()
    words = (
        f"{_percent(now)} are taken for {printable(sides.head.classes[most])}, where "
        f"{_percent(once)} were"
    )
    return *found, words


def _counts_before(sides: _Sides) -> Ints | str:
    if sides.before is not None:
        found = sides.before.counts
        return "labels of the baseline are withheld" if found is None else found
    if sides.head.reference is None:
        return FITTED_BEFORE
    return np.array(sides.head.reference.counts)


def _confidence(sides: _Sides) -> Outcome | str:
    """Ask whether the head is less sure than out of fold; that it is surer is no alarm."""
    if sides.before is not None:
        old = np.sort(sides.before.confidence)
        n = len(old)
    elif sides.head.reference is not None:
        old, n = np.array(sides.head.reference.confidence), sides.head.reference.n_images
    else:
        return FITTED_BEFORE
    effect, p = how_much_lower(sides.new.confidence, old, n)
    now, once = (_percent(float(np.median(side))) for side in (sides.new.confidence, old))
    return effect, p, f"the head is less sure (median probability {now}, before {once})"


def _vectors(sides: _Sides) -> Outcome | str:
    """Ask whether a classifier can tell new vectors from old ones."""
    new, before, novelty = sides.new, sides.before, sides.head.novelty
    if new.vectors is None or new.units is None:
        return "a file of scores has no vectors"
    if before is not None:
        if before.vectors is None:
            return "the baseline has no vectors"
        old = before.vectors
    elif novelty is not None:
        old = training_vectors(sides.head, novelty, sides.seed)
    else:
        return "the head has kept no training vectors"
    found = told_apart(new.vectors, old, new.units, sides.seed)
    if found is None:
        return "too few images or groups to hold some out"
    return *found, f"a classifier tells their vectors from others (AUC {found[0]:.2f})"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


FITTED_BEFORE = "the head was fitted by a former featpipe; fit it again"
TESTS: Mapping[str, Callable[[_Sides], Outcome | str]] = {
    "unknown": _unknown,
    "strangeness": _strangeness,
    "rates": _rates,
    "confidence": _confidence,
    "vectors": _vectors,
}
"""The tests by name: each returns what it has found, or why it cannot be made."""
LEAST: Mapping[str, float] = {
    "unknown": 0.05,
    "strangeness": 0.10,
    "rates": 0.10,
    "confidence": 0.10,
    "vectors": 0.60,
}
"""Effects from which on a difference matters: of very many images any is beyond chance."""
