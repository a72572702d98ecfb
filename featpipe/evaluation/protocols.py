"""Protocols of the literature: what each does with a set's vectors, and where that is written.

A record says what can be said in numbers; `featpipe.evaluation.probing` does it. What differs
from the papers stands in ``docs/protocols.md``.

References
----------
Kornblith, Shlens, Le 2019, "Do Better ImageNet Models Transfer Better?", CVPR, the appendix on
logistic regression: L-BFGS, 45 penalties from 1e-6 to 1e5 on the summed loss, each from the
minimum before. Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without
Supervision", section 7, with the authors' evaluation code (``eval/knn.py``,
``eval/log_regression.py``). Wu, Xiong, Yu, Lin 2018, "Unsupervised Feature Learning via
Non-Parametric Instance Discrimination", CVPR, section 3.4: the weighted vote. Zhai et al. 2019,
"A Large-scale Study of Representation Learning with the Visual Task Adaptation Benchmark":
VTAB-1k, 1,000 images, 800 to train and 200 to validate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from featpipe._files import printable
from featpipe.errors import FeatpipeError

TEMPERATURE = 0.07
"""Of the votes of neighbours: a cosine s weighs exp(s / T)."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """One way of the literature to measure frozen vectors.

    Attributes
    ----------
    name : str
        As on the command line.
    source : str
        Paper, year, and where in it.
    classifier : {"logistic", "neighbours"}
        L2-penalised logistic regression by L-BFGS, or the weighted vote of nearest neighbours.
    parameter : str
        What is chosen: ``lambda``, ``C`` or ``k``.
    values : tuple of float
        What there is to choose from: of equally good ones the first is taken. That is the
        largest penalty, or the smallest k.
    share : float
        Part of the training images that is drawn to validate where there is no split val.
    is_sources_share : bool
        Whether the source draws that part; else it is featpipe's choice.
    sizes : (int, int), optional
        Images to train on and to validate on, where the protocol fixes them.
    """

    name: str
    source: str
    classifier: Literal["logistic", "neighbours"]
    parameter: Literal["lambda", "C", "k"]
    values: tuple[float, ...]
    share: float
    is_sources_share: bool
    sizes: tuple[int, int] | None = None

    def inverse_penalty(self, value: float) -> float:
        """Return what a value is as scikit-learn's C, by which the summed loss is multiplied."""
        return 1 / value if self.parameter == "lambda" else value


def _powers(low: int, high: int, number: int) -> tuple[float, ...]:
    """Return that many powers of ten, evenly spaced from 10**low to 10**high, both included."""
    return tuple(float(10 ** (low + (high - low) * i / (number - 1))) for i in range(number))


_PENALTIES = _powers(-6, 5, 45)

_PROTOCOLS = (
    Protocol(
        "kornblith",
        "Kornblith, Shlens, Le 2019, CVPR, appendix on logistic regression",
        "logistic",
        "lambda",
        _PENALTIES[::-1],
        share=0.2,
        is_sources_share=False,
    ),
    Protocol(
        "dinov2-knn",
        "Oquab et al. 2023, section 7; the vote: Wu et al. 2018, section 3.4",
        "neighbours",
        "k",
        (10, 20, 100, 200),
        share=0.2,
        is_sources_share=False,
    ),
    Protocol(
        "dinov2-logreg",
        "Oquab et al. 2023, section 7, and its evaluation code",
        "logistic",
        "C",
        _PENALTIES,
        share=0.1,
        is_sources_share=True,
    ),
    Protocol(
        "vtab1k",
        "Zhai et al. 2019, VTAB-1k, with logistic regression for its linear evaluation",
        "logistic",
        "lambda",
        _PENALTIES[::-1],
        share=0.2,
        is_sources_share=True,
        sizes=(800, 200),
    ),
)

PROTOCOLS: Mapping[str, Protocol] = {protocol.name: protocol for protocol in _PROTOCOLS}
"""Every protocol by name."""


def protocol_named(name: str) -> Protocol:
    """Return the protocol of that name.

    Raises
    ------
    FeatpipeError
        When there is none; the message has the nearest name.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    near = get_close_matches(name.lower(), PROTOCOLS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise FeatpipeError(
        f"there is no protocol {printable(name)!r}: {hint}there are {', '.join(PROTOCOLS)}"
    )
