"""All that is known of a backbone, as one record that travels inside its file.

The card stands as JSON in the ONNX file's ``metadata_props["featpipe.card"]``. It refuses to
exist without the source of its weights, their licence and the dimension of its vectors.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar, get_args

from featpipe._files import printable
from featpipe.errors import BackboneError
from featpipe.types import Interpolation, ResizeRule

CARD_KEY = "featpipe.card"
CARD_FORMAT = 1
MAX_CARD_BYTES = 64 * 1024

Triple = tuple[float, float, float]
"""R, G, B."""
_T = TypeVar("_T")

# A card's name becomes part of a store's folder name: nothing in it may lead elsewhere.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
QUANTISER = "quantiser"
"""The entry of ``exporter`` with which `featpipe quantize` signs integers that overflow nowhere."""
MAX_NAME = 100
"""Characters of a backbone's name."""
_FINGERPRINT = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class BackboneCard:
    """What a backbone is, where it comes from, and how images are prepared for it.

    Attributes
    ----------
    name : str
        Letters, digits, ``.``, ``_``, ``+`` and ``-``.
    weights : str
        Where the weights come from: a package and version, a URL, a file and its digest.
    license : str
        SPDX identifier of the weights' licence, or its name.
    dimension : int
        Length D of an embedding.
    resize : ResizeRule
        How an image becomes the square that the backbone reads.
    mean, std : tuple of three floats
        Normalisation of R, G, B on the scale 0 to 1. It happens inside the graph; the card
        only tells of it.
    imagenet_top1 : float or None
        Per cent, as its authors publish it.
    parameters : int or None
        Weights that the embedding needs, without the classifier.
    gflops : float or None
        Multiply-adds of one image, in billions, as its authors publish them.
    layer : str or None
        Which layer of the network the embedding is; None: what its classifier reads.
    note : str or None
        What else a user of the vectors should know: how the file was quantised, what was
        assumed when it was imported.
    exporter : mapping of str to str
        Versions of the packages that wrote the file.
    fingerprint : str
        32 hexadecimal digits that stand for graph, weights and preprocessing; empty before
        the file is written.

    Raises
    ------
    BackboneError
        When a field is missing or makes no sense; the message names it.
    """

    name: str
    weights: str
    license: str
    dimension: int
    resize: ResizeRule
    mean: Triple
    std: Triple
    imagenet_top1: float | None = None
    parameters: int | None = None
    gflops: float | None = None
    layer: str | None = None
    note: str | None = None
    exporter: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""

    def __post_init__(self) -> None:
        check_name(self.name)
        for what, value in (("weights", self.weights), ("license", self.license)):
            if not value.strip():
                raise BackboneError(
                    f"the card of backbone {self.name} lacks '{what}': state where the weights "
                    "come from and under which licence"
                )
        for what, number in (
            ("dimension", self.dimension),
            ("resize", self.resize.resize),
            ("crop", self.resize.crop),
        ):
            if not 1 <= number <= 65536:
                raise BackboneError(
                    f"the card of backbone {self.name} says {what} = {number}: "
                    "it must be between 1 and 65536"
                )
        if self.resize.crop > self.resize.resize or not self.resize.antialias:
            raise BackboneError(
                f"the card of backbone {self.name} asks for a crop of {self.resize.crop} pixels "
                f"from a shorter side of {self.resize.resize}, antialias "
                f"{str(self.resize.antialias).lower()}: featpipe crops what it has resized with "
                "antialiasing, so the crop must not be larger"
            )
        if not all(math.isfinite(x) for x in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise BackboneError(
                f"the card of backbone {self.name} has a mean or std that cannot normalise "
                "anything: three finite numbers each, std above 0"
            )
        if self.fingerprint and not _FINGERPRINT.fullmatch(self.fingerprint):
            raise BackboneError(
                f"the card of backbone {self.name} has a fingerprint that is not "
                "32 hexadecimal digits"
            )

    @property
    def input_size(self) -> int:
        """Side of the square that the backbone reads, in pixels."""
        return self.resize.crop

    def preprocessing(self) -> str:
        """Return the preprocessing as canonical JSON: what enters the fingerprint.

        >>> card = BackboneCard("a", "b", "c", 4, ResizeRule(8, 8), (0, 0, 0), (1, 1, 1))
        >>> card.preprocessing()
        '{"antialias":true,"crop":8,"interpolation":"bicubic","resize":8}'
        """
        return json.dumps(_resize_json(self.resize), sort_keys=True, separators=(",", ":"))

    def to_json(self) -> dict[str, Any]:
        """Return the card as a JSON object; `from_json` turns it back."""
        value = {**asdict(self), "resize": _resize_json(self.resize)}
        value |= {"mean": list(self.mean), "std": list(self.std)}
        # What came later is written where it says something: earlier files stay as they are.
        value = {k: v for k, v in value.items() if v is not None or k not in {"layer", "note"}}
        return {"format": CARD_FORMAT, **value}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> BackboneCard:
        """Build a card from a JSON object.

        Raises
        ------
        BackboneError
            When a field is missing, of the wrong type, or the format is newer than ours.
        """
        version = _take(value, "format", _INTEGER)
        if version > CARD_FORMAT:
            raise BackboneError(
                f"the backbone's card has format {version}, newer than the {CARD_FORMAT} that "
                "this featpipe reads: upgrade featpipe"
            )
        return cls(
            name=_take(value, "name", _TEXT),
            weights=_take(value, "weights", _TEXT),
            license=_take(value, "license", _TEXT),
            dimension=_take(value, "dimension", _INTEGER),
            resize=_resize_rule(_take(value, "resize", _MAPPING)),
            mean=_take(value, "mean", _TRIPLE),
            std=_take(value, "std", _TRIPLE),
            imagenet_top1=_take(value, "imagenet_top1", _optional(_NUMBER)),
            parameters=_take(value, "parameters", _optional(_INTEGER)),
            gflops=_take(value, "gflops", _optional(_NUMBER)),
            layer=_take({"layer": None, **value}, "layer", _optional(_TEXT)),
            note=_take({"note": None, **value}, "note", _optional(_TEXT)),
            exporter=_take(value, "exporter", _VERSIONS),
            fingerprint=_take(value, "fingerprint", _TEXT),
        )


def check_name(name: str) -> None:
    """Refuse what cannot be a backbone's name, before it becomes part of a path.

    Raises
    ------
    BackboneError
        With the letters that a name may have.
    """
    if not _NAME.fullmatch(name):
        raise BackboneError(
            f"a backbone's name must be letters, digits, '.', '_', '+' and '-' "
            f"({MAX_NAME} at most), not '{printable(name[:MAX_NAME])}'"
        )


@dataclass(frozen=True, slots=True)
class _Kind(Generic[_T]):
    """What a field must be: in words, and as a function that raises for anything else."""

    words: str
    check: Callable[[Any], _T]


def _resize_rule(value: Mapping[str, Any]) -> ResizeRule:
    return ResizeRule(
        resize=_take(value, "resize", _INTEGER),
        crop=_take(value, "crop", _INTEGER),
        interpolation=_take(value, "interpolation", _INTERPOLATION),
        antialias=_take(value, "antialias", _FLAG),
        squash=_take({"squash": False, **value}, "squash", _FLAG),
    )


def _resize_json(rule: ResizeRule) -> dict[str, Any]:
    """Return the rule as JSON; what is not squashed has the form that it had before."""
    value = asdict(rule)
    return value if rule.squash else {k: v for k, v in value.items() if k != "squash"}


def _take(value: Mapping[str, Any], name: str, kind: _Kind[_T]) -> _T:
    """Return ``value[name]`` as what it must be, or say which field is wrong."""
    if name not in value:
        raise BackboneError(
            f"the backbone's card lacks '{name}': it was not written by featpipe, or was edited"
        )
    try:
        return kind.check(value[name])
    except (TypeError, ValueError, OverflowError):
        shown = printable(repr(value[name])[:60])
        raise BackboneError(
            f"the backbone's card has {name} = {shown}, which is not {kind.words}"
        ) from None


def _exactly(kind: type[_T]) -> Callable[[Any], _T]:
    """Return a check that lets no subclass pass: JSON's true is no number."""

    def check(value: Any) -> _T:
        if type(value) is not kind:
            raise TypeError
        return value

    return check


def _number(value: Any) -> float:
    if type(value) not in {int, float} or not math.isfinite(value):
        raise TypeError
    return float(value)


def _triple(value: Any) -> Triple:
    red, green, blue = value
    return _number(red), _number(green), _number(blue)


def triple(values: Iterable[Any]) -> Triple:
    """Return three numbers as floats.

    >>> triple([1, 2, 3])
    (1.0, 2.0, 3.0)
    """
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _mapping(value: Any) -> Mapping[str, Any]:
    return _exactly(dict)(value)


def _versions(value: Any) -> Mapping[str, str]:
    text = _TEXT.check
    return {text(key): text(version) for key, version in _MAPPING.check(value).items()}


def _interpolation(value: Any) -> Interpolation:
    if value not in get_args(Interpolation):
        raise ValueError
    found: Interpolation = value
    return found


def _optional(kind: _Kind[_T]) -> _Kind[_T | None]:
    def check(value: Any) -> _T | None:
        return None if value is None else kind.check(value)

    return _Kind(f"{kind.words} or null", check)


_TEXT = _Kind("a text", _exactly(str))
_FLAG = _Kind("true or false", _exactly(bool))
_INTEGER = _Kind("a whole number", _exactly(int))
_NUMBER = _Kind("a number", _number)
_TRIPLE = _Kind("three numbers", _triple)
_MAPPING = _Kind("an object", _mapping)
_VERSIONS = _Kind("an object of texts", _versions)
_INTERPOLATION = _Kind(f"one of {', '.join(get_args(Interpolation))}", _interpolation)
