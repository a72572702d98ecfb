"""Listings in columns: the same as one object an image, whatever the names are."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import as_nobody
from hypothesis import given
from hypothesis import strategies as st

from featpipe._columns import LISTED, in_columns, in_objects, path_column, text_column
from featpipe._files import unescape_path
from featpipe.sources import FolderSource, Source, open_source
from featpipe.types import ImageRef

foreign = st.binary(min_size=1, max_size=8).map(lambda b: b.decode("utf-8", "surrogateescape"))
paths = foreign | st.text(st.sampled_from("ab\\x41/"), min_size=1, max_size=8)
texts = st.none() | foreign
refs = st.builds(
    ImageRef,
    path=paths,
    size=st.none() | st.integers(0, 2**62),
    mtime_ns=st.none() | st.integers(-(2**62), 2**62),
    label=texts,
    labels=st.dictionaries(st.sampled_from(["a", "b"]), texts, max_size=2),
    problem=st.none() | st.just("no such file"),
)


@given(st.lists(refs, max_size=8))
def test_objects_come_back_from_columns(listed: list[ImageRef]) -> None:
    """Path, size, time and problem are those that went in; labels stay in the columns."""
    back = list(in_objects(in_columns(listed)))
    assert back == [ImageRef(r.path, r.size, r.mtime_ns, problem=r.problem) for r in listed]


@given(st.lists(paths, max_size=8))
def test_paths_are_escaped_so_that_they_come_back(names: list[str]) -> None:
    """No two paths become one, and each is the column's text undone."""
    assert [unescape_path(text) for text in path_column(names).to_pylist()] == names


@given(st.lists(texts, max_size=8))
def test_other_text_is_changed_where_it_must_be(values: list[str | None]) -> None:
    """Unicode stays as it is, backslashes included; a byte that is none becomes an escape."""
    for value, kept in zip(values, text_column(values).to_pylist(), strict=True):
        is_unicode = value is None or not any("\ud800" <= c <= "\udfff" for c in value)
        assert kept == value if is_unicode else "\\x" in kept


def test_label_columns_keep_the_order_in_which_they_appear() -> None:
    """An image without a value of that name is empty there."""
    table = in_columns([ImageRef("1", labels={"b": "x"}), ImageRef("2", labels={"a": "y"})])
    assert table.column_names == [*LISTED.names, "label:b", "label:a"]
    assert table.column("label:b").to_pylist() == ["x", None]


def write(root: Path, *names: str) -> None:
    """Make small files; a name that ends in a slash is an empty folder."""
    for name in names:
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(os.fsencode(name))


def in_both_ways(source: Source) -> tuple[pa.Table, pa.Table, list[str], list[str]]:
    """List a source in objects and in columns, with the notes of either."""
    objects = in_columns(list(source))
    notes = list(source.notes)
    columns = pa.concat_tables([LISTED.empty_table(), *source.batches()], promote_options="default")
    return objects, columns, notes, list(source.notes)


def agree(source: Source) -> list[str]:
    """Assert that both ways of listing say the same; return the paths."""
    objects, columns, notes, other_notes = in_both_ways(source)
    assert objects == columns
    assert notes == other_notes
    return [ref.path for ref in in_objects(columns)]


def test_odd_names_and_kinds_are_listed_alike(tmp_path: Path) -> None:
    """Bytes that are no UTF-8, newlines, both Unicode forms, escapes, links, pipes, folders."""
    root = tmp_path / "set"
    names = [unicodedata.normalize(form, "caf\u00e9") + ".jpg" for form in ("NFC", "NFD")]
    odd = [
        "a/\udce9.jpg",
        "a/x\ny.jpg",
        "a/\\xe9.jpg",
        "a/ .jpg",
        "a.jpg",
        "a-b.jpg",
        "b/c/d/1.png",
    ]
    write(root, *odd, *names, "empty/", "a/notes.txt", "a.b/1.jpg", "own/store.json", "own/1.jpg")
    write(root, "folder.jpg/1.jpg", "a/.hidden.jpg", "@eaDir/1.jpg", "a/no-suffix", "a/dot.")
    (root / "a" / "loop").symlink_to(root, target_is_directory=True)
    (root / "a" / "gone.jpg").symlink_to(root / "nowhere")
    (root / "a" / "self.jpg").symlink_to(root / "a" / "self.jpg")
    os.mkfifo(root / "a" / "pipe.jpg")
    found = agree(FolderSource(root))
    others = ["a.b/1.jpg", "folder.jpg/1.jpg", "a/gone.jpg", "a/self.jpg", "a/pipe.jpg"]
    assert sorted(found) == sorted([*odd, *names, *others])
    tops = [path.split("/")[0] for path in found]
    assert tops == sorted(tops)


def test_a_note_counts_equal_numbers_in_the_order_of_names(tmp_path: Path) -> None:
    """What is said of files left out depends on nothing but their names."""
    write(tmp_path, "a/1.jpg", "a/1.zip", "b/1.csv", "b/2.xml", "c/3.xml", "1")
    source = FolderSource(tmp_path)
    agree(source)
    assert source.notes == [
        "left out 5 files whose suffix is not an image's: 2 .xml, 1 .csv, 1 .zip, 1 without suffix"
    ]


def test_closed_and_deep_folders_are_listed_alike(open_folder: Path) -> None:
    """A folder that cannot be opened, or lies too deep, is a row with its problem."""
    write(open_folder, "a/1.jpg", "b/2.jpg", "c/" + 101 * "d/" + "1.jpg")
    (open_folder / "a").chmod(0)
    with as_nobody():
        found = agree(FolderSource(open_folder))
    assert found[:2] == ["a", "b/2.jpg"]
    assert found[2].endswith("d/d")


def test_a_folder_of_more_than_one_block_is_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks follow one another without a gap, with a folder between two files and a bad link."""
    monkeypatch.setattr("featpipe.sources.folder.BLOCK_ROWS", 3)
    write(tmp_path, *(f"{i}.jpg" for i in range(8)), "4/x.jpg")
    (tmp_path / "5a.jpg").symlink_to(tmp_path / "nowhere")
    names = ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4/x.jpg", "4.jpg", "5.jpg", "5a.jpg"]
    assert agree(FolderSource(tmp_path)) == [*names, "6.jpg", "7.jpg"]


@given(
    st.sets(
        st.lists(st.sampled_from(["a", "b", "a.jpg", "A.JPG", "\u00e9.png", "t.txt", "-"]))
        .filter(lambda parts: 0 < len(parts) < 4)
        .map("/".join),
        max_size=12,
    )
)
def test_any_tree_is_in_the_order_of_its_names(
    tmp_path_factory: pytest.TempPathFactory, names: set[str]
) -> None:
    """Folders and files of one folder stand in one order, a folder's content at its place."""
    root = tmp_path_factory.mktemp("tree")
    for name in sorted(names, key=len, reverse=True):
        if not (root / name).exists():
            write(root, name)
    images = [p for p in root.rglob("*") if p.is_file() and p.suffix.lower() in {".jpg", ".png"}]
    expected = sorted(p.relative_to(root).parts for p in images)
    assert agree(FolderSource(root)) == ["/".join(parts) for parts in expected]


def test_other_sources_have_columns_too(tmp_path: Path) -> None:
    """A table, labels beside a folder and a list of paths are listed through the same seam."""
    write(tmp_path / "set", "x/1.jpg", "x/2.jpg")
    (tmp_path / "t.csv").write_text("path,label,split,eyes\nset/x/1.jpg,ant,train,2\nset/9,,,\n")
    (tmp_path / "l.csv").write_text("path,label,legs\n1.jpg,ant,6\n")
    assert agree(open_source(tmp_path / "t.csv")) == ["set/x/1.jpg", "set/9"]
    assert agree(open_source(tmp_path / "set", tmp_path / "l.csv")) == ["x/1.jpg", "x/2.jpg"]
    named = [str(tmp_path / "set" / "x" / "2.jpg"), "gone.jpg"]
    assert agree(open_source(named)) == named
