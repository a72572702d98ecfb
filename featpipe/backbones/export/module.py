"""From a torch module to a backbone file.

The exported file reads uint8 pixels, normalises them itself, has its batch normalisation
folded into the convolutions (in double precision), carries its card, and is written only
when ONNX Runtime reproduces the source module on photographs.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import nn

from featpipe._files import first_line
from featpipe.backbones.card import BackboneCard
from featpipe.backbones.contract import EMBEDDING, FEATURE_MAP, INPUT
from featpipe.backbones.export.conditional import express_conditional
from featpipe.backbones.gate import EXPORT_COSINE, compare, realistic_images
from featpipe.backbones.writing import GATE_BATCHES, write_backbone
from featpipe.errors import BackboneError

OPSET = 20
"""The exporter's own opset: what it writes without converting afterwards, and what ONNX
Runtime has read since 1.17."""
_EXPORTERS = ("torch", "timm", "onnx", "onnxscript")


class _FromPixels(nn.Module):  # type: ignore[misc]  # mypy does not follow torch
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


def export_module(
    features: nn.Module,
    card: BackboneCard,
    path: Path,
    *,
    batches: Sequence[int] = GATE_BATCHES,
) -> BackboneCard:
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
    batches : sequence of int
        Batch sizes at which file and module are compared.

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
    card = replace(card, exporter={p: importlib.metadata.version(p) for p in _EXPORTERS})
    # The graph has no name here: for more copies of large weights there is no room.
    return write_backbone(
        _graph(source, card), card, path, lambda images: _run(source, images), batches=batches
    )[0]


def _graph(source: nn.Module, card: BackboneCard) -> onnx.ModelProto:
    """Return the graph of a network that takes pixels, batch normalisations folded."""
    example = torch.from_numpy(realistic_images(2, card.input_size))
    expected = _run(source, example.numpy())
    names = [EMBEDDING, FEATURE_MAP][: len(expected)]
    folded = fold_batch_norms(source, example)
    if compare(expected[0], _run(folded, example.numpy())[0]) < EXPORT_COSINE:
        # Somebody else reads what a convolution writes, which no hook shows.
        folded = source
    try:
        return _to_onnx(express_conditional(folded), example, names)
    except Exception as exc:
        # The exporter has its own exceptions for every stage, none of them with a stable name.
        raise BackboneError(
            f"torch cannot export {card.name}: {first_line(exc)}: nothing was written"
        ) from exc


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
        rest = nn.Sequential(*left).eval()
        # Whoever watches the normalisation's output watches what has taken its place.
        rest._forward_hooks = norm._forward_hooks  # noqa: SLF001
        _put(folded, norm_name, rest)
    return folded


def _pairs(model: nn.Module, example: torch.Tensor) -> list[tuple[str, str]]:
    """Return (convolution, normalisation) pairs in the order in which they run.

    Pairs of modules that run once, and meet nobody else of their kind, are returned: a module
    that runs twice, or a convolution that two normalisations read, cannot be merged.
    """
    written: dict[int, tuple[str, torch.Tensor]] = {}
    pairs: list[tuple[str, str]] = []
    runs: dict[str, int] = {}

    def after_conv(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            # The tensor is kept, so that no later one can have its identity.
            written[id(output)] = (name, output)
            runs[name] = runs.get(name, 0) + 1

        return hook

    def before_norm(name: str) -> Any:
        def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            runs[name] = runs.get(name, 0) + 1
            if id(inputs[0]) in written:
                pairs.append((written[id(inputs[0])][0], name))

        return hook

    handles = []
    for name, module in model.named_modules():
        if _can_be_merged(module):
            handles.append(module.register_forward_hook(after_conv(name)))
        elif type(module) in {nn.BatchNorm2d, BatchNormAct2d} and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(before_norm(name)))
    with torch.no_grad():
        model(example)
    for handle in handles:
        handle.remove()
    readers = Counter(conv for conv, _ in pairs)
    return [
        (conv, norm) for conv, norm in pairs if runs[conv] == runs[norm] == 1 and readers[conv] == 1
    ]


def _can_be_merged(module: nn.Module) -> bool:
    """Tell whether a convolution uses its weights as they are, and nobody watches its output."""
    # Other subclasses standardise or mix their weights when they run.
    plain = type(module) in {nn.Conv2d, Conv2dSame}
    return plain and not module._forward_hooks  # noqa: SLF001


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
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _run(model: nn.Module, images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    with torch.no_grad():
        outputs = model(torch.from_numpy(images))
    return [o.numpy() for o in (outputs if isinstance(outputs, tuple) else (outputs,))]
