"""Tar archives: what is listed, with which labels; damage, hostility; nothing is read twice."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import PHOTOS, Result
from hypothesis import given
from hypothesis import strategies as st

from featpipe.errors import SourceError
from featpipe.quality.looks import bytes_of, source_of
from featpipe.sources import containers, open_source, tar
from featpipe.sources.base import Source
from featpipe.sources.headers import DamagedTarError, Member, read_headers
from featpipe.sources.listings import listing_folder
from featpipe.sources.names import (
    distinct_names,
    expanded,
    has_braces,
    stem_of,
)
from featpipe.sources.places import Tree, splits_of_names
from featpipe.store import EmbeddingStore

Run = Callable[..., Result]


def packed(path: Path, members: dict[str, bytes | str], form: int = tarfile.PAX_FORMAT) -> Path:
    """Write a tar file of these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members.items():
            content = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 7
            archive.addfile(info, io.BytesIO(content))
    return path


def listed(source: Source) -> list[tuple[str, str | None, str | None]]:
    """Path, label and split of all that is listed."""
    return [(r.path, r.label, r.split) for r in source]


def contents(source: Source) -> dict[str, bytes]:
    """The bytes of every image."""
    return {ref.path: source.read(ref) for ref in source}


def test_members_are_listed_in_order_and_read(tmp_path: Path) -> None:
    """Images have size, time and the version of the archive; their bytes come by path alone."""
    path = packed(
        tmp_path / "x.tar", {"b.jpg": "bb", "a.PNG": "a", "notes.md": "no", "._b.jpg": ""}
    )
    source = open_source(path)
    one, two = source
    stat = path.stat()
    assert (one.path, one.size, one.mtime_ns) == ("b.jpg", 2, 7_000_000_000)
    assert one.version == f"{stat.st_size}-{stat.st_mtime_ns}"
    assert (two.path, two.label) == ("a.PNG", None)
    assert contents(open_source(path)) == {"b.jpg": b"bb", "a.PNG": b"a"}
    assert source.notes == ["left out 1 files whose suffix is not an image's: 1 .md"]
    assert (source.name, source.location) == ("x", str(path))
    with pytest.raises(FileNotFoundError, match="there is no such image in "):
        source.read(type(one)("c.jpg"))


@pytest.mark.parametrize("wrapper", ["", "./", "photos/", "./a/b/"])
def test_folders_inside_give_labels_and_splits(tmp_path: Path, wrapper: str) -> None:
    """As in a folder, whatever single folder stands around all of them."""
    names = ["train/ants/1.jpg", "train/bees/deep/2.jpg", "Test/ants/3.jpg"]
    path = packed(tmp_path / "x.tar", {wrapper + name: name for name in names})
    prefix = wrapper.removeprefix("./")
    assert listed(open_source(path)) == [
        (prefix + names[0], "ants", "train"),
        (prefix + names[1], "bees", "train"),
        (prefix + names[2], "ants", "test"),
    ]


def test_the_tree_of_all_archives_decides(tmp_path: Path) -> None:
    """One shard holds `train` alone: beside the classes of the others it is a vehicle."""
    packed(tmp_path / "s-0.tar", {"train/1.jpg": "1"})
    packed(tmp_path / "s-1.tar", {"bus/2.jpg": "2"})
    assert listed(open_source(str(tmp_path / "s-{0..1}.tar"))) == [
        ("s-0.tar/train/1.jpg", "train", None),
        ("s-1.tar/bus/2.jpg", "bus", None),
    ]


def test_files_beside_an_image_say_what_it_is(tmp_path: Path) -> None:
    """`.cls` is the label, `.json` may hold it; further values and captions are label columns."""
    said = {"label": 3, "split": "Training", "group": "p1", "width": 20.0, "ok": True, "box": [1]}
    path = packed(
        tmp_path / "x.tar",
        {
            "1.cls": "ant\n",
            "1.jpg": "1",
            "1.txt": "an ant\non a leaf",
            "2.json": json.dumps(said),
            "2.left.jpg": "2l",
            "2.right.jpg": "2r",
            "sub/3.jpg": "3",
        },
    )
    one, left, right, three = open_source(path)
    assert (one.label, one.split, one.labels["txt"]) == ("ant", None, "an ant\non a leaf")
    for ref in (left, right):
        assert (ref.label, ref.split, ref.group) == ("3", "train", "p1")
        assert ref.labels == {"txt": None, "width": "20", "ok": "True"}
    assert three.label is None


def test_groups_come_from_a_column_of_the_json_files(tmp_path: Path) -> None:
    """`--group COLUMN` names a value of the `.json` files."""
    path = packed(tmp_path / "x.tar", {"1.jpg": "1", "1.json": '{"patient": "p7", "label": "a"}'})
    [ref] = open_source(path, group="patient")
    assert (ref.group, ref.label, dict(ref.labels)) == ("p7", "a", {})
    with pytest.raises(SourceError, match="there is no column 'eyes' to group by: choose one of"):
        open_source(path, group="eyes")


def test_json_that_says_nothing_is_noted(tmp_path: Path) -> None:
    """Damaged, deep or foreign JSON is no error; nor is a split that is none."""
    deep = "[" * 100_000
    path = packed(
        tmp_path / "x.tar",
        {"1.jpg": "1", "1.json": "{", "2.json": deep, "3.json": '{"split": "2017", "\\ud800": 1}'},
    )
    source = open_source(path)
    [ref] = source
    assert ref.label is None
    assert source.notes == [
        f"{path}: 2 `.json` files hold no object and are not used",
        f"{path}: 1 splits are not train, val or test, and are not used",
    ]


def test_braces_name_shards_and_their_names_splits(tmp_path: Path) -> None:
    """Paths begin with the shard's name; `train-…` and `val-…` are splits."""
    for name in ("train-00", "train-01", "val-00"):
        packed(tmp_path / f"{name}.tar", {"1.jpg": name, "1.cls": "0"})
    source = open_source(str(tmp_path / "{train-00,train-01,val-00}.tar"))
    assert listed(source) == [
        ("train-00.tar/1.jpg", "0", "train"),
        ("train-01.tar/1.jpg", "0", "train"),
        ("val-00.tar/1.jpg", "0", "val"),
    ]
    assert contents(source)["val-00.tar/1.jpg"] == b"val-00"
    assert contents(open_source(source.location)) == contents(source)


def test_a_folder_of_shards_is_read_as_shards(tmp_path: Path) -> None:
    """Shards in a folder, or one below, are images; beside an image they are files."""
    packed(tmp_path / "set" / "val" / "0.tar", {"1.jpg": "v"})
    packed(tmp_path / "set" / "train" / "0.tar", {"1.jpg": "t"})
    (tmp_path / "set" / "README.md").write_text("words")
    source = open_source(tmp_path / "set")
    assert listed(source) == [
        ("train/0.tar/1.jpg", None, "train"),
        ("val/0.tar/1.jpg", None, "val"),
    ]
    assert source.name == "set"
    assert contents(source)["train/0.tar/1.jpg"] == b"t"
    (tmp_path / "set" / "val" / "2.jpg").write_bytes(b"2")
    assert [ref.path for ref in open_source(tmp_path / "set")] == ["val/2.jpg"]


def test_a_missing_shard_is_a_row(tmp_path: Path) -> None:
    """The others are read; where none is there, that is said."""
    packed(tmp_path / "s-1.tar", {"1.jpg": "1"})
    one, two = open_source(str(tmp_path / "s-{0..1}.tar"))
    assert (one.path, one.problem) == (
        "s-0.tar",
        "the archive cannot be opened: No such file or directory",
    )
    assert (two.path, two.problem) == ("s-1.tar/1.jpg", None)
    with pytest.raises(SourceError, match="there is none of the 3 files "):
        open_source(str(tmp_path / "t-{0..2}.tar"))


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    """No image in them can be read by itself."""
    (tmp_path / "x.tar.gz").write_bytes(b"")
    with pytest.raises(SourceError) as caught:
        open_source(tmp_path / "x.tar.gz")
    assert str(caught.value) == (
        f"{tmp_path}/x.tar.gz is compressed as a whole, so no image in it can be read by itself: "
        "decompress it to a .tar (images hardly shrink), or unpack it"
    )


def test_names_that_are_stored_again_count_once(tmp_path: Path) -> None:
    """As with unpacking, the last one counts."""
    path = tmp_path / "x.tar"
    packed(path, {"1.jpg": "old", "2.jpg": "2"})
    with tarfile.open(path, "a") as archive:
        info = tarfile.TarInfo("1.jpg")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"new"))
    source = open_source(path)
    assert contents(source) == {"2.jpg": b"2", "1.jpg": b"new"}
    assert source.notes == [f"{path}: members stored again: 1; the last of each name counts"]


def test_joined_archives_are_read_as_one(tmp_path: Path) -> None:
    """`cat a.tar b.tar` loses no image; rubbish after the end mark is none."""
    one, two = (
        packed(tmp_path / "1.tar", {"1.jpg": "1"}),
        packed(tmp_path / "2.tar", {"2.jpg": "2"}),
    )
    path = tmp_path / "x.tar"
    path.write_bytes(one.read_bytes() + two.read_bytes() + b"rubbish" * 200)
    assert contents(open_source(path)) == {"1.jpg": b"1", "2.jpg": b"2"}


def test_members_never_leave_their_archive(tmp_path: Path) -> None:
    """Links, devices and names that lead out are rows with the reason; none is followed."""
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (
            ("link.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
            ("pipe.jpg", tarfile.FIFOTYPE),
            ("zero.jpg", tarfile.CHRTYPE),
            ("../secret.jpg", tarfile.REGTYPE),
            (str(tmp_path / "secret.jpg"), tarfile.REGTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(tmp_path / "secret.jpg")
            archive.addfile(info)
    source = open_source(path)
    refs = list(source)
    assert [(r.path, r.problem) for r in refs] == [
        ("link.jpg", "it is a link inside an archive, which is not followed"),
        ("hard.jpg", "it is a link inside an archive, which is not followed"),
        ("pipe.jpg", "it is not a regular file"),
        ("zero.jpg", "it is not a regular file"),
        ("../secret.jpg", "its name leads out of the archive"),
        (str(tmp_path / "secret.jpg").lstrip("/"), None),
    ]
    assert source.read(refs[-1]) == b""
    with pytest.raises(OSError, match="it is a link inside an archive"):
        source.read(refs[0])


def test_a_truncated_archive_keeps_what_came_before(tmp_path: Path) -> None:
    """The image that is cut is a row with the reason; those before it are read."""
    path = packed(tmp_path / "x.tar", {"1.jpg": "1", "2.jpg": b"2" * 2000})
    path.write_bytes(path.read_bytes()[:2000])
    one, two = source = list(open_source(path))
    assert (one.path, one.problem) == ("1.jpg", None)
    assert (two.path, two.problem, two.size) == (
        "2.jpg",
        "the archive ends in the middle of it",
        None,
    )
    assert len(source) == 2


def test_a_damaged_archive_says_where(tmp_path: Path) -> None:
    """What cannot be read any further is a row of its own, and a note."""
    path = packed(tmp_path / "x.tar", {"1.jpg": "1", "2.jpg": "2"})
    data = bytearray(path.read_bytes())
    data[1024 + 5] ^= 1
    path.write_bytes(data)
    source = open_source(path)
    one, two = source
    assert (one.path, source.read(one)) == ("1.jpg", b"1")
    assert (two.path, two.problem) == (
        "x.tar",
        "the archive is damaged: the checksum of a header is wrong",
    )
    assert source.notes == [
        f"{path}: the checksum of a header is wrong; the images before that are listed"
    ]


def test_an_archive_that_is_none_is_said(
    run_cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder or rubbish with the name of an archive ends in one line, not in a traceback."""
    monkeypatch.chdir(tmp_path)
    Path("x.tar").write_bytes(b"rubbish" * 1000)
    done = run_cli("embed", "x.tar")
    assert (done.code, "Failed: x.tar: the archive is damaged" in done.err) == (3, True)
    Path("y.tar").write_bytes(b"")
    done = run_cli("embed", "y.tar")
    assert (done.code, done.err) == (4, f"Error: there is no image in {tmp_path}/y.tar\n")


def header(name: bytes = b"1.jpg", size: bytes = b"00000000001\0", kind: bytes = b"0") -> bytes:
    """Return a header with a right checksum, whatever else is in it."""
    block = bytearray(512)
    block[: len(name)], block[124 : 124 + len(size)], block[156:157] = name, size, kind
    block[148:156] = b"%06o\0 " % (sum(block) + 8 * 32)
    return bytes(block)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (header(size=b"-0000000001\0"), "a header of it holds no number where one belongs"),
        (header(size=b"\xff" * 12), "a header of it holds no number where one belongs"),
        (header(size=b"1_000\0"), None),
        (header(kind=b"L", size=b"77777777777\0"), "a header of it has 8589934591 bytes"),
        (header(kind=b"x", size=b"00000000777\0"), "it ends in the middle of a header"),
        (header(kind=b"x") + b"9" * 512, "a pax header of it is not well formed"),
        (header(kind=b"L") + b"n" * 512, "it ends after a header that belongs to another"),
        (
            header(kind=b"S")[:482] + b"\1" + header(kind=b"S")[483:],
            "the checksum of a header is wrong",
        ),
        (header()[:100], "it ends in the middle of a header"),
    ],
)
def test_hostile_headers_are_refused(data: bytes, reason: str | None) -> None:
    """Negative and huge sizes, lists without end and cut headers end in a clause."""
    if reason is None:
        assert [member.name for member in read_headers(io.BytesIO(data), len(data))] == ["1.jpg"]
        return
    with pytest.raises(DamagedTarError) as caught:
        list(read_headers(io.BytesIO(data), len(data)))
    assert str(caught.value) == reason


def test_a_size_beyond_all_numbers_is_a_cut_image(tmp_path: Path) -> None:
    """A member of 2⁸⁰ bytes is a row; nothing is allocated for it."""
    (tmp_path / "x.tar").write_bytes(header(size=b"\x80\0" + b"\1" + bytes(9)) + bytes(1024))
    [ref] = open_source(tmp_path / "x.tar")
    assert (ref.path, ref.size, ref.problem) == (
        "1.jpg",
        None,
        "the archive ends in the middle of it",
    )


names = st.text(
    st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=150
).filter(lambda name: name.strip(". ") and name[0] != ".")
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
forms = st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])


@given(st.dictionaries(paths, st.binary(max_size=1500), max_size=6), forms)
def test_members_are_those_that_tarfile_lists(members: dict[str, bytes], form: int) -> None:
    """Long and foreign names, sizes at the edge of a block: as the standard library reads them."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 5
            archive.addfile(info, io.BytesIO(data))
    file.seek(0)
    with tarfile.open(fileobj=file) as archive:
        expected = [Member(m.name, "file", m.size, 5 * 10**9, m.offset_data) for m in archive]
    found = list(read_headers(file, len(file.getvalue())))
    assert found == expected
    assert [m.name for m in found] == list(members)


@given(st.binary(max_size=600), st.integers(0, 3000), st.binary(min_size=1, max_size=20))
def test_no_bytes_end_in_a_traceback(tail: bytes, at: int, noise: bytes) -> None:
    """Whatever is written into an archive, it is listed or refused with a clause."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("1.jpg", "é" * 120 + ".jpg", "2.cls"):
            info = tarfile.TarInfo(name)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"abc"))
    data = bytearray(file.getvalue()[:4000])
    data[at : at + len(noise)] = noise
    data += tail
    reading = tar._Reading(io.BytesIO(data), len(data)).go()
    assert set(reading.table.column("problem").to_pylist()) <= {
        None,
        *tar._PROBLEMS.values(),
        tar._CUT,
        tar._OUTSIDE,
        *(p for p in reading.table.column("problem").to_pylist() if p and "is damaged: " in p),
    }


def test_an_unchanged_archive_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its listing comes from the cache, in another process, too; a changed one is read."""
    path = packed(tmp_path / "x.tar", {"a/1.jpg": "1", "a/2.jpg": "2"})
    first = list(open_source(path))
    calls: list[object] = []

    def counted(file: object, size: int) -> object:
        calls.append(file)
        return read_headers(file, size)  # type: ignore[arg-type]

    monkeypatch.setattr(tar, "read_headers", counted)
    assert list(open_source(path)) == first
    assert calls == []
    packed(path, {"a/1.jpg": "1", "a/2.jpg": "2", "a/3.jpg": "3"})
    assert len(list(open_source(path))) == 3
    assert len(calls) == 1
    [kept] = listing_folder().iterdir()
    kept.write_bytes(b"rubbish")
    assert len(list(open_source(path))) == 3
    assert len(calls) == 2


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the archive is read each time."""
    listing_folder().parent.mkdir(parents=True)
    listing_folder().write_bytes(b"a file stands there")
    path = packed(tmp_path / "x.tar", {"1.jpg": "1"})
    assert contents(open_source(path)) == {"1.jpg": b"1"}
    assert contents(open_source(path)) == {"1.jpg": b"1"}


def test_an_archive_that_changes_after_listing_is_said(tmp_path: Path) -> None:
    """Offsets of the former archive are not used on another one."""
    path = packed(tmp_path / "x.tar", {"1.jpg": "1"})
    source = open_source(path)
    [ref] = source
    packed(path, {"0.cls": "0", "1.jpg": "one"})
    with pytest.raises(OSError, match=r"^the file that holds it has changed since it was listed$"):
        source.read(ref)
    assert contents(source) == {"1.jpg": b"one"}


def test_few_archives_are_open_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may open a thousand files, and there are more shards; nor are all listings kept."""
    monkeypatch.setattr(containers, "_MOST_OPEN", 3)
    monkeypatch.setattr(containers, "_ROWS_IN_MEMORY", 4)
    for at in range(10):
        packed(tmp_path / f"{at}.tar", {"1.jpg": str(at), "2.jpg": "x"})
    source = open_source(str(tmp_path / "{0..9}.tar"))
    refs = list(source)
    before = len(os.listdir("/proc/self/fd"))
    assert [source.read(ref) for ref in refs[::2]] == [str(at).encode() for at in range(10)]
    assert len(os.listdir("/proc/self/fd")) <= before + 4
    assert source._listings.size == 4  # type: ignore[attr-defined]


def test_labels_from_a_table_for_an_archive(tmp_path: Path) -> None:
    """`--labels` works as with folders: by path or by name."""
    path = packed(tmp_path / "x.tar", {"a/1.jpg": "1", "a/2.jpg": "2"})
    (tmp_path / "t.csv").write_text("path,label\na/1.jpg,ant\n2.jpg,bee\n")
    assert listed(open_source(path, labels=tmp_path / "t.csv")) == [
        ("a/1.jpg", "ant", None),
        ("a/2.jpg", "bee", None),
    ]


def test_commands_read_archives(
    run_cli: Run, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embed, fit and score on archives; the second run opens nothing; reports find the images."""
    monkeypatch.setenv("FEATPIPE_MODELS", str(tiny_backbone.parent))
    monkeypatch.chdir(tmp_path)
    photos = {path.name: path.read_bytes() for path in sorted(PHOTOS.glob("*.jpg"))}
    living = ("astronaut.jpg", "cat.jpg", "grass.jpg", "retina.jpg")
    members: dict[str, bytes | str] = {}
    for name, data in photos.items():
        members[f"{'living' if name in living else 'things'}/{name}"] = data
    packed(tmp_path / "x.tar", members)
    assert run_cli("embed", "x.tar", "--model", "tiny", "-o", "s").code == 0
    again = run_cli("embed", "x.tar", "--model", "tiny", "-o", "s")
    assert "10 unchanged and not opened" in again.err
    store = EmbeddingStore.open("s")
    source = source_of(store)
    assert source is not None
    assert bytes_of(source, store.paths[3], store.keys[3]) == members[store.paths[3]]
    assert run_cli("fit", "s", "--head", "centroid", "-o", "h", "--no-baselines").code == 0
    done = run_cli("score", "x.tar", "--head", "h", "-o", "o.csv")
    assert done.code == 0, done.err
    rows = Path("o.csv").read_text(encoding="utf-8").splitlines()
    assert [row.partition(",")[0] for row in rows[1:]] == list(members)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{9..11}", ["9", "10", "11"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{00..10..5}", ["00", "05", "10"]),
        ("{a,b}{1,2}", ["a1", "a2", "b1", "b2"]),
        ("{x}{}", ["{x}{}"]),
        ("a{b", ["a{b"]),
    ],
)
def test_braces_are_expanded_as_by_a_shell(text: str, names: list[str]) -> None:
    """Ranges, padded and stepped, lists, and their products; other braces are text."""
    assert expanded(text) == names
    assert has_braces(text) == (len(names) > 1)


@pytest.mark.parametrize("text", ["{0..999999999}", "{0..9999}{0..9999}", "{0..99999999999}"])
def test_braces_that_stand_for_too_much_are_refused(text: str) -> None:
    """A slip of the finger does not fill the memory."""
    with pytest.raises(SourceError, match="stands for more than a million files"):
        expanded(text)


def test_names_of_shards() -> None:
    """Short and distinct; splits where names say them; a name for the store."""
    assert distinct_names(["/a/b/0.tar", "/a/b/1.tar"]) == ["0.tar", "1.tar"]
    assert distinct_names(["/a/x.tar"]) == ["x.tar"]
    assert splits_of_names(["in1k-train-00.tar", "in1k-validation-00.tar"]) == ["train", "val"]
    assert splits_of_names(["in1k-train-00.tar", "in1k-train-01.tar"]) == [None, None]
    assert stem_of("s3://b/set/{train,val}/{0..9}.tar") == "set"


def test_a_tree_without_root() -> None:
    """A single folder with images is a class, one around classes is none."""
    assert Tree(["ants"]).place("ants").label == "ants"
    assert Tree(["photos/ants"]).place("photos/ants").label == "ants"
    assert Tree(["photos", "photos/ants"]).place("photos").label == "photos"
    assert Tree(["test/ants"]).place("test/ants").split == "test"
