"""``featpipe import``: options, what stands on stderr and on stdout, exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from foreign import SIZE, simple

from featpipe import load_backbone


def test_what_is_told(run_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was assumed, what was found, how near it is, where it is, how it is used."""
    monkeypatch.setenv("FEATPIPE_MODELS", str(tmp_path / "models"))
    result = run_cli("import", simple(tmp_path / "net.onnx"))
    assert (result.code, result.out) == (0, "")
    mean, resize, licence, embedding, feature_map, same, last = result.err.splitlines()
    assert mean == (
        "Note: the file does not say how its images are normalised; ImageNet's mean and std "
        "assumed (mean 0.485, 0.456, 0.406; std 0.229, 0.224, 0.225 on the scale 0 to 1): if it "
        "was trained otherwise, its vectors are wrong; give others with --mean and --std."
    )
    assert resize == (
        "Note: images are resized to 37 pixels (bilinear) and 32 of them are cut out: give others "
        "with --resize and --interpolation."
    )
    assert licence == ("Note: the licence of the weights is unknown: state it with --license.")
    assert embedding == "embedding: 'pooled', 12 numbers, what the last Gemm reads"
    assert feature_map == "feature map: 'map', 12 × 8 × 8"
    assert re.fullmatch(
        r"same as the original file on photographs, batches of 1, 2, 8 and 33: cosine "
        r"(1\.0000000|0\.99999\d\d) or better",
        same,
    )
    path = tmp_path / "models" / "net.onnx"
    assert last == f"net → {path} (featpipe embed data/ --model net)"
    assert load_backbone("net").path == path


def test_all_options(run_cli, tmp_path: Path) -> None:
    """Every option ends in the card; nothing is assumed then; fractions are numbers."""
    path = simple(tmp_path / "net.onnx", ("n", 3, "h", "w"))
    result = run_cli(
        "import", path, "--name", "mine", "--output", "t5", "--size", SIZE, "--resize", 40,
        "--mean", "123.68/255, 0.5,0", "--std", "128/255", "--layout", "nchw",
        "--interpolation", "bicubic", "--bgr", "--weights", "trained here", "--license", "MIT",
        "--models-dir", tmp_path / "here", "--json",
    )  # fmt: skip
    assert result.code == 0
    target = tmp_path / "here" / "mine.onnx"
    written = json.loads(result.out)
    card = written["card"]
    assert written["path"] == str(target)
    assert written["notes"] == []
    assert written["feature_map"] == "'t5', 8 × 16 × 16"
    assert card == load_backbone(target).card.to_json()
    assert (card["name"], card["weights"], card["license"]) == ("mine", "trained here", "MIT")
    assert (card["mean"], card["std"]) == ([123.68 / 255, 0.5, 0.0], [128 / 255] * 3)
    assert card["resize"] == {
        "resize": 40, "crop": SIZE, "interpolation": "bicubic", "antialias": True,
    }  # fmt: skip
    assert (card["layer"], card["note"]) == (
        "t5",
        "embedding: the mean over space of 't5', 8 numbers, as asked for. the file reads B, G, R",
    )
    assert result.err.splitlines()[-1] == (
        f"mine → {target} (featpipe embed data/ --model mine --models-dir {target.parent})"
    )


def test_what_was_assumed_is_said_for_each_of_the_two(run_cli, tmp_path: Path) -> None:
    """With a mean alone the std is ImageNet's, and the note and the card say so."""
    path = simple(tmp_path / "net.onnx")
    result = run_cli("import", path, "--mean", "0.5", "--models-dir", tmp_path / "out")
    assert result.err.startswith(
        "Note: the file does not say how its images are normalised; ImageNet's std assumed "
        "(std 0.229, 0.224, 0.225 on the scale 0 to 1): "
    )
    assert "assumed: ImageNet's std." in (load_backbone(tmp_path / "out/net.onnx").card.note or "")


@pytest.mark.parametrize("value", ["1,2", "red", "1/0", "1/2/3", "1,2,3,4", ""])
def test_numbers_that_are_none(run_cli, tmp_path: Path, value: str) -> None:
    """Three numbers or one; anything else is an error of usage."""
    result = run_cli("import", tmp_path / "net.onnx", "--mean", value)
    assert result.code == 2
    assert (
        f"Error: Invalid value for '--mean': {value!r} is not three numbers such as "
        "0.485,0.456,0.406 or 127/255,127/255,127/255, and not one for all three\n"
    ) in result.err


def test_a_refusal_is_one_line(run_cli, tmp_path: Path) -> None:
    """Exit code 5, one sentence, nothing on stdout and nothing from ONNX Runtime."""
    path = simple(tmp_path / "net.onnx")
    model = onnx.load(path)
    model.graph.node[-1].op_type = "Unknown\x1b[31m"
    onnx.save(model, path)
    result = run_cli("import", path, "--json")
    assert (result.code, result.out) == (5, "")
    assert result.err.startswith("Error: ONNX Runtime ")
    assert len(result.err.splitlines()) == 1
    assert "\x1b" not in result.err


def test_an_imported_backbone_embeds(
    run_cli, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line that is printed at the end works."""
    monkeypatch.setenv("FEATPIPE_MODELS", str(tmp_path / "models"))
    monkeypatch.chdir(tmp_path)
    assert run_cli("import", simple(tmp_path / "net.onnx")).code == 0
    result = run_cli("embed", photos, "--model", "net", "-o", "store")
    assert result.code == 0
    vectors = np.load(next((tmp_path / "store" / "parts").glob("*.npy")))
    assert vectors.shape == (10, 12)
