"""Models in 8 bits and with half-size weights: what becomes of the graph and its arithmetic."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from convnet import SIDE, build_convnet
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto

from featpipe.backbones import onnx_session
from featpipe.backbones.card import QUANTISER, BackboneCard
from featpipe.backbones.contract import EMBEDDING, INPUT, check_backbone, read_backbone
from featpipe.backbones.gate import photographs
from featpipe.backbones.quantize import (
    METHODS,
    Activations,
    Prepared,
    Runner,
    halve_weights,
    interleaved_speeds,
    observe,
    prepare,
    quantize_int8,
    rank_layers,
)
from featpipe.backbones.quantize import int8 as int8_form
from featpipe.backbones.quantize.ranges import (
    choose_range,
    entropy_range,
    percentile_range,
    rounded_outwards,
)
from featpipe.backbones.quantize.scales import conv_rows, safe_scales
from featpipe.backbones.quantize.sensitivity import cosines
from featpipe.backbones.writing import finish
from featpipe.errors import BackboneError


@pytest.fixture(scope="module")
def convnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a small float backbone."""
    return build_convnet(tmp_path_factory.mktemp("models") / "convnet.onnx")


@pytest.fixture(scope="module")
def prepared(convnet: Path) -> Prepared:
    """Return it, ready to be quantised."""
    return prepare(convnet.read_bytes(), "convnet")


@pytest.fixture(scope="module")
def activations(prepared: Prepared) -> Activations:
    """Return what its activations are on photographs."""
    return observe(prepared, photographs(20, SIDE))


def change(model: onnx.ModelProto, name: str, function: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace a constant of a model by a function of it."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = function(onnx.numpy_helper.to_array(tensor)).astype(np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))


def running_kinds(data: bytes, path: Path) -> list[str]:
    """Return the kinds of the operators that ONNX Runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(path).graph.node]


# Scales


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 9)),
        elements=st.floats(-9, 9, width=32),
    ),
    st.booleans(),
)
def test_pairs_of_weights_never_overflow_16_bits(rows: np.ndarray, even: bool) -> None:
    """255 times two neighbouring weights of one sign fits into 16 bits, after rounding too."""
    scales = safe_scales(rows, even=even)
    integers = np.rint(rows / scales[:, None]).astype(int)
    assert np.abs(integers).max(initial=0) <= 127
    step = 2 if even else 1
    for sign in (1, -1):
        side = np.maximum(sign * integers, 0)
        pairs = side[:, :-1:step] + side[:, 1::step]
        assert (255 * pairs <= 32767).all()


def test_a_lone_large_weight_keeps_all_8_bits() -> None:
    """A channel loses nothing of its eighth bit where its large weights are no neighbours."""
    row = np.array([[1.0, 0.0, 1.0, 0.0, 0.0, -1.0]], np.float32)
    assert safe_scales(row) == pytest.approx([1 / 127])
    assert safe_scales(row[:, 1:], even=False) == pytest.approx([1 / 127])


def test_depthwise_weights_have_no_pairs() -> None:
    """Where sums have 32 bits, only the largest weight counts."""
    row = np.array([[1.0, 1.0, 1.0]], np.float32)
    assert safe_scales(row, pairs=False) == pytest.approx([1 / 127])
    assert safe_scales(row) == pytest.approx([2 / 127])


def test_a_channel_of_zeros_has_a_scale() -> None:
    """Nothing is divided by zero."""
    assert safe_scales(np.zeros((2, 4), np.float32)).tolist() == [1.0, 1.0]


def test_rows_of_a_convolution_have_the_channels_last() -> None:
    """The weights of all channels at one place of the kernel are neighbours."""
    weights = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    assert conv_rows(weights).tolist() == [[0, 4, 1, 5, 2, 6, 3, 7]]


# Ranges


def test_minmax_takes_what_was_seen() -> None:
    """The whole range, to the last value."""
    assert choose_range("minmax", np.array([5, 0, 1]), -1.0, 2.0) == (-1.0, 2.0)


def test_percentile_leaves_out_the_outliers() -> None:
    """One value in ten thousand far away does not decide."""
    counts = np.zeros(100, np.int64)
    counts[:10], counts[99] = 1000, 1
    low, high = percentile_range(counts, 0.0, 100.0, percentile=99.9)
    assert (low, high) == (0.0, 10.0)


def test_entropy_draws_in_a_range_with_a_long_tail() -> None:
    """A bell with one far value is cut near the bell; values spread evenly are not cut."""
    values = np.random.default_rng(0).normal(0, 1, 100_000)
    counts, _ = np.histogram(np.append(values, 40.0), bins=2048, range=(-40, 40))
    low, high = entropy_range(counts, -40.0, 40.0)
    assert 2 < high < 15
    assert low == -high
    even = np.full(2048, 50)
    assert entropy_range(even, 0.0, 1.0)[1] > 0.9


def test_entropy_ignores_the_zeros_of_a_rectifier() -> None:
    """However many zeros there are, they do not change the range."""
    counts, _ = np.histogram(
        np.abs(np.random.default_rng(0).normal(0, 1, 50_000)), bins=2048, range=(0, 8)
    )
    many = counts.copy()
    many[0] += 10_000_000
    assert entropy_range(many, 0.0, 8.0) == entropy_range(counts, 0.0, 8.0)


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_activation_has_a_range(method: str) -> None:
    """Every method gives the one value that there is."""
    counts = np.zeros(2048, np.int64)
    counts[0] = 9
    assert choose_range(method, counts, 0.5, 0.5) == (0.5, 0.5)


@given(st.floats(-1e4, 1e4).filter(lambda x: x == 0 or abs(x) > 1e-6), st.floats(0, 1e4))
def test_rounding_only_widens(low: float, width: float) -> None:
    """By a hundredth at most; and three digits are left of each end."""
    left, right = rounded_outwards((low, low + width))
    assert left <= low + 1e-6 * abs(low)
    assert right >= low + width - 1e-6 * abs(low + width)
    assert left == pytest.approx(low, rel=0.0101)
    assert float(f"{left:.2e}") == left


def test_an_unknown_method_is_refused() -> None:
    """The message has the methods that there are."""
    with pytest.raises(
        ValueError,
        match=r"^there is no calibration method 'max': use minmax, percentile, entropy$",
    ):
        choose_range("max", np.zeros(4, np.int64), 0.0, 1.0)


# Preparation


def test_layers_are_listed_in_order(prepared: Prepared) -> None:
    """Convolutions by the name of their weights, with the rectifier that follows."""
    assert [layer.title for layer in prepared.layers] == ["stem", "depthwise", "project", "head"]
    assert [layer.rectifier is not None for layer in prepared.layers] == [True, True, False, True]
    assert {"centred", "normal"} <= prepared.pixelwise
    assert "stem" not in prepared.pixelwise


def test_what_has_no_layers_is_refused(tiny_backbone: Path) -> None:
    """A backbone without weights gains nothing, and the message says so."""
    with pytest.raises(BackboneError) as error:
        prepare(tiny_backbone.read_bytes(), "tiny")
    assert str(error.value) == (
        "tiny has no convolution and no matrix product with constant weights: there is nothing "
        "in it that int8 would make smaller or faster"
    )


def test_an_old_operator_set_is_refused(tmp_path: Path) -> None:
    """Scales for every channel exist since operator set 13."""
    path = build_convnet(tmp_path / "old.onnx", opset=12)
    with pytest.raises(BackboneError) as error:
        prepare(path.read_bytes(), "old")
    assert str(error.value) == (
        "old uses operator set 12 and int8 with a scale for every channel needs 13 at least: "
        "export it again with a newer exporter"
    )


def test_what_is_quantised_already_is_refused(
    prepared: Prepared, activations: Activations, convnet: Path
) -> None:
    """Neither form is quantised a second time."""
    int8 = quantize_int8(prepared, activations.ranges("minmax")).SerializeToString()
    fp16 = halve_weights(convnet.read_bytes(), "convnet").SerializeToString()
    for data, sign in ((int8, "DequantizeLinear operators"), (fp16, "16-bit weights")):
        for attempt in (prepare, halve_weights):
            with pytest.raises(BackboneError) as error:
                attempt(data, "small")
            assert str(error.value) == (
                f"small is quantised already (it has {sign}): quantise the fp32 backbone that it "
                "was made of"
            )


# Observation


def test_extremes_are_those_of_the_model(prepared: Prepared, activations: Activations) -> None:
    """The range of the feature map is what the model itself gives on the same images."""
    model = Runner(prepared.model.SerializeToString())
    maps = np.concatenate([model.outputs(photographs(20, SIDE)[i : i + 1])[1] for i in range(20)])
    low, high = activations.extremes["feature_map"]
    assert (low, high) == pytest.approx((maps.min(), maps.max()), rel=1e-5)
    assert activations.counts["feature_map"].sum() == maps.size
    chosen = activations.ranges("minmax")["feature_map"]
    assert chosen[0] <= low <= high <= chosen[1]
    assert chosen == pytest.approx((low, high), rel=0.01)


def test_the_pixels_range_is_that_of_black_and_white(activations: Activations) -> None:
    """It does not depend on whether a calibration image has a white pixel."""
    low, high = activations.ranges("percentile")["normal"]
    assert low == pytest.approx(-0.485 / 0.229, rel=1e-5)
    assert high == pytest.approx((1 - 0.406) / 0.225, rel=1e-5)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("factor", [0.0, 1e-42, 1e-37])
def test_activations_of_next_to_nothing_are_observed(convnet: Path, factor: float) -> None:
    """A branch whose weights have died has a range; nothing overflows on the way."""
    model = onnx.load(convnet)
    for name in ("project.weight", "project.bias"):
        change(model, name, lambda values: values.astype(np.float64) * factor)
    observed = observe(prepare(model.SerializeToString(), "dead"), photographs(3, SIDE))
    assert observed.counts["project"].sum() == 3 * 16 * 16 * 16
    for method in METHODS:
        low, high = observed.ranges(method)["project"]
        assert -1e-35 < low <= high < 1e-35


@pytest.mark.filterwarnings("error")
def test_what_is_not_finite_is_not_counted(convnet: Path) -> None:
    """One channel of NaN: the ranges are those of the others."""
    model = onnx.load(convnet)
    change(model, "head.bias", lambda values: np.where(np.arange(24) == 0, np.nan, values))
    observed = observe(prepare(model.SerializeToString(), "broken"), photographs(3, SIDE))
    assert observed.counts["feature_map"].sum() == 3 * 23 * 16 * 16
    assert np.isfinite(observed.ranges("percentile")["feature_map"]).all()


def test_observation_tells_how_far_it_is(prepared: Prepared) -> None:
    """Two passes over the images, to the end."""
    told: list[tuple[int, int]] = []
    observe(prepared, photographs(3, SIDE), lambda done, total: told.append((done, total)))
    assert told == [(2, 6), (3, 6), (5, 6), (6, 6)]


# Int8


@pytest.fixture(scope="module")
def int8(prepared: Prepared, activations: Activations) -> bytes:
    """Return the convnet in 8 bits."""
    return quantize_int8(prepared, activations.ranges("percentile")).SerializeToString()


def test_int8_keeps_the_contract(int8: bytes, convnet: Path) -> None:
    """Input, outputs, operator set and card pass the check that every backbone file passes."""
    card = read_backbone(convnet).card
    data, made = finish(onnx.load_model_from_string(int8), card)
    file = check_backbone(convnet, data)
    assert file.has_feature_map
    assert made.fingerprint != card.fingerprint
    versions = {o.domain: o.version for o in onnx.load_model_from_string(data).opset_import}
    assert versions[""] == 17
    assert set(versions) <= {"", "com.microsoft"}


def test_weights_are_signed_and_activations_unsigned(int8: bytes) -> None:
    """Each weight has a scale for every channel, each activation one scale and an unsigned zero."""
    model = onnx.load_model_from_string(int8)
    constants = {t.name: t for t in model.graph.initializer}
    weights = [
        t for t in constants.values() if t.data_type == TensorProto.INT8 and len(t.dims) == 4
    ]
    assert len(weights) == 4
    for tensor in weights:
        reader = next(n for n in model.graph.node if tensor.name in n.input)
        assert list(constants[reader.input[1]].dims) == [tensor.dims[0]]
    zeros = {
        constants[n.input[2]].data_type for n in model.graph.node if n.op_type == "QuantizeLinear"
    }
    assert zeros == {TensorProto.UINT8}


def test_int8_is_close_to_float(int8: bytes, convnet: Path) -> None:
    """On photographs that it was not calibrated with."""
    images = photographs(40, SIDE)[20:]
    reached = cosines(Runner(convnet.read_bytes()).embed(images), Runner(int8).embed(images))
    assert reached.min() > 0.995


def test_integers_do_not_depend_on_the_processor(int8: bytes) -> None:
    """This processor's own kernels give the bits of those that never overflow."""
    images = photographs(8, SIDE)
    assert (Runner(int8).embed(images) == Runner(int8, exact=True).embed(images)).all()


def test_a_session_overflows_on_no_processor(
    prepared: Prepared, activations: Activations, convnet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of all 8 bits, as other programs write them, give the bits of exact integers.

    Only what featpipe's own quantiser has signed is run by the processor's own kernels.
    """
    bounded = int8_form.safe_scales
    monkeypatch.setattr(int8_form, "safe_scales", lambda rows, **_: bounded(rows, pairs=False))
    data = quantize_int8(prepared, activations.ranges("percentile")).SerializeToString()
    file, images = read_backbone(convnet), photographs(8, SIDE)
    own, exact = (Runner(data, exact=exact).embed(images) for exact in (False, True))

    def run(card: BackboneCard) -> np.ndarray:
        session = onnx_session.start(data, replace(file, card=card), [onnx_session.CPU])
        found: np.ndarray = session.run([EMBEDDING], {INPUT: images})[0]
        return found

    assert (run(file.card) == exact).all()
    assert (run(replace(file.card, exporter={QUANTISER: "onnxruntime"})) == own).all()


def test_integers_are_those_that_the_file_states(int8: bytes) -> None:
    """What runs as integers agrees with the same graph computed in floats."""
    images = photographs(8, SIDE)
    simulated = Runner(int8, optimise=False).embed(images)
    assert cosines(simulated, Runner(int8).embed(images)).min() > 0.999


def test_all_layers_run_as_integers(int8: bytes, tmp_path: Path) -> None:
    """ONNX Runtime makes one integer operator of every layer and its rectifier."""
    kinds = running_kinds(int8, tmp_path / "run.onnx")
    assert kinds.count("QLinearConv") == 4
    assert not {"Conv", "FusedConv", "Relu", "Clip"} & set(kinds)


@pytest.mark.parametrize("title", ["stem", "depthwise", "project", "head"])
def test_a_layer_left_in_float_runs_in_float(
    prepared: Prepared, activations: Activations, title: str, tmp_path: Path
) -> None:
    """ONNX Runtime, which quantises what stands between integers by itself, is kept from it."""
    layer = next(layer for layer in prepared.layers if layer.title == title)
    model = quantize_int8(prepared, activations.ranges("minmax"), float_layers=[layer])
    kinds = running_kinds(model.SerializeToString(), tmp_path / "run.onnx")
    assert kinds.count("QLinearConv") == 3
    assert sum(kind in {"Conv", "FusedConv"} for kind in kinds) == 1


def test_layers_that_share_weights_are_quantised_one_by_one(convnet: Path, tmp_path: Path) -> None:
    """One of them stays in float while the other runs as integers."""
    model = onnx.load(convnet)
    head = next(node for node in model.graph.node if node.output[0] == "head")
    twice = onnx.helper.make_node(
        "Conv", ["sum", "project.weight", "project.bias"], ["twice"], kernel_shape=[1, 1]
    )
    model.graph.node.insert(list(model.graph.node).index(head), twice)
    head.input[0] = "twice"
    data, images = model.SerializeToString(), photographs(8, SIDE)
    ready = prepare(data, "twice")
    sharing = [layer for layer in ready.layers if layer.weight.startswith("project.weight")]
    assert len(sharing) == len({layer.weight for layer in sharing}) == 2
    ranges, expected = observe(ready, images).ranges("minmax"), Runner(data).embed(images)
    for layer in sharing:
        made = quantize_int8(ready, ranges, float_layers=[layer]).SerializeToString()
        kinds = running_kinds(made, tmp_path / "run.onnx")
        assert kinds.count("QLinearConv") == 4
        assert cosines(expected, Runner(made).embed(images)).min() > 0.99


def test_layers_in_float_come_nearer_to_float(
    prepared: Prepared, activations: Activations, convnet: Path
) -> None:
    """All layers in float give the vectors of the float model, up to what sums are rounded to."""
    images = photographs(12, SIDE)
    ranges, expected = activations.ranges("minmax"), Runner(convnet.read_bytes()).embed(images)

    def error(kept: int) -> float:
        model = quantize_int8(prepared, ranges, float_layers=prepared.layers[:kept])
        found = Runner(model.SerializeToString()).embed(images)
        return float(1 - cosines(expected, found).mean())

    assert error(0) > error(2) > error(4)
    assert error(4) < 1e-4


def test_the_same_input_gives_the_same_bytes(
    prepared: Prepared, activations: Activations, int8: bytes
) -> None:
    """Nothing of chance, time or place is in the file."""
    again = quantize_int8(prepared, activations.ranges("percentile"))
    assert again.SerializeToString() == int8


def test_quantisation_says_nothing_by_itself(
    prepared: Prepared, activations: Activations, capfd: pytest.CaptureFixture[str]
) -> None:
    """The quantiser's warnings reach neither the terminal nor anybody's logging."""
    handlers = list(logging.getLogger().handlers)
    quantize_int8(prepared, activations.ranges("minmax"))
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers
    assert logging.root.manager.disable == 0


def test_the_dearest_layer_comes_first(tmp_path: Path) -> None:
    """A layer with a huge weight that meets nothing but zeros loses all others to rounding."""
    model = onnx.load(build_convnet(tmp_path / "spoilt.onnx"))
    change(model, "depthwise.weight", lambda values: np.where(np.arange(16) == 0, 0, values.T).T)
    change(model, "depthwise.bias", lambda values: np.where(np.arange(16) == 0, -1, values))
    change(
        model, "project.weight", lambda values: values * np.array([400] + 15 * [1])[:, None, None]
    )
    data = model.SerializeToString()
    ready, images = prepare(data, "spoilt"), photographs(8, SIDE)
    told: list[tuple[int, int]] = []
    ranked = rank_layers(
        ready,
        observe(ready, images).ranges("minmax"),
        images,
        Runner(data).embed(images),
        lambda done, total: told.append((done, total)),
    )
    assert ranked[0][0].title == "project"
    assert [cost for _, cost in ranked] == sorted((c for _, c in ranked), reverse=True)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


# Half-size weights


def test_half_size_weights_keep_the_arithmetic(convnet: Path, tmp_path: Path) -> None:
    """Weights are stored in 16 bits; what runs are the float operators of before."""
    data = halve_weights(convnet.read_bytes(), "convnet").SerializeToString()
    stored = {t.name: t.data_type for t in onnx.load_model_from_string(data).graph.initializer}
    assert stored["stem.weight_fp16"] == TensorProto.FLOAT16
    assert stored["stem.bias"] == TensorProto.FLOAT
    images = photographs(8, SIDE)
    reached = cosines(Runner(convnet.read_bytes()).embed(images), Runner(data).embed(images))
    assert reached.min() > 0.99999
    kinds = running_kinds(data, tmp_path / "half.onnx")
    float_kinds = running_kinds(convnet.read_bytes(), tmp_path / "float.onnx")
    assert kinds == float_kinds


def test_weights_beyond_16_bits_stay_as_they_are(convnet: Path) -> None:
    """A weight of 100,000 would be infinite."""
    model = onnx.load(convnet)
    change(model, "head.weight", lambda values: values * 1e5)
    made = halve_weights(model.SerializeToString(), "convnet")
    stored = {t.name: t.data_type for t in made.graph.initializer}
    assert stored["head.weight"] == TensorProto.FLOAT
    assert stored["project.weight_fp16"] == TensorProto.FLOAT16


def test_nothing_to_halve_is_refused(tiny_backbone: Path) -> None:
    """A backbone without weights is not written again under another name."""
    with pytest.raises(BackboneError) as error:
        halve_weights(tiny_backbone.read_bytes(), "tiny")
    assert str(error.value) == (
        "tiny has no weights that 16 bits would make smaller: nothing was written"
    )


def test_speeds_are_measured_for_each_model(convnet: Path, int8: bytes) -> None:
    """One positive figure a model, in their order."""
    speeds = interleaved_speeds([convnet.read_bytes(), int8], photographs(4, SIDE), rounds=3)
    assert len(speeds) == 2
    assert min(speeds) > 0
