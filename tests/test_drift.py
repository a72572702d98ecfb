"""Drift: unchanged images are let pass, changed ones are told; every input says what it lacks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import fisher_exact, ks_2samp
from test_persistence import head as plain_head
from vectors import card, make_store

from featpipe import drift, fit
from featpipe.errors import FingerprintError, HeadError, LabelError, SourceError
from featpipe.heads import Head
from featpipe.monitoring import TESTS
from featpipe.monitoring.samples import (
    beyond_rank,
    holm,
    how_much_below_uniform,
    how_much_lower,
    more_often,
    rates_differ,
)
from featpipe.monitoring.vectors import told_apart, training_vectors
from featpipe.reference import MOST, Reference, reference_of
from featpipe.scoring.formats import row_writer
from featpipe.scoring.prediction import Prediction, decide
from featpipe.store import EmbeddingStore

CLASSES = ("a", "b", "c")


def images(n: int, seed: int, *, moved: float = 0.0, share: float = 1 / 3):
    """Return vectors and labels of three classes; ``moved`` shifts them all, away from each."""
    rng = np.random.default_rng(seed)
    y = rng.choice(3, n, p=[share, *[(1 - share) / 2] * 2])
    X = rng.normal(size=(n, 12))
    X[np.arange(n), y] += 4
    X[:, 6:] += moved
    return X.astype(np.float32), [CLASSES[k] for k in y]


@lru_cache
def head() -> Head:
    """Return a head on 240 images, fitted once."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        X, labels = images(240, 0)
        return fit(make_store(Path(folder) / "store", X, labels), "ridge", check=False)


def incoming(path: Path, n: int, seed: int, **how: float) -> EmbeddingStore:
    X, _ = images(n, seed, **how)
    return make_store(path, X, [None] * n, contents=[(seed, i) for i in range(n)])


def scores(path: Path, X, **options: object) -> Path:
    """Write what ``featpipe score`` would of some vectors."""
    made = head()
    p, strange = made.predict_proba(X), made.ood_p_values(X)
    rows = [
        decide(f"{i}.jpg", p[i], made.classes, ood_p=float(strange[i]), **options)
        for i in range(len(X))
    ]
    rows.append(Prediction("bad.jpg", "undecodable", "it is, no image"))
    with path.open("wb") as file:
        form, top_k = path.suffix[1:], int(str(options.get("top_k", 0)))
        with row_writer(file, form, top_k) as write:
            write(rows)
    return path


# --- tests of two samples ---------------------------------------------------------------


def test_lower_samples_are_measured_as_scipy_does() -> None:
    """The distance is that of the one-sided test, its p-value the limit of scipy's exact one."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        new, old = rng.normal(-0.2, 1, 150), np.sort(rng.normal(size=200))
        distance, p = how_much_lower(new, old, 200)
        exact = ks_2samp(new, old, alternative="greater")
        assert distance == pytest.approx(exact.statistic)
        assert p == pytest.approx(exact.pvalue, rel=0.5, abs=0.02)
    assert how_much_lower(np.array([0.9]), np.array([0.1]), 1) == (0.0, 1.0)


def test_p_values_are_rarely_small_where_nothing_differs() -> None:
    """Each test, over 300 draws: five in a hundred are below 0.05, within four standard errors."""
    rng = np.random.default_rng(1)
    found: dict[str, list[float]] = {
        "lower": [],
        "uniform": [],
        "rank": [],
        "rates": [],
        "apart": [],
    }
    for seed in range(300):
        old, new = np.sort(rng.normal(size=199)), rng.normal(size=150)
        found["lower"].append(how_much_lower(new, old, 199)[1])
        # p-values of new values among the old ones.
        p = (1 + 199 - np.searchsorted(old, new, side="left")) / 200
        found["uniform"].append(how_much_below_uniform(p, 199)[1])
        found["rank"].append(beyond_rank(int((p <= 10 / 200).sum()), 150, 10, 199))
        sides = [np.bincount(rng.choice(4, n, p=[0.5, 0.3, 0.1, 0.1])) for n in (150, 199)]
        table = [np.pad(side, (0, 4 - len(side))) for side in sides]
        rates = rates_differ(table[0], table[1])
        assert rates is not None
        found["rates"].append(rates[1])
        if seed < 25:
            X = rng.normal(size=(160, 4)).astype(np.float32)
            apart = told_apart(X[:80], X[80:], np.arange(80))
            assert apart is not None
            found["apart"].append(apart[1])
    for name, values in found.items():
        allowed = 0.05 + 4 * (0.05 * 0.95 / len(values)) ** 0.5
        assert np.mean(np.array(values) < 0.05) < allowed, name


def test_counts_beyond_a_rank_have_their_exact_distribution() -> None:
    """The chance that k or more of n exceed the r-th of m, against counting it."""
    rng = np.random.default_rng(0)
    values = np.sort(rng.random((20_000, 9)), axis=1)[:, ::-1][:, 1]
    counts = (rng.random((20_000, 6)) > values[:, None]).sum(axis=1)
    for k in (1, 2, 4, 6):
        assert beyond_rank(k, 6, 2, 9) == pytest.approx(np.mean(counts >= k), abs=0.015)
    assert beyond_rank(0, 6, 2, 9) == pytest.approx(1.0)
    assert 0 < beyond_rank(200, 200, 50, 999) < 1e-50


def test_more_often_is_fishers_test() -> None:
    """And of millions the same share of ten thousand is counted."""
    exact = fisher_exact([[9, 41], [3, 57]], alternative="greater").pvalue
    assert more_often(9, 50, 3, 60) == pytest.approx(exact)
    assert more_often(600_000, 10_000_000, 500_000, 10_000_000) < 0.01
    assert more_often(500_000, 10_000_000, 500_000, 10_000_000) > 0.4


def test_rare_classes_are_taken_together() -> None:
    """No test on counts that nobody can expect; what is never predicted changes nothing."""
    assert rates_differ(np.array([3, 0]), np.array([0, 4])) is None
    some = rates_differ(np.array([60, 40, 1, 1, 0]), np.array([50, 50, 1, 0, 0]))
    same = rates_differ(np.array([60, 42]), np.array([50, 51]))
    assert some is not None
    assert same is not None
    assert some[1] == pytest.approx(same[1])
    surprise = rates_differ(np.array([30, 30, 60]), np.array([60, 60, 0]))
    assert surprise is not None
    assert surprise[0] == pytest.approx(0.5)
    assert surprise[1] < 1e-9


def test_many_rare_classes_are_no_difference() -> None:
    """Of equally rare classes chance decides which are taken together, not which side has more."""
    rng = np.random.default_rng(0)
    even = np.full(20_000, 1 / 20_000)
    found = rates_differ(rng.multinomial(1000, even), rng.multinomial(100_000, even))
    assert found is not None
    assert found[1] > 0.01


def test_holm_never_turns_the_order_around() -> None:
    """By hand: 4 × 0.01, 3 × 0.02, then what was highest; never above 1."""
    assert holm([0.5, 0.01, 0.02, 0.02]) == pytest.approx([0.5, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_vectors_are_told_apart_where_they_differ() -> None:
    """A shift is seen; copies among the old ones give nothing away; a single group says nothing."""
    rng = np.random.default_rng(0)
    old, new = (rng.normal(size=(120, 8)).astype(np.float32) for _ in range(2))
    moved = told_apart(new + 1, old, np.arange(120))
    assert moved is not None
    assert moved[0] > 0.8
    assert moved[1] == 1e-4
    twice = told_apart(new, np.repeat(old[:60], 2, axis=0), np.arange(120))
    assert twice is not None
    assert twice[1] > 0.01
    assert told_apart(new, old, np.zeros(120, dtype=np.int64)) is None
    assert told_apart(new[:9], old, np.arange(9)) is None


def test_training_vectors_keep_the_shares_of_the_classes() -> None:
    """Where a head has kept a part of its large classes, no more is taken of the small ones."""
    made = head()
    assert made.novelty is not None
    assert len(training_vectors(made, made.novelty)) == 240
    many = Head(
        **{
            **{f: getattr(made, f) for f in made.__dataclass_fields__},
            "class_counts": (800, 80, 80),
        }
    )
    drawn = training_vectors(many, made.novelty)
    kept = made.novelty.counts
    assert len(drawn) == kept[0] + 2 * int(np.ceil(kept[0] / 10))


# --- the check --------------------------------------------------------------------------


def test_images_like_those_of_training_pass(tmp_path: Path) -> None:
    """Eight draws, no alarm; all five tests are made."""
    for seed in range(1, 9):
        found = drift(head(), incoming(tmp_path / str(seed), 150, seed))
        assert found.drifted is False, str(found)
        assert [f.test for f in found.findings] == list(TESTS)
        assert (found.left_out, found.exit_code) == ((), 0)
    assert (
        str(found)
        == f"No drift found in the 150 images of {tmp_path / '8'}, beside the training images"
    )


def test_moved_images_alarm(tmp_path: Path) -> None:
    """Each test that can see it says so in its own words; the exit code is that of drift."""
    found = drift(head(), incoming(tmp_path / "new", 100, 1, moved=3.0))
    alarms = {f.test for f in found.findings if f.alarm}
    assert {"unknown", "strangeness", "vectors"} <= alarms
    assert (found.drifted, found.exit_code) == (True, 9)
    assert str(found).startswith(
        f"Drift: the 100 images of {tmp_path / 'new'} are not like the training images: "
    )
    assert " % are strange (ood_p up to 0.05), where 5 % should be; " in str(found)
    assert "a classifier tells their vectors from others (AUC " in str(found)


def test_other_rates_alarm_unless_left_out(tmp_path: Path) -> None:
    """Four fifths of one class are a drift of rates; who knows that skips it, and the vectors."""
    new = incoming(tmp_path / "new", 150, 1, share=0.8)
    found = drift(head(), new)
    rates = next(f for f in found.findings if f.test == "rates")
    assert rates.alarm
    assert rates.words.endswith(" % were")
    assert " are taken for a, where " in rates.words
    skipped = drift(head(), new, skip=["rates", "vectors"])
    assert skipped.drifted is False
    assert skipped.left_out == (("rates", "as asked for"), ("vectors", "as asked for"))


def test_a_small_difference_in_many_images_is_no_alarm(tmp_path: Path) -> None:
    """Beyond chance, but not large enough to matter: four points of one class in 9,000 images."""
    made = head()
    found = drift(made, incoming(tmp_path / "new", 9000, 1, share=0.4), skip=["vectors"])
    rates = next(f for f in found.findings if f.test == "rates")
    assert rates.effect < rates.least
    assert not rates.alarm
    assert found.drifted is False


def test_with_a_baseline_the_rates_of_training_do_not_count(tmp_path: Path) -> None:
    """The same unbalanced stream twice is no drift, as store and as scores; moved images are."""
    before = incoming(tmp_path / "before", 200, 1, share=0.8)
    new = incoming(tmp_path / "new", 200, 2, share=0.8)
    assert drift(head(), new).drifted
    found = drift(head(), new, baseline=before)
    assert found.drifted is False
    assert [f.test for f in found.findings] == list(TESTS)
    assert found.compared_with == f"those of {tmp_path / 'before'}"
    written = scores(tmp_path / "before.csv", np.asarray(before.X))
    found = drift(head(), new, baseline=written)
    assert found.drifted is False
    assert found.left_out == (("vectors", "the baseline has no vectors"),)
    moved = incoming(tmp_path / "moved", 200, 3, share=0.8, moved=3.0)
    alarms = {f.test for f in drift(head(), moved, baseline=written).findings if f.alarm}
    assert {"unknown", "strangeness"} <= alarms


def test_images_that_were_learnt_on_are_left_out(tmp_path: Path) -> None:
    """Those of the head itself, and equal ones; a split may be chosen; nothing left is an error."""
    X, labels = images(200, 5)
    splits = ["train"] * 120 + ["test"] * 80
    store = make_store(tmp_path / "store", X, labels, splits=splits)
    made = fit(store, "ridge", check=False)
    found = drift(made, store)
    assert found.images == 80
    assert found.notes == ("120 images that the head was fitted on are left out",)
    assert drift(made, store, split="test").notes == ()
    with pytest.raises(LabelError) as error:
        drift(made, store, split="train")
    assert str(error.value) == (
        f"the head was fitted on all images of {tmp_path / 'store'} that are asked for: give it "
        "new ones, or choose others with --split"
    )
    with pytest.raises(LabelError) as error:
        drift(made, store, split="val")
    assert str(error.value) == (
        f"{tmp_path / 'store'} has no image in the split 'val' (its splits: test, train): choose "
        "one of them, or leave out --split"
    )


def test_too_few_images_say_nothing(tmp_path: Path) -> None:
    """Neither drift nor none, and exit code 0; the same for a small baseline."""
    few = incoming(tmp_path / "few", 29, 1, moved=9.0)
    found = drift(head(), few)
    assert (found.drifted, found.exit_code, found.findings) == (None, 0, ())
    assert str(found) == "Too few images to say anything: 29, and 30 are needed"
    found = drift(head(), incoming(tmp_path / "new", 90, 2), baseline=few)
    assert found.drifted is None
    assert str(found) == "Too few images in the baseline to say anything: 29, and 30 are needed"


def test_a_former_head_has_little_to_compare_with(tmp_path: Path) -> None:
    """Without reference and novelty nothing can be compared, which is no success; with a baseline
    it can.
    """
    old = Head(
        **{
            f: getattr(head(), f)
            for f in plain_head().__dataclass_fields__
            if f not in ("novelty", "reference", "conformal")
        }
    )
    new = incoming(tmp_path / "new", 100, 1)
    with pytest.raises(HeadError) as error:
        drift(old, new)
    assert error.value.exit_code == 7
    assert str(error.value) == (
        "the head was fitted by a former featpipe, which kept nothing to compare with: fit it "
        "again, or name images that were in order with --baseline"
    )
    found = drift(old, new, baseline=incoming(tmp_path / "before", 100, 2))
    assert [f.test for f in found.findings] == ["rates", "confidence", "vectors"]


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    """Vectors of another backbone are no drift."""
    X, _ = images(40, 1)
    other = card(12, "other", "ffff456789abcdef")
    store = make_store(tmp_path / "store", X, [None] * 40, backbone=other)
    with pytest.raises(FingerprintError, match="use a store of the head's backbone"):
        drift(head(), store)


def test_options_that_make_no_sense(tmp_path: Path) -> None:
    """Told before anything is read."""
    with pytest.raises(ValueError, match=r"^alpha must lie between 0 and 1, not 0$"):
        drift(head(), tmp_path, alpha=0)
    with pytest.raises(
        ValueError, match=r"^there is no test 'x': there are unknown, strangeness, "
    ):
        drift(head(), tmp_path, skip=["x"])


# --- files of scores --------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"threshold": 0.9, "top_k": 1}])
def test_scores_say_what_the_store_says(
    suffix: str, options: dict[str, object], tmp_path: Path
) -> None:
    """In every format, with withheld labels where the best are listed: all but the vectors."""
    store = incoming(tmp_path / "new", 120, 1, share=0.7)
    from_store = drift(head(), store, skip=["vectors"])
    found = drift(head(), scores(tmp_path / f"s.{suffix}", np.asarray(store.X), **options))
    assert found.left_out == (("vectors", "a file of scores has no vectors"),)
    assert found.notes == ("1 images failed and are left out",)
    assert (found.images, found.failed) == (120, 1)
    for mine, theirs in zip(found.findings, from_store.findings, strict=True):
        assert mine.test == theirs.test
        assert mine.p == pytest.approx(theirs.p, rel=1e-6)
        assert mine.effect == pytest.approx(theirs.effect, abs=1e-6)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_withheld_labels_leave_the_rates_out(suffix: str, tmp_path: Path) -> None:
    """A threshold without --top-k: the other tests are made."""
    X, _ = images(80, 1)
    path = scores(tmp_path / f"s.{suffix}", X, threshold=0.999999)
    found = drift(head(), path)
    assert dict(found.left_out)["rates"] == "labels are withheld"
    assert found.notes[1].endswith(
        " labels are withheld, and the rates of classes say nothing without them: score with "
        "--top-k 1"
    )
    assert [f.test for f in found.findings] == ["unknown", "strangeness", "confidence"]


def test_guarded_labels_are_those_of_the_head(tmp_path: Path) -> None:
    """A label that a spreadsheet would take for a formula, and one with a line break."""
    made = head()
    odd = Head(
        **{
            **{f: getattr(made, f) for f in made.__dataclass_fields__},
            "classes": ("=a", "b\n", "c"),
        }
    )
    rows = [Prediction(f"{i}.jpg", "ok", None, odd.classes[i % 3], 0.9) for i in range(90)]
    for suffix in ("csv", "jsonl", "parquet"):
        with (tmp_path / f"s.{suffix}").open("wb") as file, row_writer(file, suffix, 0) as write:
            write(rows)
        found = drift(odd, tmp_path / f"s.{suffix}")
        assert [f.test for f in found.findings] == ["rates", "confidence"]
        assert found.findings[0].effect < 0.1


HEADER = b"path,status,reason,label,probability,ood_p\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "s.csv",
            b"path,label\na,b\n",
            "is no output of `featpipe score`: it has no column 'status'",
        ),
        (
            "s.jsonl",
            b'{"status": "ok"}\n',
            "is no output of `featpipe score`: it has no column 'label'",
        ),
        ("s.csv", HEADER, "has no image with an answer: there is nothing to compare"),
        ("s.jsonl", b"", "has no image with an answer: there is nothing to compare"),
        (
            "s.csv",
            HEADER + b"a,ok,,a,1.5,0.5\n",
            "is no output of `featpipe score`: in its column 'probability' stands what is no "
            "number between 0 and 1",
        ),
        (
            "s.jsonl",
            b'{"status": "ok", "label": "a", "probability": null}\n',
            "is no output of `featpipe score`: in its column 'probability' stands what is no "
            "number between 0 and 1",
        ),
    ],
)
def test_files_that_are_no_scores(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    """Each says what is missing."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError) as error:
        drift(head(), tmp_path / name)
    assert str(error.value) == f"{tmp_path / name} {message}"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("s.csv", b"\xff\xfe\n"),
        ("s.csv", HEADER + b"a,ok,,a\n"),
        ("s.csv", HEADER + b"a,ok,,a,much,0.5\n"),
        ("s.jsonl", b"[1]\n"),
        ("s.jsonl", b'{"status": 1, "label": {}}\n'),
        ("s.jsonl", b'{"status": "ok", "label": null, "probability": 0.5, "top": [1]}\n'),
        ("s.jsonl", b"[" * 100_000),
        ("s.parquet", b"PAR1 no table"),
    ],
)
def test_damaged_files_are_named(name: str, content: bytes, tmp_path: Path) -> None:
    """Whatever goes wrong in reading them is one sentence with the file's name."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError) as error:
        drift(head(), tmp_path / name)
    assert str(error.value).startswith(f"cannot read {tmp_path / name}: ")
    assert "\n" not in str(error.value)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """Scores are read twice: what can be read once only is refused."""
    os.mkfifo(tmp_path / "s.csv")
    with pytest.raises(SourceError) as error:
        drift(head(), tmp_path / "s.csv")
    assert str(error.value) == (
        f"{tmp_path / 's.csv'} is a device or a pipe: write the scores into a file first"
    )


def test_labels_of_another_head_are_refused(tmp_path: Path) -> None:
    """The file does not say which head made it; its labels do."""
    (tmp_path / "s.csv").write_bytes(HEADER + b"a,ok,,zebra,0.5,0.5\n")
    with pytest.raises(LabelError) as error:
        drift(head(), tmp_path / "s.csv")
    assert str(error.value) == (
        f"{tmp_path / 's.csv'} has the label 'zebra', which the head does not know: give the head "
        "that scored these images"
    )


# --- the command ------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return head().save(tmp_path / "head")


def test_the_command_says_it_in_one_sentence(
    run_cli: Callable, saved: Path, tmp_path: Path
) -> None:
    """A table and a sentence; exit code 9 for drift, 0 without; notes go to stderr."""
    incoming(tmp_path / "moved", 100, 1, moved=3.0)
    result = run_cli("drift", saved, tmp_path / "moved")
    assert result.code == 9
    lines = result.out.splitlines()
    assert lines[0] == "test           effect  matters at  p, adjusted"
    assert lines[1].startswith("unknown ")
    assert lines[1].endswith("   drift")
    assert lines[-1].startswith(f"Drift: the 100 images of {tmp_path / 'moved'} are not like ")
    X, _ = images(100, 2)
    scores(tmp_path / "s.csv", X)
    result = run_cli("drift", saved, tmp_path / "s.csv", "--skip", "rates", "--alpha", "0.01")
    assert result.code == 0
    assert result.err == "Note: 1 images failed and are left out.\n"
    assert result.out.splitlines()[-4:] == [
        "rates        left out: as asked for",
        "vectors      left out: a file of scores has no vectors",
        "",
        f"No drift found in the 100 images of {tmp_path / 's.csv'}, beside the training images.",
    ]


def test_json_holds_all_of_it(run_cli: Callable, saved: Path, tmp_path: Path) -> None:
    """One document on stdout, plain values, and the same exit codes."""
    incoming(tmp_path / "moved", 100, 1, moved=3.0)
    result = run_cli("drift", saved, tmp_path / "moved", "--json")
    found = json.loads(result.out)
    assert (result.code, found["drift"], found["images"], found["failed"]) == (9, True, 100, 0)
    assert [test["test"] for test in found["tests"]] == list(TESTS)
    assert set(found["tests"][0]) == {
        "test",
        "p",
        "p_adjusted",
        "effect",
        "least",
        "alarm",
        "words",
    }
    incoming(tmp_path / "few", 5, 1)
    result = run_cli("drift", saved, tmp_path / "few", "--json")
    found = json.loads(result.out)
    assert (result.code, found["drift"], found["tests"]) == (0, None, [])


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("gone.csv", 4, "{} does not exist: name a store or a file of scores"),
        (
            "page.html",
            4,
            "{} is neither a store nor a file of scores: name a folder that `featpipe embed` has "
            "written, or a file that ends in .csv, .jsonl, .parquet",
        ),
        ("s.csv", 4, "{} knows no splits: leave out --split, or give the store"),
    ],
)
def test_what_cannot_be_read(
    run_cli: Callable, saved: Path, tmp_path: Path, name: str, code: int, message: str
) -> None:
    """One sentence on stderr."""
    for there in ("page.html", "s.csv"):
        (tmp_path / there).write_text("")
    result = run_cli("drift", saved, tmp_path / name, "--split", "test")
    assert result.code == code
    assert result.err == f"Error: {message.format(tmp_path / name)}\n"


def test_usage_errors(run_cli: Callable, saved: Path, tmp_path: Path) -> None:
    """Exit code 2, not 9."""
    for options in (["--alpha", "0"], ["--alpha", "nan"], ["--skip", "x"], ["--split", "x"]):
        assert run_cli("drift", saved, tmp_path, *options).code == 2


# --- what a head keeps for it -----------------------------------------------------------


def test_the_reference_is_short_and_comes_back() -> None:
    """Of many images quantiles; written and read."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet([1, 1, 1], 5000)
    found = reference_of(p)
    assert len(found.confidence) == MOST
    assert found.n_images == 5000
    assert how_much_lower(p.max(axis=1), np.array(found.confidence), 5000)[0] < 0.002
    assert Reference.read(json.loads(json.dumps(found.to_json())), 3) == found


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"counts": [1, 1], "confidence": []},
        {"counts": [1], "confidence": [0.5]},
        {"counts": [1, -1], "confidence": [0.5]},
        {"counts": [1, True], "confidence": [0.5]},
        {"counts": [0, 0], "confidence": [0.5]},
        {"counts": [1, 1], "confidence": [0.6, 0.5]},
        {"counts": [1, 1], "confidence": [0.6, 1.5]},
        {"counts": [1, 1], "confidence": [-0.1, 0.5]},
        {"counts": [1, 1], "confidence": [0.5, "x"]},
        {"counts": [1, 10**400], "confidence": [0.5]},
        {"counts": "11", "confidence": [0.5]},
    ],
)
def test_a_reference_that_is_amiss_is_not_read(value: object) -> None:
    """Whatever stands there, nothing but None comes of it."""
    assert Reference.read(value, 2) is None


def test_the_command_knows_the_tests() -> None:
    """Its help names them without loading any: the two lists are one."""
    from featpipe.commands.drift import _TESTS

    assert list(TESTS) == list(_TESTS)
