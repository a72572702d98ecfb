"""From a foreign ONNX file to a backbone: read, find, cut, compare, write."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from featpipe._files import file_sha256, printable
from featpipe.backbones.card import QUANTISER, BackboneCard, check_name
from featpipe.backbones.importing.batch import check_batch, free_batch, tensors_that_tell
from featpipe.backbones.importing.finding import find, tensors_to_look_at
from featpipe.backbones.importing.graph import View
from featpipe.backbones.importing.options import (
    Arrays,
    Found,
    ImportOptions,
    ImportReport,
    Reads,
)
from featpipe.backbones.importing.original import (
    Original,
    as_map,
    as_vectors,
    with_working_batch,
)
from featpipe.backbones.importing.reading import opset_of, read_foreign
from featpipe.backbones.importing.signature import read_signature
from featpipe.backbones.importing.surgery import count_weights, to_backbone
from featpipe.backbones.registry import SUFFIX, check_name_is_free, models_folder
from featpipe.backbones.writing import write_backbone
from featpipe.errors import BackboneError
from featpipe.types import Pixels, ResizeRule

_UNKNOWN = "unknown"
_CROP = 0.875
"""The usual part of the shorter side that the central crop takes (224 of 256)."""


def import_backbone(
    path: str | os.PathLike[str], options: ImportOptions | None = None
) -> ImportReport:
    """Make a backbone of any ONNX classifier, or of a network that ends in a vector or a map.

    Parameters
    ----------
    path : path
        The foreign file.
    options : ImportOptions, optional
        What the file does not say by itself.

    Returns
    -------
    ImportReport
        The card, the place of the new file, what was found and what was assumed.

    Raises
    ------
    BackboneError
        When the file cannot be used, something must be said with an option, or the backbone
        does not give what the file gives (cosine below 0.99999 for any photograph, either
        output, at batch 1, 2, 8 or 33). Nothing is written then.
    WriteError
        When the file cannot be written.
    """
    path, options = Path(path), options or ImportOptions()
    name, target = _target(path, options)
    model = read_foreign(path)
    reads = read_signature(path, model.graph, options)
    card = _card(path, name, reads, options)
    view = View.of(model.graph, reads.name)
    names = [*tensors_to_look_at(path, view, options.output), *tensors_that_tell(view)]
    constants = frozenset(names) - view.from_images
    reads, seen = with_working_batch(path, model, reads, names, constants)
    found = find(path, view, seen, options.output)
    backbone = _cut(path, model, reads, found, seen)
    card = replace(
        card,
        dimension=found.dimension,
        parameters=count_weights(backbone.graph) or None,
        layer=None if found.why.startswith("what the last") else found.embedding.name,
        note=". ".join([_described(found), *_assumed(reads, options)]),
        exporter=_versions(model),
    )
    parts = [part for part in (found.embedding, found.feature_map) if part is not None]
    original = Original(path, model, reads, [part.name for part in parts])
    card, cosine = write_backbone(
        backbone, card, target, lambda images: _outputs(original, found, images), verb="import"
    )
    return ImportReport(
        card=card,
        path=target,
        embedding=_described(found),
        feature_map=_map_described(found, seen),
        cosine=cosine,
        notes=_notes(reads, options),
    )


def _target(path: Path, options: ImportOptions) -> tuple[str, Path]:
    """Return the name of the backbone and the file that is to be written."""
    stem = re.sub(r"[^A-Za-z0-9._+-]+", "_", path.stem).strip("._+-")[:100]
    name = stem if options.name is None else options.name
    check_name(name)
    check_name_is_free(name)
    target = models_folder(options.models_dir) / f"{name}{SUFFIX}"
    if target.exists() and path.exists() and target.samefile(path):
        raise BackboneError(
            f"{printable(str(path))} lies where the backbone '{printable(name)}' would be "
            "written: give another name with --name, or another folder with --models-dir"
        )
    if target.exists() and not options.replace:
        raise BackboneError(
            f"{printable(str(target))} exists already: give another name with --name, "
            "or overwrite it with --replace"
        )
    return name, target


def _card(path: Path, name: str, reads: Reads, options: ImportOptions) -> BackboneCard:
    """Return what is known before the graph was looked at; it checks the sizes."""
    resize = round(reads.size / _CROP) if options.resize is None else options.resize
    return BackboneCard(
        name=name,
        weights=options.weights or f"{printable(path.name)}, SHA-256 {file_sha256(path)}",
        license=options.license or _UNKNOWN,
        dimension=1,
        resize=ResizeRule(resize, reads.size, options.interpolation),
        mean=reads.mean,
        std=reads.std,
    )


def _cut(
    path: Path, model: onnx.ModelProto, reads: Reads, found: Found, seen: Arrays
) -> onnx.ModelProto:
    """Return the backbone's graph, and make sure that it takes any number of images."""
    free = onnx.ModelProto()
    free.CopyFrom(model)
    free_batch(View.of(free.graph, reads.name), seen, reads.batch, opset_of(model))
    backbone = to_backbone(free, reads, found, _map_shape(found, seen))
    check_batch(path, backbone, reads.size)
    return backbone


def _outputs(original: Original, found: Found, images: Pixels) -> Sequence[NDArray[np.float32]]:
    arrays = original.run(images)
    vectors = as_vectors(found.embedding, arrays[found.embedding.name])
    if found.feature_map is None:
        return [vectors]
    return [vectors, as_map(found.feature_map, arrays[found.feature_map.name])]


def _map_shape(found: Found, seen: Arrays) -> tuple[int, ...] | None:
    part = found.feature_map
    return None if part is None else as_map(part, seen[part.name]).shape[1:]


def _described(found: Found) -> str:
    name = printable(found.embedding.name)
    mean = "" if found.embedding.layout == "vector" else "the mean over space of "
    return f"embedding: {mean}'{name}', {found.dimension} numbers, {found.why}"


def _map_described(found: Found, seen: Arrays) -> str | None:
    shape = _map_shape(found, seen)
    if found.feature_map is None or shape is None:
        return None
    return f"'{printable(found.feature_map.name)}', {' × '.join(map(str, shape))}"


def _assumed(reads: Reads, options: ImportOptions) -> list[str]:
    """Return what nobody has said: for the card."""
    found = []
    if reads.is_raw:
        found.append("the file normalises by itself")
    elif options.mean is None and options.std is None:
        found.append("assumed: ImageNet's mean and std")
    elif options.mean is None or options.std is None:
        found.append(f"assumed: ImageNet's {'mean' if options.mean is None else 'std'}")
    if reads.bgr:
        found.append("the file reads B, G, R")
    if options.resize is None:
        found.append(f"assumed: resize to size / {_CROP}, {options.interpolation}")
    return found


def _notes(reads: Reads, options: ImportOptions) -> tuple[str, ...]:
    """Return what was assumed, for the person at the keyboard."""
    notes = []
    missing = [name for name in ("mean", "std") if getattr(options, name) is None]
    if missing and not reads.is_raw:
        what = " and ".join(missing)
        values = "; ".join(
            f"{name} {', '.join(f'{x:g}' for x in getattr(reads, name))}" for name in missing
        )
        notes.append(
            f"the file does not say how its images are normalised; ImageNet's {what} assumed "
            f"({values} on the scale 0 to 1): if it was trained otherwise, its vectors are wrong; "
            "give others with --mean and --std"
        )
    if options.resize is None:
        notes.append(
            f"images are resized to {round(reads.size / _CROP)} pixels ({options.interpolation}) "
            f"and {reads.size} of them are cut out: give others with --resize and --interpolation"
        )
    if options.license is None:
        notes.append("the licence of the weights is unknown: state it with --license")
    return tuple(notes)


def _versions(model: onnx.ModelProto) -> dict[str, str]:
    """Return who wrote the file, then and now."""
    versions: dict[str, Any] = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    if model.producer_name not in {"", QUANTISER}:
        versions[printable(model.producer_name)[:100]] = printable(model.producer_version)[:100]
    return versions
