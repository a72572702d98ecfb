"""`ImageEmbedder`: image paths in, vectors out, as a step of a scikit-learn pipeline."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from platformdirs import user_cache_path
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from featpipe._files import printable
from featpipe.backbones import BUILTIN, Backbone, load_backbone
from featpipe.embedding import embed, stream
from featpipe.errors import FingerprintError, SourceError, StoreError, WriteError
from featpipe.sources import PathSource
from featpipe.store import EmbeddingStore
from featpipe.types import ImageRef, Vectors

if TYPE_CHECKING:
    from sklearn.utils import Tags

_AUTO = "auto"
_SHOWN_FAILURES = 5
_HALVES = ("bf16", "fp16")
_LOCK_SECONDS = 24 * 3600.0
"""How long to wait for another process that fills the same cache: it works for us, too."""


class ImageEmbedder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Turn image paths into the vectors of a pretrained backbone.

    Nothing is learnt in `fit`; vectors are cached by path, size and time of change, so that
    a grid search embeds each image once, also in several processes.

    Parameters
    ----------
    model : str or path, default="efficientnet_lite0"
        Name or ``.onnx`` file of the backbone.
    device : str, default="auto"
        Where the backbone runs: "auto", "cpu", "cuda", "cuda:N", "tensorrt", "tensorrt:N",
        "openvino" or "coreml".
    precision : {"auto", "fp32", "bf16", "fp16"}, default="auto"
        Arithmetic of the backbone.
    batch_size, workers : int, optional
        As in `featpipe.embed`.
    cache_dir : path, "auto" or None, default="auto"
        Folder of the cache; "auto" is ``featpipe/vectors`` in the user's cache folder. None
        keeps vectors in memory, for this process only.

    Attributes
    ----------
    backbone_name_, fingerprint_ : str
        Which backbone it is.
    dimension_ : int
        Length D of a vector.
    n_features_in_ : int
        Always 1: the path.

    Notes
    -----
    A fitted embedder may be pickled; where it is loaded, the backbone must be found under
    the same ``model``, and its fingerprint be the same.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> pipeline = make_pipeline(ImageEmbedder(), LogisticRegression())
    >>> pipeline.fit(["a.jpg", "b.jpg"], ["ant", "bee"])       # doctest: +SKIP
    >>> pipeline.predict(["c.jpg"])                            # doctest: +SKIP
    array(['ant'], dtype='<U3')
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = BUILTIN,
        *,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int | None = None,
        workers: int | None = None,
        cache_dir: str | os.PathLike[str] | None = _AUTO,
    ) -> None:
        self.model = model
        self.device = device
        self.precision = precision
        self.batch_size = batch_size
        self.workers = workers
        self.cache_dir = cache_dir

    def fit(self, X: ArrayLike, y: object = None) -> ImageEmbedder:  # noqa: N803, ARG002
        """Check the paths' form and find the backbone; no image is opened.

        Parameters
        ----------
        X : array-like of str or path, (n,) or (n, 1)
            Image files.
        y : object
            Ignored.

        Raises
        ------
        ValueError, TypeError
            When ``X`` does not hold paths.
        BackboneError
            When there is no such backbone.
        """
        _check_paths(X)
        backbone = load_backbone(self.model)
        self.backbone_name_ = backbone.name
        self.fingerprint_ = backbone.fingerprint
        self.dimension_ = backbone.dimension
        self.n_features_in_ = 1
        return self

    def transform(self, X: ArrayLike) -> Vectors:  # noqa: N803
        """Return the vectors of the images.

        Parameters
        ----------
        X : array-like of str or path, (n,) or (n, 1)
            Image files; relative paths start at the working folder.

        Returns
        -------
        ndarray of float32, (n, D)

        Raises
        ------
        SourceError
            When an image cannot be read or decoded; the message names the files.
        FingerprintError
            When the backbone is another one than at `fit`.
        WriteError
            When the cache cannot be written.
        """
        check_is_fitted(self)
        # Absolute, as the cache knows no working folder; not resolved, as a link may move.
        paths = [os.path.abspath(path) for path in _check_paths(X)]
        job = _Job(self._backbone(), self.device, self.precision, self.batch_size, self.workers)
        if self.cache_dir is None:
            return _from_memory(job, paths)
        return _from_store(job, self._cache_folder(), paths)

    @property
    def _n_features_out(self) -> int:
        """How many names `get_feature_names_out` gives."""
        return self.dimension_

    def _backbone(self) -> Backbone:
        backbone = load_backbone(self.model)
        if backbone.fingerprint != self.fingerprint_:
            raise FingerprintError(
                f"this ImageEmbedder was fitted with {self.backbone_name_} "
                f"({self.fingerprint_[:12]}), but {printable(str(self.model))} is now "
                f"{backbone.name} ({backbone.fingerprint[:12]}): fit it again"
            )
        return backbone

    def _cache_folder(self) -> Path:
        """Return the store of this backbone; each 16-bit arithmetic has one of its own."""
        root = (
            user_cache_path("featpipe", appauthor=False) / "vectors"
            if self.cache_dir == _AUTO
            else Path(self.cache_dir or "")
        )
        half = f"-{self.precision}" if self.precision in _HALVES else ""
        return root / f"{self.backbone_name_}-{self.fingerprint_[:16]}{half}"

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = True
        tags.input_tags.one_d_array = True
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags


@dataclass(frozen=True, slots=True)
class _Job:
    """How missing vectors are computed."""

    backbone: Backbone
    device: str
    precision: str
    batch_size: int | None
    workers: int | None


def _check_paths(X: Any) -> list[str]:  # noqa: N803 - scikit-learn's name
    """Return the paths in ``X``, (n,) or (n, 1), as text."""
    if isinstance(X, str | bytes | os.PathLike):
        raise TypeError("ImageEmbedder takes an array of paths, not one path: put it into a list")
    array = np.asarray(X, dtype=object)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"ImageEmbedder takes paths as an array (n,) or (n, 1), not {array.shape}")
    if len(array) == 0:
        raise ValueError("ImageEmbedder was given 0 paths: at least 1 is required")
    for path in array:
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"ImageEmbedder takes paths as str or Path, not {type(path).__name__}")
    return [os.fspath(path) for path in array]


def _from_store(job: _Job, folder: Path, paths: Sequence[str]) -> Vectors:
    """Look the vectors up in a store, and have those that it lacks computed first."""
    refs = list(_source(paths))
    try:
        found = _look_up(folder, refs)
    except StoreError:
        found = None  # a damaged cache is mended by whoever fills it
    if found is None:
        found = _gather(_filled(job, folder, refs), refs)
    positions = {ref.path: i for i, ref in enumerate(refs)}
    return found[[positions[path] for path in _as_listed(paths)]]


def _look_up(folder: Path, refs: Sequence[ImageRef]) -> Vectors | None:
    """Return the vectors of ``refs`` in their order, or None unless all are held."""
    if not (folder / "index.parquet").exists():
        return None
    store = EmbeddingStore.open(folder)
    index = store.index
    stats = zip(index.integers("size"), index.integers("mtime_ns"), strict=True)
    rows = zip(index.paths(), index.values("status"), stats, strict=True)
    held = {path: stat for path, status, stat in rows if status == "ok"}
    if any(held.get(ref.path) != (ref.size, ref.mtime_ns) for ref in refs):
        return None
    return _gather(store, refs)


def _gather(store: EmbeddingStore, refs: Sequence[ImageRef]) -> Vectors:
    """Return the vectors of ``refs``, (n, D); reads no others, however large the store is."""
    wanted = {ref.path for ref in refs}
    rows = store.index.where([path in wanted for path in store.index.paths()])
    part = EmbeddingStore(store.path, store.manifest, rows)
    at = {path: row for row, path in enumerate(part.paths)}
    return np.asarray(part.X[[at[ref.path] for ref in refs]], dtype=np.float32)


def _filled(job: _Job, folder: Path, refs: Sequence[ImageRef]) -> EmbeddingStore:
    """Compute what the store lacks; refuse to go on without every vector."""
    try:
        store = embed(
            _source([ref.path for ref in refs]),
            job.backbone,
            output=folder,
            device=job.device,
            precision=job.precision,
            batch_size=job.batch_size,
            workers=job.workers,
            dtype="float32",
            prune=False,
            lock_timeout=_LOCK_SECONDS,
        )
    except WriteError as exc:
        raise WriteError(
            f"the cache of ImageEmbedder fails ({exc}): give another cache_dir, or "
            "cache_dir=None to keep vectors in memory"
        ) from exc
    wanted = {ref.path for ref in refs}
    _refuse_failures([(path, why) for path, _, why in store.failures if path in wanted])
    return store


class _Memory:
    """Vectors of this process: by backbone and precision, then by path."""

    held: ClassVar[dict[tuple[str, str], dict[str, tuple[ImageRef, Vectors]]]] = {}


def _from_memory(job: _Job, paths: Sequence[str]) -> Vectors:
    half = job.precision if job.precision in _HALVES else ""
    known = _Memory.held.setdefault((job.backbone.fingerprint, half), {})
    source = _source(paths)
    missing = [ref for ref in source if known.get(ref.path, (None,))[0] != ref]
    if missing:
        session = job.backbone.open_session(job.device, job.precision)
        failures: list[tuple[str, str]] = []
        for batch in stream(
            source,
            missing,
            job.backbone,
            session,
            batch_size=job.batch_size,
            workers=job.workers,
            total=len(missing),
        ):
            for ref, failure, row in zip(batch.refs, batch.failures, batch.rows, strict=True):
                if failure is not None:
                    failures.append((ref.path, failure.reason))
                elif row is not None:
                    known[ref.path] = (ref, batch.vectors[row])
        _refuse_failures(failures)
    return np.stack([known[path][1] for path in _as_listed(paths)])


def _source(paths: Sequence[str]) -> PathSource:
    return PathSource(paths, name="cache", location="ImageEmbedder", root=Path(os.sep))


def _as_listed(paths: Sequence[str]) -> list[str]:
    """Return paths as a source lists them."""
    return [path.replace(os.sep, "/") for path in paths]


def _refuse_failures(failures: Sequence[tuple[str, str]]) -> None:
    if not failures:
        return
    shown = "; ".join(f"{printable(path)}: {why}" for path, why in failures[:_SHOWN_FAILURES])
    more = len(failures) - _SHOWN_FAILURES
    rest = f"; and {more} more" if more > 0 else ""
    count = "1 image has" if len(failures) == 1 else f"{len(failures)} images have"
    raise SourceError(
        f"{count} no vector: {shown}{rest}: correct or leave out the files, as a pipeline "
        "needs every row"
    )
