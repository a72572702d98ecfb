"""Images in the rows of tables: Parquet files, and folders that `datasets` has saved."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import LIVING, PHOTOS
from test_tar import contents, listed, packed

from featpipe.embedding import run_embedding
from featpipe.embedding.ahead import read_bytes
from featpipe.errors import SourceError
from featpipe.sources import open_source, rows
from featpipe.sources.imagetables import ImageColumns
from featpipe.sources.listings import listing_folder
from featpipe.sources.pieces import Pieces

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table_of(images: list[Any], **columns: list[Any]) -> pa.Table:
    """Return a table in Hugging Face's layout; ``classes`` are names behind its labels."""
    classes = columns.pop("classes", None)
    table = pa.table({"image": pa.array(images, IMAGE), **columns})
    if classes is None:
        return table
    features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    said = {"info": {"features": features}}
    return table.replace_schema_metadata({"huggingface": json.dumps(said)})


def image(name: str, data: bytes | None = None) -> dict[str, Any]:
    """Return the struct of one image; its content is its name."""
    return {"bytes": name.encode() if data is None else data, "path": name}


def save_dataset(folder: Path, table: pa.Table, features: dict[str, Any], split: str) -> None:
    """Write what ``Dataset.save_to_disk`` writes, as far as anything in it is read."""
    folder.mkdir(parents=True)
    file = folder / "data-00000-of-00001.arrow"
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    state = {"_data_files": [{"filename": file.name}], "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


def test_rows_are_images(tmp_path: Path) -> None:
    """Labels by their names, further columns as label columns; the bytes by path alone."""
    path = tmp_path / "set.parquet"
    table = table_of(
        [image("a.jpg"), image("b.jpg"), image("c.jpg")],
        label=[1, 0, -1],
        split=["train", "Testing", None],
        group=["p1", None, "p2"],
        width=[1.0, 2.5, None],
        boxes=[[1], [2], []],
        classes=["ant", "bee"],
    )
    pq.write_table(table, path, row_group_size=2)
    source = open_source(path)
    one, two, three = source
    assert listed(source) == [
        ("a.jpg", "bee", "train"),
        ("b.jpg", "ant", "test"),
        ("c.jpg", None, None),
    ]
    assert (one.group, dict(one.labels), dict(two.labels)) == (
        "p1",
        {"width": "1"},
        {"width": "2.5"},
    )
    stat = path.stat()
    assert three.version == f"{stat.st_size}-{stat.st_mtime_ns}"
    assert (three.size, three.mtime_ns) == (None, stat.st_mtime_ns)
    assert contents(open_source(path)) == {"a.jpg": b"a.jpg", "b.jpg": b"b.jpg", "c.jpg": b"c.jpg"}
    assert source.notes == [f"{path}: columns that are neither the images nor plain values: boxes"]
    assert [r.group for r in open_source(path, group="width")] == ["1", "2.5", None]


@pytest.mark.parametrize(
    "names",
    [
        ["x.jpg", "x.jpg"],
        ["x.jpg", None],
        ["/home/me/x.jpg", "y.jpg"],
        ["../x.jpg", "y.jpg"],
        ["", "y.jpg"],
    ],
)
def test_rows_without_names_of_their_own_have_numbers(tmp_path: Path, names: list[Any]) -> None:
    """Names that repeat, lack, or lead elsewhere name nothing."""
    images = [{"bytes": b"0", "path": names[0]}, {"bytes": b"1", "path": names[1]}]
    pq.write_table(table_of(images), tmp_path / "set.parquet")
    source = open_source(tmp_path / "set.parquet")
    assert contents(source) == {"row-0000000": b"0", "row-0000001": b"1"}


def test_plain_columns_of_bytes_are_read(tmp_path: Path) -> None:
    """Without a struct, and with names in a column beside; text labels stand as they are."""
    columns = {"jpg": [b"0", b"1"], "file_name": ["a/0.jpg", "b/1.jpg"], "label": ["ant", "bee"]}
    pq.write_table(pa.table(columns), tmp_path / "set.parquet")
    source = open_source(tmp_path / "set.parquet")
    assert listed(source) == [("a/0.jpg", "ant", None), ("b/1.jpg", "bee", None)]
    assert contents(source) == {"a/0.jpg": b"0", "b/1.jpg": b"1"}


def test_folders_and_braces_of_files(tmp_path: Path) -> None:
    """As published: `data/SPLIT-00000-of-00002.parquet`; the names tell the splits."""
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        path = tmp_path / "set" / "data" / f"{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table_of([image("1.jpg", name.encode())]), path)
    (tmp_path / "set" / "README.md").write_text("words")
    source = open_source(tmp_path / "set")
    assert listed(source) == [
        ("test-00000-of-00001.parquet/1.jpg", None, "test"),
        ("train-00000-of-00002.parquet/1.jpg", None, "train"),
        ("train-00001-of-00002.parquet/1.jpg", None, "train"),
    ]
    assert contents(source)["test-00000-of-00001.parquet/1.jpg"] == b"test-00000-of-00001"
    some = open_source(str(tmp_path / "set" / "data" / "train-{00000..00002}-of-00002.parquet"))
    *_, missing = some
    assert (missing.path, missing.problem) == (
        "train-00002-of-00002.parquet",
        "the Parquet file cannot be opened: No such file or directory",
    )


def test_which_column_holds_the_images() -> None:
    """A struct before bytes, a known name before another; bytes beside paths are none."""

    def found(**columns: pa.DataType) -> str | None:
        columns_ = ImageColumns.of(pa.schema(columns.items()))
        return None if columns_ is None else columns_.image

    assert found(mask=IMAGE, image=IMAGE) == "image"
    assert found(scan=IMAGE, digest=pa.binary()) == "scan"
    assert found(scan=pa.binary()) == "scan"
    assert found(path=pa.string(), digest=pa.binary()) is None
    assert found(image=pa.string(), digest=pa.binary()) is None
    assert found(path=pa.binary(), label=pa.int64()) is None
    assert found(image=pa.list_(IMAGE)) is None


def test_rows_without_bytes_are_rows_with_a_reason(tmp_path: Path) -> None:
    """A path beside missing bytes is not opened: it is one of another machine."""
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    images = [{"bytes": None, "path": str(tmp_path / "secret.jpg")}, None, image("c.jpg")]
    pq.write_table(table_of(images), tmp_path / "set.parquet")
    source = open_source(tmp_path / "set.parquet")
    one, two, three = source
    for ref in (one, two):
        with pytest.raises(OSError, match=r"^the table holds no bytes of it$"):
            source.read(ref)
    assert source.read(three) == b"c.jpg"


def test_large_row_groups_are_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forwards, backwards and from many threads: the same bytes, and little memory."""
    monkeypatch.setattr(rows, "_MOST_PIECE", 5000)
    monkeypatch.setattr(rows, "_PIECE", 1000)
    monkeypatch.setattr(rows, "MOST_BYTES", 3000)
    images = [image(f"{at}.jpg", bytes([at % 256]) * 99) for at in range(301)]
    pq.write_table(table_of(images), tmp_path / "set.parquet", row_group_size=200)
    source = open_source(tmp_path / "set.parquet")
    refs = list(source)
    expected = [one["bytes"] for one in images]
    assert [source.read(ref) for ref in refs] == expected
    assert [source.read(ref) for ref in reversed(refs)] == expected[::-1]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, refs)) == expected
    pieces = source.containers[0]._pieces  # type: ignore[attr-defined]
    assert 0 < pieces.size <= 3000


def test_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    """Which of them is meant cannot be told."""
    table = table_of([image("1.jpg")], label=["a"], other=["b"])
    pq.write_table(table.rename_columns(["image", "label", "label"]), tmp_path / "0.parquet")
    with pytest.raises(SourceError, match="two of its columns have the same name"):
        list(rows.parquet_files([str(tmp_path / "0.parquet")], str(tmp_path / "0.parquet")))
    assert [r.problem for r in open_source(str(tmp_path / "{0..1}.parquet"))] == [
        "the Parquet file cannot be opened: two of its columns have the same name",
        "the Parquet file cannot be opened: No such file or directory",
    ]


def test_pieces_are_loaded_once_and_a_failure_is_tried_again() -> None:
    """Those that wait get what the first has loaded, or its error; the least used goes."""
    pieces, calls = Pieces(20), []

    def load(key: str) -> tuple[str, int]:
        calls.append(key)
        if key == "bad" and calls.count("bad") == 1:
            raise OSError("once")
        return key.upper(), 10

    for key in ("a", "b", "a", "c", "a", "b"):
        assert pieces.get(key, lambda key=key: load(key)) == key.upper()  # type: ignore[misc]
    assert calls == ["a", "b", "c", "b"]
    with pytest.raises(OSError, match="once"):
        pieces.get("bad", lambda: load("bad"))
    assert pieces.get("bad", lambda: load("bad")) == "BAD"


def test_an_unchanged_file_is_not_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its listing comes from the cache."""
    path = tmp_path / "set.parquet"
    pq.write_table(table_of([image("1.jpg")]), path)
    first = list(open_source(path))
    assert len(list(listing_folder().iterdir())) == 1
    source = open_source(path)
    monkeypatch.setattr(rows, "_opened", None)
    assert list(source) == first


def test_a_file_that_changes_after_listing_is_said(tmp_path: Path) -> None:
    """Rows of the former file are not those of another one."""
    path = tmp_path / "set.parquet"
    pq.write_table(table_of([image("1.jpg")]), path)
    source = open_source(path)
    [ref] = source
    pq.write_table(table_of([image("0.jpg"), image("1.jpg")]), path)
    with pytest.raises(OSError, match=r"^the file that holds it has changed since it was listed$"):
        source.read(ref)


@pytest.mark.parametrize("cut", [3, 300, 1])
def test_damaged_files_end_in_a_sentence(tmp_path: Path, cut: int) -> None:
    """Cut, or with rubbish in the middle: one line, or rows with a reason."""
    path = tmp_path / "set.parquet"
    pq.write_table(table_of([image(f"{at}.jpg", os.urandom(2000)) for at in range(9)]), path)
    data = bytearray(path.read_bytes())
    if cut == 1:
        data[1000:1100] = bytes(100)
        path.write_bytes(data)
        source = open_source(path)
        refs = list(source)
        assert len(refs) == 9
        for ref in refs:
            found = read_bytes(source, ref)
            assert isinstance(found, bytes) or "\n" not in found.reason
    else:
        path.write_bytes(data[:-cut])
        with pytest.raises(SourceError) as caught:
            list(open_source(path))
        assert "\n" not in str(caught.value)


def test_a_saved_dataset_is_read(tmp_path: Path) -> None:
    """Splits are folders; labels have the names of the features."""
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": ["ant", "bee"]},
    }
    for split in ("train", "test"):
        images = [image(f"{at}.jpg", f"{split}{at}".encode()) for at in range(4)]
        save_dataset(
            tmp_path / "set" / split, table_of(images, label=[0, 1, 0, -1]), features, split
        )
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    source = open_source(tmp_path / "set")
    name = "test/data-00000-of-00001.arrow"
    assert listed(source)[4:] == [
        (f"{name}/0.jpg", "ant", "test"),
        (f"{name}/1.jpg", "bee", "test"),
        (f"{name}/2.jpg", "ant", "test"),
        (f"{name}/3.jpg", None, "test"),
    ]
    assert contents(source)[f"{name}/3.jpg"] == b"test3"
    alone = open_source(tmp_path / "set" / "train")
    assert listed(alone)[0] == ("0.jpg", "ant", "train")
    assert contents(open_source(alone.location))["2.jpg"] == b"train2"


@pytest.mark.parametrize("filename", ["../secret.arrow", "/etc/passwd", "", None, ".."])
def test_a_saved_dataset_names_no_other_files(tmp_path: Path, filename: object) -> None:
    """Its record may come from a stranger."""
    save_dataset(tmp_path / "set", table_of([image("1.jpg")]), {}, "train")
    (tmp_path / "set" / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": filename}]})
    )
    with pytest.raises(SourceError, match=r"is no name of a file beside it$"):
        open_source(tmp_path / "set")


def test_a_damaged_arrow_file_is_a_sentence(tmp_path: Path) -> None:
    """A file that is cut in the middle is refused in one line; so are offsets that lead astray."""
    images = [image(f"{at}.jpg", os.urandom(900)) for at in range(9)]
    save_dataset(tmp_path / "set", table_of(images), {}, "train")
    file = tmp_path / "set" / "data-00000-of-00001.arrow"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError) as caught:
        list(open_source(tmp_path / "set"))
    assert str(caught.value).startswith(f"cannot read the Arrow file {file}: ")
    assert "\n" not in str(caught.value)
    offsets = np.frombuffer(data, "<i4")
    at = next(
        at for at in range(len(offsets)) if list(offsets[at : at + 4]) == [0, 900, 1800, 2700]
    )
    file.write_bytes(data[: at * 4 + 4] + b"\xff\xff\xff\x7f" + data[at * 4 + 8 :])
    with pytest.raises(SourceError, match="cannot read the Arrow file "):
        list(open_source(tmp_path / "set"))


def test_what_datasets_writes_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real package's folders and Parquet files, with one split and with several."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    datasets = pytest.importorskip("datasets", reason="the package `datasets` is not installed")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])}
    )
    photos = [path.read_bytes() for path in sorted(PHOTOS.glob("*.jpg"))[:4]]
    columns = {
        "image": [image(f"{at}.jpg", data) for at, data in enumerate(photos)],
        "label": [0, 1, 1, 0],
    }
    whole = datasets.Dataset.from_dict(columns, features=features)
    both = datasets.DatasetDict({"train": whole, "validation": whole})
    both.save_to_disk(str(tmp_path / "both"))
    whole.save_to_disk(str(tmp_path / "whole"), num_shards=2)
    whole.to_parquet(str(tmp_path / "whole.parquet"))
    for source in map(open_source, (tmp_path / "whole", tmp_path / "whole.parquet")):
        assert [ref.label for ref in source] == ["ant", "bee", "bee", "ant"]
        assert list(contents(source).values()) == photos
    assert [ref.split for ref in open_source(tmp_path / "both")] == ["train"] * 4 + ["val"] * 4


def test_the_same_images_in_every_form_are_equal(tmp_path: Path) -> None:
    """Folder, archive, shards, Parquet, saved dataset: keys, labels, splits and vectors agree."""
    photos = {}
    for at, path in enumerate(sorted(PHOTOS.glob("*.jpg"))):
        folder = "living" if path.stem in LIVING else "things"
        photos[f"{'train' if at % 3 else 'test'}/{folder}/{path.name}"] = path.read_bytes()
    for name, data in photos.items():
        file = tmp_path / "folder" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    packed(tmp_path / "set.tar", dict(photos))
    classes = ["living", "things"]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": classes}}
    for split in ("train", "test"):
        mine = {name: data for name, data in photos.items() if name.startswith(split)}
        shard: dict[str, bytes | str] = {}
        for at, (name, data) in enumerate(mine.items()):
            shard |= {f"{at}.jpg": data, f"{at}.cls": name.split("/")[1]}
        packed(tmp_path / "shards" / f"{split}-0.tar", shard)
        images = [image(Path(name).name, data) for name, data in mine.items()]
        labels = [classes.index(name.split("/")[1]) for name in mine]
        table = table_of(images, label=labels, classes=classes)
        save_dataset(tmp_path / "saved" / split, table, features, split)
        (tmp_path / "parquet").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "parquet" / f"{split}-0.parquet")
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    found = {}
    for name in ("folder", "set.tar", "shards", "parquet", "saved"):
        report = run_embedding(tmp_path / name, output=tmp_path / "stores" / name)
        store, vectors = report.store, np.asarray(report.store.X)
        columns = zip(store.keys, store.labels(), store.splits, vectors, strict=True)
        found[name] = {
            (key, label, split): vector.tobytes() for key, label, split, vector in columns
        }
        again = run_embedding(tmp_path / name, output=tmp_path / "stores" / name)
        assert (report.computed, again.unchanged) == (10, 10)
    assert len(found["folder"]) == 10
    for name, rows_of in found.items():
        assert rows_of == found["folder"], name


def test_rows_that_share_their_bytes_do_not_unpack_to_many_times_the_file(tmp_path: Path) -> None:
    """A dictionary may hold one image for a million rows: it is held once."""
    many, size = 200, 2**23
    shared = pa.DictionaryArray.from_arrays(
        pa.array([0] * many, pa.int32()), pa.array([bytes(size)], pa.binary())
    )
    path = tmp_path / "t.parquet"
    pq.write_table(
        pa.table({"image": shared}), path, dictionary_pagesize_limit=2**30, store_schema=False
    )
    source = open_source(path)
    refs = list(source)
    before = pa.total_allocated_bytes()
    assert source.read(refs[-1]) == bytes(size)
    assert pa.total_allocated_bytes() - before < 4 * size
