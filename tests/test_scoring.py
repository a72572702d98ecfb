"""Scoring: a row for every image in every format, and runs that go on after anything."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import PHOTOS, build_tiny_backbone
from hypothesis import given
from hypothesis import strategies as st

from featpipe import embed, fit, load_backbone, load_head, score
from featpipe._files import escape_path, guard_cell, lock, unescape_path, unguard_cell
from featpipe.embedding import stream
from featpipe.embedding.engines import LocalEngine
from featpipe.errors import (
    BackboneError,
    FingerprintError,
    HeadError,
    LockedError,
    SourceError,
    TooManyFailuresError,
    WriteError,
)
from featpipe.scoring import Prediction, ScoreSummary, predictions
from featpipe.scoring.formats import format_of, row_writer
from featpipe.scoring.predict import Rule, predict
from featpipe.scoring.prediction import decide
from featpipe.sources import open_source
from featpipe.types import Progress

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def head_folder(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head for the two classes of `photos`, saved."""
    root = tmp_path_factory.mktemp("head")
    for path in PHOTOS.glob("*.jpg"):
        for copy in range(3):
            folder = root / "train" / ("a" if path.stem in {"cat", "grass", "retina"} else "b")
            folder.mkdir(parents=True, exist_ok=True)
            # A byte more at the end gives another content that decodes to the same picture.
            (folder / f"{path.stem}{copy}.jpg").write_bytes(path.read_bytes() + bytes(copy))
    store = embed(root / "train", tiny_backbone, output=root / "store")
    fit(store, "centroid").save(root / "head")
    return root / "head"


@pytest.fixture(autouse=True)
def _models(tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny backbone is found by its name."""
    monkeypatch.setenv("FEATPIPE_MODELS", str(tiny_backbone.parent))


@pytest.fixture
def broken(photos: Path) -> Path:
    """`photos` with a truncated image and a link that leads nowhere."""
    whole = (photos / "living" / "cat.jpg").read_bytes()
    (photos / "living" / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "things" / "gone.jpg").symlink_to("/nowhere.jpg")
    return photos


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """120 small images."""
    folder = tmp_path / "many"
    folder.mkdir()
    for i, path in zip(range(120), sorted(PHOTOS.glob("*.jpg")) * 12, strict=True):
        shutil.copy(path, folder / f"{i:04d}.jpg")
    return folder


@pytest.fixture
def run(head_folder: Path, tmp_path: Path) -> Callable[..., ScoreSummary]:
    """Return a function that scores into one file."""

    def go(source: object, name: str = "out.csv", **options: object) -> ScoreSummary:
        return score(source, head_folder, output=tmp_path / name, batch_size=4, **options)

    return go


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def listed(folder: Path) -> list[str]:
    return [ref.path for ref in open_source(folder)]


def start(*args: object, **options: object) -> subprocess.Popen[bytes]:
    """Start ``featpipe score ARGS`` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, REPOSITORY / "cli.py", "score", *map(str, args), "--workers", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def test_a_row_for_every_image_in_order(run, broken: Path, tmp_path: Path) -> None:
    """Good and failed images stand in the order of the source, with status and reason."""
    summary = run(broken)
    rows = read_csv(tmp_path / "out.csv")
    assert [row["path"] for row in rows] == listed(broken)
    assert list(rows[0]) == ["path", "status", "reason", "label", "probability", "ood_p"]
    failed = [row for row in rows if row["status"] != "ok"]
    assert [(row["path"], row["status"]) for row in failed] == [
        ("living/half.jpg", "undecodable"),
        ("things/gone.jpg", "unreadable"),
    ]
    assert failed[1]["reason"] == "the link leads nowhere (No such file or directory)"
    assert {row["label"] + row["probability"] for row in failed} == {""}
    good = [row for row in rows if row["status"] == "ok"]
    assert {row["label"] for row in good} == {"a", "b"}
    assert all(0.5 <= float(row["probability"]) <= 1 for row in good)
    assert (summary.images, summary.ok, summary.uncertain, summary.failed) == (12, 10, 0, 2)
    assert summary.exit_code == 3
    assert [row.path for row in summary.failures] == ["living/half.jpg", "things/gone.jpg"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.csv", "photos"]


def test_formats_agree(run, broken: Path, tmp_path: Path) -> None:
    """CSV, JSON lines and Parquet hold the same rows, and the iterator yields them."""
    for suffix in ("csv", "jsonl", "parquet"):
        assert run(broken, f"out.{suffix}", top_k=5).exit_code == 3
    table = pq.read_table(tmp_path / "out.parquet").to_pylist()
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == table
    rows = read_csv(tmp_path / "out.csv")
    for cells, row in zip(rows, table, strict=True):
        assert [cells["path"], cells["status"]] == [row["path"], row["status"]]
        assert cells["reason"] == (row["reason"] or "")
        assert cells["label"] == (row["label"] or "")
        # Two classes: more than there are cannot be listed.
        assert "top3_label" not in cells
        tops = [
            {"label": cells[f"top{i}_label"], "probability": float(cells[f"top{i}_probability"])}
            for i in (1, 2)
            if cells[f"top{i}_label"]
        ]
        assert tops == row["top"]
    assert len(table[0]["top"]) == 2
    assert table[0]["top"][0] == {k: table[0][k] for k in ("label", "probability")}


def test_predictions_without_an_output(head_folder: Path, broken: Path, tmp_path: Path) -> None:
    """Without an output nothing is written; summary and iterator give the same records."""
    before = sorted(tmp_path.rglob("*"))
    summary = score(broken, load_head(head_folder), top_k=1)
    assert list(predictions(broken, head_folder, top_k=1)) == list(summary.predictions)
    assert [row.path for row in summary.predictions] == listed(broken)
    assert summary.output is None
    assert sorted(tmp_path.rglob("*")) == before
    good = next(row for row in summary.predictions if row.status == "ok")
    assert good.top == ((good.label, good.probability),)


def test_newest_head_is_the_default(
    head_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a head, the newest under heads/ is taken."""
    shutil.copytree(head_folder, tmp_path / "heads" / "mine")
    monkeypatch.chdir(tmp_path)
    assert score(photos).ok == 10


def test_threshold_withholds_the_label(
    run, head_folder: Path, photos: Path, tmp_path: Path
) -> None:
    """Below the threshold: no label, status uncertain, the probability stays; no failure."""
    probabilities = sorted(row.probability for row in predictions(photos, head_folder))
    middle = (probabilities[4] + probabilities[5]) / 2
    summary = run(photos, threshold=middle, top_k=1)
    rows = read_csv(tmp_path / "out.csv")
    uncertain = [row for row in rows if row["status"] == "uncertain"]
    assert len(uncertain) == 5
    assert (summary.ok, summary.uncertain, summary.failed, summary.exit_code) == (5, 5, 0, 0)
    for row in uncertain:
        assert row["label"] == ""
        assert row["reason"] == f"the best probability is below the threshold {middle:g}"
        assert row["top1_label"] in {"a", "b"}
        assert row["top1_probability"] == row["probability"]


def test_reject_withholds_the_label_of_strange_images(
    run, head_folder: Path, photos: Path, tmp_path: Path
) -> None:
    """Stranger than asked for: no label, status unknown, before uncertain; no failure."""
    values = sorted({row.ood_p for row in predictions(photos, head_folder)})
    middle = (values[len(values) // 2] + values[len(values) // 2 - 1]) / 2
    summary = run(photos, reject=middle, threshold=1, top_k=1)
    rows = read_csv(tmp_path / "out.csv")
    unknown = [row for row in rows if row["status"] == "unknown"]
    assert 0 < len(unknown) < 10
    assert (summary.unknown, summary.uncertain) == (len(unknown), 10 - len(unknown))
    assert (summary.ok, summary.failed, summary.exit_code) == (0, 0, 0)
    assert str(summary).startswith(f"10 images: {len(unknown)} unknown, {10 - len(unknown)} uncer")
    for row in rows:
        assert (float(row["ood_p"]) < middle) == (row["status"] == "unknown")
    for row in unknown:
        share = 100 * float(row["ood_p"])
        assert row["reason"] == (
            f"it is unlike the training images: {share:.2g} % of them look as strange"
        )
        assert row["label"] == ""
        assert row["top1_probability"] == row["probability"]


def test_strangeness_is_that_of_the_head(head_folder: Path, photos: Path, tiny_backbone) -> None:
    """``ood_p`` is what `Head.ood_p_values` says of the image's vector, to six decimals."""
    store = embed(photos, tiny_backbone, output=photos.parent / "store")
    found = load_head(head_folder).ood_p_values(store.X)
    rows = list(predictions(photos, head_folder))
    assert [row.ood_p for row in rows] == [round(p, 6) for p in found.tolist()]


def test_a_head_that_cannot_tell_leaves_the_column_empty(
    head_folder: Path, photos: Path, tmp_path: Path
) -> None:
    """One of a former featpipe: empty cells, nulls; asked to reject, it says what to do."""
    former = replace(load_head(head_folder), novelty=None)
    for suffix in ("csv", "jsonl", "parquet"):
        assert score(photos, former, output=tmp_path / f"out.{suffix}").ok == 10
    assert {row["ood_p"] for row in read_csv(tmp_path / "out.csv")} == {""}
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert {json.loads(line)["ood_p"] for line in lines} == {None}
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.field("ood_p").type == "double"
    assert table.column("ood_p").null_count == 10
    with pytest.raises(HeadError) as error:
        score(photos, former, reject=0.1)
    assert str(error.value) == (
        "the head cannot tell unknown images: it was fitted by a former featpipe, or on classes "
        "of a single image or group each; fit the head again"
    )


@pytest.mark.parametrize("reject", [0, 1e-3])
def test_what_would_reject_nothing_is_refused(head_folder: Path, photos: Path, reject) -> None:
    """Fewer images than the share asks for: the smallest that there is, is said."""
    head = load_head(head_folder)
    assert head.novelty is not None
    n = len(head.novelty.calibration)
    with pytest.raises(HeadError) as error:
        score(photos, head, reject=reject)
    assert str(error.value) == (
        f"below {reject:g} no image can be rejected: the head compares each with {n} training "
        f"images, and the smallest share is {1 / (n + 1):.2g}; reject at more than that, or fit "
        "on more images"
    )


def test_equal_probabilities_give_the_first_class() -> None:
    """Of equal classes the first one wins; probabilities have six decimals."""
    row = decide("x", np.array([1 / 3, 1 / 3, 1 / 3]), ["c", "a", "b"], top_k=2, threshold=1 / 3)
    assert row == Prediction("x", "ok", None, "c", 0.333333, (("c", 0.333333), ("a", 0.333333)))


def test_progress_is_told(run, broken: Path) -> None:
    """The callback hears of every batch; the total is not known while listing is under way."""
    heard: list[Progress] = []
    run(broken, progress=heard.append)
    assert [p.done for p in heard] == [4, 8, 12]
    assert heard[-1] == Progress(12, None, failed=2, stage="scoring")


def test_summary_is_one_line(run, broken: Path, photos: Path, tmp_path: Path) -> None:
    """The summary has counts, time and place; what is zero is left out."""
    line = str(run(broken))
    assert line.startswith("12 images: 10 ok, 2 failed; ")
    assert line.endswith(f" → {tmp_path / 'out.csv'}")
    nothing = ScoreSummary("out.csv", 3, 1, 2, 0, 3, 0.0, "cpu")
    assert str(nothing) == (
        "3 images: 1 ok, 2 uncertain, 3 taken over from an interrupted run; 0.0 s → out.csv"
    )


# --- what does not fit together ---------------------------------------------------------


def test_another_backbone_is_refused(
    run, photos: Path, tmp_path: Path, tiny_backbone: Path
) -> None:
    """A backbone with another fingerprint is refused before anything is written; both named."""
    other = tmp_path / "other.onnx"
    build_tiny_backbone(other, "other", 1 / 127)
    mine, its = load_backbone(tiny_backbone), load_backbone(other)
    with pytest.raises(FingerprintError) as error:
        run(photos, model=other)
    assert str(error.value) == (
        f"the head was fitted on vectors of tiny ({mine.fingerprint[:12]}), not of other "
        f"({its.fingerprint[:12]}, {other}): give the backbone that it was fitted on with "
        "--model, or fit a head on this one"
    )
    assert run(photos, model=tiny_backbone).ok == 10
    assert run(photos, model=mine).ok == 10


def test_backbone_that_is_not_here(run, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the head's backbone has no file of its name, the message asks for --model."""
    monkeypatch.delenv("FEATPIPE_MODELS")
    with pytest.raises(BackboneError) as error:
        run(photos)
    assert str(error.value).startswith(
        "the backbone of the head cannot be had by its name: there is no backbone 'tiny': "
    )
    assert str(error.value).endswith(". Name its file with --model")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": -1}, "top_k must be 0 or more, not -1"),
        ({"threshold": 1.5}, "threshold must lie between 0 and 1, not 1.5"),
        ({"reject": -0.1}, "reject must lie between 0 and 1, not -0.1"),
        ({"reject": float("nan")}, "reject must lie between 0 and 1, not nan"),
        ({"format": "xlsx"}, "there is no format 'xlsx': use csv, jsonl or parquet"),
    ],
)
def test_options_that_make_no_sense(run, photos: Path, options: dict, message: str) -> None:
    """A wrong option is a ValueError with the value found."""
    with pytest.raises(ValueError, match=f"^{message}$"):
        run(photos, **options)


def test_format_of_an_output() -> None:
    """The suffix tells the format, unless one is asked for; standard output is CSV."""
    assert [format_of(n) for n in ("a.CSV", "a.b.jsonl", "-")] == ["csv", "jsonl", "csv"]
    assert format_of("a.txt", "parquet") == "parquet"
    with pytest.raises(ValueError, match=r"^the name a\.txt does not tell the format: "):
        format_of("a.txt")
    with pytest.raises(ValueError, match=r"^Parquet cannot be written line by line"):
        format_of("-", "parquet")


def test_empty_source(run, tmp_path: Path) -> None:
    """A folder without images is an error that says what was left out; nothing is written."""
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("none")
    with pytest.raises(SourceError) as error:
        run(empty)
    assert str(error.value) == (
        f"there is no image in {empty} (left out 1 files whose suffix is not an image's: 1 .txt): "
        "give a folder with images, a table of paths, or an image file"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


def test_output_that_is_a_folder(run, photos: Path, tmp_path: Path) -> None:
    """A folder in the output's place is refused at once."""
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(WriteError) as error:
        run(photos)
    assert str(error.value) == (
        f"cannot write {tmp_path / 'out.csv'}: it is a folder; name a file with -o"
    )


def test_journal_that_cannot_be_written(run, photos: Path, tmp_path: Path) -> None:
    """Where the journal cannot be opened, the message names it."""
    (tmp_path / "out.csv.partial").mkdir()
    with pytest.raises(WriteError, match=r"^cannot write .*out\.csv\.partial: Is a directory$"):
        run(photos)


def test_vectors_that_are_not_finite(photos: Path, tmp_path: Path) -> None:
    """The head never sees NaN: such an image is a failed row, the others are scored."""

    class Picky:
        def predict_proba(self, X):
            assert np.isfinite(X).all()
            return np.tile([0.25, 0.75], (len(X), 1))

    # Infinity times black is NaN, times any other colour infinity.
    build_tiny_backbone(tmp_path / "infinite.onnx", scale=float("inf"))
    backbone = load_backbone(tmp_path / "infinite.onnx")
    source = open_source(photos)
    rule = Rule(("a", "b"), 0, None)
    embedded = stream(source, source, backbone, backbone.open_session("cpu"))
    batches = predict(embedded, Picky(), rule)
    rows = [row for batch in batches for row in batch.rows]
    assert len(rows) == 10
    assert {(row.status, row.reason) for row in rows} == {
        ("unscorable", "the backbone gave a vector that is not finite")
    }
    assert all(row.failed for row in rows)


# --- names and labels from strangers ------------------------------------------------------

ODD = (
    "=cmd|' !A0.jpg",
    "+1.jpg",
    "-1.jpg",
    "@sum.jpg",
    "'quoted'.jpg",
    'a"b,c;d.jpg',
    "line\nbreak\r.jpg",
    "\ttab.jpg",
    "caf\udce9.jpg",
    "back\\xe9.jpg",
    "日本.jpg",
)


def test_odd_names_survive_in_every_format(run, photos: Path, tmp_path: Path) -> None:
    """Every name can be read back from every format, and no cell of the CSV is a formula."""
    for name in ODD:
        shutil.copy(photos / "living" / "cat.jpg", photos / name)
    for suffix in ("csv", "jsonl", "parquet"):
        run(photos, f"out.{suffix}")
    cells = [row["path"] for row in read_csv(tmp_path / "out.csv")]
    assert not [cell for cell in cells if cell[0] in "=+-@\t\r\n"]
    texts = [
        [unguard_cell(cell) for cell in cells],
        [
            json.loads(t)["path"]
            for t in (tmp_path / "out.jsonl").read_text("utf-8").split("\n")[:-1]
        ],
        pq.read_table(tmp_path / "out.parquet").column("path").to_pylist(),
    ]
    for paths in texts:
        assert [unescape_path(path) for path in paths] == listed(photos)


text = st.text(
    st.one_of(st.sampled_from("=+-@'\"\t\r\n,;\\x"), st.characters(exclude_categories=["Cs"])),
    max_size=12,
)
names = st.builds("{}{}".format, text, st.sampled_from(["", "\udce9", "\udc80x"]))


@given(st.lists(st.tuples(names, text, text), max_size=5))
def test_csv_gives_back_what_it_was_given(rows: list[tuple[str, str, str]]) -> None:
    """Any path, reason and label can be read back from the CSV; none begins like a formula."""
    file = io.BytesIO()
    with row_writer(file, "csv", 1) as write:
        write([Prediction(p, "ok", r, la, 0.5, ((la, 0.5),)) for p, r, la in rows])
    read = list(csv.DictReader(io.StringIO(file.getvalue().decode("utf-8"), newline="")))
    assert [
        (
            unescape_path(unguard_cell(c["path"])),
            unguard_cell(c["reason"]),
            unguard_cell(c["label"]),
        )
        for c in read
    ] == rows
    assert [unguard_cell(c["top1_label"]) for c in read] == [label for _, _, label in rows]
    for cells in read:
        assert not any(cell.lstrip()[:1] in set("=+-@") for cell in cells.values() if cell)


@given(names, text)
def test_jsonl_and_parquet_give_back_what_they_were_given(path: str, label: str) -> None:
    """Any path and label can be read back from JSON lines and from Parquet."""
    row = Prediction(path, "ok", None, label, 0.25, ((label, 0.25),), 0.125)
    line, table = io.BytesIO(), io.BytesIO()
    with row_writer(line, "jsonl", 1) as write:
        write([row])
    with row_writer(table, "parquet", 1) as write:
        write([row])
    expected = {
        "path": escape_path(path),
        "status": "ok",
        "reason": None,
        "label": label,
        "probability": 0.25,
        "ood_p": 0.125,
        "top": [{"label": label, "probability": 0.25}],
    }
    assert json.loads(line.getvalue()) == expected
    assert pq.read_table(io.BytesIO(table.getvalue())).to_pylist() == [expected]


def test_a_surrogate_that_no_file_system_made(run, photos: Path, tmp_path: Path) -> None:
    """A path that is no path at all is a failed row, in every format."""
    for suffix in ("csv", "jsonl", "parquet"):
        summary = run([photos / "living" / "cat.jpg", "bad\ud800.jpg"], f"out.{suffix}")
        assert (summary.ok, summary.failed) == (1, 1)
    assert (tmp_path / "out.csv").read_bytes().count(b"bad\\ud800.jpg,unreadable,") == 1


def test_guard_is_for_what_needs_it() -> None:
    """Full-width forms and leading spaces are seen through; plain names stay as they are."""
    assert [guard_cell(t) for t in ("", "a-b.jpg", " a", "\uff1d1", "  =1", "''")] == [
        "",
        "a-b.jpg",
        " a",
        "'\uff1d1",
        "'  =1",
        "'''",
    ]


# --- interruptions ------------------------------------------------------------------------


def stop_after(batches: int) -> Callable[[Progress], None]:
    """Return a callback that interrupts a run once so many batches of four are done."""

    def callback(progress: Progress) -> None:
        if progress.done > 4 * batches:
            raise KeyboardInterrupt

    return callback


def journal_rows(path: Path) -> int:
    """Whole rows in a journal, without its first line."""
    return max(path.read_bytes().count(b"\n") - 1, 0) if path.exists() else 0


def test_interrupted_run_goes_on(run, many: Path, tmp_path: Path) -> None:
    """What was finished is not opened again, and the output is that of an unbroken run."""
    run(many, "whole.csv")
    with pytest.raises(KeyboardInterrupt):
        run(many, progress=stop_after(10))
    assert not (tmp_path / "out.csv").exists()
    assert journal_rows(tmp_path / "out.csv.partial") == 40
    opened: list[str] = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    summary = run(many)
    images = [path for path in opened if path.startswith(str(many))]
    assert (summary.images, summary.ok, summary.resumed) == (120, 120, 40)
    assert len(images) == 80
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not (tmp_path / "out.csv.partial").exists()
    assert run(many).resumed == 0


def test_kill_at_random_moments(run, many: Path, head_folder: Path, tmp_path: Path) -> None:
    """`kill -9` at any moment, a torn line too: the last run's output is an unbroken run's."""
    run(many, "whole.jsonl", top_k=2)
    output = tmp_path / "out.jsonl"
    partial = tmp_path / "out.jsonl.partial"
    chance = random.Random(7)
    kills = 0
    for _ in range(6):
        enough = journal_rows(partial) + chance.randrange(1, 12)
        process = start(many, "--head", head_folder, "-o", output, "--batch-size", 4, "--top-k", 2)
        while process.poll() is None and journal_rows(partial) < enough:
            time.sleep(0.001)
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if partial.exists() and chance.random() < 0.5:
            os.truncate(partial, partial.stat().st_size - chance.randrange(1, 40))
    assert kills >= 4
    assert not output.exists()
    before = journal_rows(partial)
    assert before
    summary = run(many, "out.jsonl", top_k=2)
    assert summary.resumed == before - before % 4
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_ctrl_c_ends_with_130(many: Path, head_folder: Path, tmp_path: Path, run) -> None:
    """Ctrl-C ends the command with code 130 and one line; the next run goes on."""
    partial = tmp_path / "out.csv.partial"
    process = start(many, "--head", head_folder, "-o", tmp_path / "out.csv", "--batch-size", 4)
    while process.poll() is None and journal_rows(partial) < 8:
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert err.decode() == (
        "\nInterrupted. What was finished is kept; the same command goes on from there.\n"
    )
    assert run(many).resumed >= 8


def test_full_disk_keeps_the_journal(run, many: Path, head_folder: Path, tmp_path: Path) -> None:
    """A disk that is full ends the run with code 8; with space again, the next run goes on."""
    output = tmp_path / "out.csv"
    process = start(
        *(many, "--head", head_folder, "-o", output, "--batch-size", 4),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)),
    )
    _, err = process.communicate()
    assert process.returncode == 8
    assert err.decode() == (
        f"Error: cannot write {output}.partial: the system's limit on file sizes is reached: "
        "raise it (ulimit -f) and run again\n"
    )
    assert not output.exists()
    assert (tmp_path / "out.csv.partial").stat().st_size == 8192
    summary = run(many)
    assert summary.resumed > 8
    assert len(read_csv(output)) == 120


def test_only_what_fits_the_listing_is_taken_over(run, many: Path) -> None:
    """From the first image that has changed on, rows are computed anew."""
    with pytest.raises(KeyboardInterrupt):
        run(many, progress=stop_after(10))
    shutil.copy(PHOTOS / "cat.jpg", many / "0021.jpg")
    assert run(many).resumed == 20


def test_shorter_listing(run, many: Path, tmp_path: Path) -> None:
    """Where the source has fewer images than the journal, the journal's others are dropped."""
    with pytest.raises(KeyboardInterrupt):
        run(many, progress=stop_after(10))
    for path in sorted(many.iterdir())[10:]:
        path.unlink()
    summary = run(many)
    assert (summary.images, summary.resumed) == (10, 8)
    assert len(read_csv(tmp_path / "out.csv")) == 10


def test_unreadable_images_at_the_end_are_tried_again(run, many: Path) -> None:
    """A disk that went away while a run was on does not leave failures behind."""
    paths = [many / f"{i:04d}.jpg" for i in range(24)]
    for path in [paths[2], *paths[12:]]:
        path.rename(path.with_suffix(".away"))
    with pytest.raises(TooManyFailuresError) as error:
        run(paths, max_failures=6)
    assert str(error.value) == (
        "stopped after 9 failures, as no more than 6 are allowed, among them "
        f"{paths[19]}: No such file or directory; what was finished is kept"
    )
    for path in paths[12:]:
        path.with_suffix(".away").rename(path)
    summary = run(paths, max_failures=6)
    assert (summary.images, summary.failed, summary.resumed) == (24, 1, 12)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"top_k": 1}, "top-k"),
        ({"threshold": 0.5, "top_k": 2}, "top-k, threshold"),
        ({"reject": 0.5}, "reject"),
    ],
)
def test_journal_of_other_options_is_not_used(
    run, many: Path, tmp_path: Path, options: dict, named: str
) -> None:
    """Rows that were made with other options are not mixed in; the summary says so."""
    with pytest.raises(KeyboardInterrupt):
        run(many, progress=stop_after(3))
    summary = run(many, **options)
    assert summary.resumed == 0
    (note,) = summary.notes
    assert note == (
        f"{tmp_path / 'out.csv.partial'}, left by an interrupted run, belongs to a run with "
        f"another {named}: all images are scored anew"
    )


def test_a_journal_of_other_known_images_is_not_used(
    run, head_folder: Path, many: Path, tmp_path: Path
) -> None:
    """The labels would be the same, what is strange would not: that is another head."""
    with pytest.raises(KeyboardInterrupt):
        run(many, progress=stop_after(3))
    head = load_head(head_folder)
    assert head.novelty is not None
    other = replace(head, novelty=replace(head.novelty, calibration=np.array([0.0])))
    assert other.digest == head.digest
    summary = score(many, other, output=tmp_path / "out.csv", batch_size=4)
    assert summary.resumed == 0
    assert summary.notes[0].endswith(
        "belongs to a run with another head: all images are scored anew"
    )


def test_a_rejecting_run_goes_on_where_it_was(run, many: Path, tmp_path: Path) -> None:
    """Rows of unknown images are taken over as any others are."""
    run(many, "whole.jsonl", reject=1)
    assert b'"unknown"' in (tmp_path / "whole.jsonl").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        run(many, "out.jsonl", reject=1, progress=stop_after(10))
    summary = run(many, "out.jsonl", reject=1)
    assert (summary.resumed, summary.ok + summary.unknown) == (40, 120)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_journal_of_a_former_featpipe_goes_on(head_folder: Path, many: Path, tmp_path) -> None:
    """Its rows have no ``ood_p``: with a head that cannot tell, that is what they would say."""
    former = replace(load_head(head_folder), novelty=None)

    def go(**options: object) -> ScoreSummary:
        return score(many, former, output=tmp_path / "out.csv", batch_size=4, **options)

    with pytest.raises(KeyboardInterrupt):
        go(progress=stop_after(10))
    partial = tmp_path / "out.csv.partial"
    lines = [json.loads(line) for line in partial.read_text().splitlines()]
    for line in lines:
        line.pop("ood_p", None)
        line.pop("reject", None)
    partial.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert go().resumed == 40


@pytest.mark.parametrize("content", [b"", b"\0" * 100_000, b"[]\n", b'{"featpipe_score": 2}\n'])
def test_damaged_journal_is_begun_anew(run, photos: Path, tmp_path: Path, content: bytes) -> None:
    """A journal that is none, or from another featpipe, is replaced."""
    (tmp_path / "out.csv.partial").write_bytes(content)
    summary = run(photos)
    assert (summary.ok, summary.resumed) == (10, 0)
    said = f"{tmp_path / 'out.csv.partial'}, left by an interrupted run, is damaged: all images"
    assert summary.notes == ((f"{said} are scored anew",) if content else ())


@pytest.mark.parametrize(
    "line",
    [
        b'{"path": 1, "status": "ok", "reason": null, "label": "b", "probability": 1.0}\n',
        b'{"path":"a","status":"x","reason":null,"label":null,"probability":null,"top":[]}\n',
        b"\0\0\0\n",
        b"{}\n",
        b'{"status": "ok"}\n',
        b'{"status": [1], "top": 1}\n',
    ],
)
def test_damaged_row_ends_what_is_taken_over(run, many: Path, tmp_path: Path, line: bytes) -> None:
    """Rows count up to the first one that is damaged."""
    with pytest.raises(KeyboardInterrupt):
        run(many, progress=stop_after(10))
    partial = tmp_path / "out.csv.partial"
    lines = partial.read_bytes().splitlines(keepends=True)
    lines[18] = line
    partial.write_bytes(b"".join(lines))
    assert run(many).resumed == 16


def test_two_writers_at_once(run, photos: Path, tmp_path: Path) -> None:
    """Whoever comes second is told so, and the first one's work is not touched."""
    output = tmp_path / "out.csv"
    with (
        lock(tmp_path / ".out.csv.lock", what="test"),
        pytest.raises(LockedError) as error,
    ):
        run(photos)
    assert str(error.value) == (
        f"{output} is being written by another process: wait until it has finished, "
        "or give another place with -o"
    )
    assert not output.exists()
    assert run(photos).ok == 10


def test_former_output_stays_until_the_new_one_is_whole(run, photos: Path, many: Path, tmp_path):
    """An interrupted run leaves the former output as it was."""
    run(photos)
    former = (tmp_path / "out.csv").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        run(many, progress=stop_after(2))
    assert (tmp_path / "out.csv").read_bytes() == former
    run(many)
    assert len(read_csv(tmp_path / "out.csv")) == 120


def test_long_runs_reach_the_disk(run, many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Now and then the journal is synced, not only at the end."""
    monkeypatch.setattr("featpipe.scoring.journal._SYNC_SECONDS", 0.0)
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(fd), real(fd))[1])
    run(many)
    assert len(synced) >= 30


def test_predictions_of_nothing_let_go_of_the_engine(
    head_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine may be a whole cluster: it ends, too, where no row is ever asked for."""
    closed = []

    def close(engine: LocalEngine) -> None:
        closed.append(engine)

    monkeypatch.setattr(LocalEngine, "close", close)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError):
        predictions(tmp_path / "empty", head_folder)
    assert len(closed) == 1
