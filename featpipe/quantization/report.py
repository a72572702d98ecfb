"""What a quantisation has given, in figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from featpipe.backbones.card import BackboneCard
from featpipe.quantization.compare import Comparison


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to quantise that was tried.

    Attributes
    ----------
    method : str
        How ranges were chosen; "fp16" where there are none.
    float_layers : int
        Layers that stay in float.
    size : int
        Bytes.
    cosine_mean, cosine_min : float
        To the vectors of the float model, on images not used for calibration.
    """

    method: str
    float_layers: int
    size: int
    cosine_mean: float
    cosine_min: float


@dataclass(frozen=True, slots=True)
class QuantizeReport:
    """What one run of `quantize` has done.

    Attributes
    ----------
    card : BackboneCard
        Of the new backbone, as it stands in its file.
    path : Path
        The new file.
    source : str
        Name of the backbone that it was made of.
    precision : str
        "int8" or "fp16".
    chosen : Variant
        What was written; `tried` has all that was tried.
    layers : int
        Layers with weights in all; ``float_layers`` are the names of those left in float.
    images, held : int
        Images that were calibrated and measured with.
    failures : tuple of (str, str)
        Path and reason of each image that could not be used.
    size_before, size_after : int
        Bytes.
    speed_before, speed_after : float
        Images a second on one core of this machine, measured in turns.
    comparisons : tuple of Comparison
        Heads on labelled images, before and after.
    notes : tuple of str
    """

    card: BackboneCard
    path: Path
    source: str
    precision: str
    chosen: Variant
    tried: tuple[Variant, ...]
    layers: int
    float_layers: tuple[str, ...]
    images: int
    held: int
    failures: tuple[tuple[str, str], ...]
    size_before: int
    size_after: int
    speed_before: float
    speed_after: float
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def cosine_mean(self) -> float:
        """Mean cosine to the vectors of the float model."""
        return self.chosen.cosine_mean

    @property
    def cosine_min(self) -> float:
        """Smallest cosine to the vectors of the float model."""
        return self.chosen.cosine_min

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``featpipe quantize --json`` prints them."""
        return {
            "name": self.card.name,
            "path": str(self.path),
            "fingerprint": self.card.fingerprint,
            "source": self.source,
            "precision": self.precision,
            "method": self.chosen.method,
            "layers": self.layers,
            "float_layers": list(self.float_layers),
            "calibration_images": self.images,
            "measured_images": self.held,
            "failed": [{"path": path, "reason": reason} for path, reason in self.failures],
            "cosine_mean": self.cosine_mean,
            "cosine_min": self.cosine_min,
            "bytes_before": self.size_before,
            "bytes_after": self.size_after,
            "images_per_second_before": round(self.speed_before, 1),
            "images_per_second_after": round(self.speed_after, 1),
            "tried": [asdict(variant) for variant in self.tried],
            "comparisons": [comparison.to_json() for comparison in self.comparisons],
            "notes": list(self.notes),
        }
