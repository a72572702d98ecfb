"""The file of rows beside a head of neighbours: mapped, checked, and whole after any crash."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tracemalloc
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier
from test_persistence import damaged, refused
from vectors import card, make_store, small

from featpipe.calibration import Temperature
from featpipe.errors import WriteError
from featpipe.heads import HEADS, Head, load_head, persistence, save_head
from featpipe.heads.rowfile import is_rows_file
from featpipe.training import fit


@lru_cache
def head(seed: int = 0, dtype: str = "float16", kind: str = "knn") -> Head:
    """Return a head on made-up vectors; "old" is one of neighbours by scikit-learn."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(40, 6)).astype(dtype)
    y = (X[:, 0] > 0).astype(np.int64)
    spec = HEADS["knn" if kind == "old" else kind]
    if kind == "old":
        spec = replace(spec, solver=None, estimator=lambda p, _: scikit_learns(p["n_neighbors"]))
    pipeline = spec.fit(spec.default, X, y, 0)
    return Head(
        spec.name, ("no", "yes"), pipeline, Temperature(1.5), card(6), spec.default, (20, 20)
    )


def scikit_learns(k: int) -> KNeighborsClassifier:
    return KNeighborsClassifier(k, weights="distance", metric="cosine", algorithm="brute")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_head(head(), tmp_path / "head")


def rows_of(folder: Path) -> Path:
    (path,) = (path for path in folder.iterdir() if is_rows_file(path.name))
    return path


def edit(folder: Path, **changes: object) -> None:
    """Change what the record says of the rows."""
    path = folder / "head.json"
    record = json.loads(path.read_text())
    record["rows"] |= changes
    path.write_text(json.dumps(record))


def forge(folder: Path, rows: np.ndarray, data: bytes | None = None) -> Path:
    """Put other rows into the folder, with a record that claims them: a careful forger's work."""
    title = f"\nrows {rows.dtype.str} {rows.shape}\n".encode()
    digest = hashlib.blake2b(title + rows.tobytes(), digest_size=16).hexdigest()
    rows_of(folder).unlink()
    path = folder / f"rows-{digest}.npy"
    if data is None:
        np.save(path, rows)
    else:
        path.write_bytes(data)
    size = path.stat().st_size
    edit(folder, bytes=size, digest=digest, dtype=str(rows.dtype), shape=list(rows.shape))
    return path


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_rows_lie_in_a_plain_file_and_are_mapped(dtype, tmp_path) -> None:
    """NumPy alone reads them; the loaded head has them as a map, and is the same head."""
    folder = save_head(head(dtype=dtype), tmp_path / "head")
    path = rows_of(folder)
    assert sorted(os.listdir(folder)) == ["head.json", "model.skops", path.name]
    np.testing.assert_array_equal(np.load(path), head(dtype=dtype).pipeline[-1].rows_)
    record = json.loads((folder / "head.json").read_text())
    assert record["format"] == 2
    assert record["rows"] == {
        "bytes": path.stat().st_size,
        "digest": path.name[5:-4],
        "dtype": dtype,
        "shape": [40, 6],
    }
    assert not any("rows" in name for name in record["model"]["arrays"])
    again = load_head(folder)
    assert isinstance(again.pipeline[-1].rows_, np.memmap)
    assert again.digest == head(dtype=dtype).digest == record["model"]["contents"]
    X = np.random.default_rng(3).normal(size=(9, 6))
    assert again.predict_proba(X).tobytes() == head(dtype=dtype).predict_proba(X).tobytes()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_rows_are_exactly_what_the_store_held(dtype, tmp_path) -> None:
    """Real vectors through a store, `fit` and the head's folder: no bit has changed."""
    X, labels = small(2, 9)
    store = make_store(tmp_path / "s", X, labels, dtype=dtype)
    again = load_head(fit(store, "knn", cv=3).save(tmp_path / "h"))
    assert again.pipeline[-1].rows_.dtype == dtype
    np.testing.assert_array_equal(again.pipeline[-1].rows_, store.X)


def test_a_head_without_rows_is_read_by_a_former_featpipe_too(tmp_path) -> None:
    """Format 1, and no word of rows."""
    record = json.loads((save_head(head(kind="ridge"), tmp_path / "h") / "head.json").read_text())
    assert record["format"] == 1
    assert "rows" not in record


def test_a_head_of_a_former_featpipe_loads_and_agrees(tmp_path) -> None:
    """Its neighbours are scikit-learn's: the same labels, the same probabilities but rounding."""
    folder = save_head(head(dtype="float32", kind="old"), tmp_path / "head")
    record = json.loads((folder / "head.json").read_text())
    assert sorted(os.listdir(folder)) == ["head.json", "model.skops"]
    assert record["format"] == 1
    old = load_head(folder)
    assert type(old.pipeline[-1]) is KNeighborsClassifier
    new = load_head(save_head(head(dtype="float32"), tmp_path / "new"))
    X = np.random.default_rng(3).normal(size=(50, 6)).astype(np.float32)
    np.testing.assert_allclose(old.predict_proba(X), new.predict_proba(X), atol=1e-4)
    np.testing.assert_array_equal(old.predict(X), new.predict(X))


@pytest.mark.parametrize("how", ["cut", "grown", "emptied"])
def test_rows_of_another_size_are_not_looked_at(saved, how) -> None:
    """Size first: nothing is read of what cannot be right."""
    path = rows_of(saved)
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-1], "grown": data + b"x", "emptied": b""}[how])
    assert refused(saved) == damaged(path, "it is not the file that head.json describes")


@pytest.mark.parametrize("how", ["flipped", "swapped"])
def test_rows_that_were_changed_are_refused(saved, tmp_path, how) -> None:
    """One bit, or the rows of another head under this one's name."""
    path = rows_of(saved)
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    other = rows_of(save_head(head(seed=1), tmp_path / "other")).read_bytes()
    path.write_bytes({"flipped": bytes(data), "swapped": other}[how])
    assert refused(saved) == damaged(path, "its contents are not those that were written")


def test_missing_rows_are_said(saved) -> None:
    """The folder was copied without its largest file."""
    path = rows_of(saved)
    path.unlink()
    assert refused(saved) == damaged(path, "the file is missing")


def test_a_folder_in_place_of_the_rows_is_none(saved) -> None:
    """Nor would a pipe be waited for: what is no file is not opened."""
    path = rows_of(saved)
    path.unlink()
    path.mkdir()
    assert refused(saved) == damaged(path, "it is not the file that head.json describes")
    path.rmdir()
    os.mkfifo(path)
    assert refused(saved) == damaged(path, "it is not the file that head.json describes")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_that_are_not_finite_are_refused(saved, value, dtype) -> None:
    """Though digest and record agree."""
    rows = np.ones((40, 6), dtype=dtype)
    rows[39, 5] = value
    path = forge(saved, rows)
    assert refused(saved) == damaged(path, "it holds NaN or infinity")


HEADERS = {
    "text": b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f2'\n",
    "code": b"\x93NUMPY\x01\x00\x36\x00__import__('os').system('true') or {'descr': '<f2'}     \n",
    "objects": b"\x93NUMPY\x01\x00\x3e\x00"
    b"{'descr': '|O', 'fortran_order': False, 'shape': (40, 6)}    \n",
    "huge": b"\x93NUMPY\x01\x00\x4e\x00"
    b"{'descr': '<f2', 'fortran_order': False, 'shape': (4611686018427387904, 6)}  \n",
    "archive": b"PK\x03\x04",
    "nothing": b"",
}


@pytest.mark.parametrize("kind", list(HEADERS))
def test_a_file_that_is_no_array_is_refused(saved, kind) -> None:
    """Cut headers, code, objects that would need pickle, more than there is, archives."""
    rows = np.ones((40, 6), dtype=np.float16)
    path = forge(saved, rows, HEADERS[kind] + bytes(480))
    assert refused(saved) == damaged(path, "it is not a whole NumPy array")


def test_an_array_that_is_not_the_record_s_is_refused(saved) -> None:
    """Equal in size, but of other dtype, shape or order."""
    rows = np.ones((40, 6), dtype=np.float16)
    for other, shown in (
        (rows.view(np.int16), "int16 (40, 6)"),
        (rows.astype(">f2"), ">f2 (40, 6)"),
        (rows.reshape(20, 12), "float16 (20, 12)"),
        (np.asfortranarray(rows), "float16 (40, 6)"),
    ):
        np.save(saved / "x.npy", other)
        path = forge(saved, rows, (saved / "x.npy").read_bytes())
        assert refused(saved) == damaged(path, f"it holds {shown}")


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ((39, 6), "its array head.labels_ has the shape (40,), which does not fit the others"),
        ((40, 5), "its array head.rows_ has the shape (40, 5), which does not fit the others"),
    ],
)
def test_rows_that_do_not_fit_the_labels_are_refused(saved, rows, why) -> None:
    """Another number of rows, or another length of vectors."""
    forge(saved, np.ones(rows, dtype=np.float32))
    assert refused(saved) == damaged(saved / "model.skops", why)


def test_honest_rows_that_are_not_this_head_s_are_refused(saved) -> None:
    """The digest of the whole knows its rows."""
    forge(saved, np.ones((40, 6), dtype=np.float16))
    assert refused(saved) == damaged(
        saved / "model.skops", "its contents are not those that were written"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"bytes": 0},
        {"bytes": True},
        {"digest": "../../../../etc/passwd"},
        {"digest": "A" * 32},
        {"digest": "0" * 32 + "\n"},
        {"digest": 7},
        {"dtype": "object"},
        {"dtype": ["float16"]},
        {"shape": [40]},
        {"shape": [40, -6]},
        {"shape": [40, 6.0]},
        {"shape": None},
    ],
)
def test_a_record_that_is_amiss_is_named(saved, changes) -> None:
    """Above all no digest that would lead out of the folder."""
    edit(saved, **changes)
    assert refused(saved) == damaged(saved / "head.json", "its field 'rows' is missing or amiss")


def test_a_record_without_its_rows_is_refused(saved) -> None:
    """What is left would be a head of a former featpipe, and its model is none."""
    path = saved / "head.json"
    record = json.loads(path.read_text())
    del record["rows"]
    path.write_text(json.dumps(record))
    assert refused(saved) == damaged(
        saved / "model.skops", "it is not the pipeline of a head of kind knn"
    )


def test_rows_beside_a_head_that_has_none_are_refused(saved, tmp_path) -> None:
    """A ridge head does not get rows by its record."""
    folder = save_head(head(kind="ridge"), tmp_path / "ridge")
    shutil.copy(rows_of(saved), folder)
    record = json.loads((folder / "head.json").read_text())
    record["rows"] = json.loads((saved / "head.json").read_text())["rows"]
    (folder / "head.json").write_text(json.dumps(record))
    assert refused(folder) == damaged(folder / "head.json", "its field 'rows' is missing or amiss")


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4])
def test_a_crash_between_the_steps_leaves_the_old_head_or_the_new(saved, tmp_path, steps) -> None:
    """New rows, staged record, model, record: saving again mends all, and leaves no rows over."""
    new = save_head(head(seed=1), tmp_path / "new")
    if steps >= 1:
        shutil.copy(rows_of(new), saved)
    if steps >= 2:
        shutil.copy(new / "head.json", saved / "head.json.next")
    if steps >= 3:
        shutil.copy(new / "model.skops", saved / "model.skops")
    if steps >= 4:
        os.replace(saved / "head.json.next", saved / "head.json")
    assert load_head(saved).digest == head(seed=0 if steps < 3 else 1).digest
    save_head(head(seed=2), saved)
    assert load_head(saved).digest == head(seed=2).digest
    assert len(os.listdir(saved)) == 3


def test_a_save_that_fails_after_a_crash_loses_nothing(saved, tmp_path, monkeypatch) -> None:
    """The head whose record was only staged is put in place before anything else is written."""
    new = save_head(head(seed=1), tmp_path / "new")
    shutil.copy(rows_of(new), saved)
    shutil.copy(new / "head.json", saved / "head.json.next")
    shutil.copy(new / "model.skops", saved / "model.skops")

    def full(*_: object, **__: object) -> None:
        raise WriteError("the disk is full")

    monkeypatch.setattr(persistence, "atomic_file", full)
    with pytest.raises(WriteError):
        save_head(head(seed=2), saved)
    assert load_head(saved).digest == head(seed=1).digest


def test_only_rows_left_over_do_not_stop_a_save(tmp_path) -> None:
    """A first save died after them: the folder is no stranger's."""
    folder = tmp_path / "head"
    folder.mkdir()
    (folder / f"rows-{'0' * 32}.npy").write_bytes(b"half")
    save_head(head(), folder)
    assert load_head(folder).digest == head().digest
    assert len(os.listdir(folder)) == 3


def test_a_head_may_be_saved_where_it_came_from(saved) -> None:
    """Its rows are the map of that very file, and stay as they are; elsewhere they are copied."""
    before = rows_of(saved).stat()
    loaded = load_head(saved)
    save_head(loaded, saved)
    assert os.path.samestat(before, rows_of(saved).stat())
    elsewhere = save_head(loaded, saved.parent / "elsewhere")
    save_head(head(kind="ridge"), saved)
    assert sorted(os.listdir(saved)) == ["head.json", "model.skops"]
    # The rows have lost their name, and are there as long as somebody has them.
    X = np.ones((2, 6))
    assert (loaded.predict_proba(X) == load_head(elsewhere).predict_proba(X)).all()


def test_a_reader_beside_a_writer_gets_the_old_head_or_the_new(saved, monkeypatch) -> None:
    """The rows go between the reading of the record and theirs: all is read again."""
    real, replaced = persistence.map_rows, []

    def replace_then_map(folder, entry):
        if not replaced:
            replaced.append(save_head(head(seed=1), saved))
        return real(folder, entry)

    monkeypatch.setattr(persistence, "map_rows", replace_then_map)
    assert load_head(saved).digest == head(seed=1).digest


def test_saving_and_loading_hold_no_copy_of_the_rows(tmp_path, monkeypatch) -> None:
    """5 MB of rows, blocks of a few kilobytes: a fifth is in memory at most, model and all."""
    monkeypatch.setattr("featpipe.neighbours.rows._CELLS", 2**12)
    monkeypatch.setattr("featpipe.heads.arrays._BLOCK", 2**14)
    X = np.random.default_rng(0).normal(size=(2000, 1280)).astype(np.float16)
    y = np.arange(2000) % 2
    pipeline = HEADS["knn"].fit({"n_neighbors": 3}, X, y, 0)
    large = Head(
        "knn", ("a", "b"), pipeline, Temperature(1.0), card(1280), {"n_neighbors": 3}, (1000, 1000)
    )
    save_head(head(), tmp_path / "first")  # whatever is imported late has been
    load_head(tmp_path / "first")
    tracemalloc.start()
    try:
        load_head(save_head(large, tmp_path / "head"))
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < X.nbytes / 5
