"""Sources: what is listed, in which order, with which labels."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import as_nobody

from featpipe.errors import SourceError
from featpipe.sources import FolderSource, open_source
from featpipe.sources.base import MAX_FILE_BYTES
from featpipe.types import ImageRef


def touch(root: Path, *paths: str) -> None:
    """Make small files; their content is their path."""
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.fsencode(path))


def listed(root: Path) -> list[tuple[str, str | None, str | None]]:
    """Path, label and split of all that a folder lists."""
    return [(r.path, r.label, r.split) for r in FolderSource(root)]


def test_class_folders_give_labels_in_sorted_order(tmp_path: Path) -> None:
    """The folder below the root is the label, however deep the image lies; order is by name."""
    touch(tmp_path, "b/2.jpg", "b/10.JPG", "a/deep/er/1.png", "top.webp")
    assert listed(tmp_path) == [
        ("a/deep/er/1.png", "a", None),
        ("b/10.JPG", "b", None),
        ("b/2.jpg", "b", None),
        ("top.webp", None, None),
    ]


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("val", "val"),
        ("VALID", "val"),
        ("Testing", "test"),
    ],
)
def test_split_folders_above_classes_give_the_split(
    tmp_path: Path, folder: str, split: str
) -> None:
    """The usual names of splits, in any case, are splits; the classes stand below."""
    touch(tmp_path, f"{folder}/ants/1.jpg", "test/bees/2.jpg")
    assert (f"{folder}/ants/1.jpg", "ants", split) in listed(tmp_path)
    assert ("test/bees/2.jpg", "bees", "test") in listed(tmp_path)


def test_split_folder_without_classes_has_no_label(tmp_path: Path) -> None:
    """Images directly in a split folder have a split and no label."""
    touch(tmp_path, "train/1.jpg", "test/2.jpg")
    assert listed(tmp_path) == [("test/2.jpg", None, "test"), ("train/1.jpg", None, "train")]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    """Beside other class folders, `train` is a vehicle."""
    touch(tmp_path, "train/1.jpg", "bus/2.jpg")
    assert listed(tmp_path) == [("bus/2.jpg", "bus", None), ("train/1.jpg", "train", None)]


def test_other_files_are_left_out_and_counted(tmp_path: Path) -> None:
    """Hidden files are ignored; other suffixes are counted in a note."""
    touch(
        tmp_path, "a/1.jpg", "a/notes.txt", "a/x.txt", "a/.hidden.jpg", "a/README", "__MACOSX/1.jpg"
    )
    source = FolderSource(tmp_path)
    assert [r.path for r in source] == ["a/1.jpg"]
    assert source.notes == [
        "left out 3 files whose suffix is not an image's: 2 .txt, 1 without suffix"
    ]


def test_size_and_time_are_listed(tmp_path: Path) -> None:
    """What tells a changed file from an unchanged one is in the listing."""
    touch(tmp_path, "1.jpg")
    os.utime(tmp_path / "1.jpg", ns=(5, 7_000_000_001))
    assert list(FolderSource(tmp_path)) == [ImageRef("1.jpg", 5, 7_000_000_001)]


def test_link_loop_is_cut_and_said(tmp_path: Path) -> None:
    """A link to a folder above is not followed for ever; one to elsewhere is followed."""
    touch(tmp_path / "set", "a/1.jpg")
    touch(tmp_path, "other/2.jpg")
    (tmp_path / "set" / "a" / "loop").symlink_to(tmp_path / "set", target_is_directory=True)
    (tmp_path / "set" / "b").symlink_to(tmp_path / "other", target_is_directory=True)
    source = FolderSource(tmp_path / "set")
    assert [r.path for r in source] == ["a/1.jpg", "b/2.jpg"]
    assert source.notes == ["did not follow a/loop: it links back to a folder above"]


def test_dangling_link_is_a_row_with_a_problem(tmp_path: Path) -> None:
    """A link to nothing is listed, so that it can be reported."""
    (tmp_path / "1.jpg").symlink_to(tmp_path / "gone.jpg")
    [ref] = FolderSource(tmp_path)
    assert ref.problem == "the link leads nowhere (No such file or directory)"
    assert ref.size is None


def test_closed_folder_is_a_row_with_a_problem(open_folder: Path) -> None:
    """A folder that may not be opened does not stop the others."""
    touch(open_folder, "a/1.jpg", "b/2.jpg")
    (open_folder / "a").chmod(0)
    with as_nobody():
        refs = list(FolderSource(open_folder))
    assert [r.path for r in refs] == ["a", "b/2.jpg"]
    assert refs[0].problem == "the folder cannot be opened: Permission denied"


def test_folder_that_vanishes_is_a_sentence(tmp_path: Path) -> None:
    """A root that cannot be opened is an error, as there is nothing else to list."""
    source = FolderSource(tmp_path / "gone")
    with pytest.raises(SourceError) as caught:
        list(source)
    assert str(caught.value) == (
        f"cannot open the folder {tmp_path}/gone: No such file or directory"
    )


def test_foreign_bytes_in_names_are_read(tmp_path: Path) -> None:
    """Names that are not UTF-8, with spaces, brackets and newlines, are listed and read."""
    name = os.fsdecode(b"caf\xe9 [1]\n(2).jpg")
    touch(tmp_path, name)
    source = FolderSource(tmp_path)
    [ref] = source
    assert ref.path == name
    assert source.read(ref) == os.fsencode(name)


def test_huge_file_is_refused(tmp_path: Path) -> None:
    """A file of a gibibyte is no photograph and is not read into memory."""
    with (tmp_path / "1.jpg").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    source = FolderSource(tmp_path)
    [ref] = source
    with pytest.raises(OSError, match="the file is larger than 1 GiB"):
        source.read(ref)


def test_single_file_is_a_source_of_one(tmp_path: Path) -> None:
    """A file that is named is listed whatever its suffix."""
    touch(tmp_path, "scan.dat")
    source = open_source(tmp_path / "scan.dat")
    [ref] = source
    assert (ref.path, ref.size, source.name) == ("scan.dat", 8, "scan")
    assert source.read(ref) == b"scan.dat"


def test_paths_keep_their_order_and_come_once(tmp_path: Path) -> None:
    """An iterable of paths is listed as given; repetitions are noted."""
    touch(tmp_path, "b.jpg", "a.jpg")
    b, a = str(tmp_path / "b.jpg"), tmp_path / "a.jpg"
    source = open_source([b, a, b, tmp_path / "gone.jpg"])
    refs = list(source)
    assert [r.path for r in refs] == [b, str(a), str(tmp_path / "gone.jpg")]
    assert refs[2].problem == "No such file or directory"
    assert source.notes == ["paths listed again: 1"]


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\0"])
def test_standard_input_lists_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str
) -> None:
    """`-` reads a path a line, or NUL-separated ones, which may hold newlines."""
    names = ["a.jpg", "b c.jpg"] + (["d\ne.jpg"] if separator == "\0" else [])
    touch(tmp_path, *names)
    monkeypatch.chdir(tmp_path)
    text = separator.join(names) + separator
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    source = open_source("-")
    assert [(r.path, r.problem) for r in source] == [(name, None) for name in names]
    assert source.name == "stdin"


def test_empty_standard_input_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing on standard input is said."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    with pytest.raises(SourceError) as caught:
        open_source("-")
    assert str(caught.value) == "standard input holds no path: give one path a line"


@pytest.mark.parametrize(
    ("header", "delimiter"),
    [("path,label,split,group,age", ","), ("Path;Label;Split;Group;age", ";")],
)
def test_csv_columns_become_what_they_say(tmp_path: Path, header: str, delimiter: str) -> None:
    """Comma or semicolon, upper or lower case, byte-order mark or not: one meaning."""
    touch(tmp_path, "im/1.jpg", "im/2.jpg")
    rows = [header, "im/1.jpg,ant,Training,p1,3", "im/2.jpg,bee,test,,"]
    text = "\n".join(rows[:1] + [r.replace(",", delimiter) for r in rows[1:]])
    table = tmp_path / "set.csv"
    table.write_text("\ufeff" + text, encoding="utf-8")
    source = open_source(table)
    one, two = source
    assert (one.path, one.label, one.split, one.group) == ("im/1.jpg", "ant", "train", "p1")
    assert (two.label, two.split, two.group) == ("bee", "test", None)
    assert (dict(one.labels), dict(two.labels)) == ({"age": "3"}, {"age": None})
    assert source.read(two) == b"im/2.jpg"


def test_parquet_table_reads_like_csv(tmp_path: Path) -> None:
    """Numbers become text, whole ones without a point; absolute paths are as good."""
    touch(tmp_path, "1.jpg")
    path = str(tmp_path / "1.jpg")
    columns = {"file_name": ["1.jpg", path], "label": [1.0, 0.5], "ok": [None, True]}
    pq.write_table(pa.table(columns), tmp_path / "set.parquet")
    one, two = open_source(tmp_path / "set.parquet")
    assert (one.path, one.label, dict(one.labels)) == ("1.jpg", "1", {"ok": None})
    assert (two.path, two.label, two.problem) == (path, "0.5", None)


def test_repeated_rows_are_noted(tmp_path: Path) -> None:
    """The same path with the same label twice is one image."""
    touch(tmp_path, "1.jpg")
    (tmp_path / "set.csv").write_text("path,label\n1.jpg,a\n1.jpg,a\n")
    source = open_source(tmp_path / "set.csv")
    assert len(list(source)) == 1
    assert source.notes == ["rows that name a path again: 1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "file path,label\n1.jpg,a\n",
            "the table {} has no column 'path' (its columns: file path, label): "
            "name the column that holds the image paths 'path'",
        ),
        ("path,label\n,a\n", "row 1 of the table {} names no path"),
        (
            "path,split\n1.jpg,holdout\n",
            "row 1 of the table {} has the split 'holdout': it can be train, val or test",
        ),
        (
            "path,label\n1.jpg,a\n1.jpg,b\n",
            "the table {} gives 1.jpg two labels, 'a' and 'b': keep one of the rows",
        ),
    ],
)
def test_unsuitable_table_is_a_sentence(tmp_path: Path, text: str, message: str) -> None:
    """What a table lacks is named, with the row."""
    table = tmp_path / "set.csv"
    table.write_text(text)
    with pytest.raises(SourceError) as caught:
        list(open_source(table))
    assert str(caught.value) == message.format(table)


def test_damaged_parquet_is_a_sentence(tmp_path: Path) -> None:
    """A Parquet file that is none is named."""
    table = tmp_path / "set.parquet"
    table.write_bytes(b"PAR1 no")
    with pytest.raises(SourceError, match=f"^the table {table} is damaged: "):
        list(open_source(table))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "ftp://host/set",
            "featpipe does not read ftp:// addresses: it reads s3://, gs://, gcs://, http://, "
            "https://",
        ),
        ("set.zip", "featpipe reads no zip archives: unpack set.zip and give the folder"),
    ],
)
def test_kinds_that_are_not_read_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    """And what to do instead."""
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "set.zip")
    with pytest.raises(SourceError) as caught:
        open_source(name)
    assert str(caught.value) == message


def test_labels_from_a_table_beside_the_images(tmp_path: Path) -> None:
    """Rows find their image by path, or by a file name that is unique; the table wins."""
    touch(tmp_path / "set", "x/1.jpg", "x/2.jpg", "x/3.jpg")
    table = tmp_path / "labels.csv"
    table.write_text("path,label,split,eyes\nx/1.jpg,ant,train,2\n2.jpg,bee,,\n9.jpg,fly,,\n")
    source = open_source(tmp_path / "set", labels=table)
    one, two, three = source
    assert (one.label, one.split, dict(one.labels)) == ("ant", "train", {"eyes": "2"})
    assert (two.label, three.label) == ("bee", "x")
    assert source.notes == [
        f"1 images have no row in {table}; they keep what the source says",
        f"1 rows of {table} name no image here",
    ]
    assert source.read(two) == b"x/2.jpg"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.csv", "there is no table at {}: check --labels"),
        ("labels.xlsx", "the label table {} must end in .csv, .tsv, .parquet, .pq"),
        (
            "labels.csv",
            "no row of the label table {} names an image of {}/set: its paths must be relative "
            "to the source",
        ),
    ],
)
def test_unsuitable_label_table_is_a_sentence(tmp_path: Path, name: str, message: str) -> None:
    """A label table that is missing, of another kind or of other images is named."""
    touch(tmp_path / "set", "1.jpg")
    (tmp_path / "labels.csv").write_text("path,label\n7.jpg,x\n")
    (tmp_path / "labels.xlsx").write_text("")
    with pytest.raises(SourceError) as caught:
        list(open_source(tmp_path / "set", labels=tmp_path / name))
    assert str(caught.value) == message.format(tmp_path / name, tmp_path)


def test_missing_path_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path with nothing behind it names the folder that it was looked for in."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError) as caught:
        open_source("photos")
    assert str(caught.value) == (
        f"there is nothing at photos: check the path (it is looked for from {tmp_path})"
    )


def test_own_stores_are_not_listed(tmp_path: Path) -> None:
    """Stores and heads inside the folder are nobody's images, and hide no split."""
    touch(
        tmp_path, "train/a/1.jpg", "test/a/2.jpg", "embeddings/x/store.json", "embeddings/x/3.jpg"
    )
    touch(tmp_path, "heads/y/head.json", "heads/y/4.jpg")
    assert listed(tmp_path) == [("test/a/2.jpg", "a", "test"), ("train/a/1.jpg", "a", "train")]


def test_folders_beside_splits_are_said(tmp_path: Path) -> None:
    """Two split folders are splits whatever stands beside them; what does is in no split."""
    touch(tmp_path, "train/a/1.jpg", "test/a/2.jpg", "spare/b/3.jpg")
    source = FolderSource(tmp_path)
    assert [(r.path, r.label, r.split) for r in source] == [
        ("spare/b/3.jpg", "b", None),
        ("test/a/2.jpg", "a", "test"),
        ("train/a/1.jpg", "a", "train"),
    ]
    assert source.notes == ["the folders beside test and train are in no split: spare"]


def test_pipes_and_devices_are_problems(tmp_path: Path) -> None:
    """A named pipe would be waited for, a device never ends: neither is opened."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    assert {r.problem for r in FolderSource(tmp_path)} == {"it is not a regular file"}
    [ref] = open_source([tmp_path / "pipe.jpg"])
    assert ref.problem == "it is not a regular file"


def test_bottomless_folders_are_cut(tmp_path: Path) -> None:
    """A tree deeper than anybody's is a problem, not a crash."""
    deep = tmp_path.joinpath(*["d"] * 110)
    deep.mkdir(parents=True)
    touch(tmp_path, "1.jpg")
    refs = list(FolderSource(tmp_path))
    assert [r.problem for r in refs if r.problem] == [
        "the folder lies more than 100 folders deep and is not opened"
    ]


def test_a_label_row_that_could_mean_two_images_is_refused(tmp_path: Path) -> None:
    """A row with a folder means that path alone; a bare name must be one image's."""
    touch(tmp_path / "set", "a/1.jpg", "b/1.jpg")
    table = tmp_path / "labels.csv"
    table.write_text("path,label\na/1.jpg,ant\n")
    one, two = open_source(tmp_path / "set", labels=table)
    assert (one.label, two.label) == ("ant", "b")
    table.write_text("path,label\n1.jpg,ant\n")
    with pytest.raises(SourceError) as caught:
        list(open_source(tmp_path / "set", labels=table))
    assert str(caught.value) == (
        f"the row 1.jpg of {table} could mean a/1.jpg or b/1.jpg: write its path as the source "
        "lists it"
    )


def test_contradicting_rows_are_refused(tmp_path: Path) -> None:
    """One path in two splits is no mistake to pass over."""
    table = tmp_path / "set.csv"
    table.write_text("path,split\n1.jpg,train\n1.jpg,test\n")
    with pytest.raises(SourceError) as caught:
        list(open_source(table))
    assert str(caught.value) == (
        f"the table {table} gives 1.jpg two splits, 'train' and 'test': keep one of the rows"
    )


def test_bytes_that_are_no_images_are_not_taken_for_labels(tmp_path: Path) -> None:
    """A column of bytes beside one of paths is named, and what to do with it said."""
    columns = {"path": ["1.jpg"], "digest": [b"x"]}
    pq.write_table(pa.table(columns), tmp_path / "set.parquet")
    with pytest.raises(SourceError) as caught:
        list(open_source(tmp_path / "set.parquet"))
    assert str(caught.value) == (
        f"the column 'digest' of {tmp_path}/set.parquet holds bytes or nested values that are no "
        "images: leave it out, or name the column of the images' bytes 'image'"
    )


def test_a_row_that_is_too_long_is_refused(tmp_path: Path) -> None:
    """A path with a comma and no quotes would be another path; a TSV knows tabs alone."""
    (tmp_path / "set.csv").write_text("path\na,b.jpg\n")
    with pytest.raises(SourceError, match="a row has 2 cells and the header 1: put quotes around"):
        list(open_source(tmp_path / "set.csv"))
    (tmp_path / "set.tsv").write_text("path\tlabel,x\na,b.jpg\tant\n")
    [ref] = open_source(tmp_path / "set.tsv")
    assert (ref.path, dict(ref.labels)) == ("a,b.jpg", {"label,x": "ant"})


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_column_that_is_chosen_is_the_group(tmp_path: Path, suffix: str) -> None:
    """It is no label column then; a column named group is one like any other."""
    touch(tmp_path, "1.jpg", "2.jpg")
    rows = {
        "path": ["1.jpg", "2.jpg"],
        "label": ["a", "b"],
        "patient_id": ["p1", None],
        "group": ["x", "y"],
        "site": ["s", "t"],
    }
    table = tmp_path / f"set{suffix}"
    if suffix == ".csv":
        table.write_text("path,label,patient_id,group,site\n1.jpg,a,p1,x,s\n2.jpg,b,,y,t\n")
    else:
        pq.write_table(pa.table(rows), table)
    one, two = open_source(table, group="patient_id")
    assert (one.group, two.group) == ("p1", None)
    assert dict(one.labels) == {"group": "x", "site": "s"}
    one, two = open_source(table, group="group")
    assert (one.group, two.group) == ("x", "y")
    assert dict(one.labels) == {"patient_id": "p1", "site": "s"}


def test_the_group_may_stand_in_either_table(tmp_path: Path) -> None:
    """In that of the labels, or of the source; groups of two kinds are not mixed."""
    touch(tmp_path, "1.jpg", "2.jpg")
    table, labels = tmp_path / "set.csv", tmp_path / "labels.csv"
    table.write_text("path,group,ward\n1.jpg,x,w1\n2.jpg,y,w2\n")
    labels.write_text("path,label,patient_id\n1.jpg,a,p1\n")
    one, two = open_source(table, labels, "patient_id")
    assert (one.group, two.group) == ("p1", None)
    assert dict(one.labels) == {"group": "x", "ward": "w1"}
    one, two = open_source(table, labels, "ward")
    assert (one.group, two.group) == ("w1", "w2")
    assert dict(one.labels) == {"group": "x", "patient_id": "p1"}
    [one] = open_source([tmp_path / "1.jpg"], labels, "patient_id")
    assert one.group == "p1"


def test_one_image_of_two_patients_is_refused(tmp_path: Path) -> None:
    """As with two labels."""
    table = tmp_path / "set.csv"
    table.write_text("path,patient_id\n1.jpg,p1\n1.jpg,p2\n")
    with pytest.raises(SourceError) as caught:
        list(open_source(table, group="patient_id"))
    assert str(caught.value) == (
        f"the table {table} gives 1.jpg two groups, 'p1' and 'p2': keep one of the rows"
    )


@pytest.mark.parametrize("name", ["patient", "Patient_ID", "path", "label", "Split"])
def test_a_column_that_is_not_there_is_refused_with_those_that_are(
    tmp_path: Path, name: str
) -> None:
    """Before anything is listed; paths, labels and splits are no groups."""
    touch(tmp_path, "set/1.jpg")
    labels, empty = tmp_path / "labels.csv", tmp_path / "empty.csv"
    labels.write_text("path,Label,Split,patient_id,site\n1.jpg,a,test,p1,s\n")
    empty.write_text("path,label\n")
    with pytest.raises(SourceError) as caught:
        open_source(tmp_path / "set", labels, name)
    assert str(caught.value) == (
        f"there is no column {name!r} to group by: choose one of patient_id, site with --group"
    )
    for source in (tmp_path / "set", empty):
        with pytest.raises(SourceError) as caught:
            open_source(source, group=name)
        assert str(caught.value) == (
            f"there is no column {name!r} to group by in {source}: give a table that has it, as "
            "the source or with --labels"
        )


@pytest.mark.parametrize(
    ("begin", "said"), [(b"", "its first line"), (b"path,label\n", "a line of it")]
)
def test_a_table_of_one_endless_line_is_not_read_into_memory(
    tmp_path: Path, begin: bytes, said: str
) -> None:
    """Four megabytes of it are enough to know."""
    table = tmp_path / "t.csv"
    with table.open("wb") as file:
        file.write(begin)
        file.truncate(2**33)
    with pytest.raises(SourceError) as caught:
        list(open_source(table))
    assert str(caught.value) == (
        f"the table {table} is damaged: {said} has more than 4194303 characters"
    )
