"""Fits in passes: the same minimum, a few blocks at a time, units whole, and what is said."""

from __future__ import annotations

import gc
import json
import re
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_solvers import SOLVERS, objective_of
from vectors import make_store

from featpipe import training
from featpipe._threads import Threads
from featpipe.errors import HeadError, LabelError, StoreError
from featpipe.heads import head_spec, load_head
from featpipe.model_selection import capacity, streaming, units_of
from featpipe.model_selection.holdout import draw
from featpipe.model_selection.streaming import scaling
from featpipe.solvers.linear import solve
from featpipe.solvers.path import FINAL
from featpipe.solvers.streaming import StreamedProblem, unread_blocks
from featpipe.store import EmbeddingStore
from featpipe.training import fit
from featpipe.types import Progress
from featpipe.vectors import StoredVectors

ROWS, COLUMNS, CLASSES = 3000, 40, 4
READ = (
    "3,000 vectors are 0.5 MB as float32: they are read from the store in each pass",
    "2,000 vectors are 0.3 MB as float32: they are read from the store in each pass",
)


def rows(n: int = ROWS, n_classes: int = CLASSES) -> tuple[np.ndarray, np.ndarray]:
    """Return float16 rows of overlapping classes, correlated and not negative, and classes."""
    rng = np.random.default_rng(0)
    y = rng.integers(n_classes, size=n)
    latent = rng.normal(size=(n, 12)) + rng.normal(size=(n_classes, 12))[y] * 0.8
    X = np.maximum(latent @ rng.normal(size=(12, COLUMNS)) + rng.normal(size=(n, COLUMNS)), 0)
    return X.astype(np.float16), y


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    """Seven parts, the last ones far larger than the first."""
    X, y = rows()
    made = make_store(
        tmp_path / "store",
        X,
        [f"c{k}" for k in y],
        splits=["train"] * 2000 + ["test"] * 1000,
        dtype="float16",
    )
    assert len(list((tmp_path / "store" / "parts").glob("*.npy"))) == 7
    return made


@pytest.mark.parametrize("head", SOLVERS)
@pytest.mark.parametrize("n_classes", [2, CLASSES])
def test_the_minimum_is_that_of_rows_in_memory(tmp_path: Path, head: str, n_classes: int) -> None:
    """From parts of float16, standardised on the way: the objective within 1e-4."""
    X, y = rows(n_classes=n_classes)
    made = make_store(tmp_path / "s", X, [f"c{k}" for k in y], dtype="float16")
    scaler = head_spec(head).scaler().fit(X.astype(np.float32))
    vectors, scale = StoredVectors(made, np.arange(ROWS)), scaling(scaler)
    loss = SOLVERS[head].loss(n_classes)
    read = lambda at: scale(vectors[at])  # noqa: E731
    blocks = unread_blocks(read, np.arange(ROWS), y, COLUMNS)
    with Threads(2) as pool:
        problem = StreamedProblem(blocks, read(np.arange(500)), y[:500], loss, n_classes, pool)
        start = np.zeros((COLUMNS + 1, loss.n_columns(n_classes)))
        W = problem.minimum(start, 0.01, precision=FINAL).W[0].astype(np.float64)
    in_memory = scaler.transform(X.astype(np.float32)).astype(np.float64)
    weights, intercept, _ = solve(in_memory, y, loss, 0.01)
    streamed = objective_of(head, W[:-1], W[-1], in_memory, y, 0.01)
    assert streamed == pytest.approx(
        objective_of(head, weights, intercept, in_memory, y, 0.01), rel=1e-4
    )


class _Counting(StoredVectors):
    """Counts the arrays that are alive at a time."""

    alive, most, lock = 0, 0, threading.Lock()

    def __getitem__(self, positions):
        vectors = super().__getitem__(positions)
        kind = type(self)
        with self.lock:
            kind.alive += 1
            kind.most = max(kind.most, kind.alive)
        weakref.finalize(vectors, self._gone)
        return vectors

    @classmethod
    def _gone(cls) -> None:
        with cls.lock:
            cls.alive -= 1


def test_few_blocks_are_alive_at_a_time(store: EmbeddingStore, monkeypatch) -> None:
    """Of a hundred blocks no more than threads and window hold, and the sample, are in memory."""
    monkeypatch.setattr(streaming, "ROWS", 20)
    monkeypatch.setattr("featpipe.solvers.streaming.ROWS", 20)
    monkeypatch.setattr("featpipe._machine.usable_cores", lambda: 2)
    monkeypatch.setattr(training, "StoredVectors", _Counting)
    monkeypatch.setattr(EmbeddingStore, "X", property(lambda _: pytest.fail("X was made")))
    fit(store, stream=True, cv=2)
    gc.collect()
    assert 0 < _Counting.most <= 1 + 2 * 4


def test_fits_agree_and_say_how_they_went(store: EmbeddingStore) -> None:
    """Both ways on the same split: accuracies within a point, each pass told, notes whole."""
    seen: list[Progress] = []
    passes = fit(store, stream=True, check=False, progress=seen.append)
    at_once = fit(store, stream=False, check=False)
    assert passes.metrics["accuracy"] == pytest.approx(at_once.metrics["accuracy"], abs=0.01)
    assert passes.metrics["method"] == "the split test, not used before"
    read, how = passes.report["notes"]
    assert read == READ[1]
    said = re.fullmatch(
        r"C was chosen on (\S+) images; (\S+) were fitted on, in (\S+) passes, until the loss of "
        r"(\d+) that are held out was that of the minimum",
        how,
    )
    assert said is not None
    n = int(said[2].replace(",", ""))
    assert (said[1], n + int(said[4])) == (said[2], 2000)
    assert n == pytest.approx(1900, abs=CLASSES)
    told = [p for p in seen if p.stage == "passes"]
    assert [p.done for p in told] == sorted({p.done for p in told})
    assert len(told) <= float(said[3])
    assert {(p.total, p.note[:-4]) for p in told} == {(None, f"{said[2]} images, held-out loss 0.")}
    assert at_once.report["notes"] == []


def test_without_a_split_images_are_held_out_once(tmp_path: Path) -> None:
    """The estimate's images are in no other step, so `evaluate` does not take them as seen."""
    X, y = rows()
    made = make_store(tmp_path / "s", X, [f"c{k}" for k in y], dtype="float16")
    head = fit(made, "svm", stream=True)
    n = head.metrics["n_samples"]
    assert head.metrics["method"] == f"{n} images held out, not used before"
    assert n == pytest.approx(ROWS / 10, abs=CLASSES)
    assert sum(head.class_counts) == head.report["data"]["images"] == ROWS - n
    assert len(head.report["data"]["keys"]) == ROWS - n


@pytest.mark.parametrize(
    ("images", "splits", "said"),
    [
        (
            2,
            ["train"] * 6 + ["test"] * 3,
            "no class has three distinct images or groups, so none can be held out to watch the "
            "passes: add images, or leave out --stream",
        ),
        (
            3,
            None,
            "no class has four distinct images or groups, so none can be held out for an estimate: "
            "put some into a split named test, or leave out --stream",
        ),
    ],
)
def test_too_few_images_to_hold_any_out_are_a_sentence(
    tmp_path: Path, images: int, splits: list[str] | None, said: str
) -> None:
    """Before anything is fitted."""
    X, _ = rows(9)
    y = np.tile(np.arange(3), 3) if splits else np.repeat(np.arange(3), images)
    made = make_store(tmp_path / "s", X, [f"c{k}" for k in y], splits=splits, dtype="float16")
    with pytest.raises(LabelError) as caught:
        fit(made, stream=True)
    assert str(caught.value) == said


def test_many_rows_have_a_part_before_all(store: EmbeddingStore, monkeypatch) -> None:
    """The table says on how many images each C was judged; the last is all, and is the head's."""
    monkeypatch.setattr(streaming, "SAMPLE_NUMBERS", 200 * COLUMNS)
    head = fit(store, stream=True)
    judged = [(e["images"], e["parameters"]) for e in head.report["tuning"] if "images" in e]
    sizes = [n for n, _ in judged]
    assert sizes[0] == pytest.approx((200 * 1900) ** 0.5, abs=CLASSES)
    assert set(sizes[:-1]) == {sizes[0]}
    assert judged[-1][0] == pytest.approx(1900, abs=CLASSES)
    assert judged[-1][1] == dict(head.parameters)


@pytest.mark.parametrize("method", ["auto", "sigmoid", "none"])
def test_the_rows_that_watch_serve_the_calibration(store: EmbeddingStore, method: str) -> None:
    """Divided by units once more; the head does what the report says."""
    head = fit(store, "svm", stream=True, cv=2, calibration=method)
    found = head.report["calibration"]
    assert found["method"] in {"auto": {"temperature", "sigmoid"}}.get(method, {method})
    assert head.calibrator.method == found["method"].replace("none", "temperature")
    assert found["after"]["log_loss"] == found["log_loss"][found["method"]]
    if method == "none":
        assert head.temperature == 1.0
        assert found["after"] == found["before"]
    elif method == "auto":
        assert found["after"]["log_loss"] < found["before"]["log_loss"]
    watching = head.report["tuning"][-1]
    if found["method"] == "temperature":
        assert found["after"]["log_loss"] == pytest.approx(watching["log_loss"], rel=0.1)


def test_default_parameters_are_taken_as_they_are(store: EmbeddingStore) -> None:
    """``tune=False`` fits all rows with the default C."""
    assert fit(store, stream=True, tune=False).parameters == {"C": 0.1}


def test_equal_seeds_give_equal_heads(store: EmbeddingStore) -> None:
    """To the last bit, whatever the threads do."""
    assert fit(store, stream=True, seed=3).digest == fit(store, stream=True, seed=3).digest


@given(st.data())
def test_units_are_drawn_whole(data: st.DataObject) -> None:
    """What is drawn and what is left share no unit; every class keeps some."""
    n = data.draw(st.integers(30, 80))
    of_rows = st.lists(st.integers(0, 2), min_size=n, max_size=n)
    y = np.unique(data.draw(of_rows), return_inverse=True)[1]
    units = np.array(data.draw(st.lists(st.integers(0, n), min_size=n, max_size=n)))
    drawn = draw(y, units, n // 4, 0, keep=1)
    rest = np.setdiff1d(np.arange(n), drawn)
    assert not set(units[drawn]) & set(units[rest])
    assert set(y[rest]) == set(y)


def test_every_class_is_drawn_in_its_share() -> None:
    """A rare class has its least number, the others a tenth."""
    y = np.repeat([0, 1, 2], [600, 390, 10])
    counts = np.bincount(y[draw(y, np.arange(1000), 100, 0, least=4)])
    assert counts.tolist() == [60, 39, 4]


def test_a_class_that_stands_first_in_no_unit_is_drawn() -> None:
    """Groups of mixed labels: some of every class is there, whatever the share."""
    y, units = np.tile([0, 1, 2], 100), np.repeat(np.arange(100), 3)
    drawn = draw(y, units, 3, 0, least=2)
    assert set(y[drawn]) == {0, 1, 2}
    y = np.where(units < 95, y % 2, y)
    assert set(y[draw(y, units, 3, 0, least=2)]) == {0, 1, 2}


def test_units_of_long_keys_are_those_of_short_ones() -> None:
    """Keys as two numbers, or as text: equal keys and groups make the same units."""
    names = [1, 2, 1, 3, 4, 2]
    long, short = ([bytes([k]) * size for k in names] for size in (16, 1))
    for groups in (None, np.array(["a", None, None, "a", "b", None], dtype=object)):
        assert units_of(long, groups).tolist() == units_of(short, groups).tolist()
    assert units_of(long[:2]).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("head", "available", "wanted", "expected"),
    [
        ("logreg", 17_000, None, False),
        ("logreg", 15_999, None, True),
        ("svm", 0, False, False),
        ("svm", 10**9, True, True),
        ("ridge", 24_000, None, False),
        ("ridge", 0, False, False),
        ("knn", 0, False, False),
    ],
)
def test_size_decides_unless_the_user_does(head, available, wanted, expected) -> None:
    """Four times 100 vectors of 10 numbers are 16,000 bytes."""
    assert capacity.streams(head_spec(head), 100, 10, available, wanted) is expected


def test_what_is_strange_is_known_as_from_a_fit_in_memory(store: EmbeddingStore) -> None:
    """It is made of the vectors that were learnt on, whichever way they were read."""
    passes, memory = (
        fit(store, stream=stream, tune=False, check=False) for stream in (True, False)
    )
    assert passes.novelty is not None
    assert memory.novelty is not None
    assert passes.novelty.digest == memory.novelty.digest


def test_other_heads_are_told_what_to_do(store: EmbeddingStore, monkeypatch) -> None:
    """A sentence before anything is read, in place of a MemoryError."""
    with pytest.raises(HeadError) as caught:
        fit(store, "ridge", stream=True)
    assert str(caught.value) == (
        "ridge cannot be fitted in passes over a store: take --head logreg or svm, or leave out "
        "--stream"
    )
    monkeypatch.setattr(training, "available_memory", lambda: 600_000)
    with pytest.raises(HeadError) as caught:
        fit(store, "lda")
    assert str(caught.value) == (
        "lda needs all 2,000 vectors in memory at once, 0.6 MB with its copies of "
        "them, and 0.6 MB are free: take --head logreg or svm, which read them from the store in "
        "each pass, fit on fewer images, or try it all the same with --no-stream"
    )
    assert fit(store).report["notes"][0] == READ[1]


def test_a_vector_that_is_not_finite_is_named(tmp_path: Path) -> None:
    """In passes, too; all of them are counted."""
    X, y = rows()
    X[[77, 2900], 3] = np.inf
    made = make_store(tmp_path / "s", X, [f"c{k}" for k in y], dtype="float16")
    with pytest.raises(StoreError) as caught:
        fit(made, stream=True)
    assert str(caught.value) == (
        f"the vector of 00077.jpg in {tmp_path}/s holds NaN or infinity (2 vectors do): embed "
        "again with --dtype float32 into a new store, or take the image out"
    )


def test_the_command_says_how_vectors_are_read(store: EmbeddingStore, run_cli, tmp_path) -> None:
    """At once, on stderr; the figures are on stdout as ever."""
    result = run_cli("fit", store.path, "--stream", "-o", tmp_path / "head", "--json")
    assert result.code == 0
    said = result.err.splitlines()
    assert said[0] == f"{READ[1]}."
    assert json.loads(result.out)["notes"][0] == READ[1]


def test_an_interrupt_leaves_the_head_that_was_there(
    store: EmbeddingStore, run_cli, tmp_path, monkeypatch
) -> None:
    """Ctrl-C in the third pass: exit code 130, and the old head as it was."""
    folder = tmp_path / "head"
    assert run_cli("fit", store.path, "--head", "centroid", "-o", folder).code == 0
    before, files = load_head(folder).digest, sorted(folder.iterdir())

    def interrupt(_: object, done: int, note: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(training._Training, "_tell_pass", interrupt)
    result = run_cli("fit", store.path, "--stream", "-o", folder)
    assert (result.code, result.out) == (130, "")
    assert load_head(folder).digest == before
    assert sorted(folder.iterdir()) == files
