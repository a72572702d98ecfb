"""Weights from a file of one's own: read without running any code, fitted to a network.

A checkpoint comes wrapped in many ways (a trainer's dictionary, the prefix of a parallel or
compiled module, a larger model that holds the network as a part, a head for other classes).
What is the same network is found; what is not is listed by key and shape.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from featpipe._files import file_sha256, first_line, printable
from featpipe.errors import BackboneError

SAFE, PICKLED = ".safetensors", (".pth", ".pt", ".bin", ".ckpt", ".tar")
# Averaged weights first, as timm's loader has it: they are what was meant to be used.
_WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "weights",
)
_SHOWN = 8
_DEEPEST = 8


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors of one file.

    Attributes
    ----------
    path : Path
    sha256 : str
        Of the file's bytes.
    tensors : mapping of str to Tensor
        By the names that they have in the file, wrappers taken off.
    wrappers : tuple of str
        The dictionaries in which they stood, outermost first.
    """

    path: Path
    sha256: str
    tensors: Mapping[str, torch.Tensor]
    wrappers: tuple[str, ...] = ()

    def origin(self, prefix: str = "") -> str:
        """Return the file's name, and which part of it was taken, for the card."""
        part = ".".join((*self.wrappers, prefix.rstrip("."))).strip(".")
        return f"{self.path.name} ({part})" if part else self.path.name


def read_weights(path: Path) -> Weights:
    """Read a ``.safetensors`` file, or a ``.pth`` or ``.pt`` file that holds nothing but tensors.

    Raises
    ------
    BackboneError
        When the file cannot be read, is of another kind, or would run code when loaded.
    """
    shown = printable(str(path))
    if path.suffix.lower() not in {SAFE, *PICKLED}:
        raise BackboneError(
            f"{shown} is not a checkpoint that featpipe reads: give a .safetensors, .pth or .pt "
            "file, or the name of published weights (featpipe models NAME lists them)"
        )
    if not path.is_file():
        raise BackboneError(f"there is no checkpoint {shown}: check the path")
    try:
        digest = file_sha256(path)
    except OSError as exc:
        raise BackboneError(f"cannot read the checkpoint {shown}: {exc.strerror or exc}") from exc
    content = _load_safe(path) if path.suffix.lower() == SAFE else _load_pickled(path)
    tensors, wrappers = _unwrap(content, shown)
    return Weights(path, digest, tensors, wrappers)


def _load_safe(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as exc:
        raise BackboneError(
            f"the checkpoint {printable(str(path))} is damaged, or no safetensors file "
            f"({printable(str(exc))}): fetch it again"
        ) from exc


def _load_pickled(path: Path) -> Any:
    shown = printable(str(path))
    try:
        with warnings.catch_warnings():
            # Of pickle protocols and old formats: what cannot be read is told below.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    # A cut, foreign or hostile file meets torch's readers with any exception.
    except Exception as exc:
        # torch refuses with the class of the module that it reads with, which is not ours to use.
        if type(exc).__name__ == "UnpicklingError":
            raise BackboneError(
                f"the checkpoint {shown} holds more than tensors, and loading that could run code, "
                "which featpipe does not: where you trust the file, load it with torch and save "
                "model.state_dict() alone"
            ) from exc
        raise BackboneError(
            f"the checkpoint {shown} cannot be read by torch ({first_line(exc)}): fetch or save "
            "it again, as a state_dict"
        ) from exc


def _unwrap(content: Any, shown: str) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Take off the dictionaries that trainers put around a state dict, and say which."""
    wrappers: list[str] = []
    while isinstance(content, Mapping) and len(wrappers) < _DEEPEST:
        name = next((w for w in _WRAPPERS if isinstance(content.get(w), Mapping)), None)
        if name is None:
            break
        wrappers.append(name)
        content = content[name]
    values = content.items() if isinstance(content, Mapping) else ()
    tensors = {str(k): v for k, v in values if isinstance(v, torch.Tensor)}
    if not tensors:
        raise BackboneError(
            f"the checkpoint {shown} holds no tensors by name: save model.state_dict()"
        )
    for key, tensor in tensors.items():
        if tensor.is_meta or tensor.is_sparse or tensor.is_quantized or tensor.is_complex():
            raise BackboneError(
                f"the checkpoint {shown} holds '{printable(key[:80])}' in a form that has no plain "
                "numbers: save model.state_dict() of the network in float32"
            )
    return tensors, tuple(wrappers)


def fit_weights(model: nn.Module, weights: Weights, heads: Iterable[str], name: str) -> str:
    """Load the weights into a network, in place; its classifier may differ or be missing.

    Parameters
    ----------
    model : torch.nn.Module
    weights : Weights
        Names may carry a common prefix (``module.``, ``model.``, ``backbone.`` …).
    heads : iterable of str
        Modules that the embedding does not need: what is below them is left out.
    name : str
        The network, as the message names it.

    Returns
    -------
    str
        The prefix that was taken off the names; '' where there was none.

    Raises
    ------
    BackboneError
        When a tensor is missing, left over or of another shape or type, up to eight of each
        listed by key and shape; or when the file holds the network twice.
    """
    target = model.state_dict()
    prefix = _best_prefix(weights, target)
    given = {k[len(prefix) :]: v for k, v in weights.tensors.items() if k.startswith(prefix)}
    wanted = {k: v for k, v in target.items() if not _is_below(k, heads)}
    found = {k: v for k, v in given.items() if not _is_below(k, heads)}
    # Older checkpoints lack this counter, which inference does not use.
    missing = [k for k in wanted if k not in found and not k.endswith("num_batches_tracked")]
    left_over = [k for k in found if k not in wanted]
    both = [k for k in found if k in wanted]
    other = [k for k in both if found[k].shape != wanted[k].shape]
    types = [k for k in both if found[k].is_floating_point() != wanted[k].is_floating_point()]
    if missing or left_over or other or types:
        raise BackboneError(
            f"the checkpoint {printable(str(weights.path))} does not fit {name}: "
            + "; ".join(
                part
                for part in (
                    _listed("missing", ((k, _shape(wanted[k])) for k in missing)),
                    _listed("left over", ((k, _shape(found[k])) for k in left_over)),
                    _listed(
                        "of another shape",
                        ((k, f"{_shape(found[k])}, not {_shape(wanted[k])}") for k in other),
                    ),
                    _listed(
                        "of another type",
                        ((k, f"{found[k].dtype}, not {wanted[k].dtype}") for k in types),
                    ),
                )
                if part
            )
            + ": choose the network that the weights were trained with"
        )
    model.load_state_dict({**target, **{k: v.to(target[k].dtype) for k, v in found.items()}})
    return prefix


def _best_prefix(weights: Weights, target: Mapping[str, torch.Tensor]) -> str:
    """Return the prefix below which most of the network's tensors are found; '' if none is."""
    votes: Counter[str] = Counter()
    for key, tensor in weights.tensors.items():
        parts = key.split(".")
        for depth in range(min(len(parts), 6)):
            prefix, rest = ".".join(parts[:depth]), ".".join(parts[depth:])
            if rest in target and target[rest].shape == tensor.shape:
                votes[f"{prefix}." if prefix else ""] += 1
    first = [prefix for prefix, count in votes.most_common() if count == max(votes.values())]
    if len(first) > 1:
        raise BackboneError(
            f"the checkpoint {printable(str(weights.path))} holds the network more than once, as "
            f"{' and '.join(repr(printable(prefix)) for prefix in first)}: save the one that is "
            "meant by itself"
        )
    return first[0] if first else ""


def _is_below(key: str, modules: Iterable[str]) -> bool:
    return any(key.startswith(f"{module}.") for module in modules)


def _shape(tensor: torch.Tensor) -> str:
    return f"({', '.join(str(n) for n in tensor.shape)})"


def _listed(what: str, items: Iterable[tuple[str, str]]) -> str:
    texts = [f"{printable(key[:80])} {shape}" for key, shape in items]
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return f"{len(texts)} {what}: {', '.join(texts[:_SHOWN])}{more}" if texts else ""
