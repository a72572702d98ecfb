"""Convolutions whose kernels depend on the image, in a form that ONNX can express.

timm's ``CondConv2d`` (Yang et al. 2019, "CondConv: Conditionally Parameterized Convolutions")
mixes the kernels of several experts for each image, and folds the batch into the groups of
one convolution. ONNX has no convolution with as many groups as there are images: the same
sums are written here as a product of matrices where the kernel is one pixel, and otherwise
as the mixture of the experts' own convolutions.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers import CondConv2d, pad_same
from torch import nn
from torch.nn import functional


def express_conditional(model: nn.Module) -> nn.Module:
    """Return ``model``, or a copy in which no convolution has a group for each image."""
    names = [n for n, m in model.named_modules() if isinstance(m, CondConv2d)]
    if not names:
        return model
    changed = copy.deepcopy(model)
    for name in names:
        parent, _, last = name.rpartition(".")
        setattr(changed.get_submodule(parent), last, Mixture(changed.get_submodule(name)))
    return changed


class Mixture(nn.Module):  # type: ignore[misc]  # mypy does not follow torch
    """What a ``CondConv2d`` computes, for any number of images."""

    def __init__(self, conv: CondConv2d) -> None:
        super().__init__()
        self.conv = conv
        self.pointwise = (
            conv.kernel_size == conv.stride == (1, 1) and conv.groups == 1
        ) and conv.padding in {(0, 0), (None, None)}

    def forward(self, x: torch.Tensor, routing: torch.Tensor) -> torch.Tensor:
        """Return (N, O, h, w) of (N, C, H, W) and the weights of the experts, (N, E)."""
        out = self._product(x, routing) if self.pointwise else self._sum(x, routing)
        if self.conv.bias is None:
            return out
        return out + torch.matmul(routing, self.conv.bias)[:, :, None, None]

    def _product(self, x: torch.Tensor, routing: torch.Tensor) -> torch.Tensor:
        kernels = torch.matmul(routing, self.conv.weight)
        kernels = kernels.reshape(-1, self.conv.out_channels, self.conv.in_channels)
        return torch.matmul(kernels, x.flatten(2)).unflatten(2, x.shape[2:])

    def _sum(self, x: torch.Tensor, routing: torch.Tensor) -> torch.Tensor:
        conv = self.conv
        padded = (
            pad_same(x, conv.kernel_size, conv.stride, conv.dilation) if conv.dynamic_padding else x
        )
        padding = (0, 0) if conv.dynamic_padding else conv.padding
        total: Any = 0
        for expert, kernel in enumerate(conv.weight):
            out = functional.conv2d(
                padded,
                kernel.view(conv.weight_shape),
                None,
                conv.stride,
                padding,
                conv.dilation,
                conv.groups,
            )
            total = total + routing[:, expert, None, None, None] * out
        return total
