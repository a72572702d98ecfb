"""What `move` took out goes back, and what a stranger's list asks for does not."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from featpipe._files import file_key
from featpipe.errors import WriteError
from featpipe.quality import Move, move_back
from featpipe.quality.choosing import GONE, LINKED
from featpipe.quality.journal import read_moves, write_moves
from featpipe.quality.returning import BEHIND_LINK, CHANGED_ON_THE_WAY, TAKEN_PLACE

PATHS = ("living/cat.jpg", "living/cat again.jpg", "things/coffee.jpg", "things/rocket.jpg")


@pytest.fixture
def out(photos: Path, tmp_path: Path) -> Path:
    """Move four photographs out of their folder, with a list, as `move` does."""
    shutil.copy(photos / "living/cat.jpg", photos / "living/cat again.jpg")
    folder = tmp_path / "out"
    moves = [Move("duplicate", path, photos / path, folder / path) for path in PATHS]
    write_moves(folder, moves)
    for one in moves:
        one.target.parent.mkdir(parents=True, exist_ok=True)
        one.source.rename(one.target)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder but the list, by its path."""
    return {
        str(path.relative_to(folder)): file_key(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "moved.csv"
    }


def refused(folder: Path) -> str:
    with pytest.raises(WriteError) as caught:
        move_back(folder)
    return str(caught.value)


def test_all_goes_back_and_the_list_is_empty_then(out: Path, photos: Path) -> None:
    """A second call finds nothing to do, which is no error; no list at all is one."""
    before = contents(out)
    rest = contents(photos)
    found = move_back(out)
    assert [one.path for one in found.moves] == list(PATHS)
    assert (found.directory, found.root, found.left) == (out, photos, {})
    assert contents(photos) == rest | before
    assert contents(out) == {}
    assert (out / "moved.csv").read_text() == "kind,path,from,to\n"
    again = move_back(out)
    assert (again.moves, again.root, again.left) == ((), None, {})
    (out / "moved.csv").unlink()
    assert refused(out) == f"there is no list of moved images at {out}/moved.csv"


def test_what_cannot_go_back_stays_and_says_why(out: Path, photos: Path, tmp_path: Path) -> None:
    """Gone, a link, another file in its place: none of it is touched, and the list keeps it."""
    (out / PATHS[0]).unlink()
    shutil.move(out / PATHS[1], tmp_path / "elsewhere.jpg")
    (out / PATHS[1]).symlink_to(tmp_path / "elsewhere.jpg")
    (photos / PATHS[2]).write_bytes(b"mine")
    found = move_back(out)
    assert [one.path for one in found.moves] == [PATHS[3]]
    assert found.left == {GONE: 1, LINKED: 1, TAKEN_PLACE: 1}
    assert (photos / PATHS[2]).read_bytes() == b"mine"
    assert (tmp_path / "elsewhere.jpg").exists()
    assert [one.path for one in read_moves(out)] == list(PATHS[:3])


@pytest.mark.parametrize("what", ["file", "link", "dangling"])
def test_what_holds_a_place_is_not_overwritten(out: Path, photos: Path, what: str) -> None:
    """An empty file, a link to the image itself, a link to nowhere."""
    place = photos / PATHS[0]
    if what == "file":
        place.touch()
    else:
        place.symlink_to(out / PATHS[0] if what == "link" else out / "nowhere")
    before = contents(out)
    assert move_back(out).left == {TAKEN_PLACE: 1}
    assert contents(out) == {PATHS[0]: before[PATHS[0]]}
    assert place.is_symlink() is (what != "file")


def test_links_on_either_way_are_not_followed(out: Path, photos: Path, tmp_path: Path) -> None:
    """A folder of the list that is a link out of it; a folder of the images that has become one."""
    before = contents(out)
    shutil.move(out / "living", tmp_path / "strange")
    (out / "living").symlink_to(tmp_path / "strange")
    shutil.move(photos / "things", tmp_path / "things")
    (photos / "things").symlink_to(tmp_path / "things")
    found = move_back(out)
    assert found.moves == ()
    assert found.left == {LINKED: 2, BEHIND_LINK: 2}
    assert sorted(path.name for path in (tmp_path / "strange").iterdir()) == [
        "cat again.jpg",
        "cat.jpg",
    ]
    (photos / "things").unlink()
    (photos / "things").write_bytes(b"a file")
    assert move_back(out).left == {LINKED: 2, BEHIND_LINK: 2}
    (photos / "things").unlink()
    (out / "living").unlink()
    shutil.move(tmp_path / "strange", out / "living")
    assert len(move_back(out).moves) == 4
    assert {path: contents(photos)[path] for path in PATHS} == before


STRANGE = {
    "from elsewhere": ("a.jpg", "{photos}/b.jpg", "{out}/a.jpg"),
    "from relative": ("a.jpg", "photos/a.jpg", "{out}/a.jpg"),
    "from climbs": ("a.jpg", "{photos}/../a.jpg", "{out}/a.jpg"),
    "from half a name": ("a.jpg", "{photos}/aa.jpg", "{out}/a.jpg"),
    "no room for a root": ("a.jpg", "/a.jpg", "{out}/a.jpg"),
    "to elsewhere": ("a.jpg", "{photos}/a.jpg", "{photos}/living/a.jpg"),
    "to another name": ("a.jpg", "{photos}/a.jpg", "{out}/b.jpg"),
    "to climbs": ("a.jpg", "{photos}/a.jpg", "{out}/../out/a.jpg"),
    "into the list's folder": ("a.jpg", "{out}/more/a.jpg", "{out}/a.jpg"),
    "path climbs": ("../a.jpg", "{photos}/../a.jpg", "{out}/../a.jpg"),
    "path absolute": ("/a.jpg", "/a.jpg", "{out}/a.jpg"),
    "path empty": ("", "{photos}", "{out}"),
    "path with NUL": ("a\\x00.jpg", "{photos}/a\\x00.jpg", "{out}/a\\x00.jpg"),
    "root with NUL": ("a.jpg", "{photos}/\\x00/a.jpg", "{out}/a.jpg"),
    "hidden": (".ssh/a.jpg", "{photos}/.ssh/a.jpg", "{out}/.ssh/a.jpg"),
    "no image": ("authorized_keys", "{photos}/authorized_keys", "{out}/authorized_keys"),
    "other root": ("a.jpg", "{photos}/living/a.jpg", "{out}/a.jpg"),
}
_PATH = "its path is not that of an image within a folder"
_FROM = "where it comes from does not end in its path"
_PLAIN = "where it comes from is no absolute path"
_TO = "where it went is not its path below {out}"
_AROUND = "it comes from the folder that it went to, or from one around it"
WHY = {
    "from elsewhere": _FROM,
    "from relative": _PLAIN,
    "from climbs": _PLAIN,
    "from half a name": _FROM,
    "no room for a root": _AROUND,
    "to elsewhere": _TO,
    "to another name": _TO,
    "to climbs": _TO,
    "into the list's folder": _AROUND,
    "path climbs": _PATH,
    "path absolute": _PATH,
    "path empty": _PATH,
    "path with NUL": _PATH,
    "root with NUL": _PLAIN,
    "hidden": _PATH,
    "no image": _PATH,
    "other root": "it comes from {photos}/living, the rows above from {photos}",
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_list_from_elsewhere_moves_nothing(out: Path, photos: Path, case: str) -> None:
    """One row that `move` would not have written, below good ones: none of them is followed."""
    shutil.copy(out / PATHS[0], out / "a.jpg")
    row = ",".join(cell.format(photos=photos, out=out) for cell in STRANGE[case])
    with (out / "moved.csv").open("a") as file:
        file.write(f"blank,{row}\n")
    before = contents(out.parent)
    why = WHY[case].format(photos=photos, out=out)
    assert refused(out) == (
        f"row 6 of {out}/moved.csv is not as featpipe writes it ({why}): nothing was moved; give "
        "another folder, or mend the list"
    )
    assert contents(out.parent) == before


def test_an_image_in_both_places_is_taken_from_the_list(out: Path, photos: Path) -> None:
    """A killed run has given it its second name, or copied it; and lost the list's last word."""
    os.link(out / PATHS[0], photos / PATHS[0])
    shutil.copy(out / PATHS[1], photos / PATHS[1])
    shutil.move(out / PATHS[2], photos / PATHS[2])
    found = move_back(out)
    assert [one.path for one in found.moves] == [PATHS[0], PATHS[1], PATHS[3]]
    assert found.left == {}
    assert contents(out) == {}
    assert contents(photos).keys() >= set(PATHS)
    assert read_moves(out) == []


def test_one_name_that_two_mounts_show_is_not_removed(
    out: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system calls both places the same file, which has no second name."""
    shutil.copy(out / PATHS[0], photos / PATHS[0])
    monkeypatch.setattr(Path, "samefile", lambda one, other: one.name == other.name)
    found = move_back(out)
    assert found.left == {TAKEN_PLACE: 1}
    assert (out / PATHS[0]).exists()


def test_an_image_that_changes_on_the_way_stays(
    out: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two file systems the copy is compared before the image is deleted."""

    def link(*args, **options):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def copyfileobj(source, target, length):
        target.write(source.read()[:-1])

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(shutil, "copyfileobj", copyfileobj)
    before = contents(out)
    assert move_back(out).left == {CHANGED_ON_THE_WAY: 4}
    assert contents(out) == before
    assert not [path for path in PATHS if (photos / path).exists()]
    assert not list(photos.rglob(".moving-*"))


def test_a_full_disk_keeps_the_rest_in_the_list(
    out: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two are back, and off the list; the same command goes on."""
    real, calls = os.link, []

    def link(*args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise FileExistsError(errno.EEXIST, "File exists")
        real(*args, **options)

    monkeypatch.setattr(os, "link", link)
    assert refused(out) == f"cannot write {photos}/{PATHS[2]}: File exists"
    assert [one.path for one in read_moves(out)] == list(PATHS[2:])
    monkeypatch.undo()
    assert len(move_back(out).moves) == 2


def test_a_file_that_cannot_be_read_ends_in_a_sentence(
    out: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has gone back before is off the list."""

    def broken(path: Path) -> bytes:
        if path.name == "coffee.jpg":
            raise OSError(errno.EIO, "Input/output error")
        return file_key(path)

    monkeypatch.setattr("featpipe.quality.returning.file_key", broken)
    assert refused(out) == f"cannot write {photos}/{PATHS[2]}: Input/output error"
    assert [one.path for one in read_moves(out)] == list(PATHS[2:])


@pytest.mark.parametrize("what", ["pipe", "folder", "other"])
def test_a_list_that_is_none_is_refused(out: Path, what: str) -> None:
    """A pipe is not waited for."""
    place = out / "moved.csv"
    place.unlink()
    if what == "pipe":
        os.mkfifo(place)
    elif what == "folder":
        place.mkdir()
    else:
        place.write_text("kind,path\n")
    assert refused(out) == (
        f"{place} is no list of moved images: give another folder, or take that file away"
    )


def test_a_dry_run_changes_nothing(out: Path, photos: Path) -> None:
    """Not even the list of what has gone back before."""
    shutil.copy(out / PATHS[1], photos / PATHS[1])
    (photos / PATHS[0]).write_bytes(b"mine")
    before, listed = contents(out.parent), (out / "moved.csv").read_bytes()
    found = move_back(out, dry_run=True)
    assert [one.path for one in found.moves] == list(PATHS[1:])
    assert (found.left, found.is_done) == ({TAKEN_PLACE: 1}, False)
    assert contents(out.parent) == before
    assert (out / "moved.csv").read_bytes() == listed


def test_the_command_says_how_many_went_back(out: Path, photos: Path, run_cli) -> None:
    """Dry run first; no store is needed; a second time there is nothing to do."""
    (photos / PATHS[0]).write_bytes(b"mine")
    left = f"1 of the list are not moved back: they {TAKEN_PLACE}"
    result = run_cli("clean", "--move-back", out, "--dry-run")
    assert result.code == 0
    assert result.err.splitlines() == [
        *(f"would move {path} back to {photos}/{path}" for path in PATHS[1:]),
        f"3 images would move back to {photos}",
        left,
    ]
    result = run_cli("clean", "--move-back", out)
    assert result.code == 0
    assert result.out == ""
    assert result.err.splitlines() == [
        f"moved 3 images back to {photos}",
        left,
        "run `featpipe embed` again",
    ]
    result = run_cli("clean", "--move-back", out)
    assert result.err.splitlines() == ["nothing was moved back", left]
    result = run_cli("clean", "--move-back", out, "--dry-run")
    assert result.err.splitlines() == ["nothing would move back", left]


def test_the_command_refuses_a_missing_list_with_exit_code_8(tmp_path: Path, run_cli) -> None:
    """The message is the library's."""
    result = run_cli("clean", "--move-back", tmp_path)
    assert result.code == 8
    assert result.err == f"Error: there is no list of moved images at {tmp_path}/moved.csv\n"


@pytest.mark.parametrize("more", [["store"], ["--head", "knn"], ["--json"], ["--move-to", "d"]])
def test_other_options_beside_it_are_refused(tmp_path: Path, run_cli, more: list[str]) -> None:
    """Nothing is looked at then."""
    result = run_cli("clean", "--move-back", tmp_path, *more)
    assert result.code == 2
    assert result.err.splitlines()[-1] == (
        "Error: --move-back needs no STORE and no other option but --dry-run"
    )
