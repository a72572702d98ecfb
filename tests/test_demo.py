"""The demo: the set that travels in the wheel, the run from end to end, the command."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from zipfile import ZipFile

import numpy as np
import pytest
from conftest import as_nobody
from PIL import Image

from featpipe._files import file_key
from featpipe.demo import Accuracy, Answer, Comparison, DemoEvent, DemoResult, dataset, run_demo
from featpipe.demo.dataset import ARCHIVE, LICENSES, unpack
from featpipe.errors import WriteError
from featpipe.heads import load_head, newest_head
from featpipe.store import newest_store

CLASSES = ("brick", "fur", "grass", "gravel", "retina", "stars", "wood", "writing")
TOOL = Path(__file__).parent.parent / "tools" / "make_demo_data.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """Return ``tools/make_demo_data.py`` as a module."""
    spec = importlib.util.spec_from_file_location("make_demo_data", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def crops() -> list[dict[str, str]]:
    """Return the rows of the archive's ``crops.csv``."""
    with ZipFile(ARCHIVE) as archive:
        return list(csv.DictReader(io.StringIO(archive.read("crops.csv").decode())))


@pytest.fixture(scope="module")
def first_run(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[DemoResult, list[DemoEvent]]]:
    """Run the whole demo once, with the built-in backbone, for all tests that look at it."""
    events: list[DemoEvent] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        root = tmp_path_factory.mktemp("demo")
        yield run_demo(root / "featpipe-demo", on_event=events.append), events


# The set


def test_set_has_the_promised_images(tmp_path: Path) -> None:
    """Eight classes of 20 training and 25 test images, eight new ones, all 96 pixels, grey."""
    place = unpack(tmp_path / "demo")
    train = Counter(path.parent.name for path in place.images.glob("train/*/*.jpg"))
    test = Counter(path.parent.name for path in place.images.glob("test/*/*.jpg"))
    assert train == dict.fromkeys(CLASSES, 20)
    assert test == dict.fromkeys(CLASSES, 25)
    assert len(list(place.new.glob("*.jpg"))) == 8
    forms = set()
    for path in place.root.rglob("*.jpg"):
        with Image.open(path) as image:
            forms.add((image.format, image.mode, image.size))
    assert forms == {("JPEG", "L", (96, 96))}


def test_set_is_small_enough_for_the_wheel() -> None:
    """The set and its licences take one megabyte at most."""
    assert ARCHIVE.stat().st_size + LICENSES.stat().st_size <= 1_000_000


def test_no_two_images_are_equal(tmp_path: Path) -> None:
    """No image stands twice in the set, under whatever name."""
    place = unpack(tmp_path / "demo")
    keys = {file_key(path) for path in place.root.rglob("*.jpg")}
    assert len(keys) == 368


def test_training_and_test_crops_never_meet(crops: list[dict[str, str]]) -> None:
    """In every photograph, training crops end at least eight pixels before the others begin."""
    for source in {row["source"] for row in crops}:
        rows = [row for row in crops if row["source"] == source]
        train = [row for row in rows if row["path"].startswith("images/train/")]
        others = [row for row in rows if row not in train]
        assert (len(train), len(others)) == (20, 26)
        last = max(int(row["left"]) + int(row["size"]) for row in train)
        assert last + 8 <= min(int(row["left"]) for row in others)


def test_tool_refuses_a_window_in_the_gap(tool: ModuleType) -> None:
    """A window that reaches into the gap between the halves stops the build."""
    brick = tool.SURFACES[0]
    tool.check_halves(512, brick)
    with pytest.raises(SystemExit, match=r"^brick: a training window reaches into the gap$"):
        tool.check_halves(512, replace(brick, left=((0, 0, 253, 512),)))
    with pytest.raises(SystemExit, match=r"^brick: a test window reaches into the gap$"):
        tool.check_halves(512, replace(brick, right=((259, 0, 512, 512),)))


def test_set_is_the_one_that_the_tool_draws(tool: ModuleType) -> None:
    """The tool draws, today as then, the crops that the archive lists and holds."""
    drawn = tool.draw_crops()
    with ZipFile(ARCHIVE) as archive:
        assert archive.read("crops.csv") == tool.table(drawn)
        images = {name for name in archive.namelist() if name.endswith(".jpg")}
        dates = {info.date_time for info in archive.infolist()}
    assert images == {crop.path for crop in drawn}
    assert dates == {(1980, 1, 1, 0, 0, 0)}
    assert LICENSES.read_bytes() == tool.licenses()


def test_every_photograph_is_free(tool: ModuleType) -> None:
    """For every class the licence file states photograph, origin, and CC0 or public domain."""
    text = LICENSES.read_text(encoding="utf-8")
    rows = {
        cells[0]: cells
        for line in text.splitlines()
        if line.startswith("| ") and len(cells := [c.strip() for c in line.split("|")[1:-1]]) == 5
    }
    assert set(rows) - {"class"} == set(CLASSES)
    for surface in tool.SURFACES:
        _, file, _, origin, licence = rows[surface.name]
        assert file == surface.file
        assert origin
        assert licence.startswith(("CC0", "public domain"))


def test_brightness_and_contrast_tell_nothing(tmp_path: Path) -> None:
    """A classifier that sees mean and contrast alone stays near chance (12.5 %)."""
    place = unpack(tmp_path / "demo")

    def look(split: str) -> tuple[np.ndarray, np.ndarray]:
        paths = sorted(place.images.glob(f"{split}/*/*.jpg"))
        grey = [np.asarray(Image.open(path), dtype=float) for path in paths]
        return np.array([(g.mean(), g.std()) for g in grey]), np.array(
            [path.parent.name for path in paths]
        )

    seen, names = look("train")
    asked, truth = look("test")
    scale = seen.std(axis=0)
    distance = np.linalg.norm((asked[:, None] - seen[None]) / scale, axis=2)
    assert np.mean(names[distance.argmin(axis=1)] == truth) < 0.25


# Unpacking


def test_unpack_again_touches_nothing(tmp_path: Path) -> None:
    """A second unpacking writes no image and changes no time of change."""
    first = unpack(tmp_path / "demo")
    times = {path: path.stat().st_mtime_ns for path in first.root.rglob("*.jpg")}
    second = unpack(tmp_path / "demo")
    assert (first.written, first.kept) == (368, 0)
    assert (second.written, second.kept) == (0, 368)
    assert {path: path.stat().st_mtime_ns for path in first.root.rglob("*.jpg")} == times
    assert (first.root / "LICENSES.md").read_bytes() == LICENSES.read_bytes()


def test_unpack_mends_what_is_torn_or_gone(tmp_path: Path) -> None:
    """A truncated and a deleted image are written again; the others stay."""
    place = unpack(tmp_path / "demo")
    torn = place.images / "train" / "fur" / "fur-01.jpg"
    whole = torn.read_bytes()
    torn.write_bytes(whole[:100])
    (place.new / "01.jpg").unlink()
    again = unpack(tmp_path / "demo")
    assert (again.written, again.kept) == (2, 366)
    assert torn.read_bytes() == whole


def test_unpack_takes_an_empty_folder_and_leaves_hidden_files_alone(tmp_path: Path) -> None:
    """An empty folder is as good as a new one; a file manager's hidden files do not matter."""
    unpack(tmp_path)
    (tmp_path / "images" / ".DS_Store").write_bytes(b"")
    assert unpack(tmp_path).kept == 368


@pytest.mark.parametrize("marker", [b'{"made_by": "somebody"}', b"[]", b"\xff no JSON"])
def test_unpack_refuses_a_marker_of_another_kind(tmp_path: Path, marker: bytes) -> None:
    """A file that happens to be called demo.json does not make a folder ours."""
    (tmp_path / "demo.json").write_bytes(marker)
    with pytest.raises(WriteError) as error:
        unpack(tmp_path)
    assert str(error.value) == (
        f"cannot write the demo into {tmp_path}: it holds other things (demo.json); "
        "name a new or an empty folder, as in `featpipe demo another-folder`"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]


def test_unpack_into_folders_without_permission(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that may not be read, or not be written, is a sentence with the way out."""
    # Where featpipe is installed, another user may have no right to read.
    for name in ("ARCHIVE", "LICENSES"):
        copy = shutil.copy(getattr(dataset, name), open_folder)
        monkeypatch.setattr(dataset, name, Path(copy))
    closed, fixed = open_folder / "closed", open_folder / "fixed"
    closed.mkdir(mode=0o700)
    unpack(fixed)
    (fixed / "new" / "01.jpg").unlink()
    (fixed / "demo.json").chmod(0o644)
    fixed.chmod(0o777)
    (fixed / "new").chmod(0o755)
    remedy = (
        "permission denied: choose another place (-o, or --models-dir for backbones), or "
        "change the permissions"
    )
    with as_nobody():
        with pytest.raises(WriteError) as cannot_list:
            unpack(closed)
        with pytest.raises(WriteError) as cannot_write:
            unpack(fixed)
    assert str(cannot_list.value) == f"cannot write {closed}: {remedy}"
    assert str(cannot_write.value) == f"cannot write {fixed / 'new' / '01.jpg'}: {remedy}"


# The run


@pytest.mark.slow
def test_demo_learns_what_raw_pixels_do_not(
    first_run: tuple[DemoResult, list[DemoEvent]],
) -> None:
    """Every head knows 95 of 100 held-out images by its vectors, and few by raw pixels."""
    result, _ = first_run
    assert [comparison.head for comparison in result.comparisons] == ["logreg", "svm", "knn"]
    for comparison in result.comparisons:
        assert comparison.vectors.value >= 0.95
        assert comparison.raw_pixels.value <= 0.35
        assert comparison.vectors.low <= comparison.vectors.value <= comparison.vectors.high
        assert comparison.raw_pixels.high < comparison.vectors.low
    assert result.chance == 0.125
    assert (result.images, result.computed, result.classes) == (360, 360, CLASSES)


def test_demo_knows_the_new_images(
    first_run: tuple[DemoResult, list[DemoEvent]], crops: list[dict[str, str]]
) -> None:
    """At least seven of the eight new images are named rightly, here and in predictions.csv."""
    result, _ = first_run
    truth = {row["path"]: row["class"] for row in crops}
    said = {f"new/{image.path.name}": image.label for image in result.new}
    assert sum(truth[path] == label for path, label in said.items()) >= 7
    with result.predictions.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {f"new/{Path(row['path']).name}": row["label"] for row in rows} == said


def test_demo_counts_agree(first_run: tuple[DemoResult, list[DemoEvent]]) -> None:
    """The confusion matrix holds 25 images a class, and its diagonal is logreg's accuracy."""
    result, _ = first_run
    counts = result.confusion()
    assert counts.sum(axis=1).tolist() == [25] * 8
    assert np.trace(counts) / 200 == pytest.approx(result.comparisons[0].vectors.value)


def test_demo_leaves_all_that_it_names(first_run: tuple[DemoResult, list[DemoEvent]]) -> None:
    """Folder, stores, heads, predictions, picture and licences stand below the one folder."""
    result, _ = first_run
    names = sorted(path.name for path in result.folder.iterdir())
    assert names == [
        "LICENSES.md",
        "demo.json",
        "demo.png",
        "embeddings",
        "heads",
        "images",
        "new",
        "predictions.csv",
    ]
    heads = sorted(path.name for path in (result.folder / "heads").iterdir())
    assert heads == [f"images-efficientnet_lite0-{name}" for name in ("knn", "logreg", "svm")]
    with Image.open(result.picture) as picture:
        assert (picture.format, picture.size) == ("PNG", (1500, 1060))


def test_demo_tells_its_steps(first_run: tuple[DemoResult, list[DemoEvent]]) -> None:
    """One event a step, in order, each with a sentence that names what it left."""
    result, events = first_run
    steps = [event.step for event in events]
    assert steps == ["images", "vectors", "head", "head", "head", "predictions", "picture"]
    assert events[0].message == f"368 images of eight surfaces → {result.folder}"
    heads = result.folder / "heads" / "images-efficientnet_lite0"
    assert [event.message for event in events[2:]] == [
        f"knn tuned on vectors and on raw pixels → {heads}-knn",
        f"svm tuned on vectors and on raw pixels → {heads}-svm",
        f"logreg tuned on vectors and on raw pixels → {heads}-logreg",
        f"8 new images → {result.predictions}",
        f"confusion matrix with examples → {result.picture}",
    ]


def test_default_commands_work_in_the_demo_folder(
    first_run: tuple[DemoResult, list[DemoEvent]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside the folder, the newest store and head are the backbone's and logreg."""
    result, _ = first_run
    monkeypatch.chdir(result.folder)
    assert newest_store().manifest.name == "efficientnet_lite0"
    assert load_head(newest_head()).name == "logreg"


# The command


def test_second_run_reuses_and_gives_the_same_numbers(first_run, run_cli) -> None:
    """A second run opens no image; with --json, stdout is one document with every number."""
    result, _ = first_run
    ran = run_cli("demo", result.folder, "--json")
    assert ran.code == 0
    said = ran.err.splitlines()
    assert said[0] == f"368 images of eight surfaces are there already → {result.folder}"
    assert said[1] == (
        "360 images unchanged and not opened; nothing had to be computed, so no device was started"
    )
    assert len(said) == 7
    value, before = json.loads(ran.out), result.to_json()
    assert (value.pop("computed"), before.pop("computed")) == (0, 360)
    assert value.pop("seconds") > 0
    assert before.pop("seconds") > 0
    assert value == before
    assert value["accuracy"][0]["head"] == "logreg"
    assert set(value["accuracy"][0]["vectors"]) == {"value", "low", "high"}


def test_command_prints_table_places_and_next_steps(
    tmp_path: Path, run_cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stdout has the table, where things are, and the three commands for one's own folder."""
    monkeypatch.setattr("featpipe.demo.run.HEADS", ("knn",))  # the quickest one is enough
    monkeypatch.chdir(tmp_path)
    ran = run_cli("demo")
    assert ran.code == 0
    accuracy = r"\d+\.\d % \(\d+\.\d–\d+\.\d\)"
    assert re.fullmatch(
        rf"""
Accuracy on 200 held-out images \(95 % interval\)

head   efficientnet_lite0 +raw pixels
────   ─+   ─+
knn    {accuracy} +{accuracy}

Always naming the most frequent class: 12\.5 %\.
The images are crops of eight photographs: left halves to learn, right ones to test\.

All of it took \d+\.\d s; everything is in featpipe-demo:
  featpipe-demo/demo\.png +the picture: look at it
  featpipe-demo/predictions\.csv +what the new images show
  featpipe-demo/heads/images-efficientnet_lite0-knn +the classifier that said so

Now with a folder of your own, one subfolder a class:

  featpipe embed photos/             turn the images into vectors, once
  featpipe fit                       learn a classifier on them and measure it
  featpipe score new/ -o new\.csv     classify new images
""",
        ran.out,
    )


def test_default_folder(tmp_path: Path, run_cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without DIR the demo goes to featpipe-demo in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "featpipe-demo").write_text("in the way")
    ran = run_cli("demo")
    assert (ran.code, ran.out) == (8, "")
    assert ran.err == (
        "Error: cannot write the demo into featpipe-demo: it is a file; "
        "name a new or an empty folder\n"
    )


def test_folder_with_other_things_is_refused(tmp_path: Path, run_cli) -> None:
    """Nothing is written into a folder that holds somebody's files; the message names some."""
    for name in ("a.txt", "b\n.txt", "c.txt", "d.txt"):
        (tmp_path / name).write_text("mine")
    ran = run_cli("demo", tmp_path)
    assert (ran.code, ran.out) == (8, "")
    assert ran.err == (
        f"Error: cannot write the demo into {tmp_path}: it holds other things "
        "(a.txt, b\\n.txt, c.txt, …); name a new or an empty folder, "
        "as in `featpipe demo another-folder`\n"
    )
    assert len(list(tmp_path.iterdir())) == 4


def test_added_image_is_refused(tmp_path: Path, run_cli) -> None:
    """An image that somebody added to the classes would change the numbers: it is named."""
    place = unpack(tmp_path / "demo")
    added = place.images / "train" / "fur" / "mine.jpg"
    added.write_bytes(b"mine")
    ran = run_cli("demo", place.root)
    assert ran.code == 8
    assert ran.err == (
        f"Error: cannot use {place.images}: {added} is not the demo's; move it away, or put "
        f"images without a label into {place.new}\n"
    )


# The records


def test_table_is_laid_out() -> None:
    """The table has one line a head, aligned, and says below what the numbers are worth."""
    good, poor = Accuracy(0.985, 0.965, 1.0), Accuracy(0.09, 0.05, 0.13)
    answers = (Answer(Path("a"), "fur", "fur"), Answer(Path("b"), "wood", "fur"))
    result = DemoResult(
        folder=Path("d"),
        backbone="lite",
        images=4,
        computed=4,
        comparisons=(Comparison("logreg", good, poor), Comparison("knn", good, poor)),
        chance=0.5,
        answers=answers,
        new=(),
        head=Path("h"),
        predictions=Path("p"),
        picture=Path("q"),
        seconds=1.0,
    )
    assert result.table() == (
        "Accuracy on 2 held-out images (95 % interval)\n"
        "\n"
        "head     lite                  raw pixels\n"
        "──────   ───────────────────   ────────────────\n"
        "logreg   98.5 % (96.5–100.0)   9.0 % (5.0–13.0)\n"
        "knn      98.5 % (96.5–100.0)   9.0 % (5.0–13.0)\n"
        "\n"
        "Always naming the most frequent class: 50.0 %.\n"
        "The images are crops of eight photographs: left halves to learn, right ones to test."
    )
    assert result.confusion().tolist() == [[1, 0], [1, 0]]
