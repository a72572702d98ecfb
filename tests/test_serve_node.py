"""``examples/node``: the rows of ``serve_onnx.py``, from Node.js."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_serve_onnx import odd_pictures

from featpipe import embed, fit
from featpipe.bundling import BundleOptions, bundle

EXAMPLES = Path(__file__).parent.parent / "examples"
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(
    NODE is None or not (EXAMPLES / "node" / "node_modules").is_dir(),
    reason="Node.js or its packages are not here: npm ci in examples/node",
)


@pytest.fixture
def place(
    photos: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Return a working folder with ``photos`` and ``small.onnx``, a bundle of a tiny backbone."""
    monkeypatch.chdir(tmp_path)
    store = embed(photos, tiny_backbone, output="store")
    fit(store, "centroid", cv=2, check=False, tune=False).save("head")
    bundle("head", "small.onnx", model=tiny_backbone)
    return tmp_path


def serve(*args: object) -> subprocess.CompletedProcess[str]:
    assert NODE is not None
    return run(NODE, EXAMPLES / "node" / "serve.mjs", *args)


def run(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*map(str, args)], capture_output=True, text=True, check=False)


def in_python(*args: object) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, EXAMPLES / "serve_onnx.py", *args)


@pytest.mark.usefixtures("place")
def test_the_rows_of_python() -> None:
    """On photographs the CSV is that of ``serve_onnx.py``, byte for byte, in the same order."""
    done, expected = serve("small.onnx", "photos"), in_python("small.onnx", "photos")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 11
    assert done.stdout == expected.stdout


def test_json_and_every_kind_of_picture(place: Path) -> None:
    """Grey, deep, transparent, printed, turned: --json has the probabilities of Python's."""
    from PIL import Image

    (place / "odd").mkdir()
    for orientation in (1, 5, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for name, picture in odd_pictures().items():
            picture.save(place / "odd" / f"{orientation}-{name}", exif=exif)
    done, expected = serve("small.onnx", "odd", "--json"), in_python("small.onnx", "odd", "--json")
    assert (done.returncode, expected.returncode) == (3, 3)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    wanted = [json.loads(line) for line in expected.stdout.splitlines()]
    assert len(found) == len(wanted) == 27
    for ours, theirs in zip(wanted, found, strict=True):
        assert list(theirs) == list(ours)
        same = ("path", "status", "reason", "label")
        assert [theirs[key] for key in same] == [ours[key] for key in same]
        if ours["status"] == "ok":
            assert theirs["probabilities"] == pytest.approx(ours["probabilities"], abs=1e-5)
            assert theirs["ood_p"] == pytest.approx(ours["ood_p"], abs=1e-5)


def test_bad_files_are_rows(place: Path) -> None:
    """What cannot be read or decoded is a row with the reason; the rest goes on; code 3."""
    cat = (place / "photos" / "living" / "cat.jpg").read_bytes()
    (place / "odd").mkdir()
    (place / "odd" / '=1,"1".jpg').write_bytes(cat)
    (place / "odd" / "cut.jpg").write_bytes(cat[:9000])
    (place / "odd" / "drawing.png").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    (place / "odd" / "empty.png").touch()
    (place / "odd" / "gone.jpg").symlink_to("/nowhere.jpg")
    (place / "odd" / "notes.txt").write_text("not listed")
    done = serve("small.onnx", "odd", "@gone.jpg", "--threads", "1")
    assert (done.returncode, done.stderr) == (3, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "path,status,reason,label,probability,ood_p"
    assert lines[1].startswith('"odd/=1,""1"".jpg",ok,,')
    assert lines[2].startswith("odd/cut.jpg,undecodable,the image cannot be decoded (")
    assert lines[3:] == [
        "odd/drawing.png,undecodable,not an image in a format that can be read,,,",
        "odd/empty.png,undecodable,not an image in a format that can be read,,,",
        "odd/gone.jpg,unreadable,No such file or directory,,,",
        "'@gone.jpg,unreadable,No such file or directory,,,",
    ]


def test_what_ends_it(place: Path, tiny_backbone: Path) -> None:
    """A bundle or images that are not there end it with a sentence and a code of its own."""
    bundle("head", "square.onnx", model=tiny_backbone, options=BundleOptions(resize=False))
    (place / "empty").mkdir()
    (place / "text.onnx").write_text("no model")
    for bundled, images, code, message in (
        ("gone.onnx", "photos", 5, "cannot read gone.onnx: No such file or directory"),
        (
            "text.onnx",
            "photos",
            5,
            "text.onnx cannot be used: it is not an ONNX file, or it is cut short",
        ),
        (
            tiny_backbone,
            "photos",
            5,
            f"{tiny_backbone} cannot be used: it is no bundle: featpipe bundle makes one",
        ),
        (
            "square.onnx",
            "photos",
            5,
            "square.onnx takes squares of 32 pixels alone: bundle the head again, with the resize",
        ),
        ("small.onnx", "empty", 4, "there is no image in what was named: check the path"),
    ):
        done = serve(bundled, images)
        assert (done.returncode, done.stderr) == (code, f"error: {message}\n")
    done = serve("small.onnx", "photos", "--threads", "0")
    assert done.returncode == 2
    assert done.stderr.endswith("error: --threads must be 1 or more\n")


def test_the_built_in_backbone(photos: Path, tmp_path: Path) -> None:
    """A bundle of the built-in backbone: rows within 1e-4 of Python's."""
    store = embed(photos, output=tmp_path / "store", device="cpu")
    head = fit(store, "ridge", cv=2, check=False, tune=False)
    bundle(head, tmp_path / "large.onnx", images=photos / "living")
    done = serve("--json", tmp_path / "large.onnx", photos)
    expected = in_python("--json", tmp_path / "large.onnx", photos)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    wanted = [json.loads(line) for line in expected.stdout.splitlines()]
    assert [row["label"] for row in found] == [row["label"] for row in wanted]
    apart = [
        abs(row["probabilities"][label] - p)
        for row, ours in zip(found, wanted, strict=True)
        for label, p in ours["probabilities"].items()
    ]
    assert len(apart) == 20
    assert np.max(apart) < 1e-4
