"""``featpipe explain``: what stands on stdout, what on stderr, and the exit code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import build_tiny_backbone
from PIL import Image

from featpipe import embed, fit


@pytest.fixture
def place(
    photos: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Return a working folder with ``heads/mine`` and ``photos``; the backbone has a name."""
    monkeypatch.setenv("FEATPIPE_MODELS", str(tiny_backbone.parent))
    monkeypatch.chdir(tmp_path)
    store = embed(photos, tiny_backbone, output="store")
    fit(store, "centroid", cv=2, check=False).save("heads/mine")
    return tmp_path


CAT = "photos/living/cat.jpg"


def test_a_line_an_image(run_cli: Callable[..., Any], place: Path) -> None:
    """Without -o and --json the answers go to stdout, everything else to stderr."""
    result = run_cli("explain", CAT, "photos/things/coins.jpg", "--nearest", 2)
    assert result.code == 0
    first, second = result.out.splitlines()
    assert first.startswith(f"{CAT}: ")
    assert "; occlusion: most for " in first
    assert first.count(" at x ") == 1
    assert len(first.partition("; nearest: ")[2].split(", ")) == 2
    assert second.startswith("photos/things/coins.jpg: ")
    head, device = result.err.splitlines()
    assert head == "Head: heads/mine, the newest under heads/."
    assert device.startswith("running on ")


def test_json_on_stdout(run_cli: Callable[..., Any], place: Path) -> None:
    """One document with everything that there is to know; nothing else on stdout."""
    result = run_cli("explain", CAT, "--head", "heads/mine", "--json", "--batch-size", 3)
    value = json.loads(result.out)
    assert result.code == 0
    assert list(value) == ["head", "backbone", "classes", "device", "notes", "images"]
    assert (value["head"], value["backbone"]) == ("centroid", "tiny")
    (image,) = value["images"]
    assert list(image) == [
        "path",
        "status",
        "method",
        "size",
        "crop",
        "predicted",
        "runner_up",
        "nearest",
    ]
    with Image.open(CAT) as opened:
        assert image["size"] == list(opened.size)
    for shown in (image["predicted"], image["runner_up"]):
        assert (shown["measure"], shown["bias"]) == ("log-odds", None)
        assert shown["sum"] == pytest.approx(sum(map(sum, shown["map"])), abs=1e-4)
        assert {len(row) for row in shown["map"]} == {len(shown["map"])} == {10}
    both = image["predicted"]["probability"] + image["runner_up"]["probability"]
    assert both == pytest.approx(1, abs=1e-5)
    assert [list(near) for near in image["nearest"]] == [["path", "label", "cosine"]] * 3


@pytest.mark.parametrize("name", ["out.png", "out.html", "OUT.HTM"])
def test_files_by_suffix(run_cli: Callable[..., Any], place: Path, name: str) -> None:
    """A picture or a page, and where it is, at the end."""
    result = run_cli("explain", "photos/living", "--head", "heads/mine", "-o", name)
    assert result.code == 0
    assert len(result.out.splitlines()) == 4
    assert result.err.splitlines()[-1] == f"explained → {name}"
    begins = Path(name).read_bytes()[:20]
    assert begins.startswith(b"\x89PNG" if name.endswith("png") else b"<!doctype html>")


def test_failed_images_give_code_3(run_cli: Callable[..., Any], place: Path) -> None:
    """They are named, the others are explained, and the picture has a row of each."""
    Path("words\n.jpg").write_text("no image")
    paths = [CAT, "words\n.jpg", "gone.jpg"]
    result = run_cli("explain", *paths, "--head", "heads/mine", "-o", "out.png", "--json")
    assert result.code == 3
    images = json.loads(result.out)["images"]
    assert [image["status"] for image in images] == ["ok", "undecodable", "unreadable"]
    assert images[2] == {
        "path": "gone.jpg",
        "status": "unreadable",
        "reason": "No such file or directory",
    }
    lines = result.err.splitlines()
    assert lines[:2] == [
        "Failed: words\\n.jpg: not an image in a format that can be read",
        "Failed: gone.jpg: No such file or directory",
    ]
    assert lines[-1] == "explained → out.png"
    assert Path("out.png").exists()


def test_a_name_that_is_no_utf_8_has_an_escape_in_json(
    run_cli: Callable[..., Any], place: Path
) -> None:
    """As in the rows of `score`: no half of a surrogate pair, which other programs refuse."""
    Path(os.fsdecode(b"caf\xe9.jpg")).write_text("no image")
    result = run_cli("explain", os.fsdecode(b"caf\xe9.jpg"), "--head", "heads/mine", "--json")
    assert json.loads(result.out)["images"][0]["path"] == "caf\\xe9.jpg"


def test_another_suffix_is_a_usage_error(run_cli: Callable[..., Any], photos: Path) -> None:
    """It is refused before anything is loaded, with code 2."""
    result = run_cli("explain", photos, "-o", "out.jpg")
    assert result.code == 2
    assert (
        "Error: Invalid value for '-o' / '--output': cannot write out.jpg: give a name that ends "
        "in .png or .html\n"
    ) in result.err


def test_more_than_fits_on_a_picture(run_cli: Callable[..., Any], place: Path) -> None:
    """It is said in a sentence, before the backbone runs."""
    names = [f"{number}.jpg" for number in range(51)]
    result = run_cli("explain", *names, "--head", "heads/mine", "-o", "out.png")
    assert result.code == 1
    assert result.err == (
        "Error: there are more than 50 images to explain at once: name some of them\n"
    )


def test_another_backbone_is_refused(run_cli: Callable[..., Any], place: Path) -> None:
    """As `score` refuses it: both are named, with code 5."""
    build_tiny_backbone(place / "other.onnx", "tiny", scale=1.0)
    for command in ("explain", "score"):
        result = run_cli(command, CAT, "--head", "heads/mine", "--model", "other.onnx")
        assert result.code == 5
        assert result.err.startswith("Error: the head was fitted on vectors of tiny (")
        assert result.err.endswith(
            ", other.onnx): give the backbone that it was fitted on with --model, or fit a head "
            "on this one\n"
        )


def test_no_head_and_no_image(
    run_cli: Callable[..., Any], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in a sentence, with its code."""
    monkeypatch.chdir(tmp_path)
    result = run_cli("explain", photos)
    assert result.code == 7
    assert result.err == (
        "Error: there is no head under heads/: make one with `featpipe fit`, "
        "or name it with --head\n"
    )
    result = run_cli("explain")
    assert result.code == 2
    assert "Error: Missing argument 'IMAGE...'." in result.err


def test_an_image_that_is_not_there(run_cli: Callable[..., Any], place: Path) -> None:
    """A single one that is nowhere: nothing can be explained, code 4."""
    result = run_cli("explain", "gone.jpg", "--head", "heads/mine")
    assert result.code == 4
    assert result.err == (
        f"Error: there is nothing at gone.jpg: check the path (it is looked for from {place})\n"
    )
