"""What `clean` takes out: which images go, which stay, and that none is lost on the way."""

from __future__ import annotations

import csv
import errno
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from test_quality import re_encode
from vectors import make_store, small

from featpipe import embed
from featpipe._files import content_key, file_key
from featpipe.errors import FeatpipeError, SourceError, WriteError
from featpipe.quality import choose, clean, move, move_back, removal_list
from featpipe.quality.choosing import CHANGED, GONE, LINKED, OUTSIDE, UNKNOWN, obstacle
from featpipe.quality.cleaning import KINDS, Cleaning, Problem
from featpipe.quality.copies import JUDGE, KEPT
from featpipe.store import EmbeddingStore


@pytest.fixture
def poor(photos: Path) -> Path:
    """Plant two equal files, three copies (one under another label), a broken and a blank one."""
    for name in ("living/cat.jpg", "things/coffee.jpg", "living/grass.jpg"):
        re_encode(photos / name)
    shutil.copy(photos / "living/cat.jpg", photos / "living/cat_again.jpg")
    shutil.copy(photos / "living/cat.jpg", photos / "living/cat_twice.jpg")
    shutil.move(photos / "living/grass_small.jpg", photos / "things/lawn.jpg")
    (photos / "things/broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    Image.new("RGB", (300, 200), (250, 250, 250)).save(photos / "things/blank.png")
    return photos


@pytest.fixture
def store(poor: Path, tiny_backbone: Path, tmp_path: Path) -> EmbeddingStore:
    return embed(poor, tiny_backbone, output=tmp_path / "store")


@pytest.fixture
def found(store: EmbeddingStore) -> Cleaning:
    return clean(store, head="centroid")


TAKEN = [
    "living/cat_again.jpg",
    "living/cat_small.jpg",
    "living/cat_twice.jpg",
    "things/broken.jpg",
    "things/coffee_small.jpg",
]
"""What goes by default: copies and what cannot be read, but no copy under another label."""


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of every image below a folder, by its path."""
    return {
        str(path.relative_to(folder)): file_key(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "moved.csv"
    }


def refused(error: type[FeatpipeError], *args, **options) -> str:
    with pytest.raises(error) as caught:
        move(*args, **options)
    return str(caught.value)


def test_copies_and_broken_files_move_and_the_first_of_each_stays(
    found, store, poor: Path, tmp_path: Path
) -> None:
    """Paths are kept, nothing is lost, and a copy under another label waits for a person."""
    before = contents(poor)
    out = tmp_path / "out"
    moved = move(found, store, out)
    assert [one.path for one in moved.moves] == TAKEN
    assert moved.left == {JUDGE: 1}
    assert contents(out) == {path: before[path] for path in TAKEN}
    assert contents(poor) == {path: key for path, key in before.items() if path not in TAKEN}
    with (out / "moved.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[3] == {
        "kind": "unreadable",
        "path": "things/broken.jpg",
        "from": str(poor / "things/broken.jpg"),
        "to": str(out / "things/broken.jpg"),
    }
    assert [row["path"] for row in rows] == TAKEN


def test_a_copy_of_a_copy_stays_where_it_is_unlike_the_first(
    photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Three crops of a photograph, of which the first and the last stand in no pair."""
    cat = photos / "living/cat.jpg"
    with Image.open(cat) as opened:
        image = opened.convert("RGB")
    for number in range(3):
        edge = 0.015 * number
        box = round(edge * image.width), round(edge * image.height), image.width, image.height
        image.crop(box).save(cat.with_name(f"cat_{number}.jpg"), quality=90)
    cat.unlink()
    store = embed(photos, tiny_backbone, output=tmp_path / "s")
    found = clean(store, head="centroid")
    assert {(p.other, p.path) for p in found.of("near-duplicate")} == {
        ("living/cat_0.jpg", "living/cat_1.jpg"),
        ("living/cat_1.jpg", "living/cat_2.jpg"),
    }
    choice = choose(found, store)
    assert [(p.path, p.other) for p in choice.problems] == [
        ("living/cat_1.jpg", "living/cat_0.jpg")
    ]
    assert choice.left == {KEPT: 1}


def arrange(photos: Path, root: Path, places: dict[str, str]) -> Path:
    """Put photographs, and smaller copies of them, where they are wanted below a new folder."""
    small = {path.stem: re_encode(path) for path in sorted(photos.rglob("*.jpg"))}
    for place, name in places.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        stem = name.removesuffix("_small")
        shutil.copy(
            small[stem] if name != stem else next(photos.rglob(f"{name}.jpg")), root / place
        )
    return root


def test_the_copy_with_a_label_stays(photos: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    """Loose files come first in the store, and have none; of two with labels the first stays."""
    places = {
        "1.jpg": "cat",
        "2.jpg": "cat",
        "living/cat_small.jpg": "cat_small",
        "living/lawn.jpg": "grass",
        "living/lawn_small.jpg": "grass_small",
        "things/coffee.jpg": "coffee",
    }
    store = embed(arrange(photos, tmp_path / "set", places), tiny_backbone, output=tmp_path / "s")
    assert dict(zip(store.paths, store.labels(), strict=True))["1.jpg"] is None
    choice = choose(clean(store, head="centroid"), store)
    assert [(p.kind, p.path, p.other) for p in choice.problems] == [
        ("near-duplicate", "1.jpg", "living/cat_small.jpg"),
        ("near-duplicate", "2.jpg", "living/cat_small.jpg"),
        ("near-duplicate", "living/lawn_small.jpg", "living/lawn.jpg"),
    ]
    assert choice.left == {}
    assert choice.by_split(["1.jpg"]) == {}


@pytest.mark.parametrize(
    ("target", "goes"),
    [("species", "cat.jpg"), ("place", "cat_small.jpg"), (None, "cat.jpg")],
)
def test_labels_count_in_the_column_that_is_asked_for(
    photos: Path, tiny_backbone: Path, tmp_path: Path, target: str | None, goes: str
) -> None:
    """Where none is named, the image that has labels in more columns stays."""
    re_encode(photos / "living/cat.jpg")
    (tmp_path / "labels.csv").write_text(
        "path,species,colour,place\n"
        "living/cat.jpg,,,home\nliving/cat_small.jpg,cat,grey,\nliving/grass.jpg,plant,,garden\n"
    )
    store = embed(photos, tiny_backbone, labels=tmp_path / "labels.csv", output=tmp_path / "s")
    choice = choose(clean(store, head="centroid", target=target), store)
    assert [p.path for p in choice.problems] == [f"living/{goes}"]


def test_the_training_image_stays_and_its_copy_to_measure_on_goes(
    photos: Path, tiny_backbone: Path, tmp_path: Path, run_cli
) -> None:
    """Splits are counted; what is in none goes rather than what is in one."""
    places = {
        "extra/living/cat.jpg": "cat",
        "extra/living/grass.jpg": "grass",
        "test/living/astronaut.jpg": "astronaut",
        "test/living/cat_a.jpg": "cat",
        "test/living/grass.jpg": "grass_small",
        "test/things/coffee.jpg": "coffee",
        "train/living/cat_z.jpg": "cat_small",
        "train/things/gravel.jpg": "gravel",
        "train/things/gravel_small.jpg": "gravel_small",
        "train/things/rocket.jpg": "rocket",
        "val/things/coffee.jpg": "coffee_small",
        "val/living/retina.jpg": "retina",
    }
    root = arrange(photos, tmp_path / "set", places)
    store = embed(root, tiny_backbone, output=tmp_path / "s")
    going = {
        "extra/living/cat.jpg": "train/living/cat_z.jpg",
        "extra/living/grass.jpg": "test/living/grass.jpg",
        "test/living/cat_a.jpg": "train/living/cat_z.jpg",
        "test/things/coffee.jpg": "val/things/coffee.jpg",
        "train/things/gravel_small.jpg": "train/things/gravel.jpg",
    }
    choice = choose(clean(store, head="centroid"), store)
    assert {p.path: p.other for p in choice.problems} == going
    base = ("clean", store.path, "--head", "centroid")
    result = run_cli(*base, "--rm-list", tmp_path / "list")
    by_split = "by split: 1 in train, 2 in test, 2 in no split"
    assert result.err.splitlines() == [f"5 images listed → {tmp_path}/list", by_split]
    for option in (["--dry-run"], []):
        result = run_cli(*base, "--move-to", tmp_path / "out", *option)
        assert by_split in result.err.splitlines()
    assert list(contents(tmp_path / "out")) == list(going)


def test_without_a_split_train_what_is_in_none_is_learnt_on_and_stays(
    photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """As `fit` divides a store: the image to measure on is the leak."""
    places = {
        "more/living/cat.jpg": "cat",
        "more/things/rocket.jpg": "rocket",
        "test/living/cat.jpg": "cat_small",
        "test/things/coffee.jpg": "coffee",
        "val/living/grass.jpg": "grass",
        "val/things/gravel.jpg": "gravel",
    }
    root = arrange(photos, tmp_path / "set", places)
    store = embed(root, tiny_backbone, output=tmp_path / "s")
    assert {str(split) for split in store.splits} == {"None", "test", "val"}
    choice = choose(clean(store, head="centroid"), store)
    assert [(p.path, p.other) for p in choice.problems] == [
        ("test/living/cat.jpg", "more/living/cat.jpg")
    ]


def test_what_was_moved_can_be_moved_back(found, store, poor: Path, tmp_path: Path) -> None:
    """All but what is gone from there, and what would take another's place."""
    before = contents(poor)
    out = tmp_path / "out"
    move(found, store, out)
    (out / "things/broken.jpg").unlink()
    (poor / "living/cat_again.jpg").write_bytes(b"new")
    assert len(move_back(out).moves) == 3
    left = {"living/cat_again.jpg", "things/broken.jpg"}
    now = contents(poor)
    assert {p: k for p, k in now.items() if p not in left} == {
        p: k for p, k in before.items() if p not in left
    }
    assert now["living/cat_again.jpg"] == content_key(b"new")
    assert list(contents(out)) == ["living/cat_again.jpg"]
    (poor / "living/cat_again.jpg").unlink()
    assert len(move_back(out).moves) == 1
    with pytest.raises(WriteError) as caught:
        move_back(tmp_path / "elsewhere")
    assert str(caught.value) == (
        f"there is no list of moved images at {tmp_path}/elsewhere/moved.csv"
    )


@pytest.mark.parametrize("kind", ["two-labels", "blank", "duplicate"])
def test_kinds_are_moved_where_they_are_named(found, store, tmp_path: Path, kind: str) -> None:
    """And no other."""
    expected = {
        "two-labels": ["things/lawn.jpg"],
        "blank": ["things/blank.png"],
        "duplicate": ["living/cat_again.jpg", "living/cat_twice.jpg"],
    }[kind]
    moved = move(found, store, tmp_path / "out", [kind])
    assert [one.path for one in moved.moves] == expected
    assert moved.left == {}


def test_a_dry_run_says_the_same_and_moves_nothing(found, store, poor, tmp_path: Path) -> None:
    """Not even the folder is made."""
    before = contents(poor)
    moved = move(found, store, tmp_path / "out", dry_run=True)
    assert [one.path for one in moved.moves] == TAKEN
    assert moved.is_done is False
    assert contents(poor) == before
    assert not (tmp_path / "out").exists()


def test_a_name_that_is_taken_is_refused_before_anything_moves(
    found, store, poor: Path, tmp_path: Path
) -> None:
    """The last one of all: nothing has moved, nothing is overwritten."""
    before = contents(poor)
    taken = tmp_path / "out" / TAKEN[-1]
    taken.parent.mkdir(parents=True)
    taken.write_bytes(b"mine")
    assert refused(WriteError, found, store, tmp_path / "out") == (
        f"{taken} is there already, and nothing is overwritten; nothing was moved: give another "
        "folder, or take that file away"
    )
    assert contents(poor) == before
    assert taken.read_bytes() == b"mine"


def test_links_on_the_way_and_folders_within_are_refused(
    found, store, poor: Path, tmp_path: Path
) -> None:
    """A link below the target folder, a file in place of a folder, and the images' own folder."""
    before = contents(poor)
    out = tmp_path / "out"
    out.mkdir()
    (out / "living").symlink_to(tmp_path)
    sentence = "is no folder, or a link; nothing was moved: give another folder"
    assert refused(WriteError, found, store, out) == (
        f"cannot move to {out}/{TAKEN[0]}: {out}/living {sentence}"
    )
    (out / "living").unlink()
    (out / "living").write_bytes(b"a file")
    assert refused(WriteError, found, store, out) == (
        f"cannot move to {out}/{TAKEN[0]}: {out}/living {sentence}"
    )
    for place in (poor / "out", tmp_path):
        assert refused(WriteError, found, store, place) == (
            f"cannot move images to {place}: it lies in the folder of the images, or around it, "
            "and they would be found again; give a folder apart from it"
        )
    assert contents(poor) == before


def test_another_list_in_its_place_is_refused(found, store, poor, tmp_path: Path) -> None:
    """A file of that name which featpipe has not written is not lost."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "moved.csv").write_text("a,b\n1,2\n")
    assert refused(WriteError, found, store, out) == (
        f"{out}/moved.csv is no list of moved images: give another folder, or take that file away"
    )
    assert (out / "moved.csv").read_text() == "a,b\n1,2\n"


def test_two_runs_share_a_list(found, store, tmp_path: Path) -> None:
    """What was moved first can still be moved back."""
    out = tmp_path / "out"
    move(found, store, out)
    again = move(found, store, out, ["unreadable", "blank"])
    assert [one.path for one in again.moves] == ["things/blank.png"]
    assert again.left == {GONE: 1}
    assert len(move_back(out).moves) == len(TAKEN) + 1


def test_images_that_are_not_what_they_were_stay(found, store, poor: Path, tmp_path: Path) -> None:
    """Changed, gone, replaced by a link or a folder: each is counted with its reason."""
    (poor / "living/cat_again.jpg").write_bytes(b"other")
    (poor / "living/cat_small.jpg").unlink()
    shutil.move(poor / "things/coffee_small.jpg", tmp_path / "coffee.jpg")
    (poor / "things/coffee_small.jpg").symlink_to(tmp_path / "coffee.jpg")
    (poor / "things/broken.jpg").unlink()
    (poor / "things/broken.jpg").mkdir()
    moved = move(found, store, tmp_path / "out")
    assert [one.path for one in moved.moves] == ["living/cat_twice.jpg"]
    assert moved.left == {CHANGED: 2, GONE: 1, LINKED: 1, JUDGE: 1}
    assert (tmp_path / "coffee.jpg").exists()


def test_a_file_seen_through_a_link_is_no_copy_to_be_taken(
    photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Two names of one folder: moving the `copy` would move the image itself."""
    (photos / "zoo").symlink_to(photos / "living")
    store = embed(photos, tiny_backbone, output=tmp_path / "s")
    found = clean(store, head="centroid")
    assert len(found.of("duplicate")) == 4
    moved = move(found, store, tmp_path / "out", ["duplicate", "two-labels"])
    assert moved.moves == ()
    assert moved.left == {LINKED: 4}
    assert not (tmp_path / "out").exists()


def test_the_file_behind_a_link_is_no_copy_either(
    photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """The link comes first and would stay; moving the file would leave nothing."""
    (photos / "all").symlink_to(photos / "living")
    store = embed(photos, tiny_backbone, output=tmp_path / "s")
    moved = move(clean(store, head="centroid"), store, tmp_path / "out", ["duplicate"])
    assert moved.moves == ()
    assert moved.left == {JUDGE: 4}
    moved = move(clean(store, head="centroid"), store, tmp_path / "out", ["two-labels"])
    assert moved.moves == ()
    assert moved.left == {KEPT: 4}


def test_a_copy_stays_where_the_first_is_gone_or_has_changed(
    found, store, poor: Path, tmp_path: Path
) -> None:
    """What was removed since must not take its last copy with it."""
    (poor / "things/coffee.jpg").unlink()
    (poor / "living/cat.jpg").write_bytes(b"other")
    moved = move(found, store, tmp_path / "out")
    assert [one.path for one in moved.moves] == [
        "living/cat_small.jpg",
        "living/cat_twice.jpg",
        "things/broken.jpg",
    ]
    assert moved.left == {KEPT: 2, JUDGE: 1}
    assert (poor / "living/cat_again.jpg").exists()
    assert (poor / "things/coffee_small.jpg").exists()


def test_paths_of_a_strange_store_lead_nowhere(tmp_path: Path) -> None:
    """Absolute ones, and those that climb; and files that were never read."""
    (tmp_path / "root").mkdir()
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(b"mine")
    key = content_key(b"mine")
    assert obstacle(tmp_path / "root", str(outside), key) == OUTSIDE
    assert obstacle(tmp_path / "root", "../outside.jpg", key) == LINKED
    assert obstacle(tmp_path, "outside.jpg", None) == UNKNOWN
    assert obstacle(tmp_path, "outside.jpg", key) is None


def test_a_file_that_could_not_be_read_stays(
    photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Nothing tells what was in it when the store was made, whatever lies there now."""
    (photos / "living/lost.jpg").symlink_to(tmp_path / "nowhere")
    store = embed(photos, tiny_backbone, output=tmp_path / "s")
    found = clean(store, head="centroid")
    assert [p.path for p in found.of("unreadable")] == ["living/lost.jpg"]
    (photos / "living/lost.jpg").unlink()
    shutil.copy(photos / "living/cat.jpg", photos / "living/lost.jpg")
    moved = move(found, store, tmp_path / "out")
    assert moved.moves == ()
    assert moved.left == {UNKNOWN: 1}


def test_one_of_each_group_stays_whatever_is_named(store, found: Cleaning, tmp_path: Path) -> None:
    """The first goes for another reason: then the next one stays."""
    first = Problem("dark", "living/cat.jpg", None, None, None, "")
    worse = Cleaning(found.store, found.images, (*found.problems, first), "", ())
    choice = choose(worse, store, ["duplicate", "near-duplicate", "dark"])
    assert {"living/cat.jpg", "living/cat_small.jpg", "living/cat_twice.jpg"} <= {
        problem.path for problem in choice.problems
    }
    assert "living/cat_again.jpg" not in {problem.path for problem in choice.problems}
    assert choice.left[KEPT] == 1


def test_all_kinds_are_known_to_the_command() -> None:
    """`--help` must not load what knows them."""
    from featpipe.commands.clean import _KINDS

    assert _KINDS == KINDS


def test_an_unknown_kind_is_named(found, store, tmp_path: Path) -> None:
    """With those that there are."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        move(found, store, tmp_path / "out", ["ugly"])
    assert str(caught.value) == f"there is no kind 'ugly': the kinds are {', '.join(KINDS)}"


def test_other_sources_are_refused(tmp_path: Path) -> None:
    """Vectors whose images come from nowhere."""
    X, labels = small(2, 3)
    store = make_store(tmp_path / "s", X, labels)
    assert refused(SourceError, clean(store), store, tmp_path / "out") == (
        f"the images of {tmp_path}/s do not come from a folder of this machine that is still there "
        f"({tmp_path}/photos): only the files of such a folder are moved or listed for removal"
    )


def test_another_file_system_gets_a_copy_first(
    found, store, poor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No second name can be had there: bytes and time of change are the same, nothing is left."""

    def link(*args, **options):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    before = contents(poor)
    times = {path: (poor / path).stat().st_mtime_ns for path in TAKEN}
    out = tmp_path / "out"
    move(found, store, out)
    assert contents(out) == {path: before[path] for path in TAKEN}
    assert {path: (out / path).stat().st_mtime_ns for path in TAKEN} == times
    assert not [path for path in TAKEN if (poor / path).exists()]
    assert len(move_back(out).moves) == len(TAKEN)
    assert contents(poor) == before


def test_a_real_other_file_system(found, store, poor: Path) -> None:
    """The same without a stand-in, where the machine has two."""
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == poor.stat().st_dev:
        pytest.skip("there is one file system alone")
    before = contents(poor)
    out = shm / f"featpipe-test-{os.getpid()}"
    try:
        move(found, store, out)
        assert contents(out) == {path: before[path] for path in TAKEN}
        assert len(move_back(out).moves) == len(TAKEN)
    finally:
        shutil.rmtree(out, ignore_errors=True)
    assert contents(poor) == before


def test_a_full_disk_leaves_a_list_of_what_has_moved(
    found, store, poor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third image finds no room: two have moved, and are listed; no half file stays."""

    def link(*args, **options):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    copies = []

    def copyfileobj(source, target, length):
        copies.append(source)
        if len(copies) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        target.write(source.read())

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(shutil, "copyfileobj", copyfileobj)
    before, out = contents(poor), tmp_path / "out"
    assert refused(WriteError, found, store, out) == (
        f"cannot write {out}/{TAKEN[2]}: no space is left on the disk: free some and run the same "
        "command again"
    )
    assert list(contents(out)) == TAKEN[:2]
    assert contents(poor) | contents(out) == before
    monkeypatch.undo()
    assert len(move_back(out).moves) == 2


def test_the_command_moves_and_says_what_to_do_next(
    store, poor: Path, tmp_path: Path, run_cli
) -> None:
    """Dry run first; then for real; then `embed` finds fewer images."""
    out = tmp_path / "out"
    base = ("clean", store.path, "--head", "centroid", "--move-to", out)
    result = run_cli(*base, "--dry-run")
    assert result.code == 0
    stays = f"1 stay where they are: they {JUDGE}"
    assert result.err.splitlines() == [
        "would move living/cat_again.jpg (duplicate) → " + str(out / "living/cat_again.jpg"),
        "would move living/cat_small.jpg (near-duplicate) → " + str(out / "living/cat_small.jpg"),
        "would move living/cat_twice.jpg (duplicate) → " + str(out / "living/cat_twice.jpg"),
        "would move things/broken.jpg (unreadable) → " + str(out / "things/broken.jpg"),
        "would move things/coffee_small.jpg (near-duplicate) → "
        + str(out / "things/coffee_small.jpg"),
        f"5 images would move to {out}",
        stays,
    ]
    result = run_cli(*base, "--kind", "blank", "--kind", "unreadable", "--json")
    assert result.code == 0
    assert result.err.splitlines() == [
        f"moved 2 images to {out}",
        f"{out}/moved.csv lists them; run `featpipe embed` again",
    ]
    result = run_cli(*base)
    assert result.err.splitlines() == [
        f"moved 4 images to {out}",
        f"1 stay where they are: they {GONE}",
        stays,
        f"{out}/moved.csv lists them; run `featpipe embed` again",
    ]
    result = run_cli(*base, "--kind", "unreadable")
    assert result.err.splitlines() == ["nothing was moved", f"1 stay where they are: they {GONE}"]


def test_the_command_refuses_a_taken_name_with_exit_code_8(store, tmp_path, run_cli) -> None:
    """The message is the library's."""
    taken = tmp_path / "out" / "things" / "broken.jpg"
    taken.parent.mkdir(parents=True)
    taken.write_bytes(b"mine")
    result = run_cli("clean", store.path, "--head", "centroid", "--move-to", tmp_path / "out")
    assert result.code == 8
    assert result.err == (
        f"Error: {taken} is there already, and nothing is overwritten; nothing was moved: give "
        "another folder, or take that file away\n"
    )


def test_the_list_is_what_rm_reads(store, poor: Path, tmp_path: Path, run_cli) -> None:
    """With and without NUL, to a file and to stdout."""
    base = ("clean", store.path, "--head", "centroid", "--rm-list")
    result = run_cli(*base, tmp_path / "list")
    assert result.code == 0
    assert result.err.splitlines() == [
        f"5 images listed → {tmp_path}/list",
        f"1 are not listed: they {JUDGE}",
    ]
    assert (tmp_path / "list").read_text().splitlines() == [
        shlex.quote(str(poor / path)) for path in TAKEN
    ]
    assert run_cli(*base, tmp_path / "nul", "-0").code == 0
    with (tmp_path / "nul").open("rb") as file:
        subprocess.run(["xargs", "-0", "rm", "--"], stdin=file, check=True)
    assert not [path for path in TAKEN if (poor / path).exists()]
    result = run_cli(*base, "-", "--null", "--kind", "blank")
    assert result.out == f"{poor}/things/blank.png\0"
    assert result.err == "1 images listed\n"


def test_lists_of_odd_names(photos: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    """A quote and a byte that is no UTF-8 are quoted; a line break asks for NUL."""
    root = os.fsencode(photos / "living")
    for name in (b"it's \xe9 cat.jpg", b"two\nlines.jpg"):
        shutil.copy(os.fsencode(photos / "living/cat.jpg"), root + b"/" + name)
    store = embed(photos, tiny_backbone, output=tmp_path / "s")
    choice = choose(clean(store, head="centroid"), store)
    with pytest.raises(FeatpipeError) as caught:
        removal_list(choice)
    assert str(caught.value) == (
        f"the path {photos}/living/two\\nlines.jpg holds a control character, which a list of "
        "lines cannot hold: separate paths by NUL (--null)"
    )
    listed = removal_list(choice, null=True)
    assert listed == root + b"/it's \xe9 cat.jpg\0" + root + b"/two\nlines.jpg\0"
    os.unlink(root + b"/two\nlines.jpg")
    choice = choose(clean(store, head="centroid"), store)
    subprocess.run(["xargs", "rm", "--"], input=removal_list(choice), check=True)
    assert not os.path.exists(root + b"/it's \xe9 cat.jpg")
    assert (photos / "living/cat.jpg").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--json", "--csv"], "give --json or --csv, not both"),
        (["--move-to", "d", "--rm-list", "l"], "give --move-to or --rm-list, not both"),
        (["--rm-list", "-", "--csv"], "one thing alone can go to stdout: give --rm-list a file"),
        (
            ["--kind", "blank"],
            "--kind says what --move-to or --rm-list takes: give one of them, too",
        ),
        (
            ["--dry-run"],
            "--dry-run says what --move-to or --move-back would do: give one of them, too",
        ),
        (["-0"], "--null says how --rm-list writes: give it, too"),
    ],
)
def test_options_that_make_no_sense_are_refused(store, run_cli, options, sentence) -> None:
    """Exit code 2, before anything is read."""
    result = run_cli("clean", store.path, *options)
    assert result.code == 2
    assert result.err.splitlines()[-1] == f"Error: {sentence}"


def test_the_store_is_no_place_for_images(found, store) -> None:
    """Neither in it nor around it: nothing moves."""
    for folder in (store.path / "out", store.path):
        with pytest.raises(WriteError) as caught:
            move(found, store, folder)
        assert str(caught.value) == (
            f"cannot move images to {folder}: it lies in the store, or around it; give a folder "
            "apart from it"
        )
    assert not (store.path / "out").exists()
    shutil.copytree(store.path, store.path.parent / "deep/er/store")
    copied = EmbeddingStore.open(store.path.parent / "deep/er/store")
    assert refused(WriteError, found, copied, copied.path.parent.parent) == (
        f"cannot move images to {copied.path.parent.parent}: it lies in the store, or around it; "
        "give a folder apart from it"
    )


def test_images_of_another_folder_are_not_put_into_the_same_list(
    found, store, poor: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """`moved.csv` leads back to one folder alone."""
    shutil.copytree(poor, tmp_path / "other")
    other = embed(tmp_path / "other", tiny_backbone, output=tmp_path / "other-store")
    out = tmp_path / "out"
    move(found, store, out, ["unreadable"])
    before = contents(tmp_path / "other")
    assert refused(WriteError, clean(other, head="centroid"), other, out, ["blank"]) == (
        f"{out} holds images of another folder ({poor}), and moved.csv leads back to one alone: "
        "give another folder"
    )
    assert contents(tmp_path / "other") == before
    assert len(move_back(out).moves) == 1
    assert len(move(clean(other, head="centroid"), other, out, ["blank"]).moves) == 1


def test_what_could_not_go_back_does_not_move(
    found, store, poor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were a store to name a file that a folder does not list, `move_back` would refuse it."""
    monkeypatch.setattr("featpipe.quality.journal.IMAGE_SUFFIXES", {".png"})
    before = contents(poor)
    assert refused(WriteError, found, store, tmp_path / "out") == (
        f"cannot move {TAKEN[0]}, as it could not go back (its path is not that of an image within "
        "a folder): nothing was moved"
    )
    assert contents(poor) == before
    assert not (tmp_path / "out").exists()
