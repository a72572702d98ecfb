"""The nodes of a bundle: resize, heads and calibrators beside featpipe's own, on plain arrays."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import PHOTOS
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image
from vectors import card

from featpipe.bundling.graph import Graph
from featpipe.bundling.heads import add_scores
from featpipe.bundling.probabilities import add_label, add_probabilities
from featpipe.bundling.resize import add_resize, block_of
from featpipe.calibration import Isotonic, Sigmoid, Temperature, fit_isotonic, fit_sigmoid
from featpipe.heads import HEADS, Head
from featpipe.heads.registry import class_scores
from featpipe.images import resize, square_of, whole_picture
from featpipe.types import ResizeRule

RULES = {
    "bicubic": ResizeRule(256, 224),
    "bilinear": ResizeRule(232, 224, "bilinear"),
    "lanczos": ResizeRule(299, 299, "lanczos"),
    "nearest": ResizeRule(64, 64, "nearest"),
    "squash": ResizeRule(240, 240, "bicubic", squash=True),
    "prime": ResizeRule(340, 331),
}


def session(graph, name, element, shape, outputs):
    made = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "test",
            [helper.make_tensor_value_info(name, element, shape)],
            [helper.make_tensor_value_info(o, kind, size) for o, kind, size in outputs],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", graph.opset)],
        ir_version=9,
    )
    onnx.checker.check_model(made, full_check=True)
    return onnxruntime.InferenceSession(
        made.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def resizer(rule, *, opset=17, short_weights=None):
    graph = Graph(opset)
    short = resize.short_weights() if short_weights is None else short_weights
    out = add_resize(graph, "images", rule, short_weights=short)
    shape = ["N", rule.crop, rule.crop, 3]
    found = session(
        graph, "images", TensorProto.UINT8, ["N", "H", "W", 3], [(out, TensorProto.UINT8, shape)]
    )
    return lambda images: found.run(None, {"images": images})[0]


@pytest.mark.parametrize("name", [name for name in RULES if name != "nearest"])
def test_resize_of_photographs_has_the_very_pixels(name):
    """Every photograph becomes, to the last bit, the square that featpipe makes of it."""
    run = resizer(RULES[name])
    for path in sorted(PHOTOS.glob("*.jpg")):
        picture = whole_picture(path.read_bytes())
        assert np.array_equal(run(picture[None])[0], square_of(picture, RULES[name])), path.name


def test_resize_by_nearest_takes_pixels_of_the_picture():
    """Where a centre lies between two pixels rounding decides; nearly all others are equal."""
    run = resizer(RULES["nearest"])
    picture = whole_picture(min(PHOTOS.glob("*.jpg")).read_bytes())
    found, wanted = run(picture[None])[0], square_of(picture, RULES["nearest"])
    assert (found != wanted).mean() < 0.02


def test_resize_is_pillows_own_where_there_is_no_other(monkeypatch):
    """Without the SIMD package weights have 22 bits: at most a tie in ten thousand differs."""
    rule = RULES["bicubic"]
    run = resizer(rule, short_weights=False)
    monkeypatch.setattr(resize, "simd", None)
    assert not resize.short_weights()
    for path in sorted(PHOTOS.glob("*.jpg"))[:4]:
        picture = whole_picture(path.read_bytes())
        apart = np.abs(run(picture[None])[0].astype(int) - square_of(picture, rule))
        assert apart.max() <= 1
        assert (apart > 0).mean() < 1e-3


@settings(max_examples=60)
@given(
    st.integers(1, 500),
    st.integers(1, 500),
    st.sampled_from(["bicubic", "bilinear", "lanczos"]),
    st.booleans(),
    st.sampled_from([(24, 16), (16, 16), (37, 31), (48, 40)]),
)
@example(1, 1, "bicubic", False, (24, 16))
@example(1, 400, "bicubic", False, (24, 16))
@example(500, 2, "lanczos", True, (16, 16))
def test_resize_of_any_size(height, width, interpolation, squash, sizes):
    """Noise of any size, enlarged or made smaller, is resized as by featpipe."""
    rule = ResizeRule(*sizes, interpolation, squash=squash)
    rng = np.random.default_rng(height * 1000 + width)
    picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    apart = np.abs(resizer(rule)(picture[None])[0].astype(int) - square_of(picture, rule))
    if max(height, width) >= 80:
        # Beyond five times the target sums have more digits than a float32.
        assert apart.max() <= 2
        assert (apart > 0).mean() <= 0.03
    elif min(height, width) >= rule.resize:
        assert apart.max() == 0
    else:
        # Some ratios have weights that are halves, which the last digit of a product rounds.
        assert apart.max() <= 2
        assert (apart > 0).mean() <= 0.03


@pytest.mark.parametrize("size", [(320, 240), (176, 144), (48, 48), (16, 16), (9, 1)])
def test_resize_of_small_pictures_whose_weights_are_halves(size):
    """Enlarged by 16 / 15, 16 / 9, 16 … a photograph has the very pixels: halves are no ties."""
    run = resizer(RULES["bicubic"])
    for path in sorted(PHOTOS.glob("*.jpg"))[:3]:
        with Image.open(path) as photo:
            picture = np.asarray(photo.convert("RGB").resize(size))
        assert np.array_equal(run(picture[None])[0], square_of(picture, RULES["bicubic"])), (
            path.name
        )


def test_resize_takes_batches_and_newer_opsets():
    """Pictures of one size are resized together as one by one; opset 18 changed ReduceMax."""
    picture = whole_picture(min(PHOTOS.glob("*.jpg")).read_bytes())
    batch = np.stack([picture, picture[::-1], picture[:, ::-1]])
    rule = ResizeRule(48, 32)
    for opset in (13, 18, 20):
        found = resizer(rule, opset=opset)(batch)
        assert found.shape == (3, 32, 32, 3)
        assert np.array_equal(found, np.stack([square_of(p, rule) for p in batch]))


def test_blocks_divide_the_crop():
    """A block of pixels that share a window is a divisor; a prime crop is one block."""
    assert [block_of(crop) for crop in (224, 240, 260, 299, 384, 331)] == [32, 40, 26, 23, 32, 331]


def fitted(name, n_classes, calibrator=None, seed=0, dimension=24):
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(n_classes, dimension))
    y = np.repeat(np.arange(n_classes), 12)
    X = np.abs(means[y] + 0.9 * rng.normal(size=(len(y), dimension))).astype(np.float32)
    spec = HEADS[name]
    pipeline = spec.fit(spec.default, X, y, 0)
    queries = np.abs(means[y] + 1.2 * rng.normal(size=(len(y), dimension))).astype(np.float32)
    scores = class_scores(pipeline, queries)
    made = Temperature(0.7) if calibrator is None else calibrator(scores, y)
    classes = tuple(f"class {k}" for k in range(n_classes))
    counts = (12,) * n_classes
    return Head(name, classes, pipeline, made, card(dimension), spec.default, counts), queries, X


def classifier(head, dtype, opset=17):
    graph = Graph(opset)
    vectors = "vectors" if dtype == np.float32 else graph.cast_to("vectors", dtype)
    scores = add_scores(graph, head, vectors, dtype)
    k = len(head.classes)
    p = add_probabilities(graph, head.calibrator, scores, k, dtype)
    index, label = add_label(graph, p, head.classes)
    kind = TensorProto.FLOAT if dtype == np.float32 else TensorProto.DOUBLE
    outputs = [(p, kind, ["N", k]), (index, TensorProto.INT64, ["N"])]
    outputs.append((label, TensorProto.STRING, ["N"]))
    shape = ["N", head.dimension]
    found = session(graph, "vectors", TensorProto.FLOAT, shape, outputs)
    return lambda X: found.run(None, {"vectors": X})


CALIBRATORS = {"temperature": None, "sigmoid": fit_sigmoid, "isotonic": fit_isotonic}


@pytest.mark.parametrize("calibrator", CALIBRATORS)
@pytest.mark.parametrize("n_classes", [2, 3, 7])
@pytest.mark.parametrize("name", HEADS)
def test_every_head_and_calibrator(name, n_classes, calibrator):
    """Probabilities are scikit-learn's, labels equal, in 32 bits and in 64.

    The vectors that isotonic maps were fitted on lie on their steps, where the last digit of a
    score decides: others are looked at there.
    """
    head, queries, X = fitted(name, n_classes, CALIBRATORS[calibrator])
    both = X if calibrator == "isotonic" else np.concatenate([queries, X])
    expected = head.predict_proba(both)
    # Vectors are 32 bits wide, and scikit-learn computes in them.
    for dtype, tolerance in ((np.float32, 5e-5), (np.float64, 3e-6)):
        found, index, label = classifier(head, dtype)(both)
        apart = np.abs(found - expected)
        assert (np.quantile(apart, 0.9) if calibrator == "isotonic" else apart.max()) < tolerance
        assert apart.max() < 2e-3
        assert index.tolist() == expected.argmax(axis=1).tolist()
        assert label.tolist() == head.predict(both).tolist()


def test_neighbours_of_the_very_direction_take_all_the_weight():
    """A training vector, and one twice as long, has its own class alone as its neighbour."""
    head, _, X = fitted("knn", 3)
    found, _, _ = classifier(head, np.float32)(np.concatenate([X[:5], 2 * X[:5]]))
    assert np.abs(found - head.predict_proba(np.concatenate([X[:5], 2 * X[:5]]))).max() < 1e-6


@pytest.mark.parametrize(
    "calibrator",
    [
        Sigmoid(2.0, (1.0, 0.0, 3.0), (0.5, -2.0, 0.0)),
        Isotonic(
            1.0, ((-1.0, 0.0, 2.0), (0.0,), (-3.0, 3.0)), ((0.1, 0.1, 0.9), (0.2,), (0.3, 0.4))
        ),
        Temperature(1e-3),
        Temperature(50.0),
    ],
)
def test_calibrators_at_their_extremes(calibrator):
    """Scores that are far apart, equal, or huge give probabilities that are finite and the same."""
    scores = np.array(
        [[0, 0, 0], [900, -900, 3], [-4000, -4000, -4001], [1, 2, 3], [30, 29.5, -80]]
    ).astype(np.float32)
    graph = Graph(17)
    p = add_probabilities(graph, calibrator, "scores", 3, np.float32)
    found = session(
        graph, "scores", TensorProto.FLOAT, ["N", 3], [(p, TensorProto.FLOAT, ["N", 3])]
    ).run(None, {"scores": scores})[0]
    assert np.isfinite(found).all()
    assert np.abs(found - calibrator.probabilities(scores.astype(np.float64))).max() < 1e-5


def test_a_vector_of_zeros_is_classified():
    """A vector without a direction gives the probabilities that scikit-learn gives it."""
    for name in ("svm", "centroid", "ridge", "knn"):
        head, _, X = fitted(name, 3)
        nothing = np.zeros_like(X[:1])
        found = classifier(head, np.float32)(nothing)[0]
        assert np.abs(found - head.predict_proba(nothing)).max() < 1e-5


def test_a_training_vector_of_zeros_is_a_neighbour():
    """It is as far from all vectors as one at a right angle, from one of zeros, too."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(9, 6)).astype(np.float32), np.repeat(np.arange(3), 3)
    X[4] = 0
    parameters = {"n_neighbors": 9}
    pipeline = HEADS["knn"].fit(parameters, X, y, 0)
    classes, counts = ("a", "b", "c"), (3, 3, 3)
    head = Head("knn", classes, pipeline, Temperature(1.0), card(6), parameters, counts)
    queries = np.concatenate([X[4:5], rng.normal(size=(20, 6)).astype(np.float32)])
    for dtype in (np.float32, np.float64):
        found = classifier(head, dtype)(queries)[0]
        assert np.abs(found - head.predict_proba(queries)).max() < 1e-5


def test_constants_are_shared_and_names_have_a_prefix():
    """Equal small constants are one, large ones are not looked for; a prefix keeps names apart."""
    graph = Graph(17, "mine/")
    assert graph.constant(1.0) == graph.constant(1.0)
    assert graph.constant(1.0) != graph.constant(1.0, np.float64)
    assert graph.constant(np.ones(100)) != graph.constant(np.ones(100))
    assert graph.add("Neg", graph.constant(1.0)).startswith("mine/")
