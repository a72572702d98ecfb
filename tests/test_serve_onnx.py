"""``examples/serve_onnx.py``: the same labels as featpipe's, without featpipe."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from featpipe import embed, fit, load_head, score
from featpipe.bundling import BundleOptions, bundle
from featpipe.images import whole_picture
from featpipe.types import Failure

SCRIPT = Path(__file__).parent.parent / "examples" / "serve_onnx.py"


@pytest.fixture
def place(
    photos: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Return a working folder with ``photos`` and ``small.onnx``, a bundle of a tiny backbone."""
    monkeypatch.chdir(tmp_path)
    fit(
        embed(photos, tiny_backbone, output="store"), "centroid", cv=2, check=False, tune=False
    ).save("head")
    bundle("head", "small.onnx", model=tiny_backbone)
    return tmp_path


def serve(*args: object) -> subprocess.CompletedProcess[str]:
    """Run the script where featpipe cannot be imported."""
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, runpy; sys.modules['featpipe'] = None; sys.argv = sys.argv[1:]; "
            "runpy.run_path(sys.argv[0], run_name='__main__')",
            str(SCRIPT),
            *map(str, args),
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def module() -> dict[str, object]:
    import runpy

    return runpy.run_path(str(SCRIPT))


def test_the_same_as_featpipe(
    shared: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On photographs of clothes, with the built-in backbone, rows are those of `score`."""
    monkeypatch.chdir(tmp_path)
    fit(embed(photos, output="store", device="cpu"), "ridge", cv=2, check=False, tune=False).save(
        "head"
    )
    bundle("head", "classifier.onnx", images=photos / "living")
    (tmp_path / "new").mkdir()
    for path in sorted((shared / "datasets/clothing_small/test").glob("*/*.jpg"))[::20]:
        shutil.copy(path, tmp_path / "new" / path.name)
    score("new", "head", output="expected.csv", device="cpu")
    done = serve("classifier.onnx", "new")
    assert (done.returncode, done.stderr) == (0, "")
    expected = rows_of((tmp_path / "expected.csv").read_text())
    found = rows_of(done.stdout)
    assert len(found) == 19
    assert [row["path"] for row in found] == ["new/" + row["path"] for row in expected]
    for ours, theirs in zip(expected, found, strict=True):
        assert (theirs["status"], theirs["reason"]) == ("ok", "")
        assert theirs["label"] == ours["label"]
        for name in ("probability", "ood_p"):
            assert float(theirs[name]) == pytest.approx(float(ours[name]), abs=1e-4)


def test_bad_files_are_rows(place: Path) -> None:
    """What cannot be read or decoded is a row with the reason; the rest goes on; code 3."""
    cat = place / "photos" / "living" / "cat.jpg"
    (place / "odd").mkdir()
    (place / "odd" / "=1+1.jpg").write_bytes(cat.read_bytes())
    (place / "odd" / "cut.jpg").write_bytes(cat.read_bytes()[:2000])
    (place / "odd" / "empty.png").touch()
    (place / "odd" / "gone.jpg").symlink_to("/nowhere.jpg")
    (place / "odd" / "notes.txt").write_text("not listed")
    (place / "odd" / "text.jpg").write_text("no image")
    done = serve("small.onnx", "odd", "=1+1.jpg", "--threads", "3")
    assert (done.returncode, done.stderr) == (3, "")
    found = [(row["path"], row["status"], row["reason"]) for row in rows_of(done.stdout)]
    cut = found.pop(1)
    assert cut[:2] == ("odd/cut.jpg", "undecodable")
    assert cut[2].startswith("the image cannot be decoded (image file is truncated")
    assert found == [
        ("odd/=1+1.jpg", "ok", ""),
        ("odd/empty.png", "undecodable", "not an image in a format that can be read"),
        ("odd/gone.jpg", "unreadable", "No such file or directory"),
        ("odd/text.jpg", "undecodable", "not an image in a format that can be read"),
        ("'=1+1.jpg", "unreadable", "No such file or directory"),
    ]


def test_json_has_every_probability(place: Path) -> None:
    """--json gives one object a line, with the head's probabilities by label."""
    done = serve("small.onnx", "photos", "--json", "--threads", "1")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, len(rows)) == (0, 10)
    names = ["path", "status", "reason", "label", "probability", "ood_p", "probabilities"]
    assert list(rows[0]) == names
    for row in rows:
        assert list(row["probabilities"]) == list(load_head("head").classes)
        assert row["probability"] == max(row["probabilities"].values())
        assert row["probabilities"][row["label"]] == row["probability"]
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def odd_pictures() -> dict[str, Image.Image]:
    """Return pictures of every kind that is not simply RGB."""
    ramp = np.linspace(0, 65535, 40 * 30).reshape(30, 40)
    colours = np.stack([ramp, ramp.T.reshape(30, 40), ramp[::-1]], axis=2)
    rgb = Image.fromarray((colours / 257).astype(np.uint8))
    clear = rgb.copy()
    clear.putalpha(Image.fromarray((ramp // 257).astype(np.uint8)))
    return {
        "grey.png": rgb.convert("L"),
        "grey16.png": Image.fromarray(ramp.astype(np.uint16)),
        "grey16.tif": Image.fromarray(ramp.astype(np.uint16)),
        "palette.png": rgb.quantize(16),
        "clear.png": clear,
        "two.png": rgb.convert("1"),
        "cmyk.jpg": rgb.convert("CMYK"),
        "float.tif": Image.fromarray(ramp.astype(np.float32)),
        "wide.tif": Image.fromarray((ramp * 3).astype(np.int32)),
    }


@pytest.mark.parametrize("name", list(odd_pictures()))
@pytest.mark.parametrize("orientation", [1, 5, 6])
def test_pixels_are_featpipes(name: str, orientation: int, tmp_path: Path) -> None:
    """Whatever kind of picture: the pixels that featpipe sees, or none where it has none."""
    picture = odd_pictures()[name]
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / name, exif=exif)
    data = (tmp_path / name).read_bytes()
    expected, pixels_of = whole_picture(data), module()["pixels_of"]
    if isinstance(expected, Failure):
        with pytest.raises(ValueError, match=r"its pixels (are floating-point|have 32 bits)"):
            pixels_of(data)
    else:
        np.testing.assert_array_equal(pixels_of(data), expected)
        sides = (30, 40) if orientation == 1 else (40, 30)
        assert pixels_of(data).shape == (*sides, 3)


def test_what_ends_it(place: Path, tiny_backbone: Path) -> None:
    """A bundle or images that are not there end it with a sentence and a code of its own."""
    bundle("head", "square.onnx", model=tiny_backbone, options=BundleOptions(resize=False))
    (place / "empty").mkdir()
    (place / "text.onnx").write_text("no model")
    for bundled, images, code, message in (
        ("gone.onnx", "photos", 5, "cannot read gone.onnx: No such file or directory"),
        ("text.onnx", "photos", 5, "text.onnx is not a model that ONNX Runtime can read"),
        (tiny_backbone, "photos", 5, f"{tiny_backbone} is no bundle: featpipe bundle makes one"),
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


@pytest.mark.parametrize("labels", ["[", "{}", '["one"]'])
def test_a_damaged_bundle(place: Path, labels: str) -> None:
    """Labels that are none, or too few, are told before any image is opened."""
    model = onnx.load(place / "small.onnx")
    for entry in model.metadata_props:
        if entry.key == "featpipe.labels":
            entry.value = labels
    onnx.save(model, place / "small.onnx")
    done = serve("small.onnx", "photos")
    assert (done.returncode, done.stdout, done.stderr) == (
        5,
        "",
        "error: small.onnx is damaged: its labels are not those of its probabilities: bundle the "
        "head again\n",
    )


@pytest.mark.usefixtures("place")
def test_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Telemetry is off before ONNX Runtime is loaded, whatever the environment says."""
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    home = Path(os.environ["HOME"])
    before = sorted(home.rglob("*"))
    assert serve("small.onnx", "photos").returncode == 0
    assert sorted(home.rglob("*")) == before
