"""`ImageEmbedder`: scikit-learn's habits, equal vectors, and one inference an image."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import as_nobody, build_tiny_backbone
from PIL import Image
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, validate_data

from featpipe import ImageEmbedder, embed
from featpipe._files import content_key
from featpipe.errors import BackboneError, FingerprintError, SourceError, WriteError
from featpipe.store import EmbeddingStore


@pytest.fixture
def paths(photos: Path) -> list[str]:
    return [str(path) for path in sorted(photos.rglob("*.jpg"))]


@pytest.fixture
def embedder(tiny_backbone: Path, tmp_path: Path) -> ImageEmbedder:
    return ImageEmbedder(tiny_backbone, cache_dir=tmp_path / "cache")


class OfNumbers(ImageEmbedder):
    """An `ImageEmbedder` that first draws each row of numbers as a picture.

    Scikit-learn's checks feed numbers; so all of them can be made. What this class adds is
    the drawing and scikit-learn's own look at the numbers; all else is the embedder's.
    """

    folder: Path

    def fit(self, X, y=None):
        X = validate_data(self, X, dtype=np.float64)
        super().fit(self._drawn(X), y)
        self.n_features_in_ = X.shape[1]
        return self

    def transform(self, X):
        check_is_fitted(self)
        return super().transform(self._drawn(validate_data(self, X, reset=False, dtype=float)))

    def _drawn(self, X) -> list[str]:
        return [self._draw(row) for row in X]

    def _draw(self, row) -> str:
        path = self.folder / f"{content_key(row.tobytes()).hex()}.png"
        pixels = np.resize((np.abs(row) * 37 % 256).astype(np.uint8), (32, 32, 3))
        Image.fromarray(pixels).save(path)
        return str(path)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = False
        tags.input_tags.string = False
        return tags


def test_estimator_checks(tiny_backbone: Path, tmp_path: Path, monkeypatch) -> None:
    """All of scikit-learn's checks of a transformer pass, its rows of numbers drawn as images."""
    monkeypatch.setattr(OfNumbers, "folder", tmp_path, raising=False)
    estimator = OfNumbers(tiny_backbone, cache_dir=None, workers=1)
    results = check_estimator(estimator, on_skip=None, on_fail=None)
    failed = {r["check_name"]: r["exception"] for r in results if r["status"] == "failed"}
    skipped = {r["check_name"] for r in results if r["status"] == "skipped"}
    assert failed == {}
    assert skipped <= {"check_array_api_input"}  # needs SCIPY_ARRAY_API in the environment
    assert len(results) > 40


def test_interface_checks_of_the_embedder_itself() -> None:
    """Of the checks, those that feed no numbers pass on `ImageEmbedder` as it is.

    The others end in "takes paths": numbers are not what it is for.
    """
    results = check_estimator(ImageEmbedder(), on_skip=None, on_fail=None)
    passed = {r["check_name"] for r in results if r["status"] == "passed"}
    assert passed >= {
        "check_do_not_raise_errors_in_init_or_set_params",
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_estimator_tags_renamed",
        "check_estimators_unfitted",
        "check_get_params_invariance",
        "check_mixin_order",
        "check_no_attributes_set_in_init",
        "check_parameters_default_constructible",
        "check_set_params",
        "check_transformers_unfitted",
        "check_valid_tag_types",
    }


@pytest.mark.parametrize("cache", ["folder", None])
def test_vectors_are_those_of_embed(
    embedder: ImageEmbedder, photos: Path, paths: list[str], tmp_path: Path, cache: str | None
) -> None:
    """The rows follow X, repeated paths included, and are the store's to the last bit."""
    if cache is None:
        embedder.set_params(cache_dir=None)
    store = embed(photos, embedder.model, output=tmp_path / "store")
    order = [3, 0, 9, 3]
    found = embedder.fit_transform([paths[i] for i in order])
    assert found.dtype == np.float32
    assert np.array_equal(found, store.X[order])
    assert np.array_equal(embedder.transform(np.array(paths)[:, None]), store.X)
    assert np.array_equal(embedder.transform([Path(p) for p in paths]), store.X)


def test_relative_paths_and_a_changed_file(
    embedder: ImageEmbedder, photos: Path, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path means the file in the working folder as it is now."""
    first = embedder.fit_transform(paths)
    monkeypatch.chdir(photos)
    relative = [os.path.relpath(path) for path in paths]
    assert np.array_equal(embedder.transform(relative), first)
    os.replace(paths[0], paths[1])
    assert np.array_equal(embedder.transform(relative[1:2]), first[:1])


@pytest.mark.parametrize("cache", ["folder", None])
def test_known_images_are_not_opened_again(
    embedder: ImageEmbedder, paths: list[str], cache: str | None
) -> None:
    """A second transform, of a clone too, opens no image."""
    if cache is None:
        embedder.set_params(cache_dir=None)
    first = embedder.fit_transform(paths)
    opened: list[str] = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    again = clone(embedder).fit(paths).transform(paths[2:5])
    assert np.array_equal(again, first[2:5])
    assert not [path for path in opened if path.endswith(".jpg")]


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_grid_search_embeds_each_image_once(
    embedder: ImageEmbedder, photos: Path, paths: list[str], tmp_path: Path, n_jobs: int
) -> None:
    """A grid search over the head, in one process or two, leaves one vector an image."""
    labels = [Path(path).parent.name for path in paths]
    pipeline = make_pipeline(embedder, LogisticRegression(max_iter=500))
    search = GridSearchCV(
        pipeline, {"logisticregression__C": [0.1, 1, 10]}, cv=2, n_jobs=n_jobs, error_score="raise"
    )
    search.fit(paths, labels)
    assert set(search.predict(paths)) <= {"living", "things"}
    (folder,) = (tmp_path / "cache").iterdir()
    store = EmbeddingStore.open(folder)
    assert sorted(store.paths) == paths
    assert sum(len(np.load(part)) for part in folder.glob("parts/*.npy")) == len(paths)


def test_cache_stands_in_the_users_cache_folder(tiny_backbone: Path, paths: list[str]) -> None:
    """By default the cache is featpipe/vectors in the user's cache folder, a store a backbone."""
    embedder = ImageEmbedder(tiny_backbone).fit(paths)
    embedder.transform(paths[:2])
    (folder,) = (Path(os.environ["HOME"]) / ".cache" / "featpipe" / "vectors").iterdir()
    assert folder.name == f"tiny-{embedder.fingerprint_[:16]}"
    assert len(EmbeddingStore.open(folder)) == 2


def test_names_and_data_frames(embedder: ImageEmbedder, paths: list[str]) -> None:
    """Columns are named after the class, one a dimension."""
    embedder.fit(paths)
    names = embedder.get_feature_names_out()
    assert list(names[:2]) == ["imageembedder0", "imageembedder1"]
    assert len(names) == embedder.dimension_ == 27
    assert embedder.n_features_in_ == 1
    assert embedder.backbone_name_ == "tiny"


def test_fitted_embedder_survives_pickling(embedder: ImageEmbedder, paths: list[str]) -> None:
    """A pickled and loaded embedder gives the same vectors."""
    first = embedder.fit_transform(paths)
    loaded = pickle.loads(pickle.dumps(embedder))
    assert np.array_equal(loaded.transform(paths), first)


@pytest.mark.parametrize("cache", ["folder", None])
def test_failed_images_are_named(
    embedder: ImageEmbedder, paths: list[str], tmp_path: Path, cache: str | None
) -> None:
    """An image that fails stops the transform, and the message names it; a good one does not."""
    if cache is None:
        embedder.set_params(cache_dir=None)
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    missing = tmp_path / "missing.jpg"
    embedder.fit(paths)
    with pytest.raises(SourceError) as error:
        embedder.transform([paths[0], str(text), str(missing)])
    message = str(error.value)
    assert message.startswith(f"2 images have no vector: {text}: ")
    assert f"; {missing}: " in message
    assert message.endswith(
        "No such file or directory: correct or leave out the files, as a pipeline needs every row"
    )
    with pytest.raises(SourceError, match=r"^1 image has no vector: "):
        embedder.transform([str(text)])
    assert embedder.transform(paths).shape == (10, 27)


def test_many_failures_are_counted(embedder: ImageEmbedder, tmp_path: Path) -> None:
    """Of many failures five are shown and the others counted."""
    missing = [str(tmp_path / f"{i}.jpg") for i in range(7)]
    with pytest.raises(SourceError, match=r"^7 images have no vector: .*4\.jpg: [^;]*; and 2 more"):
        embedder.fit(missing).transform(missing)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("a.jpg", TypeError, "takes an array of paths, not one path: put it into a list"),
        ([1.5], TypeError, "takes paths as str or Path, not float"),
        ([b"a.jpg"], TypeError, "takes paths as str or Path, not bytes"),
        ([["a.jpg", "b.jpg"]], ValueError, "takes paths as an array (n,) or (n, 1), not (1, 2)"),
        ([], ValueError, "was given 0 paths: at least 1 is required"),
    ],
)
def test_what_is_no_path_is_refused(
    embedder: ImageEmbedder, given: object, error: type[Exception], message: str
) -> None:
    """Numbers, a lone path, nothing: each is refused with what would be right."""
    with pytest.raises(error) as raised:
        embedder.fit(given)
    assert message in str(raised.value)


def test_unknown_backbone(paths: list[str]) -> None:
    """A backbone that is not there is refused at fit."""
    with pytest.raises(BackboneError, match="there is no backbone 'efficientnet_lite9'"):
        ImageEmbedder("efficientnet_lite9").fit(paths)


def test_another_backbone_than_at_fit(
    embedder: ImageEmbedder, paths: list[str], tmp_path: Path
) -> None:
    """Where the model's file has become another backbone, both are named."""
    model = tmp_path / "model.onnx"
    build_tiny_backbone(model)
    embedder.set_params(model=model).fit(paths)
    before = embedder.fingerprint_
    build_tiny_backbone(model, "other", 1 / 127)
    after = clone(embedder).fit(paths).fingerprint_
    with pytest.raises(FingerprintError) as error:
        embedder.transform(paths)
    assert str(error.value) == (
        f"this ImageEmbedder was fitted with tiny ({before[:12]}), but {model} is now "
        f"other ({after[:12]}): fit it again"
    )


def test_cache_that_cannot_be_written(tiny_backbone: Path, photos: Path, open_folder: Path) -> None:
    """A cache without permission is named, with both ways out."""
    image = open_folder / "cat.jpg"
    image.write_bytes((photos / "living" / "cat.jpg").read_bytes())
    model = open_folder / "tiny.onnx"
    model.write_bytes(tiny_backbone.read_bytes())
    closed = open_folder / "closed"
    closed.mkdir(0o755)
    embedder = ImageEmbedder(model, cache_dir=closed / "cache").fit([image])
    with as_nobody(), pytest.raises(WriteError) as error:
        embedder.transform([image])
    assert "permission denied" in str(error.value)
    assert str(error.value).endswith(
        "give another cache_dir, or cache_dir=None to keep vectors in memory"
    )
