"""Which tensor of a network is the embedding, and which the map that is averaged into it.

The embedding is what the last linear layer reads: the pooled vector in most families, fc7 in
AlexNet and VGG (Donahue et al. 2014, "DeCAF"; Razavian et al. 2014), the hidden layer behind
the pool in MobileNetV3. Another layer can be named; a map is then averaged over space.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from featpipe._files import first_line, nearest, printable
from featpipe.backbones.card import BackboneCard
from featpipe.backbones.gate import photographs
from featpipe.errors import BackboneError

_SAME = 1e-4
"""How far the average of the map may be from the embedding, of its largest number."""


class _Catcher:
    """Keeps what a module has returned; opaque, so that `torch.export` takes it for a constant."""

    def __init__(self) -> None:
        self.value: Any = None

    def hook(self, _module: nn.Module, _inputs: Any, output: Any) -> None:
        # What comes after may work in place and change the tensor.
        self.value = output.clone() if isinstance(output, torch.Tensor) else output


class Headless(nn.Module):  # type: ignore[misc]  # mypy does not follow torch
    """A network whose classifier is gone: normalised pixels to embedding, or embedding and map.

    Parameters
    ----------
    model : torch.nn.Module
        Returns the embedding (N, D), where no ``layer`` is named.
    layer : str, optional
        Module whose output is the embedding instead.
    feature_map : str, optional
        Module whose output (N, D, h, w) averages to the embedding.
    """

    def __init__(
        self, model: nn.Module, layer: str | None = None, feature_map: str | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.has_layer, self.has_map = layer is not None, feature_map is not None
        self.caught = _Catcher()
        watched = layer or feature_map
        if watched is not None:
            # A bound method, so that a deep copy of the module catches for itself.
            model.get_submodule(watched).register_forward_hook(self.caught.hook)

    def forward(self, pixels: torch.Tensor) -> Any:
        """Return embedding (N, D), and map (N, D, h, w) where there is one."""
        self.caught.value = None
        vectors = self.model(pixels)
        if self.has_layer:
            return _pooled(self.caught.value)
        return (vectors, self.caught.value) if self.has_map else vectors


def _pooled(output: torch.Tensor) -> Any:
    """Average a map over space, and keep it; a vector stays as it is."""
    return (output.mean(dim=(2, 3)), output) if output.dim() == 4 else output


def example_pixels(card: BackboneCard) -> torch.Tensor:
    """Return two normalised photographs to try a network on: float32 (2, 3, H, W)."""
    images = torch.from_numpy(photographs(2, card.input_size))
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (card.mean, card.std))
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


def without_classifier(
    model: nn.Module, pixels: torch.Tensor, name: str, layer: str | None = None
) -> Headless:
    """Wrap a network that returns its embedding so that it returns the map, too, if it has one.

    Parameters
    ----------
    model : torch.nn.Module
        In eval mode, returns (N, D).
    pixels : Tensor
        Normalised images (N, 3, H, W) to try it on.
    name : str
        The network, as messages name it.
    layer : str, optional
        Module whose output is wanted instead.

    Raises
    ------
    BackboneError
        When there is no such layer, or its output is neither map nor vector.
    """
    if layer is None:
        return Headless(model, feature_map=find_feature_map(model, pixels))
    if layer not in dict(model.named_modules()) or not layer:
        raise BackboneError(_no_layer(model, name, layer))
    headless = Headless(model, layer=layer)
    run(model, pixels, name)
    found = _not_poolable(headless.caught.value)
    if found is not None:
        raise BackboneError(
            f"the layer '{printable(layer)}' of {name} {found}: name one that gives a map "
            "(N, C, h, w) or a vector (N, D)"
        )
    return headless


def run(model: nn.Module, pixels: torch.Tensor, name: str) -> Any:
    """Run a network without gradients.

    Raises
    ------
    BackboneError
        When it does not run on images of this size.
    """
    try:
        with torch.no_grad():
            return model(pixels)
    # Layers meet images that are too small with any exception.
    except Exception as exc:
        raise BackboneError(
            f"{name} cannot be run on {pixels.shape[-1]} pixels ({first_line(exc)}): give another "
            "--size"
        ) from exc


def _not_poolable(output: Any) -> str | None:
    """Return what a layer's output is, where it is neither a vector nor a map of squares."""
    if output is None:
        return "is not run"
    if not isinstance(output, torch.Tensor):
        return f"gives {type(output).__name__}"
    if output.dim() not in {2, 4}:
        return f"gives a tensor of {output.dim()} dimensions"
    shape = tuple(output.shape)
    # Squares in, squares out: where the last two sides differ, the channels come last.
    if output.dim() == 4 and shape[2] != shape[3]:
        return f"gives a tensor {shape}, whose channels come last"
    return None


def find_feature_map(model: nn.Module, pixels: torch.Tensor) -> str | None:
    """Return the last module whose output averages over space to the network's output.

    Only what is equal counts (to 1e-4 of the largest number): a network that normalises after
    its pool, or has a hidden layer there, has no such map.
    """
    caught: dict[str, torch.Tensor] = {}

    def catch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            caught.pop(name, None)
            if isinstance(output, torch.Tensor) and output.dim() == 4:
                caught[name] = output.clone()

        return hook

    handles = [m.register_forward_hook(catch(n)) for n, m in model.named_modules() if n]
    try:
        with torch.no_grad():
            vectors = model(pixels)
    finally:
        for handle in handles:
            handle.remove()
    for name, output in reversed(caught.items()):
        # A map of one pixel is the pooled vector itself.
        if output.shape[:2] == vectors.shape and output.shape[2] * output.shape[3] > 1:
            average = output.mean(dim=(2, 3))
            if (average - vectors).abs().max() <= _SAME * vectors.abs().max():
                return name
    return None


def _no_layer(model: nn.Module, name: str, layer: str) -> str:
    known = [n for n, _ in model.named_modules() if n]
    near = nearest(layer, known)
    top = [n for n, _ in model.named_children()]
    hint = f"did you mean {near}?" if near else f"it has {', '.join(top)}"
    return f"{name} has no layer '{printable(layer)}': {hint}"
