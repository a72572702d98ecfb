"""Patients: a column of a table keeps their images together, from `embed --group` to `fit`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import LIVING
from PIL import Image

from featpipe import embed
from featpipe.commands.stores import describe
from featpipe.embedding import EmbedReport, run_embedding
from featpipe.errors import SourceError
from featpipe.labelled import labelled_rows
from featpipe.model_selection import Fold, make_folds
from featpipe.store import EmbeddingStore, Manifest, collect_garbage, merge_stores


@pytest.fixture
def views(photos: Path, tmp_path: Path) -> Path:
    """Return ten patients, a photograph each, with three views: turned, so that none is a copy."""
    rows = ["path,label,patient_id,split"]
    for path in sorted(photos.rglob("*.jpg")):
        with Image.open(path) as image:
            for turn in range(3):
                name = f"{path.stem}_{turn}.jpg"
                image.convert("RGB").rotate(90 * turn, expand=True).save(tmp_path / name)
                label = "living" if path.stem in LIVING else "things"
                split = "test" if turn == 2 else "train"
                rows.append(f"{name},{label},patient-{path.stem},{split}")
    (tmp_path / "splits.csv").write_text("\n".join(rows) + "\n")
    table = tmp_path / "views.csv"
    table.write_text("\n".join(row.rpartition(",")[0] for row in rows) + "\n")
    return table


@pytest.fixture
def run(views: Path, tiny_backbone: Path, tmp_path: Path):
    """Return a function that embeds the table into one store."""

    def go(group: str | None = None, source: Path = views, **options: object) -> EmbedReport:
        return run_embedding(
            source, tiny_backbone, output=tmp_path / "store", group=group, **options
        )

    return go


def patients(store: EmbeddingStore) -> list[str]:
    return ["patient-" + path.rpartition("_")[0] for path in store.paths]


def test_folds_keep_patients_together(
    views: Path, tiny_backbone: Path, tmp_path: Path, run_cli, monkeypatch
) -> None:
    """`embed --group`, then `fit`: no patient is on both sides of a fold; without it some are."""
    args = ("embed", views, "--model", tiny_backbone, "-o", tmp_path / "s")
    assert run_cli(*args, "--group", "patient_id").code == 0
    store = EmbeddingStore.open(tmp_path / "s")
    assert store.groups is not None
    assert list(store.groups) == patients(store)
    assert store.label_columns == ["label"]
    rows = labelled_rows(store, np.arange(30))
    assert len(set(rows.units)) == 10
    made: list[list[Fold]] = []

    def watched(*args, **options) -> list[Fold]:
        made.append(make_folds(*args, **options))
        return made[-1]

    monkeypatch.setattr("featpipe.model_selection.tuning.make_folds", watched)
    result = run_cli("fit", store.path, "--head", "knn", "--no-check", "-o", tmp_path / "h")
    assert (result.code, result.err) == (
        0,
        "Note: 4 folds instead of 5: the smallest class has no more distinct images or groups.\n"
        f"saved → {tmp_path}/h\n",
    )
    [whole] = [folds for folds in made if sum(len(held) for _, held in folds) == 30]
    for folds in (whole, make_folds(rows.y, rows.units, 3, 0, rows.classes)):
        for learn, held in folds:
            assert not set(store.groups[learn]) & set(store.groups[held])
    alone = embed(views, tiny_backbone, output=tmp_path / "t")
    assert alone.groups is None
    rows = labelled_rows(alone, np.arange(30))
    assert any(
        set(store.groups[learn]) & set(store.groups[held])
        for learn, held in make_folds(rows.y, rows.units, 3, 0, rows.classes)
    )


def test_patients_on_both_sides_of_the_split_are_said(
    run, views: Path, tmp_path: Path, run_cli
) -> None:
    """By `fit`, where the table cuts through them."""
    store = run("patient_id", tmp_path / "splits.csv").store
    result = run_cli("fit", store.path, "--head", "knn", "--no-check", "-o", tmp_path / "h")
    assert result.code == 0
    assert (
        "Note: 10 groups, such as patient-astronaut, have images in the training split and in the "
        "one that is measured on: the estimate is too good for new groups.\n"
    ) in result.err


def test_other_groups_open_no_image(run, views: Path) -> None:
    """Choosing, remembering and forgetting a column are changes of the index alone."""
    plain = run()
    assert (plain.computed, plain.store.groups) == (30, None)
    vectors, files = plain.store.X.copy(), list(views.parent.glob("*_?.jpg"))
    opened: list[str] = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    chosen, again, without = run("patient_id"), run(), run("")
    assert not set(opened) & {str(path) for path in files}
    for report in (chosen, again, without):
        assert (report.unchanged, report.opened, report.computed) == (30, 0, 0)
        assert np.array_equal(report.store.X, vectors)
    assert list(chosen.store.groups) == list(again.store.groups) == patients(plain.store)
    assert without.store.groups is None
    assert without.store.label_columns == ["label", "patient_id"]
    assert (chosen.notes, again.notes) == ((), ())
    assert without.notes == (
        "the groups came from the column 'patient_id' before, and are those of 'group' now, if "
        "there is one",
    )
    assert Manifest.read(without.store.path).group is None


def test_the_choice_is_remembered_and_a_change_is_said(run, views: Path, tmp_path: Path) -> None:
    """In store.json; where the column is gone, groups are gone, and it comes back with it."""
    run("patient_id")
    before = (tmp_path / "store/store.json").read_bytes()
    assert json.loads(before)["group"] == "patient_id"
    text = views.read_text()
    views.write_text(text.replace(",patient_id", ",subject"))
    report = run()
    assert report.store.groups is None
    assert report.notes == (
        "the groups came from the column 'patient_id' before, which is not there now: give the "
        "table that has it, or choose another column with --group",
    )
    assert (tmp_path / "store/store.json").read_bytes() == before
    views.write_text(text)
    back = run()
    assert list(back.store.groups) == patients(back.store)
    assert run("label_of", views_with(views, "label_of")).notes == (
        "the groups came from the column 'patient_id' before, and come from 'label_of' now",
    )


def views_with(table: Path, column: str) -> Path:
    """Add a column to a table."""
    head, *rows = table.read_text().splitlines()
    table.write_text("\n".join([f"{head},{column}", *(f"{row},one" for row in rows)]) + "\n")
    return table


def test_labels_beside_a_folder_may_hold_the_group(
    photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """`--labels TABLE --group COLUMN`; remembered for the next run with that table."""
    labels = tmp_path / "labels.csv"
    labels.write_text("path,patient_id\nliving/cat.jpg,p1\nthings/brick.jpg,p1\n")
    for group in ("patient_id", None):
        store = embed(photos, tiny_backbone, output=tmp_path / "s", labels=labels, group=group)
        assert store.groups is not None
        assert {p for p, g in zip(store.paths, store.groups, strict=True) if g == "p1"} == {
            "living/cat.jpg",
            "things/brick.jpg",
        }


def test_a_wrong_name_leaves_no_store(
    views: Path, tiny_backbone: Path, tmp_path: Path, run_cli
) -> None:
    """Exit code and sentence of a source that does not do; nothing is written."""
    args = ("embed", views, "--model", tiny_backbone, "-o", tmp_path / "s", "--group", "patient")
    result = run_cli(*args)
    assert (result.code, result.out) == (SourceError.exit_code, "")
    assert result.err == (
        "Error: there is no column 'patient' to group by: choose one of patient_id with --group\n"
    )
    assert not (tmp_path / "s").exists()


def test_info_names_the_column_and_maintenance_keeps_it(run, tmp_path: Path, run_cli) -> None:
    """`gc` writes the record as it was; a merged store has groups, and no one source of them."""
    store = run("patient_id").store
    collect_garbage(store.path)
    assert Manifest.read(store.path).group == "patient_id"
    assert (describe(store)["groups"], describe(store)["group_column"]) == (10, "patient_id")
    assert "groups     10 (column patient_id)\n" in run_cli("info", store.path).out
    merged = merge_stores(tmp_path / "m", [store.path])
    assert (merged.manifest.group, list(merged.groups)) == (None, list(store.groups))
    assert "groups     10\n" in run_cli("info", merged.path).out
