"""``featpipe score``: what stands on stdout, what on stderr, and the exit code."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from featpipe import embed, fit

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def place(
    photos: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Return a working folder with ``heads/mine`` and ``photos``; the backbone has a name."""
    monkeypatch.setenv("FEATPIPE_MODELS", str(tiny_backbone.parent))
    monkeypatch.chdir(tmp_path)
    fit(embed(photos, tiny_backbone, output="store"), "centroid").save("heads/mine")
    return tmp_path


def test_csv_on_stdout_by_default(run_cli, place: Path) -> None:
    """Without -o the rows go to stdout as CSV, and everything else to stderr."""
    result = run_cli("score", "photos")
    rows = list(csv.DictReader(result.out.splitlines()))
    assert result.code == 0
    assert len(rows) == 10
    assert {row["status"] for row in rows} == {"ok"}
    head, device, summary = result.err.splitlines()
    assert head == "Head: heads/mine, the newest under heads/."
    assert device.startswith("running on ")
    assert summary.startswith("10 images: 10 ok; ")
    assert summary.endswith(" → -")


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.parquet"])
def test_files_by_suffix(run_cli, place: Path, name: str) -> None:
    """With -o FILE nothing is on stdout; the file has the form that its suffix says."""
    result = run_cli("score", "photos", "--head", "heads/mine", "-o", name, "--top-k", 1)
    assert (result.code, result.out) == (0, "")
    assert "Head:" not in result.err
    data = Path(name).read_bytes()
    if name.endswith("csv"):
        rows = list(csv.DictReader(data.decode().splitlines()))
    elif name.endswith("jsonl"):
        rows = [json.loads(line) for line in data.splitlines()]
    else:
        rows = pq.read_table(name).to_pylist()
    assert [row["path"] for row in rows][:2] == ["living/astronaut.jpg", "living/cat.jpg"]
    assert len(rows) == 10


def test_failed_images_give_code_3(run_cli, place: Path) -> None:
    """Some failed: every row is there, the failures are named, the exit code is 3."""
    for i in range(11):
        (place / "photos" / f"bad\n{i:02d}.jpg").write_text("no image")
    (place / "photos" / "notes.txt").write_text("left out")
    result = run_cli("score", "photos", "--format", "jsonl", "--threshold", "1")
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert result.code == 3
    assert [row["status"] for row in rows].count("undecodable") == 11
    assert [row["status"] for row in rows].count("uncertain") == 10
    lines = result.err.splitlines()
    assert lines[1] == "Note: left out 1 files whose suffix is not an image's: 1 .txt."
    assert lines[2].startswith("Failed: bad\\n00.jpg: ")
    assert lines[12] == "Failed: 1 more; the rows say why."
    assert lines[-1].startswith("21 images: 10 uncertain, 11 failed; ")


def test_no_head(run_cli, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any head the message says how to make one."""
    monkeypatch.chdir(tmp_path)
    result = run_cli("score", photos)
    assert result.code == 7
    assert result.err == (
        "Error: there is no head under heads/: make one with `featpipe fit`, "
        "or name it with --head\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "out.txt"], "the name out.txt does not tell the format: let it end in .csv, "),
        (["--format", "parquet"], "Parquet cannot be written line by line to standard output: "),
    ],
)
def test_no_format_is_a_usage_error(
    run_cli, photos: Path, options: list[str], message: str
) -> None:
    """What cannot be written is refused before anything is loaded, with code 2."""
    result = run_cli("score", photos, *options)
    assert result.code == 2
    assert f"Error: Invalid value for '-o' / '--output': {message}" in result.err


def test_paths_on_stdin(place: Path) -> None:
    """With - as source, the paths are read from standard input, in their order."""
    done = subprocess.run(
        [sys.executable, REPOSITORY / "cli.py", "score", "-", "--format", "jsonl"],
        input=b"photos/things/coins.jpg\nphotos/living/cat.jpg\n",
        capture_output=True,
        check=True,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["path"] for row in rows] == ["photos/things/coins.jpg", "photos/living/cat.jpg"]


def test_reader_that_goes_away(place: Path) -> None:
    """When whoever reads the rows has gone, the command ends quietly, as SIGPIPE would end it."""
    command = [sys.executable, REPOSITORY / "cli.py", "score", "photos", "--batch-size", "1"]
    reading, writing = os.pipe()
    process = subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    os.close(reading)
    _, err = process.communicate()
    assert process.returncode == 141
    assert err.decode() == "Head: heads/mine, the newest under heads/.\n"


def test_full_disk_behind_a_redirection(place: Path) -> None:
    """A full disk behind `> file` is said in a sentence, with code 8."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, REPOSITORY / "cli.py", "score", "photos", "--head", "heads/mine"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 8
    assert done.stderr.decode() == (
        "Error: cannot write standard output: no space is left on the disk: free some and run "
        "the same command again\n"
    )


def test_full_disk_for_the_final_file(run_cli, place: Path, open_folder: Path) -> None:
    """Where the output's folder refuses it, the sentence names the file."""
    shutil.rmtree(open_folder)
    open_folder.write_text("a file where the folder should be")
    result = run_cli("score", "photos", "-o", open_folder / "out.csv")
    open_folder.unlink()
    open_folder.mkdir()
    assert result.code == 8
    assert result.err.splitlines()[-1].startswith(f"Error: cannot write {open_folder}: ")


def test_nan_is_no_threshold(run_cli) -> None:
    """A usage error, not a bug."""
    result = run_cli("score", "x", "--threshold", "nan")
    assert result.code == 2
    assert result.err.endswith("Invalid value for '--threshold': nan is no probability.\n")


def test_reject_is_said_and_ends_with_0(run_cli, place: Path) -> None:
    """Unknown images are rows, counted in the summary; below what can be told it is an error."""
    result = run_cli("score", "photos", "--format", "jsonl", "--reject", "1")
    rows = [json.loads(line) for line in result.out.splitlines()]
    unknown = [row for row in rows if row["status"] == "unknown"]
    assert result.code == 0
    assert unknown
    assert {row["label"] for row in unknown} == {None}
    assert f"{len(unknown)} unknown" in result.err.splitlines()[-1]
    result = run_cli("score", "photos", "--reject", "0")
    assert (result.code, result.out) == (7, "")
    assert "Error: below 0 no image can be rejected: the head compares each with " in result.err


def test_nan_is_nothing_to_reject_at(run_cli) -> None:
    """A usage error, not a bug."""
    result = run_cli("score", "x", "--reject", "nan")
    assert result.code == 2
    assert result.err.endswith("Invalid value for '--reject': nan is no probability.\n")
