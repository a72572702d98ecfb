"""The file that strange images are told by: checked like every other, and safe at any crash."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import test_rowfile
from test_persistence import damaged, edit, refused
from vectors import card

from featpipe.calibration import Temperature
from featpipe.errors import HeadError
from featpipe.heads import HEADS, Head, load_head, persistence, save_head
from featpipe.heads.noveltyfile import is_novelty_file
from featpipe.ood import MOST_CALIBRATION, Novelty, fit_novelty

COUNTS = (19, 21)


@lru_cache
def head(seed: int = 0, kind: str = "ridge") -> Head:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(40, 6)).astype(np.float32)
    y = (np.arange(40) >= COUNTS[0]).astype(np.int64)
    X[:, 0] += 3 * y
    spec = HEADS[kind]
    novelty = fit_novelty(X, y, np.arange(40), n_classes=2, seed=seed)
    return Head(
        kind,
        ("no", "yes"),
        spec.fit(spec.default, X, y, 0),
        Temperature(1.5),
        card(6),
        spec.default,
        COUNTS,
        novelty=novelty,
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_head(head(), tmp_path / "head")


def file_of(folder: Path) -> Path:
    (path,) = (path for path in folder.iterdir() if is_novelty_file(path.name))
    return path


def change(folder: Path, **changes: object) -> None:
    edit(folder, lambda record: record["novelty"].update(changes))


def forge(folder: Path, rows: np.ndarray, counts=COUNTS, data: bytes | None = None) -> Path:
    """Put other rows into the folder, with a record that claims them: a careful forger's work."""
    digest = hashlib.blake2b(f"rows {rows.shape}\n".encode() + rows.tobytes(), digest_size=16)
    file_of(folder).unlink()
    path = folder / f"novelty-{digest.hexdigest()}.npy"
    if data is None:
        np.save(path, rows)
    else:
        path.write_bytes(data)
    entry = {
        "bytes": path.stat().st_size,
        "digest": digest.hexdigest(),
        "dtype": str(rows.dtype),
        "shape": list(rows.shape),
    }
    change(folder, rows=entry, counts=list(counts))
    return path


def test_it_lies_in_a_plain_file_and_comes_back(saved: Path) -> None:
    """NumPy alone reads it; scores and p-values are the same to the last bit."""
    path, one = file_of(saved), head()
    assert one.novelty is not None
    assert sorted(os.listdir(saved)) == ["head.json", "model.skops", path.name]
    np.testing.assert_array_equal(np.load(path), one.novelty.rows)
    record = json.loads((saved / "head.json").read_text())
    assert record["novelty"] == {
        "method": "class-neighbours",
        "rows": {
            "bytes": path.stat().st_size,
            "digest": path.name[8:-4],
            "dtype": "float32",
            "shape": [40, 6],
        },
        "counts": list(COUNTS),
        "calibration": one.novelty.calibration.tolist(),
        "contents": one.novelty.digest,
    }
    again = load_head(saved)
    assert again.novelty is not None
    assert again.novelty.digest == one.novelty.digest
    X = np.random.default_rng(3).normal(size=(9, 6))
    assert again.ood_scores(X).tobytes() == one.ood_scores(X).tobytes()
    assert again.ood_p_values(X).tobytes() == one.ood_p_values(X).tobytes()


def test_a_former_featpipe_reads_the_head(saved: Path) -> None:
    """The same format, model and digest as without: it leaves field and file aside."""
    record = json.loads((saved / "head.json").read_text())
    assert record["format"] == 1
    bare = Head(**{**vars_of(head()), "novelty": None})
    assert bare.digest == head().digest == record["model"]["contents"]


def vars_of(value: Head) -> dict:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def test_a_head_of_a_former_featpipe_loads_and_cannot_tell(saved: Path) -> None:
    """Without the field there is no novelty, and whoever asks is told what to do."""
    edit(saved, lambda record: record.pop("novelty"))
    former = load_head(saved)
    assert former.novelty is None
    for ask in (former.ood_scores, former.ood_p_values):
        with pytest.raises(HeadError) as caught:
            ask(np.ones((1, 6)))
        assert str(caught.value) == (
            "the head cannot tell unknown images: it was fitted by a former featpipe, or on "
            "classes of a single image or group each; fit the head again"
        )
    save_head(former, saved)
    assert sorted(os.listdir(saved)) == ["head.json", "model.skops"]


def test_what_a_later_featpipe_says_is_left_aside(saved: Path) -> None:
    """No label depends on it: another method is as good as none."""
    edit(saved, lambda record: record.update(novelty={"method": "ensemble", "of": 7}))
    assert load_head(saved).novelty is None


@pytest.mark.parametrize("name", ["conformal", "reference"])
def test_sets_and_references_of_a_later_featpipe(saved: Path, name: str) -> None:
    """What such an entry holds is not looked at, either."""
    edit(saved, lambda record: record.update({name: {"method": "of another kind", "of": 7}}))
    assert getattr(load_head(saved), name) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"method": None},
        {"method": 7},
        {"counts": [40]},
        {"counts": [0, 40]},
        {"counts": [19, 22]},
        {"counts": [19.0, 21]},
        {"counts": [True, 39]},
        {"counts": {"0": 19}},
        {"calibration": []},
        {"calibration": None},
        {"calibration": [0]},
        {"calibration": [0.0, float("nan")]},
        {"calibration": [0.0, float("inf")]},
        {"calibration": [1.0, 0.0]},
        {"calibration": ["0.5"]},
        {"calibration": [0.0] * (MOST_CALIBRATION + 1)},
        {"contents": None},
        {"rows": None},
    ],
)
def test_a_record_that_is_amiss_is_named(saved: Path, changes) -> None:
    """Counts that do not fit, scores that are no numbers, unsorted, or too many."""
    change(saved, **changes)
    why = "its field 'novelty' is missing or amiss"
    assert refused(saved) == damaged(saved / "head.json", why)


@pytest.mark.parametrize(
    "changes",
    [
        {"bytes": 0},
        {"bytes": 2**31 + 1},
        {"digest": "../../../../etc/passwd"},
        {"digest": "0" * 32 + "\n"},
        {"dtype": "float16"},
        {"dtype": "object"},
        {"shape": [40, 7]},
        {"shape": [39, 6]},
        {"shape": [40]},
        {"shape": None},
    ],
)
def test_rows_that_are_amiss_in_the_record_are_named(saved: Path, changes) -> None:
    """Above all no digest that would lead out of the folder."""
    edit(saved, lambda record: record["novelty"]["rows"].update(changes))
    why = "its field 'novelty' is missing or amiss"
    assert refused(saved) == damaged(saved / "head.json", why)


def test_more_rows_of_a_class_than_fit_writes_are_refused(saved: Path) -> None:
    """A score takes as much memory as the largest class for each of them."""
    rows = np.zeros((1026, 6), dtype=np.float32)
    forge(saved, rows, counts=(1, 1025))
    why = "its field 'novelty' is missing or amiss"
    assert refused(saved) == damaged(saved / "head.json", why)


@pytest.mark.parametrize("how", ["cut", "grown", "emptied", "folder", "pipe"])
def test_a_file_of_another_size_or_kind_is_not_looked_at(saved: Path, how: str) -> None:
    """Size first: nothing is read of what cannot be right, nor is a pipe waited for."""
    path = file_of(saved)
    data = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes({"cut": data[:-1], "grown": data + b"x", "emptied": b""}[how])
    assert refused(saved) == damaged(path, "it is not the file that head.json describes")


def test_a_missing_file_is_said(saved: Path) -> None:
    """The folder was copied without it."""
    path = file_of(saved)
    path.unlink()
    assert refused(saved) == damaged(path, "the file is missing")


def test_a_file_that_was_changed_is_refused(saved: Path, tmp_path: Path) -> None:
    """One bit of a small number, or the file of another head under this one's name."""
    path = file_of(saved)
    data = path.read_bytes()
    small = bytearray(data)
    small[-4] ^= 1
    other = file_of(save_head(head(seed=1), tmp_path / "other")).read_bytes()
    for changed in (bytes(small), other):
        path.write_bytes(changed)
        assert refused(saved) == damaged(path, "its contents are not those that were written")


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.5, 1e30])
def test_rows_that_are_no_unit_vectors_are_refused(saved: Path, value: float) -> None:
    """Though digest and record agree."""
    rows = np.array(head().novelty.rows)
    rows[39] = value
    assert refused_after(saved, rows) == "it holds what is no vector of length 1"


def refused_after(saved: Path, rows: np.ndarray) -> str:
    path = forge(saved, rows)
    message = refused(saved)
    assert message.startswith(f"{path} is damaged (")
    return message.removeprefix(f"{path} is damaged (").removesuffix("): fit the head again")


@pytest.mark.parametrize("kind", list(test_rowfile.HEADERS))
def test_a_file_that_is_no_array_is_refused(saved: Path, kind: str) -> None:
    """Cut headers, code, objects that would need pickle, more than there is, archives."""
    rows = np.ones((40, 6), dtype=np.float32)
    path = forge(saved, rows, data=test_rowfile.HEADERS[kind] + bytes(480))
    assert refused(saved) == damaged(path, "it is not a whole NumPy array")


def test_sound_parts_that_do_not_belong_together_are_refused(saved: Path) -> None:
    """Scores of another head: each of them sound, and not what was written."""
    change(saved, calibration=[0.0, 1.0])
    assert refused(saved) == damaged(
        saved / "head.json", "its field 'novelty' is not what was written"
    )


@pytest.mark.parametrize("kind", ["ridge", "knn"])
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4])
def test_a_crash_between_the_steps_leaves_the_old_head_or_the_new(
    tmp_path: Path, steps: int, kind: str
) -> None:
    """New files, staged record, model, record: saving again mends all, and leaves nothing over."""
    saved = save_head(head(kind=kind), tmp_path / "head")
    new = save_head(head(seed=1, kind=kind), tmp_path / "new")
    if steps >= 1:
        for path in new.glob("*.npy"):
            shutil.copy(path, saved)
    if steps >= 2:
        shutil.copy(new / "head.json", saved / "head.json.next")
    if steps >= 3:
        shutil.copy(new / "model.skops", saved / "model.skops")
    if steps >= 4:
        os.replace(saved / "head.json.next", saved / "head.json")
    found = load_head(saved)
    expected = head(seed=0 if steps < 3 else 1, kind=kind)
    assert (found.digest, digest_of(found)) == (expected.digest, digest_of(expected))
    save_head(head(seed=2, kind=kind), saved)
    assert digest_of(load_head(saved)) == digest_of(head(seed=2, kind=kind))
    assert len(os.listdir(saved)) == (4 if kind == "knn" else 3)


def digest_of(value: Head) -> str:
    assert isinstance(value.novelty, Novelty)
    return value.novelty.digest


def test_only_a_file_left_over_does_not_stop_a_save(tmp_path: Path) -> None:
    """A first save died after it: the folder is no stranger's."""
    folder = tmp_path / "head"
    folder.mkdir()
    (folder / f"novelty-{'0' * 32}.npy").write_bytes(b"half")
    save_head(head(), folder)
    assert digest_of(load_head(folder)) == digest_of(head())
    assert len(os.listdir(folder)) == 3


def test_a_reader_beside_a_writer_gets_the_old_head_or_the_new(saved: Path, monkeypatch) -> None:
    """The file goes between the reading of the record and its own: all is read again."""
    real, replaced = persistence.read_novelty, []

    def replace_then_read(folder, entry):
        if not replaced:
            replaced.append(save_head(head(seed=1), saved))
        return real(folder, entry)

    monkeypatch.setattr(persistence, "read_novelty", replace_then_read)
    found = load_head(saved)
    assert (found.digest, digest_of(found)) == (head(seed=1).digest, digest_of(head(seed=1)))


def test_vectors_are_looked_at_as_by_predict_proba(saved: Path) -> None:
    """Another length, NaN: the same sentences; no vector at all is no error."""
    loaded = load_head(saved)
    assert loaded.ood_scores(np.empty((0, 6))).shape == (0,)
    assert loaded.ood_p_values(np.empty((0, 6))).shape == (0,)
    with pytest.raises(HeadError) as caught:
        loaded.ood_p_values(np.ones((2, 5)))
    assert str(caught.value) == (
        "the head reads vectors of 6 numbers, (n, 6); it was given an array of shape (2, 5)"
    )
    X = np.ones((9000, 6))
    X[8999, 0] = np.nan
    with pytest.raises(HeadError) as caught:
        loaded.ood_scores(X)
    assert str(caught.value) == (
        "vector 8999 holds NaN or infinity: no label can be given for it; embed the image again"
    )
