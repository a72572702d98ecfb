"""Scales of 8-bit weights with which no processor's arithmetic overflows.

On x86 without VNNI (AVX2, AVX-512F, SSE4.1) ONNX Runtime multiplies unsigned activations with
signed weights by ``vpmaddubsw``: the sum of two neighbouring products is cut off at 16 bits.
255 × 127 + 255 × 127 does not fit, so the same file gives other vectors there than on a
processor with VNNI. It fits whenever the two weights of a pair, of one sign, sum up to 128 at
most; so a channel's scale is chosen such that they do. That costs a channel a little of its
eighth bit, and none where its largest weights stand apart; halving all weights
(``reduce_range``) would cost a whole bit everywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LARGEST = 127
# Rounding may add a half to each of the two: 127 becomes 128 at most, and 255 × 128 < 2**15.
_LARGEST_PAIR = 127

Weights = NDArray[np.float32]


def safe_scales(rows: Weights, *, pairs: bool = True, even: bool = True) -> Weights:
    """Return the scale of every row of weights, float32 (rows,).

    Parameters
    ----------
    rows : ndarray of float32, (channels, K)
        Weights of each output channel, in the order in which the kernels sum them up.
    pairs : bool
        False where the kernel sums up in 32 bits, as it does for depthwise convolutions.
    even : bool
        Pairs are the weights 0 and 1, 2 and 3 and so on. False takes any two neighbours for
        a pair: where the number of input channels is odd.

    >>> safe_scales(np.array([[127, 0, 127, 0]], np.float32))
    array([1.], dtype=float32)
    >>> safe_scales(np.array([[127, 127, 0, 0]], np.float32))
    array([2.], dtype=float32)
    """
    largest = np.abs(rows).max(axis=1, initial=0.0) / _LARGEST
    if pairs and rows.shape[1] > 1:
        # With an odd number of channels a kernel may begin to count at either of two.
        step = 2 if even else 1
        for sign in (1, -1):
            one_side = np.maximum(sign * rows, 0)
            firsts, seconds = one_side[:, :-1:step], one_side[:, 1::step]
            largest = np.maximum(largest, (firsts + seconds).max(axis=1) / _LARGEST_PAIR)
    # A channel of zeros (or of next to nothing) has no scale of its own.
    tiny = np.finfo(np.float32).tiny
    return np.where(largest > tiny, largest, 1.0).astype(np.float32)


def conv_rows(weights: Weights) -> Weights:
    """Return the weights of a convolution, (O, I, h, w), as rows (O, h · w · I).

    ONNX Runtime's integer convolution works on images with the channels last.
    """
    return np.moveaxis(weights, 1, -1).reshape(len(weights), -1)
