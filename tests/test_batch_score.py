"""``examples/batch_score.py``: nights that fail, stop, overlap, and go on."""

from __future__ import annotations

import csv
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from featpipe import embed, fit

REPOSITORY = Path(__file__).parent.parent
SCRIPT = REPOSITORY / "examples" / "batch_score.py"


@pytest.fixture
def place(
    photos: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Return a working folder with ``head`` and ``photos``; the backbone has a name."""
    monkeypatch.setenv("FEATPIPE_MODELS", str(tiny_backbone.parent))
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    )
    monkeypatch.chdir(tmp_path)
    fit(embed(photos, tiny_backbone, output="store"), "centroid").save("head")
    return tmp_path


def command(*args: object) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, args)]


def night(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*args), capture_output=True, text=True, check=False)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_night(place: Path) -> None:
    """A night gives a dated file, a log with a summary line, code 0; again, nothing is done."""
    args = ("photos", "head", "out", "--date", "2026-11-21", "--log-file", "log/night.log")
    done = night(*args)
    assert (done.returncode, done.stdout) == (0, "")
    assert len(rows_of(place / "out" / "2026-11-21.csv")) == 10
    log = (place / "log" / "night.log").read_text()
    assert log == done.stderr
    assert " INFO [" in log
    assert "scoring photos into out/2026-11-21.csv" in log
    assert "] 10 images: 10 ok; " in log.splitlines()[-1]
    again = night(*args, "--quiet")
    assert (again.returncode, again.stderr) == (0, "")
    assert (
        "out/2026-11-21.csv is there already; nothing to do"
        in ((place / "log" / "night.log").read_text().splitlines()[-1])
    )
    assert night(*args, "--again", "--top-k", "1").returncode == 0
    assert "top1_label" in rows_of(place / "out" / "2026-11-21.csv")[0]
    assert sorted(p.name for p in (place / "out").iterdir()) == [
        ".batch_score.lock",
        "2026-11-21.csv",
    ]


def test_failed_images(place: Path) -> None:
    """Failed images are rows and lines of the log, which no file name can forge; code 3."""
    (place / "photos" / "bad\n2026 INFO all is well.jpg").write_text("no image")
    (place / "photos" / "gone.jpg").symlink_to("/nowhere.jpg")
    done = night("photos", "head", "out", "--date", "2026-11-21", "--quiet", "--format", "csv")
    assert done.returncode == 3
    assert len(rows_of(place / "out" / "2026-11-21.csv")) == 12
    first, second, summary = done.stderr.splitlines()
    assert "] failed: 'bad\\n2026 INFO all is well.jpg': " in first
    assert "] failed: 'gone.jpg': the link leads nowhere (No such file or directory)" in second
    assert "] 12 images: 10 ok, 2 failed; " in summary


def test_too_many_failures(place: Path) -> None:
    """--max-failures stops the night with code 3, without an output."""
    for i in range(9):
        (place / "photos" / f"{i}.jpg").write_text("no image")
    done = night("photos", "head", "out", "--max-failures", "5", "--quiet")
    assert done.returncode == 3
    assert "ERROR" in done.stderr
    assert "failures, as no more than 5 are allowed" in done.stderr
    assert not list((place / "out").glob("*.csv"))


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("missing", "head", "out"), 4, "there is nothing at missing: check the path"),
        (("photos", "missing", "out"), 7, "missing is not a head of featpipe"),
        (("photos", "head", "out", "--model", "lite9"), 5, "there is no backbone 'lite9'"),
        (("photos", "head", "photos/living/cat.jpg/out"), 8, "cannot write photos/living/cat.jpg"),
        (("photos", "head", "out", "--log-file", "head/head.json/a"), 8, "cannot write the log"),
        (("photos", "head", "out", "--threshold", "2"), 2, "invalid probability value: '2'"),
        (("photos", "head", "out", "--reject", "nan"), 2, "invalid probability value: 'nan'"),
        (("photos", "head", "out", "--top-k", "-1"), 2, "invalid count value: '-1'"),
    ],
)
def test_what_goes_wrong_has_its_code(
    place: Path, args: tuple[str, ...], code: int, message: str
) -> None:
    """Every kind of error ends with the code of featpipe's table, and its sentence."""
    done = night(*args)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_nights_do_not_overlap(place: Path) -> None:
    """While one run holds the folder, another ends at once with code 7."""
    (place / "out").mkdir()
    with (place / "out" / ".batch_score.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = night("photos", "head", "out")
    assert done.returncode == 7
    assert "another run is writing to out; this one ends" in done.stderr
    assert [p.name for p in (place / "out").iterdir()] == [".batch_score.lock"]


def test_the_next_night_goes_on(place: Path) -> None:
    """A run that SIGTERM stops ends with 130; the next night takes its rows over."""
    for i in range(300):
        shutil.copy(place / "photos" / "living" / "cat.jpg", place / "photos" / f"{i:03d}.jpg")
    older = place / "out" / "2026-11-18.csv.partial"
    older.parent.mkdir()
    older.write_text("an older night that nobody needs")
    first = subprocess.Popen(
        command("photos", "head", "out", "--date", "2026-11-20", "--workers", "1"),
        stderr=subprocess.PIPE,
        text=True,
    )
    partial = place / "out" / "2026-11-20.csv.partial"
    while first.poll() is None and (not partial.exists() or partial.read_bytes().count(b"\n") < 33):
        time.sleep(0.005)
    first.send_signal(signal.SIGTERM)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 130
    assert "stopped by a signal; the next start goes on from here" in err
    done = night("photos", "head", "out", "--date", "2026-11-21")
    assert done.returncode == 0
    assert "going on from 2026-11-20.csv.partial, which was interrupted" in done.stderr
    taken = re.search(r"310 images: 310 ok, (\d+) taken over from an inter", done.stderr)
    assert taken is not None
    assert int(taken.group(1)) >= 32
    assert sorted(p.name for p in (place / "out").glob("[!.]*")) == ["2026-11-21.csv"]


@pytest.mark.slow
def test_clothing_with_a_corrupt_and_an_unreadable_file(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over clothing_small/test with two bad files: all rows, two marked failed, code 3."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.chdir(tmp_path)
    data = shared / "datasets" / "clothing_small"
    fit(embed(data / "train", output="store"), "logreg", tune=False).save("head")
    test = tmp_path / "test"
    shutil.copytree(data / "test", test)
    good = sorted(test.glob("*/*.jpg"))
    (test / "dress" / "corrupt.jpg").write_bytes(good[0].read_bytes()[:3000])
    (test / "hat" / "unreadable.jpg").symlink_to("/nowhere/at/all.jpg")
    done = night("test", "head", "out", "--date", "2026-11-21")
    rows = rows_of(tmp_path / "out" / "2026-11-21.csv")
    assert done.returncode == 3
    assert len(rows) == len(good) + 2 == 374
    assert {row["path"]: row["status"] for row in rows if row["status"] != "ok"} == {
        "dress/corrupt.jpg": "undecodable",
        "hat/unreadable.jpg": "unreadable",
    }
    right = sum(row["label"] == row["path"].split("/")[0] for row in rows)
    assert right / len(good) > 0.8
