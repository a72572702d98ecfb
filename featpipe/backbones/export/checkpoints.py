"""Weights from a file of one's own: read without running any code, fitted to a network.

A checkpoint comes wrapped in many ways (a trainer's dictionary, the prefix of a parallel or
compiled module, a larger model that holds the network as a part, a head for other classes).
What is the same network is found; what is not is listed by key and shape.
"""

from __future__ import annotations

import hashlib
import pickle
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

from featpipe._files import printable
from featpipe.errors import BackboneError

SAFE, PICKLED = ".safetensors", (".pth", ".pt", ".bin", ".ckpt", ".tar")
# Averaged weights first, as timm's loader has it: they are what was meant to be used.
_WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model_state_dict",
    "model",
    "net",
    "network",
    "weights",
)
_SHOWN = 8


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
    """

    path: Path
    sha256: str
    tensors: Mapping[str, torch.Tensor]


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
    try:
        digest = file_sha256(path)
    except FileNotFoundError:
        raise BackboneError(f"there is no checkpoint {shown}: check the path") from None
    except OSError as exc:
        raise BackboneError(f"cannot read the checkpoint {shown}: {exc.strerror or exc}") from exc
    content = _load_safe(path) if path.suffix.lower() == SAFE else _load_pickled(path)
    return Weights(path, digest, _unwrap(content, shown))


def file_sha256(path: Path) -> str:
    """Return SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    except pickle.UnpicklingError as exc:
        raise BackboneError(
            f"the checkpoint {shown} holds more than tensors, and loading that could run code, "
            "which featpipe does not: where you trust the file, load it with torch and save "
            "model.state_dict() alone"
        ) from exc
    # A cut or foreign file meets torch's readers with any of these.
    except (RuntimeError, ValueError, EOFError, KeyError, AttributeError, TypeError) as exc:
        lines = str(exc).strip().splitlines()
        raise BackboneError(
            f"the checkpoint {shown} cannot be read by torch "
            f"({printable(lines[0][:200]) if lines else type(exc).__name__}): fetch or save it "
            "again, as a state_dict"
        ) from exc


def _unwrap(content: Any, shown: str) -> dict[str, torch.Tensor]:
    """Take off the dictionaries that trainers put around a state dict."""
    while isinstance(content, Mapping):
        inner = next((content[w] for w in _WRAPPERS if isinstance(content.get(w), Mapping)), None)
        if inner is None:
            break
        content = inner
    tensors = (
        {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise BackboneError(
            f"the checkpoint {shown} holds no tensors by name: save model.state_dict()"
        )
    return tensors


def fit_weights(model: nn.Module, weights: Weights, heads: Iterable[str], name: str) -> None:
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

    Raises
    ------
    BackboneError
        When a tensor is missing, left over or of another shape; up to eight of each are
        listed by key and shape.
    """
    target = model.state_dict()
    prefix = _best_prefix(weights.tensors, target)
    given = {k[len(prefix) :]: v for k, v in weights.tensors.items() if k.startswith(prefix)}
    wanted = {k: v for k, v in target.items() if not _is_below(k, heads)}
    found = {k: v for k, v in given.items() if not _is_below(k, heads)}
    # Older checkpoints lack this counter, which inference does not use.
    missing = [k for k in wanted if k not in found and not k.endswith("num_batches_tracked")]
    left_over = [k for k in found if k not in wanted]
    other = [k for k in found if k in wanted and found[k].shape != wanted[k].shape]
    if missing or left_over or other:
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
                )
                if part
            )
            + ": choose the network that the weights were trained with"
        )
    model.load_state_dict({**target, **{k: v.to(target[k].dtype) for k, v in found.items()}})


def _best_prefix(given: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> str:
    """Return the prefix below which most of the network's tensors are found; '' if in doubt."""
    votes: Counter[str] = Counter()
    for key, tensor in given.items():
        parts = key.split(".")
        for depth in range(min(len(parts), 6)):
            prefix, rest = ".".join(parts[:depth]), ".".join(parts[depth:])
            if rest in target and target[rest].shape == tensor.shape:
                votes[f"{prefix}." if prefix else ""] += 1
    return max(votes, key=lambda p: (votes[p], -len(p)), default="")


def _is_below(key: str, modules: Iterable[str]) -> bool:
    return any(key.startswith(f"{module}.") for module in modules)


def _shape(tensor: torch.Tensor) -> str:
    return f"({', '.join(str(n) for n in tensor.shape)})"


def _listed(what: str, items: Iterable[tuple[str, str]]) -> str:
    texts = [f"{printable(key[:80])} {shape}" for key, shape in items]
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return f"{len(texts)} {what}: {', '.join(texts[:_SHOWN])}{more}" if texts else ""
