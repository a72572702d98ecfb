"""The contract of every backbone file, checked before anything in the file is run.

- input ``images``: uint8, (N, H, W, 3), RGB; H and W fixed, N dynamic. Normalisation is in
  the graph.
- output ``embedding``: float32, (N, D); optional output ``feature_map``: float32, (N, C, h, w).
- one file, no external data, operators of ONNX and ONNX Runtime alone; the card in
  ``metadata_props["featpipe.card"]``, with a fingerprint that fits the file.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from featpipe._files import printable, read_regular
from featpipe.backbones import _wire
from featpipe.backbones.card import CARD_KEY, MAX_CARD_BYTES, BackboneCard
from featpipe.errors import BackboneError

INPUT = "images"
EMBEDDING = "embedding"
FEATURE_MAP = "feature_map"
MAX_FILE_BYTES = 2**31 - 1
"""One protobuf message cannot be larger."""

_UINT8, _FLOAT32 = 2, 1
_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
# It names a file that a provider would load; nothing else in these domains reaches outside.
_FORBIDDEN_OPERATORS = frozenset({"EPContext"})


@dataclass(frozen=True, slots=True)
class BackboneFile:
    """A backbone file that keeps the contract.

    Attributes
    ----------
    path : Path
        Where it was read.
    data : bytes
        All of it: what has been checked is what is run, whatever becomes of the file.
    card : BackboneCard
        What it says of itself.
    has_feature_map : bool
        Whether it gives the map before pooling too.
    """

    path: Path
    data: bytes
    card: BackboneCard
    has_feature_map: bool


def read_backbone(path: Path) -> BackboneFile:
    """Read a backbone file and check the whole contract.

    Raises
    ------
    BackboneError
        When the file cannot be read, is damaged, was edited, or breaks the contract. The
        message names the file.
    """
    return check_backbone(path, _read(path))


def check_backbone(path: Path, data: bytes) -> BackboneFile:
    """Check the whole contract of a file's bytes, wherever they come from.

    Raises
    ------
    BackboneError
        When they are damaged, were edited, or break the contract; ``path`` stands in the
        message.
    """
    try:
        model = memoryview(data)
        graph = _wire.read_graph(model)
        card = _read_card(path, _wire.metadata(model))
        found = fingerprint(data, card)
    except _wire.WireError:
        raise _broken(path, "is damaged: it is not an ONNX file, or it is cut short") from None
    check_safe(path, graph)
    _check_input(path, graph, card)
    _check_outputs(path, graph, card)
    if found != card.fingerprint:
        raise _broken(
            path,
            f"is damaged or was edited: its fingerprint is {found}, its card says "
            f"{card.fingerprint or 'none'}: install or export it again",
        )
    return BackboneFile(path, data, card, any(o.name == FEATURE_MAP for o in graph.outputs))


def peek_card(path: Path) -> BackboneCard:
    """Read a file's card and nothing else of it: neither its graph nor its digest is checked.

    Raises
    ------
    BackboneError
        When there is no card to read.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            view = memoryview(data)
            try:
                return _read_card(path, _wire.metadata(view))
            finally:
                view.release()
    except (OSError, ValueError) as exc:  # ValueError: a broken message, or an empty file
        raise _broken(path, "cannot be read: it is no ONNX file, or it is damaged") from exc


def fingerprint(model: bytes, card: BackboneCard) -> str:
    """Return 32 hexadecimal digits that stand for graph, weights and preprocessing.

    SHA-256 of the model's serialised graph, operator sets and functions, and of the card's
    preprocessing. Name, licence and every other word of the card may change without it; so
    may the place of the file.
    """
    digest = hashlib.sha256(b"featpipe backbone 1\n")
    for number in (_wire.MODEL_GRAPH, _wire.MODEL_OPSET, _wire.MODEL_FUNCTION):
        for value in _wire.pick(memoryview(model), number):
            digest.update(b"%d:%d:" % (number, len(value)))
            digest.update(value)
    digest.update(card.preprocessing().encode())
    return digest.hexdigest()[:32]


def with_fingerprint(card: BackboneCard, model: bytes) -> BackboneCard:
    """Return ``card`` with the fingerprint of ``model`` in it."""
    return replace(card, fingerprint=fingerprint(model, card))


def _read(path: Path) -> bytes:
    try:
        data = read_regular(path, MAX_FILE_BYTES)
    except FileNotFoundError:
        raise BackboneError(
            f"there is no backbone file {printable(str(path))}: check the path"
        ) from None
    except OSError as exc:
        raise BackboneError(
            f"cannot read the backbone file {printable(str(path))}: {exc.strerror or exc}"
        ) from exc
    if data is None:
        raise _broken(path, "is larger than 2 GB, more than one ONNX file can hold")
    return data


def _read_card(path: Path, metadata: dict[str, bytes]) -> BackboneCard:
    raw = metadata.get(CARD_KEY)
    if raw is None:
        raise _broken(
            path,
            "carries no featpipe card: it is an ONNX file of another kind; "
            "use a backbone that featpipe has exported",
        )
    value = _json_object(raw) if len(raw) <= MAX_CARD_BYTES else None
    if value is None:
        raise _broken(path, "has a card that is not a JSON object: export it again")
    try:
        return BackboneCard.from_json(value)
    except BackboneError as exc:
        raise _broken(path, f"cannot be used: {exc}") from exc


def _json_object(raw: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def check_safe(path: Path, graph: _wire.Graph) -> None:
    """Refuse what reaches outside the file: external data, custom operators.

    Raises
    ------
    BackboneError
        Naming the file and what it reaches for.
    """
    if graph.has_external_data:
        raise _broken(
            path,
            "keeps weights in other files, which featpipe does not read: "
            "save it as one file without external data",
        )
    foreign = sorted(graph.domains - _DOMAINS)
    if foreign:
        raise _broken(
            path,
            f"needs operators of the domain '{printable(foreign[0])}', which would need a custom "
            "library; featpipe loads none: export it with standard ONNX operators",
        )
    forbidden = sorted(graph.operators & _FORBIDDEN_OPERATORS)
    if forbidden:
        raise _broken(
            path,
            f"contains the operator {forbidden[0]}, which reads other files: "
            "export it with standard ONNX operators",
        )


def _check_input(path: Path, graph: _wire.Graph, card: BackboneCard) -> None:
    side = card.input_size
    wanted = f"one input '{INPUT}', uint8, (N, {side}, {side}, 3) with N dynamic"
    if len(graph.inputs) != 1 or graph.inputs[0].name != INPUT:
        names = ", ".join(printable(value.name) for value in graph.inputs) or "none"
        raise _broken(path, f"breaks the contract: {wanted} is needed, its inputs are: {names}")
    value = graph.inputs[0]
    if value.element_type != _UINT8 or not _fits(value.shape, (None, side, side, 3)):
        raise _broken(path, f"breaks the contract: {wanted} is needed, it has {_shown(value)}")


def _check_outputs(path: Path, graph: _wire.Graph, card: BackboneCard) -> None:
    outputs = {value.name: value for value in graph.outputs}
    wanted = f"an output '{EMBEDDING}', float32, (N, {card.dimension}) with N dynamic"
    value = outputs.pop(EMBEDDING, None)
    if value is None:
        names = ", ".join(printable(value.name) for value in graph.outputs) or "none"
        raise _broken(path, f"breaks the contract: {wanted} is needed, its outputs are: {names}")
    if value.element_type != _FLOAT32 or not _fits(value.shape, (None, card.dimension)):
        raise _broken(path, f"breaks the contract: {wanted} is needed, it has {_shown(value)}")
    value = outputs.get(FEATURE_MAP)
    if value is not None and (value.element_type != _FLOAT32 or len(value.shape) != 4):
        raise _broken(
            path,
            f"breaks the contract: an output '{FEATURE_MAP}' must be float32, (N, C, h, w), "
            f"it has {_shown(value)}",
        )


def _fits(shape: tuple[int | str | None, ...], wanted: tuple[int | None, ...]) -> bool:
    """Tell whether a shape is the wanted one; None asks for a dynamic size."""
    return len(shape) == len(wanted) and all(
        not isinstance(size, int) if want is None else size == want
        for size, want in zip(shape, wanted, strict=True)
    )


def _shown(value: _wire.Value) -> str:
    kinds = {_UINT8: "uint8", _FLOAT32: "float32", 10: "float16", 11: "float64", 7: "int64"}
    kind = kinds.get(value.element_type, f"ONNX type {value.element_type}")
    sizes = ", ".join("?" if size is None else printable(str(size)) for size in value.shape)
    return f"'{printable(value.name)}', {kind}, ({sizes})"


def _broken(path: Path, what: str) -> BackboneError:
    return BackboneError(f"the backbone file {printable(str(path))} {what}")
