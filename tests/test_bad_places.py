"""Paths, models, stores and heads that do not fit; two writers, full disks, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import PHOTOS, Result, as_nobody, build_tiny_backbone

from featpipe._files import KEY_BYTES
from featpipe.errors import EXIT_INTERRUPTED, EXIT_USAGE
from featpipe.store import EmbeddingStore

Run = Callable[..., Result]
CLI = Path(__file__).parent.parent / "cli.py"
INTERRUPTED = "\nInterrupted. What was finished is kept; the same command goes on from there.\n"
FILE_LIMIT = "the system's limit on file sizes is reached: raise it (ulimit -f) and run again"
NO_SPACE = "no space is left on the disk: free some and run the same command again"


@pytest.fixture(scope="module")
def made(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``photos``, the store ``store`` of them and ``heads/mine``, made once."""
    from featpipe import embed, fit

    root = tmp_path_factory.mktemp("made")
    for i, path in enumerate(sorted(PHOTOS.glob("*.jpg"))):
        folder = root / "photos" / ("odd" if i % 2 else "even")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    fit(embed(root / "photos", tiny_backbone, output=root / "store"), "centroid").save(
        root / "heads" / "mine"
    )
    return root


@pytest.fixture
def place(made: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working folder of one's own with a copy of all that; ``tiny`` has a name."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("FEATPIPE_MODELS", str(tiny_backbone.parent))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Return 200 photographs with different contents in two classes."""
    photo = (PHOTOS / "cat.jpg").read_bytes()
    for i in range(200):
        path = tmp_path / "many" / "ab"[i % 2] / f"{i:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo + i.to_bytes(4, "big"))
    return tmp_path / "many"


def start(*args: object, **options: object) -> subprocess.Popen[str]:
    """Start ``featpipe ARGS`` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(CLI), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(child: subprocess.Popen[str]) -> Result:
    """Wait for the end of a process."""
    out, err = child.communicate()
    return Result(child.returncode, out, err)


def wait_for(child: subprocess.Popen[str], ready: Callable[[], object]) -> None:
    """Wait until a process that still runs has come so far."""
    while not ready():
        assert child.poll() is None, child.communicate()
        time.sleep(0.002)


def contents(store: str | Path) -> dict[str, tuple[object, ...]]:
    """All that a store says of every image, however its parts are cut."""
    opened = EmbeddingStore.open(store)
    vectors = [x.tobytes() for x in opened.X]
    rows = zip(opened.keys, opened.labels(), vectors, strict=True)
    return dict(zip(opened.paths, rows, strict=True))


# Paths and names.


def test_empty_folder(run_cli: Run, place: Path) -> None:
    """A folder without images is a sentence for embed and score, and is no store or head."""
    Path("empty").mkdir()
    images = (
        f"Error: there is no image in {place}/empty: give a folder with images, a table of "
        "paths, or an image file\n"
    )
    store = (
        "Error: empty is not a store of featpipe: it has no store.json; make one with: "
        "featpipe embed SOURCE\n"
    )
    head = (
        "Error: empty is not a head of featpipe: it has no head.json; make one with: featpipe fit\n"
    )
    for code, message, command in (
        (4, images, ("embed", "empty", "--model", "tiny")),
        (4, images, ("score", "empty", "--head", "heads/mine", "-o", "out.csv")),
        (7, store, ("fit", "empty")),
        (7, store, ("evaluate", "heads/mine", "empty")),
        (7, head, ("evaluate", "empty", "store")),
        (7, head, ("score", "photos", "--head", "empty")),
    ):
        assert run_cli(*command) == Result(code, "", message), command
    assert not Path("out.csv").exists()


def test_missing_path(run_cli: Run, place: Path) -> None:
    """Every command names the path that is not there, and where it has looked."""
    nothing = f"Error: there is nothing at gone: check the path (it is looked for from {place})\n"
    store = "Error: gone is not a store of featpipe: it has no store.json; make one with: "
    head = "Error: gone is not a head of featpipe: it has no head.json; make one with: "
    for code, message, command in (
        (4, nothing, ("embed", "gone", "--model", "tiny")),
        (4, nothing, ("score", "gone", "--head", "heads/mine")),
        (7, f"{store}featpipe embed SOURCE\n", ("fit", "gone")),
        (7, f"{store}featpipe embed SOURCE\n", ("evaluate", "heads/mine", "gone")),
        (7, f"{head}featpipe fit\n", ("evaluate", "gone", "store")),
        (7, f"{head}featpipe fit\n", ("score", "photos", "--head", "gone")),
    ):
        assert run_cli(*command) == Result(code, "", message), command


def test_unknown_model_has_the_nearest_names(run_cli: Run, place: Path) -> None:
    """A misspelt backbone gets the names that are near, a strange one all that there are."""
    tail = (
        "featpipe models lists all that can be had; the path of an .onnx file that featpipe has "
        "written may be given, too\n"
    )
    for model, hint in (
        (
            "efficientnet-lite0",
            "did you mean efficientnet_lite0 or efficientnet_lite2 or efficientnet_lite1?",
        ),
        ("tinny", "did you mean tiny?"),
        ("zzzz", "there are: efficientnet_lite0, raw_pixels, tiny."),
    ):
        expected = Result(5, "", f"Error: there is no backbone '{model}': {hint} {tail}")
        assert run_cli("embed", "photos", "--model", model) == expected
        scored = run_cli("score", "photos", "--head", "heads/mine", "--model", model)
        assert scored == expected


def test_unknown_head_kind_is_a_usage_error(run_cli: Run, place: Path) -> None:
    """A head that there is not is refused before anything is read, with those that there are."""
    result = run_cli("fit", "store", "--head", "forest")
    assert result.code == EXIT_USAGE
    assert "'forest' is not one of 'logreg', 'svm', 'svm-rbf', 'knn', " in result.err


# Stores and heads.


def test_store_of_another_backbone(run_cli: Run, place: Path) -> None:
    """Vectors of two backbones never meet: embed, evaluate and score refuse and name both."""
    build_tiny_backbone(place / "other.onnx", "other", 0.5)
    tiny = EmbeddingStore.open("store").fingerprint[:12]
    assert run_cli("embed", "photos", "--model", "tiny", "-o", "mine").code == 0
    assert run_cli("embed", "photos", "--model", "other.onnx", "-o", "s").code == 0
    other = EmbeddingStore.open("s").fingerprint[:12]
    result = run_cli("embed", "photos", "--model", "other.onnx", "-o", "mine")
    assert result == Result(
        *(5, ""),
        f"Error: mine holds vectors of tiny ({tiny}), not of other ({other}): give another store "
        "with -o\n",
    )
    assert run_cli("evaluate", "heads/mine", "s") == Result(
        *(5, ""),
        f"Error: the head was fitted on tiny ({tiny}), s holds vectors of other ({other}): use a "
        "store of the head's backbone, or fit a head on this one\n",
    )
    command = ("score", "photos", "--head", "heads/mine", "--model", "other.onnx")
    assert run_cli(*command) == Result(
        *(5, ""),
        f"Error: the head was fitted on vectors of tiny ({tiny}), not of other ({other}, "
        "other.onnx): give the backbone that it was fitted on with --model, or fit a head on "
        "this one\n",
    )


def edit(path: str, change: Callable[[dict], object]) -> None:
    """Change a JSON file."""
    value = json.loads(Path(path).read_text("utf-8"))
    change(value)
    Path(path).write_text(json.dumps(value), "utf-8")


def test_store_of_a_newer_format(run_cli: Run, place: Path) -> None:
    """Every command that meets it says who wrote it and what to do, and changes nothing."""
    edit("store/store.json", lambda value: value.update(format=99))
    before = Path("store/store.json").read_bytes()
    message = (
        "Error: store has format 99, written by a newer featpipe; this one (0.1.0) reads up to "
        "1: upgrade featpipe\n"
    )
    for command in (
        ("embed", "photos", "--model", "tiny", "-o", "store"),
        ("fit", "store"),
        ("evaluate", "heads/mine", "store"),
        ("info", "store"),
        ("gc", "store"),
        ("to-parquet", "store", "out.parquet"),
        ("merge", "all", "store"),
    ):
        assert run_cli(*command) == Result(7, "", message), command
    assert Path("store/store.json").read_bytes() == before
    assert not Path("out.parquet").exists()


def test_folder_with_other_things(run_cli: Run, place: Path) -> None:
    """Neither a store nor a head is put into a folder that holds something else."""
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").write_text("")
    things = "thesis holds other things (such as chapter.tex) and is no"
    advice = "give an empty or new folder with -o\n"
    result = run_cli("embed", "photos", "--model", "tiny", "-o", "thesis")
    assert result == Result(7, "", f"Error: {things} store: {advice}")
    result = run_cli("fit", "store", "--head", "centroid", "-o", "thesis")
    assert result.code == 7
    assert result.err.endswith(f"Error: {things} head: {advice}")
    assert os.listdir("thesis") == ["chapter.tex"]


def test_head_of_a_newer_format(run_cli: Run, place: Path) -> None:
    """So does a head."""
    edit("heads/mine/head.json", lambda value: value.update(format=99))
    message = (
        "Error: heads/mine has format 99, written by a newer featpipe; this one (0.1.0) reads up "
        "to 3: upgrade featpipe\n"
    )
    assert run_cli("evaluate", "heads/mine", "store") == Result(7, "", message)
    assert run_cli("score", "photos", "--head", "heads/mine") == Result(7, "", message)


@pytest.mark.parametrize(
    "field",
    [
        *("head", "classes", "class_counts", "parameters", "temperature", "report"),
        *("backbone.fingerprint", "backbone.dimension"),
        *("model.digest", "model.contents", "model.arrays"),
    ],
)
def test_head_with_a_field_missing(run_cli: Run, place: Path, field: str) -> None:
    """A head whose record is not whole is refused; file and field are named."""
    outer, _, inner = field.partition(".")
    edit("heads/mine/head.json", lambda v: v[outer].pop(inner) if inner else v.pop(outer))
    message = (
        f"Error: heads/mine/head.json is damaged (its field '{field}' is missing or amiss): fit "
        "the head again\n"
    )
    assert run_cli("evaluate", "heads/mine", "store") == Result(7, "", message)
    assert run_cli("score", "photos", "--head", "heads/mine") == Result(7, "", message)


def test_head_without_its_model(run_cli: Run, place: Path) -> None:
    """A head whose model is gone names the file."""
    Path("heads/mine/model.skops").unlink()
    message = "Error: cannot read heads/mine/model.skops: No such file or directory\n"
    assert run_cli("evaluate", "heads/mine", "store") == Result(7, "", message)
    assert run_cli("score", "photos", "--head", "heads/mine") == Result(7, "", message)


# Two at once.


def test_two_embeds_into_one_store(run_cli: Run, place: Path, many: Path) -> None:
    """The second is told at once; the first is not disturbed; then the second works."""
    command = ("embed", many, "--model", "tiny", "-o", "s")
    child = start(*command, "--workers", "1")
    wait_for(child, Path("s/store.json").exists)
    child.send_signal(signal.SIGSTOP)
    second = run_cli(*command)
    child.send_signal(signal.SIGCONT)
    assert second == Result(
        *(7, ""),
        "Error: the store s is being written by another process: wait until it has finished, or "
        "give another place with -o\n",
    )
    assert finish(child).code == 0
    assert "200 unchanged and not opened" in run_cli(*command).err


def test_two_scores_into_one_file(run_cli: Run, place: Path, many: Path) -> None:
    """The second is told at once; the first is not disturbed."""
    command = ("score", many, "--head", "heads/mine", "-o", "out.csv", "--batch-size", 4)
    child = start(*command, "--workers", "1")
    wait_for(child, Path("out.csv.partial").exists)
    child.send_signal(signal.SIGSTOP)
    second = run_cli(*command)
    child.send_signal(signal.SIGCONT)
    assert second == Result(
        *(7, ""),
        "Error: out.csv is being written by another process: wait until it has finished, or "
        "give another place with -o\n",
    )
    assert finish(child).code == 0
    assert Path("out.csv").read_bytes().count(b"\n") == 201


def test_two_fits_into_one_folder(run_cli: Run, place: Path) -> None:
    """Both finish, one after the other writes, and what stands there is a whole head."""
    command = ("fit", "store", "--head", "centroid", "--no-tune", "-o", "heads/both")
    children = [start(*command) for _ in range(2)]
    assert [finish(child).code for child in children] == [0, 0]
    assert run_cli("evaluate", "heads/both", "store", "--json").code == 0
    record, model, novelty = sorted(os.listdir("heads/both"), key=len)
    assert (record, model) == ("head.json", "model.skops")
    assert novelty.startswith("novelty-")


# A disk that is full.


def limited(size: int) -> Callable[[], None]:
    """Return what keeps a new process from writing files of more than ``size`` bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_embed_at_a_file_size_limit(run_cli: Run, place: Path, many: Path) -> None:
    """Code 8 and the file's name; without the limit the same command gives an unbroken run's."""
    command = ("embed", many, "--model", "tiny", "-o", "s", "--device", "cpu")
    result = finish(start(*command, preexec_fn=limited(3000)))
    assert result == Result(8, "", f"Error: cannot write s/parts/00000.npy: {FILE_LIMIT}\n")
    assert not list(Path("s").rglob("*.tmp"))
    assert run_cli(*command).code == 0
    assert run_cli("embed", many, "--model", "tiny", "-o", "whole").code == 0
    assert contents("s") == contents("whole")


def test_score_at_a_file_size_limit(run_cli: Run, place: Path, many: Path) -> None:
    """Code 8 and the file's name; the same command goes on and gives an unbroken run's file."""
    command = ("score", many, "--head", "heads/mine", "-o", "out.jsonl", "--batch-size", 4)
    result = finish(start(*command, preexec_fn=limited(8192)))
    assert result == Result(8, "", f"Error: cannot write out.jsonl.partial: {FILE_LIMIT}\n")
    assert not Path("out.jsonl").exists()
    again = run_cli(*command)
    assert again.code == 0
    assert " taken over from an interrupted run; " in again.err
    assert run_cli("score", many, "--head", "heads/mine", "-o", "whole.jsonl").code == 0
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_fit_at_a_file_size_limit(run_cli: Run, place: Path) -> None:
    """Code 8 and the file's name; the head that was there still works."""
    command = ("fit", "store", "--head", "knn", "--no-tune", "-o", "heads/mine")
    before = run_cli("evaluate", "heads/mine", "store", "--json")
    result = finish(start(*command, preexec_fn=limited(512)))
    assert result.code == 8
    # The rows are written first, under a name that says what is in them.
    assert re.sub("rows-[0-9a-f]{32}", "rows", result.err.splitlines()[-1]) == (
        f"Error: cannot write heads/mine/rows.npy: {FILE_LIMIT}"
    )
    assert run_cli("evaluate", "heads/mine", "store", "--json") == before
    assert run_cli(*command).code == 0
    assert json.loads(Path("heads/mine/head.json").read_text())["head"] == "knn"


_ON_A_SMALL_DISK = """
mount -t tmpfs -o size={size} tmpfs disk || exit 77
{command} 2> first.err; echo $? > first.code
mount -o remount,size=9m disk
{command} 2> second.err; echo $? > second.code
cp -r disk/. result
"""


def on_a_small_disk(size: str, *args: object) -> tuple[Result, Result]:
    """Run a command with ``disk/`` on a file system of that size, then again on one of 9 MB."""
    Path("disk").mkdir()
    Path("result").mkdir()
    command = f"{sys.executable} {CLI} {' '.join(map(str, args))}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", _ON_A_SMALL_DISK.format(size=size, command=command)],
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip("a small file system cannot be mounted here")
    first, second = (
        Result(int(Path(f"{n}.code").read_text()), "", Path(f"{n}.err").read_text())
        for n in ("first", "second")
    )
    return first, second


@pytest.mark.skipif(shutil.which("unshare") is None, reason="there is no unshare(1) here")
def test_embed_on_a_full_disk(run_cli: Run, place: Path, many: Path) -> None:
    """No space is said with the file's name and code 8; with space the same command ends well."""
    command = ("embed", many, "--model", "tiny", "--device", "cpu")
    first, second = on_a_small_disk("44k", *command, "-o", "disk/s")
    assert first.code == 8
    assert first.err.startswith("Error: cannot write disk/s/")
    assert first.err.endswith(f": {NO_SPACE}\n")
    assert first.err.count("\n") == 1
    assert second.code == 0, second.err
    assert run_cli(*command, "-o", "whole").code == 0
    assert contents("result/s") == contents("whole")


@pytest.mark.skipif(shutil.which("unshare") is None, reason="there is no unshare(1) here")
def test_score_on_a_full_disk(run_cli: Run, place: Path, many: Path) -> None:
    """No space is said with the file's name and code 8; the same command then goes on."""
    command = ("score", many, "--head", "heads/mine", "--device", "cpu", "--batch-size", 16)
    first, second = on_a_small_disk("16k", *command, "-o", "disk/out.csv")
    assert first == Result(8, "", f"Error: cannot write disk/out.csv.partial: {NO_SPACE}\n")
    assert second.code == 0, second.err
    assert " taken over from an interrupted run; " in second.err
    assert run_cli(*command, "-o", "whole.csv").code == 0
    assert Path("result/out.csv").read_bytes() == Path("whole.csv").read_bytes()


def test_place_without_permission(
    run_cli: Run, place: Path, open_folder: Path, tiny_backbone: Path
) -> None:
    """Where one may not write, the sentence names the place and the way out."""
    for name in ("photos", "store", "heads"):
        shutil.copytree(name, open_folder / name)
    model = shutil.copy(tiny_backbone, open_folder / "tiny.onnx")
    (open_folder / "closed").mkdir(mode=0o555)
    closed, store = open_folder / "closed", open_folder / "store"
    refused = (
        "permission denied: choose another place (-o, or --models-dir for backbones), or "
        "change the permissions\n"
    )
    with as_nobody():
        embedded = run_cli("embed", open_folder / "photos", "--model", model, "-o", closed / "s")
        fitted = run_cli("fit", store, "--head", "centroid", "--no-tune", "-o", closed / "h")
        scored = run_cli(
            *("score", open_folder / "photos", "--head", open_folder / "heads/mine"),
            *("--model", model, "-o", closed / "out.csv"),
        )
    assert embedded == Result(8, "", f"Error: cannot write {closed}/s: {refused}")
    assert fitted.code == scored.code == 8
    assert fitted.err.endswith(f"Error: cannot write {closed}/h: {refused}")
    assert scored.err == f"Error: cannot write {closed}/.out.csv.lock: {refused}"


# Ctrl-C.


def test_ctrl_c_during_embed(run_cli: Run, place: Path, many: Path) -> None:
    """Code 130 and one line; the same command then gives the store of an unbroken run."""
    command = ("embed", many, "--model", "tiny", "-o", "s")
    child = start(*command, "--workers", "1", "--batch-size", "1")
    wait_for(child, lambda: list(Path("s").glob("parts/*.keys")))
    child.send_signal(signal.SIGINT)
    assert finish(child) == Result(EXIT_INTERRUPTED, "", INTERRUPTED)
    kept = len(EmbeddingStore.open("s"))
    # A part's keys have a digest of the same length behind them.
    sizes = [path.stat().st_size for path in Path("s/parts").glob("*.keys")]
    vectors = sum(size // KEY_BYTES - 1 for size in sizes)
    again = json.loads(run_cli(*command, "--json").out)
    assert 0 < kept == again["unchanged"] < 200
    assert again["computed"] == 200 - vectors
    assert run_cli("embed", many, "--model", "tiny", "-o", "whole").code == 0
    assert contents("s") == contents("whole")


def test_ctrl_c_during_fit(run_cli: Run, place: Path) -> None:
    """Code 130; no head is left, or the one that was there."""
    rng = np.random.default_rng(0)
    # So many rows of noise keep a kernel machine busy for longer than a signal takes.
    for i in range(400):
        photo = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
        path = place / "noise" / "ab"[i % 2] / f"{i}.ppm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"P6 40 40 255\n" + photo.tobytes())
    assert run_cli("embed", "noise", "--model", "tiny", "-o", "s").code == 0
    before = Path("heads/mine/head.json").read_bytes()
    child = start("fit", "s", "--head", "svm-rbf", "-o", "heads/mine")
    maps = Path(f"/proc/{child.pid}/maps")
    wait_for(child, lambda: "/sklearn/svm/" in maps.read_text())
    child.send_signal(signal.SIGINT)
    result = finish(child)
    assert (result.code, result.out) == (EXIT_INTERRUPTED, "")
    assert result.err.endswith(INTERRUPTED)
    assert Path("heads/mine/head.json").read_bytes() == before


@pytest.mark.parametrize(
    "command",
    [
        ("to-parquet", "store", "s3://bucket/all.parquet"),
        ("fit", "store", "-o", "s3://bucket/heads/mine"),
        ("score", "photos", "--head", "heads/mine", "-o", "https://me:secret@host/scores.csv"),
        ("report", "heads/mine", "store", "-o", "gs://bucket/page.html"),
    ],
    ids=lambda command: command[0],
)
def test_an_address_is_no_output_but_of_a_store(
    place: Path, run_cli: Run, command: tuple[str, ...]
) -> None:
    """Nothing is written into a folder ``s3:`` of this machine, and no credentials are shown."""
    result = run_cli(*command)
    scheme = command[-1].partition(":")[0]
    assert result.code == 8
    assert result.err.endswith(
        f"Error: cannot write below an address ({scheme}://…): stores alone can lie in a bucket; "
        "give a path of this machine, and copy the file from there\n"
    )
    assert "secret" not in result.out + result.err
    assert not list(place.glob("*:"))
