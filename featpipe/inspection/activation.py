"""Class activation maps: where on the last feature map the score of a class comes from.

A backbone that ends in global average pooling gives v = mean over places p of f(p), and a linear
head the score w · v + b. So the score is the mean over places of w · f(p), plus b: nothing is
approximated.

References
----------
Zhou, Khosla, Lapedriza, Oliva, Torralba 2016, "Learning Deep Features for Discriminative
Localization", equation 2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from featpipe.inspection.linear import LinearForm
from featpipe.types import Vectors

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Maps = NDArray[np.float32]

_EXACT, _ROUNDED = 1e-4, 2e-2


def is_mean(maps: Maps, vectors: Vectors, *, is_exact: bool = True) -> bool:
    """Tell whether vectors are the means of their feature maps over all places.

    Parameters
    ----------
    maps : ndarray of float32, (N, C, h, w)
    vectors : ndarray of float32, (N, D)
    is_exact : bool
        Whether both were computed in fp32: else each is rounded in its own way.
    """
    if maps.shape[:2] != vectors.shape:
        return False
    apart = np.linalg.norm(maps.mean(axis=(2, 3), dtype=np.float64) - vectors, axis=1)
    allowed = _EXACT if is_exact else _ROUNDED
    return bool((apart <= allowed * np.linalg.norm(vectors, axis=1)).all())


def activation_maps(form: LinearForm, maps: Maps, vectors: Vectors, classes: Ints) -> Floats:
    """Return what each place adds to the score of some classes, (N, m, h, w) float64.

    Parameters
    ----------
    form : LinearForm
    maps : ndarray of float32, (N, C, h, w)
    vectors : ndarray of float32, (N, C)
        Their means; `LinearForm.factors` needs their lengths.
    classes : ndarray of int, (N, m)
        For every image the classes that are asked for.

    Returns
    -------
    ndarray of float64, (N, m, h, w)
        The sum over places and ``form.bias`` of the class make the score.
    """
    places = maps.shape[2] * maps.shape[3]
    weights = form.weights[classes] * (form.factors(vectors)[:, None, None] / places)
    found: Floats = np.einsum("nmc,nchw->nmhw", weights, maps, optimize=True)
    return found
