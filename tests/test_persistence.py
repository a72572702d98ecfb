"""A head's folder: whole after any crash, refused after any change, and never a pickle."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import skops.io
from conftest import as_nobody
from sklearn.decomposition import PCA
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, Normalizer, StandardScaler
from vectors import card, make_store, small

import featpipe
from featpipe import __version__
from featpipe._files import content_key
from featpipe.calibration import Isotonic, Sigmoid, Temperature
from featpipe.errors import HeadError, WriteError
from featpipe.heads import HEADS, Head, load_head, newest_head, persistence, save_head, unpacking
from featpipe.heads.arrays import arrays_digest, arrays_of, arrays_table
from featpipe.heads.persistence import data_digest
from featpipe.heads.record import CHECKS
from featpipe.training import fit

AGAIN = "fit the head again"
SIGMOID = Sigmoid(1.5, (2.0,), (0.1,))
ISOTONIC = Isotonic(1.5, ((-1.0, 0.0, 1.0),), ((0.1, 0.4, 0.8),))


@lru_cache
def head(name: str = "logreg", seed: int = 0) -> Head:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(40, 6)).astype(np.float32)
    y = (X[:, 0] > 0).astype(np.int64)
    pipeline = HEADS[name].pipeline(HEADS[name].default, 0).fit(X, y)
    return Head(
        name,
        ("no", "yes"),
        pipeline,
        Temperature(1.5),
        card(6),
        HEADS[name].default,
        (20, 20),
        {"n": 1},
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_head(head(), tmp_path / "head")


def edit(folder: Path, change) -> None:
    path = folder / "head.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def replace_model(folder: Path, model: bytes, pipeline: Pipeline | None = None) -> None:
    """Put another model into the folder, with a record that claims it: a careful forger's work."""
    (folder / "model.skops").write_bytes(model)

    def claim(record):
        record["model"] |= {"bytes": len(model), "digest": content_key(model).hex()}
        if pipeline is not None:
            record["model"]["arrays"] = arrays_table(arrays_of(pipeline))

    edit(folder, claim)


def refused(folder: Path) -> str:
    with pytest.raises(HeadError) as caught:
        load_head(folder)
    assert caught.value.exit_code == 7
    return str(caught.value)


def damaged(path: Path, why: str) -> str:
    return f"{path} is damaged ({why}): {AGAIN}"


def test_the_folder_holds_two_files_and_plain_json(saved: Path) -> None:
    """``head.json`` is readable by people, with all that DESIGN asks for; nothing else is left."""
    assert sorted(os.listdir(saved)) == ["head.json", "model.skops"]
    record = json.loads((saved / "head.json").read_text())
    assert list(record) == [
        "kind",
        "format",
        "head",
        "classes",
        "class_counts",
        "parameters",
        "temperature",
        "backbone",
        "model",
        "report",
        "created",
        "versions",
    ]
    assert record["classes"] == ["no", "yes"]
    assert sorted(record["versions"]) == ["featpipe", "numpy", "scikit-learn", "skops"]
    assert (
        zipfile.ZipFile(saved / "model.skops").infolist()[0].compress_type == zipfile.ZIP_DEFLATED
    )
    assert load_head(saved).report == {"n": 1}


FIELDS = ["kind", "format", *CHECKS]


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_field_is_named_with_its_file(saved: Path, field: str) -> None:
    """Every field that loading needs: without it the message names file and field."""

    def drop(record):
        *way, last = field.split(".")
        for name in way:
            record = record[name]
        del record[last]

    edit(saved, drop)
    assert refused(saved) == damaged(
        saved / "head.json", f"its field '{field}' is missing or amiss"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kind", "featpipe.store"),
        ("format", "1"),
        ("format", 0),
        ("format", True),
        ("head", "boosting"),
        ("classes", ["yes"]),
        ("classes", ["yes", "yes"]),
        ("classes", ["yes", 1]),
        ("class_counts", [1, 2, 3]),
        ("class_counts", [0, 1]),
        ("class_counts", [True, 1]),
        ("temperature", 0),
        ("temperature", -1.5),
        ("temperature", "1.5"),
        ("temperature", True),
        ("parameters", []),
        ("backbone", "lite0"),
        ("backbone.dimension", 6.5),
        ("model.arrays", {"head.coef_": {"dtype": "float64", "shape": [-1]}}),
        ("model.arrays", {"head.coef_": {"dtype": "float64"}}),
        ("model.bytes", 0),
        ("report", None),
    ],
)
def test_a_field_with_a_wrong_value_is_named(saved: Path, field: str, value) -> None:
    """A value of a wrong type or range is as good as none."""

    def put(record):
        *way, last = field.split(".")
        for name in way:
            record = record[name]
        record[last] = value

    edit(saved, put)
    shown = "backbone.name" if field == "backbone" else field
    assert refused(saved) == damaged(
        saved / "head.json", f"its field '{shown}' is missing or amiss"
    )


@pytest.mark.parametrize("text", ["Infinity", "NaN", "1e999"])
def test_a_temperature_that_is_no_number_is_refused(saved: Path, text: str) -> None:
    """JSON readers take these: the check does not."""
    path = saved / "head.json"
    path.write_text(path.read_text().replace('"temperature": 1.5', f'"temperature": {text}'))
    assert refused(saved) == damaged(path, "its field 'temperature' is missing or amiss")


def test_a_newer_format_asks_for_a_newer_featpipe(saved: Path) -> None:
    """Nothing of a format that is not known yet is guessed at."""
    edit(saved, lambda record: record.update(format=4))
    assert refused(saved) == (
        f"{saved} has format 4, written by a newer featpipe; this one ({__version__}) reads up to "
        "3: upgrade featpipe"
    )


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00\x01", "[" * 100_000])
def test_a_head_json_that_is_none_is_damaged(saved: Path, text: str) -> None:
    """Empty, cut off, of another shape, binary, or nested without end."""
    path = saved / "head.json"
    path.write_text(text)
    why = "does not hold a JSON object" if text == "[1]" else "is not valid JSON"
    assert refused(saved) == f"{path} is damaged: it {why}"


def test_a_folder_without_a_head_is_none(tmp_path: Path) -> None:
    """Missing, or empty: the way to make one is named."""
    for folder in (tmp_path, tmp_path / "missing"):
        assert refused(folder) == (
            f"{folder} is not a head of featpipe: it has no head.json; make one with: featpipe fit"
        )


def test_a_missing_model_is_said(saved: Path) -> None:
    """The folder was copied without its larger half."""
    (saved / "model.skops").unlink()
    assert refused(saved) == f"cannot read {saved}/model.skops: No such file or directory"


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "swapped"])
def test_a_model_that_was_changed_is_refused(saved: Path, tmp_path: Path, how: str) -> None:
    """Cut off, one bit changed, emptied, or taken from another head."""
    path = saved / "model.skops"
    data = path.read_bytes()
    other = (save_head(head(seed=1), tmp_path / "other") / "model.skops").read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    new = {"cut": data[:-100], "flipped": bytes(flipped), "empty": b"", "swapped": other}
    path.write_bytes(new[how])
    assert refused(saved) == damaged(path, "it is not the file that head.json describes")


def test_a_model_larger_than_any_head_is_not_read(saved: Path, monkeypatch) -> None:
    """Size is looked at before the bytes are."""
    monkeypatch.setattr(persistence, "MAX_BYTES", 100)
    assert refused(saved) == damaged(saved / "model.skops", "it is larger than any head")


@pytest.mark.parametrize("how", ["not a zip", "no schema", "broken schema"])
def test_an_archive_that_skops_cannot_read_is_damaged(saved: Path, how: str) -> None:
    """Whatever fails inside zipfile, json or skops becomes one sentence."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("schema.json" if how == "broken schema" else "x", "{")
    model = b"PK nothing" if how == "not a zip" else buffer.getvalue()
    replace_model(saved, model)
    why = {
        "not a zip": "BadZipFile",
        "no schema": "KeyError",
        "broken schema": "JSONDecodeError",
    }[how]
    assert refused(saved) == damaged(saved / "model.skops", f"it cannot be read: {why}")


def test_a_type_that_is_not_trusted_is_named(saved: Path) -> None:
    """A function inside a transformer could be any code: the fixed list does not have it."""
    pipeline = Pipeline([("scale", FunctionTransformer(os.path.basename)), ("head", PCA())])
    replace_model(saved, skops.io.dumps(pipeline))
    assert refused(saved) == (
        f"{saved}/model.skops holds the type posixpath.basename, which is not trusted: use only "
        "heads that featpipe has written"
    )


def test_a_model_that_unpacks_to_more_than_its_arrays_is_not_unpacked(saved: Path) -> None:
    """A few kilobytes that would become 64 MB are refused before they are read."""
    data = io.BytesIO((saved / "model.skops").read_bytes())
    with zipfile.ZipFile(data, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(2**26))
    assert len(data.getvalue()) < 2**18
    replace_model(saved, data.getvalue())
    assert refused(saved) == damaged(
        saved / "model.skops", "it unpacks to more than its arrays need"
    )


@pytest.mark.parametrize("dtype", ["object", "no such", "O8"])
def test_a_table_with_a_dtype_of_objects_is_refused(saved: Path, dtype: str) -> None:
    """Only numbers have a size that can be known beforehand."""
    edit(saved, lambda r: r["model"]["arrays"]["head.coef_"].update(dtype=dtype))
    assert refused(saved) == damaged(
        saved / "model.skops", f"its table of arrays has the dtype {dtype}"
    )


def forged(saved: Path, change, name: str = "logreg", *, claim: bool = True) -> str:
    """Refuse a model whose pipeline ``change`` has edited; ``claim`` lists its arrays, too."""
    source = head(name)
    save_head(source, saved)
    pipeline = skops.io.loads((saved / "model.skops").read_bytes(), trusted=list(unpacking.TRUSTED))
    pipeline = change(pipeline) or pipeline
    replace_model(saved, skops.io.dumps(pipeline), pipeline if claim else None)
    return refused(saved)


def put(attribute: str, value, step: int = -1):
    def change(pipeline):
        setattr(pipeline[step], attribute, value)

    return change


def test_an_array_of_another_shape_is_refused(saved: Path) -> None:
    """The table of arrays in head.json is compared with what was loaded."""
    assert forged(saved, put("coef_", np.ones((1, 5))), claim=False) == damaged(
        saved / "model.skops", "its arrays are not those that head.json lists"
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_array_that_is_not_finite_is_refused(saved: Path, value: float) -> None:
    """NaN in a coefficient would make every probability NaN: the array is named."""
    assert forged(saved, put("coef_", np.full((1, 6), value))) == damaged(
        saved / "model.skops", "its array head.coef_ holds NaN or infinity"
    )


def test_an_array_with_other_numbers_is_refused(saved: Path) -> None:
    """Equal in shape and dtype, the contents differ: the digest does."""
    assert forged(saved, put("coef_", np.ones((1, 6)))) == damaged(
        saved / "model.skops", "its contents are not those that were written"
    )


def test_classes_that_are_not_the_record_s_are_refused(saved: Path) -> None:
    """A label for a column that is not there would be a crash, or worse, a wrong label."""
    assert forged(saved, put("classes_", np.array([0, 2]))) == damaged(
        saved / "model.skops", "its classes are not those of head.json"
    )


def test_another_length_of_vectors_is_refused(saved: Path) -> None:
    """The estimator must read what the backbone gives."""
    assert forged(saved, put("n_features_in_", 7)) == damaged(
        saved / "model.skops", "it reads vectors of another length than its backbone gives"
    )


@pytest.mark.parametrize(
    "other",
    [
        Pipeline([("scale", Normalizer()), ("head", PCA())]),
        Pipeline([("scale", StandardScaler())]),
        StandardScaler(),
    ],
    ids=["other steps", "one step", "no pipeline"],
)
def test_another_pipeline_than_the_head_s_is_refused(saved: Path, other) -> None:
    """Types are those that a head of this kind has, whatever skops itself would trust."""
    model = skops.io.dumps(other)
    replace_model(saved, model)
    why = "it is not the pipeline of a head of kind logreg"
    assert refused(saved) == damaged(saved / "model.skops", why)


def test_another_version_of_scikit_learn_is_no_reason_to_refuse(saved: Path) -> None:
    """The version is noted in the file; a head whose arrays fit is loaded, without a warning."""
    data = (saved / "model.skops").read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    from sklearn import __version__ as installed

    contents["schema.json"] = (
        contents["schema.json"]
        .replace(f'"{installed}"'.encode(), b'"1.8.0"')
        .replace(f'\\"{installed}\\"'.encode(), b'\\"1.8.0\\"')
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in contents.items():
            archive.writestr(name, value)
    replace_model(saved, buffer.getvalue())
    assert load_head(saved).digest == head().digest


def test_a_head_replaces_a_head_and_nothing_else(saved: Path, tmp_path: Path) -> None:
    """Saving over a head is what one expects; a folder with other things is left alone."""
    save_head(head("ridge"), saved)
    assert load_head(saved).name == "ridge"
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "draft.tex").write_text("x")
    with pytest.raises(HeadError) as caught:
        save_head(head(), thesis)
    assert str(caught.value) == (
        f"{thesis} holds other things (such as draft.tex) and is no head: give an empty or new "
        "folder with -o"
    )
    assert os.listdir(thesis) == ["draft.tex"]


def test_a_place_where_nothing_may_be_written_is_said(open_folder: Path) -> None:
    """No permission: file and remedy."""
    os.chmod(open_folder, 0o555)
    with as_nobody(), pytest.raises(WriteError) as caught:
        save_head(head(), open_folder / "head")
    assert str(caught.value) == (
        f"cannot write {open_folder}/head: permission denied: choose another place "
        "(-o, or --models-dir for backbones), or change the permissions"
    )


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_crash_between_the_steps_leaves_the_old_head_or_the_new(saved: Path, tmp_path, steps):
    """After staging the old one loads; after the model the new one does; saving again mends all."""
    new = save_head(head(seed=1), tmp_path / "new")
    if steps >= 1:
        shutil.copy(new / "head.json", saved / "head.json.next")
    if steps >= 2:
        shutil.copy(new / "model.skops", saved / "model.skops")
    if steps >= 3:
        os.replace(saved / "head.json.next", saved / "head.json")
    (saved / ".model.skops.abc.tmp").write_bytes(b"half")
    assert load_head(saved).digest == head(seed=0 if steps < 2 else 1).digest
    save_head(head("knn"), saved)
    assert load_head(saved).digest == head("knn").digest


def test_a_first_save_that_died_before_its_last_step_is_a_head(tmp_path: Path) -> None:
    """Staged record and model are there: that is all of it."""
    folder = save_head(head(), tmp_path / "head")
    os.replace(folder / "head.json", folder / "head.json.next")
    assert load_head(folder).digest == head().digest


def test_a_reader_beside_a_writer_gets_the_old_head_or_the_new(saved: Path, monkeypatch) -> None:
    """The whole head is replaced between the reading of its two files: it is read again."""
    read, replaced = persistence._read_model, []

    def read_then_replace(path: Path) -> bytes:
        model = read(path)
        if not replaced:
            replaced.append(save_head(head(seed=1), saved))
        return model

    monkeypatch.setattr(persistence, "_read_model", read_then_replace)
    assert load_head(saved).digest == head(seed=1).digest


SAVING = """
import os, sys
sys.path[:0] = [{tests!r}, {root!r}]
from test_persistence import head, save_head
heads = [head(seed=0), head(seed=1)]
for _ in sys.stdin:
    writer = os.fork()
    while not writer:
        for one in heads:
            save_head(one, {folder!r})
    print(writer, flush=True)
    os.waitpid(writer, 0)
"""


@pytest.mark.slow
def test_a_head_survives_the_killing_of_its_writer(tmp_path: Path) -> None:
    """``kill -9`` at eight moments of a process that saves two heads in turn: one of them loads.

    What is killed is a fork of a process that has imported everything already.
    """
    folder = save_head(head(), tmp_path / "head")
    either = {head(seed=0).digest, head(seed=1).digest}
    root = Path(featpipe.__file__).parents[1]
    code = SAVING.format(tests=str(Path(__file__).parent), root=str(root), folder=str(folder))
    rng = np.random.default_rng(0)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        for _ in range(8):
            parent.stdin.write(b"\n")
            parent.stdin.flush()
            writer = int(parent.stdout.readline())
            try:
                for _ in range(3):
                    assert load_head(folder).digest in either
                time.sleep(rng.uniform(0, 0.05))
            finally:
                os.kill(writer, signal.SIGKILL)
            assert load_head(folder).digest in either
        parent.stdin.close()
    assert parent.returncode == 0


def test_the_newest_head_is_the_one_written_last(tmp_path: Path) -> None:
    """By the time of its record, not by name."""
    heads = tmp_path / "heads"
    for number, name in enumerate(("b", "c", "a")):
        save_head(head(), heads / name)
        os.utime(heads / name / "head.json", ns=(number, number))
    assert newest_head(heads) == heads / "a"
    os.utime(heads / "c" / "head.json", ns=(9, 9))
    assert newest_head(heads) == heads / "c"


def test_without_any_head_the_way_to_one_is_named(tmp_path: Path) -> None:
    """An empty folder, or none."""
    with pytest.raises(HeadError) as caught:
        newest_head(tmp_path / "heads")
    assert str(caught.value) == (
        f"there is no head under {tmp_path}/heads/: make one with `featpipe fit`, or name it with "
        "--head"
    )


def test_data_have_one_digest_in_any_order() -> None:
    """Contents and labels together, whichever row comes first."""
    keys, labels = [b"1" * 16, b"2" * 16], ["a", "b"]
    assert data_digest(keys, labels) == data_digest(keys[::-1], labels[::-1])
    assert data_digest(keys, labels) != data_digest(keys, labels[::-1])
    assert data_digest(keys, ["caf\udce9", "b"]) != data_digest(keys, labels)


def test_no_pickle_is_ever_loaded() -> None:
    """No module of featpipe mentions pickle's or joblib's loaders, or NumPy's use of them."""
    root = Path(featpipe.__file__).parent
    sources = {path: path.read_text(encoding="utf-8") for path in root.rglob("*.py")}
    assert len(sources) > 40
    for word in ("import pickle", "pickle.load", "joblib.load", "allow_pickle=True", "cloudpickle"):
        assert [str(path) for path, text in sources.items() if word in text] == []


def test_a_head_digest_changes_with_what_decides_a_prediction() -> None:
    """Temperature, classes, fingerprint, kind, arrays: any other one is another head."""
    base = head()
    arrays = arrays_of(base.pipeline)
    assert base.digest != head(seed=1).digest
    assert base.digest != head("ridge").digest
    assert base.digest == Head(**vars_of(base)).digest
    for field, value in (
        ("calibrator", Temperature(1.6)),
        ("calibrator", SIGMOID),
        ("classes", ("no", "yep")),
        ("backbone", card(6, fingerprint="f" * 16)),
    ):
        assert Head(**{**vars_of(base), field: value}).digest != base.digest
    other = Sigmoid(1.5, (2.0,), (0.11,))
    one, two = (Head(**{**vars_of(base), "calibrator": c}).digest for c in (SIGMOID, other))
    assert one != two
    assert arrays_digest(arrays, "") != base.digest


def test_a_head_with_a_temperature_has_the_digest_it_always_had() -> None:
    """Heads that were saved before there were other calibrators are read as they are."""
    value = head()
    parameters = sorted(value.parameters.items())
    identity = f"logreg\n{parameters!r}\n1.5\n{value.fingerprint}\n{value.classes!r}"
    assert value.digest == arrays_digest(arrays_of(value.pipeline), identity)


def with_calibrator(calibrator) -> Head:
    return Head(**{**vars_of(head()), "calibrator": calibrator})


@pytest.mark.parametrize("calibrator", [SIGMOID, ISOTONIC])
def test_any_calibrator_comes_back_to_the_same_bits(tmp_path: Path, calibrator) -> None:
    """In plain numbers in head.json, under a format that a former featpipe refuses."""
    value = with_calibrator(calibrator)
    folder = save_head(value, tmp_path / "head")
    record = json.loads((folder / "head.json").read_text())
    assert record["format"] == 3
    assert record["calibration"] == calibrator.to_json()
    assert record["temperature"] == calibrator.temperature
    again = load_head(folder)
    X = np.random.default_rng(3).normal(size=(30, 6))
    assert again.calibrator == calibrator
    assert again.temperature == calibrator.temperature
    assert again.predict_proba(X).tobytes() == value.predict_proba(X).tobytes()
    assert again.digest == value.digest


def test_a_temperature_is_written_as_it_always_was(saved: Path) -> None:
    """Format 1 and no field but ``temperature``: a former featpipe reads it."""
    record = json.loads((saved / "head.json").read_text())
    assert (record["format"], record["temperature"]) == (1, 1.5)
    assert "calibration" not in record


@pytest.mark.parametrize(
    "change",
    [
        {"calibration": None},
        {"calibration": {**ISOTONIC.to_json(), "values": [[0.9, 0.1, 0.2]]}},
        {"calibration": {**ISOTONIC.to_json(), "odds": [[-1.0, 0.0]]}},
        {"calibration": {**ISOTONIC.to_json(), "odds": [[-1.0, 0.0, 1e999]]}},
        {"calibration": {**ISOTONIC.to_json(), "temperature": 2.0}},
        {"format": 2},
    ],
)
def test_a_calibrator_that_is_amiss_is_named(tmp_path: Path, change) -> None:
    """Falling values, other lengths, infinity, another temperature, a format that knows of none."""
    folder = save_head(with_calibrator(ISOTONIC), tmp_path / "head")
    edit(folder, lambda record: record.update(change))
    assert refused(folder) == damaged(
        folder / "head.json", "its field 'calibration' is missing or amiss"
    )


def test_a_calibrator_that_was_changed_is_found_out(tmp_path: Path) -> None:
    """Sound in itself, and not what was written: the digest says so."""
    folder = save_head(with_calibrator(SIGMOID), tmp_path / "head")
    edit(folder, lambda record: record["calibration"].update(slopes=[2.5]))
    assert refused(folder) == damaged(
        folder / "model.skops", "its contents are not those that were written"
    )


def vars_of(value: Head) -> dict:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


@pytest.mark.parametrize(
    "report", [{"data": []}, {"data": {"keys": [[]]}}, {"target": 5}, {"estimate": []}]
)
def test_a_forged_report_is_refused(tmp_path, report) -> None:
    """What `evaluate` and `bundle` read of the report is looked at before they do."""
    X, labels = small(2, 6)
    store = make_store(tmp_path / "s", X, labels)
    folder = fit(store, "centroid", cv=2).save(tmp_path / "h")
    record = json.loads((folder / "head.json").read_text())
    record["report"] = report
    (folder / "head.json").write_text(json.dumps(record))
    with pytest.raises(HeadError, match="its field 'report' is missing or amiss"):
        load_head(folder)
