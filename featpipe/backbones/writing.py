"""Write a backbone file: cleaned, stamped with its card, gated; whole, or not there at all.

Whatever makes a backbone (export from torch, import of a foreign file, quantisation) ends
here, so that no file comes into being that was not compared with its source.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from featpipe._files import atomic_file, first_line
from featpipe._machine import usable_cores
from featpipe.backbones._nodes import attribute
from featpipe.backbones.card import CARD_KEY, BackboneCard
from featpipe.backbones.contract import INPUT, MAX_FILE_BYTES, check_backbone, with_fingerprint
from featpipe.backbones.gate import EXPORT_COSINE, compare, photographs, realistic_images
from featpipe.backbones.onnx_session import CPU, take_exact_integers
from featpipe.errors import BackboneError
from featpipe.types import Pixels

GATE_BATCHES = (1, 8, 2, 33)
_MANY = 8
"""Images that no working network finds all alike."""
_NEXT_TO_ZERO = 2.0**-24
"""The smallest number that 16-bit floats have: a version of the file in these keeps it."""
_ALIKE = 1e-6
"""Difference of two vectors, relative to their largest number, that is rounding."""

Outputs: TypeAlias = Callable[[Pixels], Sequence[NDArray[np.float32]]]
"""Pixels to embedding, or to embedding and feature map: how the source computes them."""


def write_backbone(
    model: onnx.ModelProto,
    card: BackboneCard,
    path: Path,
    source: Outputs,
    *,
    verb: str = "export",
    cosine: float = EXPORT_COSINE,
    batches: Sequence[int] = GATE_BATCHES,
) -> tuple[BackboneCard, float]:
    """Write a backbone file that keeps the contract, or nothing at all.

    Parameters
    ----------
    model : onnx.ModelProto
        The graph; changed in place: what tells of the machine is taken out. A caller that keeps
        no name for it leaves its memory to the session that compares.
    card : BackboneCard
        Everything but ``fingerprint``.
    path : Path
        The file to write; an existing one is replaced.
    source : callable
        Pixels, uint8 (N, H, W, 3), to what the outputs of ``model`` should be, in order.
    verb : str
        What is being done, for the message: "export", "import" …
    cosine : float
        What each image of each output must reach.
    batches : sequence of int
        Batch sizes that are compared.

    Returns
    -------
    BackboneCard
        The card as it stands in the file.
    float
        The smallest cosine to ``source``, over images and outputs.

    Raises
    ------
    BackboneError
        When ONNX Runtime's CPU provider does not reproduce ``source`` on real photographs
        and real-looking images; the message says by how much.
    WriteError
        When the file cannot be written.
    """
    data, card = finish(model, card)
    del model
    check_backbone(path, data)
    reached = gate(data, card, source, verb=verb, cosine=cosine, batches=batches)
    with atomic_file(path) as file:
        file.write(data)
    return card, reached


def finish(model: onnx.ModelProto, card: BackboneCard) -> tuple[bytes, BackboneCard]:
    """Clean ``model``, put card and fingerprint into it; return its bytes and the card.

    Raises
    ------
    BackboneError
        When the result is no valid ONNX model, or larger than one file can be.
    """
    size = model.ByteSize()
    # The count of bytes wraps around where there are too many.
    require_one_file(card.name, size if size >= 0 else 2**32 + size)
    _clean(model)
    _keep_padding(model.graph)
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as exc:
        # The checker's exceptions (ValidationError, InferenceError …) share no base class.
        raise BackboneError(
            f"the graph of {card.name} is not valid ONNX: {first_line(exc)}: nothing was written"
        ) from exc
    card = with_fingerprint(card, model.SerializeToString(deterministic=True))
    entry = model.metadata_props.add()
    entry.key = CARD_KEY
    entry.value = json.dumps(card.to_json(), ensure_ascii=False, sort_keys=False)
    return model.SerializeToString(deterministic=True), card


def _keep_padding(graph: onnx.GraphProto) -> None:
    """Keep ONNX Runtime from taking a padding by zeros into the MaxPool that follows it.

    What a MaxPool pads with is smaller than any number: where all of a window is negative, its
    largest value is no longer the zero (BiT's networks; cosine 0.99). A padding by anything but
    zero is left alone.
    """
    pooled = {node.input[0] for node in graph.node if node.op_type == "MaxPool"}
    zeros = {i.name: i for i in graph.initializer if _is_zero(i)}
    constants = {
        node.output[0]
        for node in graph.node
        if node.op_type == "Constant"
        and (attribute(node, "value_float") == 0 or _is_zero(attribute(node, "value")))
    }
    replaced = set()
    for node in graph.node:
        if node.op_type != "Pad" or node.output[0] not in pooled or not _pads_by_input(node):
            continue
        value = node.input[2] if len(node.input) > 2 else ""
        if value and value not in zeros.keys() | constants:
            continue
        name = f"{node.output[0]}_next_to_zero"
        graph.initializer.append(
            onnx.numpy_helper.from_array(np.array(_NEXT_TO_ZERO, dtype=np.float32), name)
        )
        replaced |= {value} - {""}
        inputs = [*node.input[:2], name, *node.input[3:]]
        del node.input[:]
        node.input.extend(inputs)
    used = {name for node in graph.node for name in node.input}
    for name in (replaced & zeros.keys()) - used:
        graph.initializer.remove(zeros[name])


def _pads_by_input(node: onnx.NodeProto) -> bool:
    """Tell whether a Pad adds one value: before opset 11, which is left alone, that is no input."""
    return len(node.input) > 1 and attribute(node, "mode", b"constant") == b"constant"


def _is_zero(tensor: onnx.TensorProto | None) -> bool:
    """Tell whether a tensor is there, of float32, and nothing but zero."""
    return (
        tensor is not None
        and tensor.data_type == onnx.TensorProto.FLOAT
        and not onnx.numpy_helper.to_array(tensor).any()
    )


def require_one_file(name: str, size: int) -> None:
    """Raise `BackboneError` where ``size`` bytes are more than one ONNX file can hold."""
    # Graph and card want some room, too.
    if size > MAX_FILE_BYTES - 2**20:
        raise BackboneError(
            f"{name} needs {size / 1e9:.1f} GB, more than the 2.1 GB that one ONNX file can hold: "
            "nothing was written"
        )


def _clean(model: onnx.ModelProto) -> None:
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


def gate(
    data: bytes,
    card: BackboneCard,
    source: Outputs,
    *,
    verb: str = "export",
    cosine: float = EXPORT_COSINE,
    batches: Sequence[int] = GATE_BATCHES,
) -> float:
    """Compare a finished file with its source; return the smallest cosine of all outputs.

    Raises
    ------
    BackboneError
        When any image of any output misses ``cosine``, a batch size is burnt in, or the source
        does not tell photographs apart.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    take_exact_integers(options)
    session = onnxruntime.InferenceSession(data, options, providers=[CPU])
    if not isinstance(session.get_inputs()[0].shape[0], str):
        raise BackboneError(
            f"the {verb} of {card.name} has burnt in a fixed batch size: nothing was written"
        )
    names = [output.name for output in session.get_outputs()]
    worst = 1.0
    for seed, batch in enumerate(batches):
        images = gate_images(batch, card.input_size, seed)
        found = session.run(names, {INPUT: images})
        expected = source(images)
        if batch >= _MANY:
            _check_differences(expected[0], card, verb)
        for name, wanted, output in zip(names, expected, found, strict=True):
            reached = compare(wanted, output) if wanted.shape == output.shape else -1.0
            if reached < cosine:
                raise BackboneError(
                    f"the {verb} of {card.name} does not reproduce its source: output '{name}' "
                    f"at batch {batch} has cosine {reached:.6f} where {cosine} is needed "
                    f"({cosine - reached:.2g} too low): nothing was written"
                )
            worst = min(worst, reached)
    return worst


def _check_differences(vectors: NDArray[np.float32], card: BackboneCard, verb: str) -> None:
    """Refuse a source that gives every image the same vector: it agrees with any such file."""
    largest = float(np.abs(vectors).max(initial=0.0))
    spread = float(np.ptp(vectors, axis=0).max(initial=0.0))
    if spread <= _ALIKE * largest:
        raise BackboneError(
            f"the {verb} of {card.name} does not tell images apart: its embeddings of "
            f"{len(vectors)} different photographs are all {'alike' if largest else 'zero'}; "
            "its weights are probably wrong, or another layer should be the embedding: "
            "nothing was written"
        )


def gate_images(n: int, size: int, seed: int) -> Pixels:
    """Return photographs and real-looking images in turn: uint8 (n, size, size, 3)."""
    images = photographs(n, size)
    images[1::2] = realistic_images(n, size, seed)[1::2]
    return images
