"""`bundle`: from a head to one ONNX file that is its equal, or to nothing."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from featpipe import __version__
from featpipe._files import atomic_file, make_folder, printable, slug
from featpipe.backbones import Backbone
from featpipe.bundling.assemble import Parts, assemble, stamp
from featpipe.bundling.graph import valid_text
from featpipe.bundling.pictures import Pictures, draw_pictures
from featpipe.bundling.verify import MOST_APART, Agreement, embedded, squares, verify
from featpipe.errors import BundleError, SourceError
from featpipe.heads import Head, load_head
from featpipe.images import short_weights
from featpipe.quantization import QuantizeOptions, quantize
from featpipe.scoring.predict import backbone_of
from featpipe.sources import SourceLike
from featpipe.types import Progress, ProgressCallback

PRECISIONS = ("fp32", "fp16", "int8")
FORMAT = 1
FEWEST_EQUAL = 0.9
"""Share of labels that a smaller backbone must leave as they were."""


@dataclass(frozen=True, slots=True)
class BundleOptions:
    """What `bundle` may be asked for beside head and output.

    Attributes
    ----------
    precision : {"fp32", "fp16", "int8"}
        Of the backbone's weights.
    resize : bool
        False leaves out resize and crop: the input is the square that the backbone reads.
    """

    precision: str = "fp32"
    resize: bool = True

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be fp32, fp16 or int8, not {self.precision!r}")


@dataclass(frozen=True, slots=True)
class BundleReport:
    """What was written, and how it agrees with the head.

    Attributes
    ----------
    path : Path
    size : int
        Bytes.
    head, backbone : str
        Kind of head, name of the backbone.
    classes : tuple of str
    precision : str
    resize : bool
    head_bits : int
        32, or 64 where that was needed.
    verified_on : str
        Which pictures.
    agreement : Agreement
        With scikit-learn, on the vectors of the backbone inside.
    smaller : Agreement or None
        Of a backbone in fp16 or int8: with the head on the backbone that it was fitted on.
    """

    path: Path
    size: int
    head: str
    backbone: str
    classes: tuple[str, ...]
    precision: str
    resize: bool
    head_bits: int
    verified_on: str
    agreement: Agreement
    smaller: Agreement | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it in plain values."""
        return {**asdict(self), "path": str(self.path), "classes": list(self.classes)}

    def __str__(self) -> str:
        size = f"{self.size / 1e6:.1f} MB"
        what = f"{self.head} on {printable(self.backbone)}, {self.precision}"
        lines = [
            f"{what}: {len(self.classes)} classes, {size}",
            f"beside scikit-learn, {self.verified_on}: {self.agreement}",
        ]
        if self.smaller is not None:
            lines.append(f"beside the backbone in fp32: {self.smaller}")
        return "\n".join(lines)


def bundle(
    head: Head | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    images: SourceLike | None = None,
    model: str | os.PathLike[str] | Backbone | None = None,
    models_dir: str | os.PathLike[str] | None = None,
    options: BundleOptions | None = None,
    progress: ProgressCallback | None = None,
) -> BundleReport:
    """Write backbone and head as one ONNX file: pictures in, labels and probabilities out.

    Input ``images``: uint8 (N, H, W, 3), RGB, upright, of any size. Outputs: ``label`` (string),
    ``label_index`` (int64), ``probabilities`` (float32, N × classes), ``embedding`` (float32,
    N × D), and of a head that knows how strange an image is ``ood_score`` and ``ood_p`` (float32,
    N). Resize, crop, scaling and calibration are inside; operators are those of ``ai.onnx``.

    The file is compared with scikit-learn's head on real pictures before it is written: all
    labels must be equal, and no probability further apart than 1e-4.

    Parameters
    ----------
    head : Head or path
    output : path
        Ends in ``.onnx``; a file that is there is replaced.
    images : source, optional
        Pictures to verify on, and to calibrate int8 with. By default the images that the head
        was fitted on, where they still are, else photographs that come with featpipe.
    model, models_dir : optional
        The backbone, as in `featpipe.score`.
    options : BundleOptions, optional
    progress : callable, optional
        Called with a `Progress` now and then.

    Raises
    ------
    BundleError
        When the file would not agree with the head, or cannot be made. Nothing is written.
    FingerprintError, BackboneError, HeadError, SourceError, WriteError

    Examples
    --------
    >>> report = bundle("heads/photos-logreg", "classifier.onnx")   # doctest: +SKIP
    >>> print(report.agreement)                                     # doctest: +SKIP
    48 of 48 labels equal, probabilities within 3e-07
    """
    path = Path(output)
    check_output(path)
    asked = options or BundleOptions()
    loaded = head if isinstance(head, Head) else load_head(head)
    backbone = backbone_of(loaded, model, models_dir)
    pictures = draw_pictures(loaded, images)
    return _Bundling(loaded, backbone, pictures, asked, progress).into(path)


def check_output(path: Path) -> None:
    """Raise `BundleError` where a name is none of an ONNX file."""
    if path.is_dir():
        raise BundleError(
            f"cannot write a bundle to {printable(str(path))}: it is a folder; give the name of a "
            "file that ends in .onnx"
        )
    if path.suffix.lower() != ".onnx":
        raise BundleError(
            f"cannot write a bundle to {printable(str(path))}: give a name that ends in .onnx"
        )


class _Bundling:
    """One call of `bundle`."""

    def __init__(
        self,
        head: Head,
        backbone: Backbone,
        pictures: Pictures,
        options: BundleOptions,
        progress: ProgressCallback | None,
    ) -> None:
        self._head, self._backbone, self._pictures = head, backbone, pictures
        self._options, self._progress = options, progress
        self._original = backbone.take_file().data

    def into(self, path: Path) -> BundleReport:
        """Make it, compare it, write it."""
        parts = Parts(
            backbone=self._weights(),
            card=self._backbone.card,
            head=self._head,
            with_resize=self._options.resize,
            short_weights=short_weights(),
            dtype=np.float32,
        )
        smaller = None if self._options.precision == "fp32" else self._compare(parts)
        parts, model, agreement = self._verified(parts)
        bits = np.dtype(parts.dtype).itemsize * 8
        report = BundleReport(
            path=path,
            size=0,
            head=self._head.name,
            backbone=self._backbone.name,
            classes=self._head.classes,
            precision=self._options.precision,
            resize=self._options.resize,
            head_bits=bits,
            verified_on=f"{len(self._pictures.pictures)} {self._pictures.origin}",
            agreement=agreement,
            smaller=smaller,
        )
        stamp(model, _about(report, self._head), self._head.classes)
        data = model.SerializeToString(deterministic=True)
        make_folder(path.parent)
        with atomic_file(path) as file:
            file.write(data)
        return replace(report, size=len(data))

    def _verified(self, parts: Parts) -> tuple[Parts, onnx.ModelProto, Agreement]:
        """Return what agrees: in 32 bits, or else in 64."""
        for dtype in (np.float32, np.float64):
            tried = replace(parts, dtype=dtype)
            model = assemble(tried)
            self._tell("verifying")
            agreement = verify(
                model.SerializeToString(deterministic=True), tried, self._pictures.pictures
            )
            if agreement.holds:
                return tried, model, agreement
        raise BundleError(
            f"the bundle of this {self._head.name} head does not agree with scikit-learn, "
            f"{self._pictures.origin}: {agreement} where all labels and {MOST_APART:g} are "
            "needed: nothing was written; another kind of head may do"
        )

    def _weights(self) -> bytes:
        """Return the backbone, in the precision that was asked for."""
        if self._options.precision == "fp32":
            return self._original
        # Nothing is calibrated where weights are but stored in half the size.
        source = self._pictures.source if self._options.precision == "int8" else None
        if self._options.precision == "int8" and source is None:
            raise SourceError(
                "int8 is calibrated on images, and those that the head was fitted on are not "
                "where they were: give a folder of some with --images"
            )
        with tempfile.TemporaryDirectory(prefix="featpipe-") as folder:
            made = quantize(
                self._backbone.path,
                source,
                options=QuantizeOptions(
                    self._options.precision,
                    name=f"{slug(self._backbone.name, 'backbone')}_in_bundle",
                ),
                models_dir=folder,
                progress=self._progress,
            )
            return made.path.read_bytes()

    def _compare(self, parts: Parts) -> Agreement:
        """Compare the head on a smaller backbone with the head on its own."""
        ready = squares(self._pictures.pictures, parts)
        expected, found = (
            self._head.predict_proba(embedded(data, ready))
            for data in (self._original, parts.backbone)
        )
        agreement = Agreement.of(expected, found)
        if agreement.labels_equal < FEWEST_EQUAL * agreement.images:
            raise BundleError(
                f"the head does not bear {self._options.precision}: {agreement}, beside fp32, "
                f"where {FEWEST_EQUAL:.0%} of labels are needed: nothing was written; take "
                "--precision fp16, or fit the head on vectors of the smaller backbone "
                "(featpipe quantize)"
            )
        return agreement

    def _tell(self, stage: str) -> None:
        if self._progress is not None:
            self._progress(Progress(0, None, stage=stage))


def _about(report: BundleReport, head: Head) -> dict[str, Any]:
    """Return what the file says of itself."""
    return {
        "format": FORMAT,
        "head": report.head,
        "classes": [valid_text(name) for name in report.classes],
        "parameters": dict(head.parameters),
        "calibration": head.calibrator.to_json(),
        "backbone": dict(head.backbone),
        "precision": report.precision,
        "resize": report.resize,
        "head_bits": report.head_bits,
        "class_counts": list(head.class_counts),
        "estimate": {key: head.metrics.get(key) for key in ("method", "accuracy", "n_samples")},
        "verified": {"on": report.verified_on, **asdict(report.agreement)},
        "smaller": None if report.smaller is None else asdict(report.smaller),
        "versions": {
            "featpipe": __version__,
            **{name: version(name) for name in ("onnx", "scikit-learn")},
        },
    }
