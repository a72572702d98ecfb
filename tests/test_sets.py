"""Sets of labels in a run of ``featpipe score``: in every format, after interruptions, in words."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import PHOTOS
from hypothesis import given
from hypothesis import strategies as st

from featpipe import embed, fit, load_head, score
from featpipe.scoring.formats import joined, split
from featpipe.scoring.prediction import set_of
from featpipe.scoring.sets import Sets, said
from featpipe.types import Progress

TOO_FEW = (
    "every set holds all labels: a coverage of 0.99 takes 99 training images, or groups, at least"
)


@pytest.fixture(scope="module")
def head_folder(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head for two classes, one of whose names has the separator in it."""
    root = tmp_path_factory.mktemp("head")
    for path in PHOTOS.glob("*.jpg"):
        for copy in range(3):
            folder = root / "train" / ("a|b" if path.stem in {"cat", "grass", "retina"} else "=c")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{path.stem}{copy}.jpg").write_bytes(path.read_bytes() + bytes(copy))
    store = embed(root / "train", tiny_backbone, output=root / "store")
    fit(store, "centroid", check=False).save(root / "head")
    return root / "head"


@pytest.fixture(autouse=True)
def _models(tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny backbone is found by its name."""
    monkeypatch.setenv("FEATPIPE_MODELS", str(tiny_backbone.parent))


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """60 small images, and one that is none."""
    folder = tmp_path / "many"
    folder.mkdir()
    for i, path in zip(range(60), sorted(PHOTOS.glob("*.jpg")) * 6, strict=True):
        shutil.copy(path, folder / f"{i:04d}.jpg")
    (folder / "bad.jpg").write_text("no image")
    return folder


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_sets_in_every_format(many: Path, head_folder: Path, tmp_path: Path) -> None:
    """Every answered row has the set that the head makes, a failed one none; they are counted."""
    for suffix in ("csv", "jsonl", "parquet"):
        summary = score(many, head_folder, output=tmp_path / f"o.{suffix}", conformal=0.7)
    table = pq.read_table(tmp_path / "o.parquet").to_pylist()
    lines = (tmp_path / "o.jsonl").read_text().splitlines()
    sets = [row["label_set"] for row in table]
    assert [json.loads(line)["label_set"] for line in lines] == sets
    rows = read_csv(tmp_path / "o.csv")
    assert list(rows[0])[-1] == "label_set"
    cells = [row["label_set"].removeprefix("'") for row in rows]
    assert [list(split(cell)) for cell in cells] == [found or [] for found in sets]
    assert [found is None for found in sets] == [row["status"] != "ok" for row in rows]
    assert len({str(found) for found in sets}) > 1
    assert r"a\|b" in cells
    for row, found in zip(table, sets, strict=True):
        assert not found or found[0] == row["label"]
    sizes = Counter(len(found) for found in sets if found is not None)
    assert summary.set_sizes == dict(sorted(sizes.items()))
    assert f"; sets: {said(sizes)}; " in str(summary)


def test_sets_are_those_of_the_head(many: Path, head_folder: Path, tmp_path: Path) -> None:
    """The vectors of the same images give the same sets, of each kind."""
    head = load_head(head_folder)
    store = embed(many, head.backbone["name"], output=tmp_path / "store")
    for per_class in (False, True):
        summary = score(many, head, device="cpu", conformal=0.8, conformal_per_class=per_class)
        found = [row.label_set for row in summary.predictions if not row.failed]
        assert found == head.predict_sets(store.X, 0.8, per_class=per_class)


def test_sets_survive_an_interruption(many: Path, head_folder: Path, tmp_path: Path) -> None:
    """Rows that are taken over keep their sets; those of another coverage are made anew."""

    def stop(progress: Progress) -> None:
        if progress.done >= 24:
            raise KeyboardInterrupt

    options = {"batch_size": 4, "conformal": 0.7}
    whole = score(many, head_folder, output=tmp_path / "whole.csv", **options)
    for coverage, resumed in ((0.7, 20), (0.8, 0)):
        with pytest.raises(KeyboardInterrupt):
            score(many, head_folder, output=tmp_path / "out.csv", progress=stop, **options)
        asked = {**options, "conformal": coverage}
        summary = score(many, head_folder, output=tmp_path / "out.csv", **asked)
        assert summary.resumed == resumed
        assert summary.set_sizes is not None
        assert sum(summary.set_sizes.values()) == 60
        if resumed:
            assert summary.set_sizes == whole.set_sizes
            assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
        else:
            assert summary.notes == (
                f"{tmp_path / 'out.csv'}.partial, left by an interrupted run, belongs to a run "
                "with another conformal: all images are scored anew",
            )


def test_too_few_images_for_the_promise_are_told(many: Path, head_folder: Path) -> None:
    """Where no label can be left out, a note says so: over all images, and class by class."""
    summary = score(many, head_folder, conformal=0.99)
    assert summary.notes == (TOO_FEW,)
    assert summary.set_sizes == {2: 60}
    summary = score(many, head_folder, conformal=0.94, conformal_per_class=True)
    assert summary.notes == (
        "every set holds 1 of 2 labels (a|b): a coverage of 0.94 in each class takes 16 training "
        "images, or groups, of it",
    )


def test_options_that_make_no_sense(many: Path, head_folder: Path) -> None:
    """A promise must be a share, and ``conformal_per_class`` needs one."""
    with pytest.raises(ValueError, match=r"^coverage must lie between 0 and 1, not 1$"):
        score(many, head_folder, conformal=1.0)
    with pytest.raises(ValueError, match=r"^conformal_per_class says how conformal is meant"):
        score(many, head_folder, conformal_per_class=True)


def test_the_command(run_cli, many: Path, head_folder: Path) -> None:
    """``--conformal`` adds the column, the last line on stderr counts sizes."""
    result = run_cli("score", many, "--head", head_folder, "--conformal", "0.99")
    rows = list(csv.DictReader(result.out.splitlines()))
    assert result.code == 3
    assert {row["label_set"] for row in rows} == {r"'=c|a\|b", r"a\|b|=c", ""}
    lines = result.err.splitlines()
    assert lines[0] == f"Note: {TOO_FEW}."
    assert "61 images: 60 ok, 1 failed; sets: 60 of more; " in lines[-1]


@pytest.mark.parametrize("value", ["0", "1", "nan", "90"])
def test_no_promise_is_a_usage_error(run_cli, many: Path, value: str) -> None:
    """Exit code 2 before anything is loaded."""
    result = run_cli("score", many, "--conformal", value)
    assert result.code == 2
    assert "Error: Invalid value for '--conformal': " in result.err


def test_per_class_alone_is_a_usage_error(run_cli, many: Path) -> None:
    """It says how --conformal is meant."""
    result = run_cli("score", many, "--conformal-per-class")
    assert result.code == 2
    assert result.err.endswith(
        "Error: --conformal-per-class says how --conformal is meant: give that, too\n"
    )


def test_a_former_head_has_no_sets(run_cli, many: Path, head_folder: Path, tmp_path: Path) -> None:
    """One sentence, exit code 7, and no output."""
    shutil.copytree(head_folder, tmp_path / "old")
    record = json.loads((tmp_path / "old" / "head.json").read_text())
    del record["conformal"]
    (tmp_path / "old" / "head.json").write_text(json.dumps(record))
    output = tmp_path / "new.csv"
    result = run_cli("score", many, "--head", tmp_path / "old", "--conformal", 0.9, "-o", output)
    assert (result.code, output.exists()) == (7, False)
    assert result.err == (
        "Error: the head has nothing to make sets of labels by, as a former featpipe fitted it: "
        "fit it again\n"
    )


@given(st.lists(st.text(st.sampled_from("ab|\\\n,"), min_size=1, max_size=4), max_size=4))
def test_any_labels_go_into_one_cell(labels: list[str]) -> None:
    """And come out again."""
    assert split(joined(labels)) == tuple(labels)


def test_likeliest_first_and_sizes_in_words() -> None:
    """Of equally likely labels the first comes first; what is zero is not said."""
    p = np.array([0.3, 0.4, 0.3])
    assert set_of(p, ["a", "b", "c"], np.array([0.7, 0.5, 0.9])) == ("a", "c")
    assert said(Counter({0: 1, 1: 2, 2: 3, 3: 4})) == "1 without a label, 2 of one, 7 of more"
    assert said(Counter()) == "none"
    one = Sets(0.9, False, np.array([0.1, 0.2]), ("a", "b"))
    other = Sets(0.9, False, np.array([0.1, 0.3]), ("a", "b"))
    assert one.note is None
    assert one.identity != other.identity
