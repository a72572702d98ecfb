"""Which tensor of a foreign file becomes the embedding: found, asked for, or not to be told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from foreign import CLASSES, SIZE, Net, body, nchw, normalise, run_file, simple
from onnx import TensorProto, helper
from onnxruntime import quantization

from featpipe import load_backbone
from featpipe.backbones.gate import compare, realistic_images
from featpipe.backbones.importing import ImportOptions, ImportReport, import_backbone
from featpipe.errors import BackboneError

IMAGES = realistic_images(5, SIZE, seed=8)
FEED = nchw(normalise(IMAGES))


def imported(path: Path, **options: Any) -> ImportReport:
    return import_backbone(path, ImportOptions(models_dir=path.parent / "out", **options))


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(BackboneError) as error:
        imported(path, **options)
    assert not (path.parent / "out").exists()
    return str(error.value)


def check(report: ImportReport, vectors: Any, maps: Any = None) -> None:
    """Compare a backbone with arrays that were computed by its original file."""
    session = load_backbone(report.path).open_session("cpu")
    assert compare(np.asarray(vectors, np.float32), session.run(IMAGES)) > 0.999999
    assert session.backbone.has_feature_map is (maps is not None)
    if maps is not None:
        assert compare(np.asarray(maps, np.float32), session.feature_maps(IMAGES)) > 0.999999


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a network: what ``build`` puts behind the map."""

    def write(build: Callable[[Net], str | list[str]], channels: int = 12, **kw: Any) -> Path:
        net = Net(kw.pop("opset", 18))
        body(net, channels=channels)
        return net.save(tmp_path / "net.onnx", build(net), **kw)

    return write


def pooled(net: Net, x: str = "map", out: str = "pooled") -> str:
    return net.add("Flatten", net.add("GlobalAveragePool", x), out=out)


def test_a_file_that_ends_in_a_vector(save) -> None:
    """Without a classifier the file's own output is the embedding."""
    path = save(pooled)
    report = imported(path)
    maps, vectors = run_file(path, FEED, "map", "pooled")
    check(report, vectors, maps)
    assert report.embedding == "embedding: 'pooled', 12 numbers, the file's own output"
    assert report.card.layer == "pooled"


def test_a_file_that_ends_in_a_map(save) -> None:
    """Without a classifier and without a pooling, the mean of the map is the embedding."""
    path = save(lambda net: net.add("Transpose", "map", perm=[0, 2, 3, 1], out="nhwc"))
    report = imported(path)
    maps = run_file(path, FEED, "map")[0]
    check(report, maps.mean(axis=(2, 3)), maps)
    assert report.embedding == (
        "embedding: the mean over space of 'nhwc', 12 numbers, the file's own output"
    )


def test_a_normalised_vector_keeps_its_length(save) -> None:
    """Networks for retrieval end in a division by the norm: that is no classifier."""

    def build(net: Net) -> str:
        x = net.add("Gemm", pooled(net), net.weights(7, 12), net.constant(np.ones(7)), transB=1)
        return net.add("Div", x, net.axes("ReduceL2", x, [1], 18, keepdims=1), out="unit")

    path = save(build)
    report = imported(path)
    check(report, run_file(path, FEED)[0])
    assert (report.card.dimension, report.feature_map) == (7, None)
    np.testing.assert_allclose(np.linalg.norm(run_file(path, FEED)[0], axis=1), 1, rtol=1e-5)


def test_a_hidden_layer_before_the_classifier_is_no_mean_of_a_map(save) -> None:
    """VGG and AlexNet: the embedding is the last hidden layer, and there is no feature map."""

    def build(net: Net) -> str:
        x = net.add("Gemm", pooled(net), net.weights(20, 12), net.constant(np.ones(20)), transB=1)
        x = net.add("Relu", x, out="fc7")
        return net.add("MatMul", x, net.weights(20, CLASSES))

    path = save(build)
    check(imported(path), run_file(path, FEED, "fc7")[0])


def test_another_pooling_gives_no_feature_map(save) -> None:
    """The maximum over space is a vector, but not the mean of the map before it."""

    def build(net: Net) -> str:
        x = net.add("Flatten", net.add("GlobalMaxPool", "map"), out="pooled")
        return net.add("MatMul", x, net.weights(12, CLASSES))

    path = save(build)
    check(imported(path), run_file(path, FEED, "pooled")[0])


def test_the_tensor_that_is_asked_for(save) -> None:
    """``--output`` takes a vector, or a map in either layout; the card has its name."""

    def build(net: Net) -> str:
        net.add("Transpose", "map", perm=[0, 2, 3, 1], out="nhwc")
        return net.add("MatMul", pooled(net), net.weights(12, CLASSES), out="logits")

    path = save(build)
    maps, logits = run_file(path, FEED, "map", "logits")
    for name in ("map", "nhwc"):
        report = imported(path, name=name, output=name)
        check(report, maps.mean(axis=(2, 3)), maps)
        assert report.card.layer == name
    report = imported(path, name="logits", output="logits")
    check(report, logits)
    assert report.card.note == (
        "embedding: 'logits', 10 numbers, as asked for. assumed: ImageNet's mean and std. "
        "assumed: resize to size / 0.875, bilinear"
    )


def test_an_unknown_tensor_is_answered_with_names(save) -> None:
    """The message has near names, and those at the end of the graph."""
    path = save(lambda net: net.add("MatMul", pooled(net), net.weights(12, 4), out="logits"))
    assert refused(path, output="poled") == (
        f"{path} has no tensor 'poled': did you mean pooled? Near the end there are 'logits', "
        "'pooled', 't8', 'map', 't6', 't5'"
    )
    assert refused(path, output="\x1b[31m") == (
        f"{path} has no tensor '\\x1b[31m': Near the end there are 'logits', 'pooled', 't8', "
        "'map', 't6', 't5'"
    )


def test_a_constant_is_no_embedding(save) -> None:
    """A tensor that does not depend on the images is refused."""
    path = save(pooled)
    assert refused(path, output="c0") == (
        f"the tensor 'c0' of {path} is not computed from the images, so it cannot be the "
        "embedding; near the end there are 'pooled', 't8', 'map', 't6', 't5', 't4'"
    )


def test_tokens_are_neither_a_vector_nor_a_map(save) -> None:
    """A tensor of three axes is refused, with what there is instead."""

    def build(net: Net) -> str:
        net.add("Reshape", "map", net.constant([0, 12, -1], np.int64), out="tokens")
        return pooled(net)

    path = save(build)
    assert refused(path, output="tokens") == (
        f"it cannot be told which tensor of {path} is the embedding: 'tokens' is (N, 12, 64), "
        "neither a vector nor a map; name one with --output: 'pooled' (N, 12), 't9' (N, 12, 1, 1), "
        "'map' (N, 12, 8, 8), 't6' (N, 12, 8, 8), 't5' (N, 8, 16, 16), 't4' (N, 8, 16, 16), "
        "'t2' (N, 8, 16, 16), 't3' (N, 8, 16, 16)"
    )


def test_two_classifiers_are_not_chosen_between(save) -> None:
    """A network with an auxiliary classifier: both vectors are shown, nobody guesses."""

    def build(net: Net) -> list[str]:
        early = pooled(net, "t5", out="early")
        late = pooled(net)
        return [
            net.add("Gemm", late, net.weights(4, 12), net.constant(np.zeros(4)), transB=1),
            net.add("MatMul", early, net.weights(8, 4)),
        ]

    path = save(build)
    message = refused(path)
    assert message == (
        f"it cannot be told which tensor of {path} is the embedding: it may be what the Gemm "
        "'Gemm_12' reads or what the MatMul 'MatMul_13' reads; name one with --output: "
        "'t12' (N, 4), 't13' (N, 4), 'pooled' (N, 12), 'early' (N, 8), 't10' (N, 12, 1, 1), "
        "'t8' (N, 8, 1, 1), 'map' (N, 12, 8, 8), 't5' (N, 8, 16, 16)"
    )
    check(
        imported(path, output="early"),
        run_file(path, FEED, "early")[0],
        run_file(path, FEED, "t5")[0],
    )


@pytest.mark.parametrize("name", ["label", "probabilities", "features"])
def test_outputs_of_one_classifier_are_one(save, name: str) -> None:
    """A label, probabilities and the vector itself may be outputs side by side."""

    def build(net: Net) -> list[str]:
        x = net.add("MatMul", pooled(net, out="features"), net.weights(12, CLASSES))
        net.add("Softmax", x, out="probabilities")
        net.add("ArgMax", "probabilities", axis=1, out="label")
        return [name, *{"label", "probabilities", "features"} - {name}]

    path = save(build)
    check(imported(path), *run_file(path, FEED, "features", "map"))


def test_a_last_convolution_before_the_pooling(save, tmp_path: Path) -> None:
    """A classifier (SqueezeNet) or a last layer (MobileNet): what is behind it decides."""

    def build(classes: int, softmax: bool) -> Callable[[Net], str]:
        def tail(net: Net) -> str:
            x = net.add("Relu", net.conv("map", 12, classes, 1), out="last")
            x = pooled(net, x, out="out")
            return net.add("Softmax", x, axis=1) if softmax else x

        return tail

    for classes, softmax in ((4, True), (1000, False)):  # scores
        path = save(build(classes, softmax))
        maps = run_file(path, FEED, "map")[0]
        report = imported(path, replace=True)
        check(report, maps.mean(axis=(2, 3)), maps)
        assert report.embedding == (
            "embedding: the mean over space of 'map', 12 numbers, what the last Conv reads"
        )
    path = save(build(48, softmax=False))  # more channels than it reads: a last layer
    check(imported(path, replace=True), *run_file(path, FEED, "out", "last"))
    with pytest.raises(BackboneError) as error:
        imported(save(build(4, softmax=False)), name="other")
    assert str(error.value) == (
        f"it cannot be told which tensor of {tmp_path / 'net.onnx'} is the embedding: it may be "
        "what the Conv 'Conv_8' reads; name one with --output: 'out' (N, 4), 't10' (N, 4, 1, 1), "
        "'last' (N, 4, 8, 8), 't8' (N, 4, 8, 8), 'map' (N, 12, 8, 8), 't6' (N, 12, 8, 8), "
        "'t5' (N, 8, 16, 16), 't4' (N, 8, 16, 16)"
    )


def test_scores_without_a_classifier_are_no_embedding(save) -> None:
    """A vector of 1000 numbers, or one behind a Softmax, is not taken for an embedding."""

    def normed(net: Net) -> str:
        # A normalisation between the last layer and the scores: nothing that is known.
        x = net.add("MatMul", pooled(net), net.weights(12, CLASSES))
        x = net.add("LpNormalization", x, axis=1)
        return net.add("Softmax", x, axis=1, out="scores")

    path = save(normed)
    assert refused(path).startswith(
        f"it cannot be told which tensor of {path} is the embedding: 'scores' looks like scores "
        "of classes; name one with --output: 'scores' (N, 10), 't11' (N, 10), 't10' (N, 10), "
        "'pooled' (N, 12), "
    )
    path = save(lambda net: pooled(net, out="thousand"), channels=1000)
    assert refused(path).startswith(
        f"it cannot be told which tensor of {path} is the embedding: 'thousand' looks like scores "
    )


def test_no_output_that_depends_on_the_image(save) -> None:
    """A graph whose outputs are constants has nothing to give."""
    path = save(lambda net: net.add("Identity", "c0", out="constant"))
    assert refused(path) == (f"no output of {path} depends on its images: it cannot be a backbone")


class _Calibration(quantization.CalibrationDataReader):
    def __init__(self) -> None:
        self._feeds = iter([{"x": FEED}])

    def get_next(self) -> Any:
        return next(self._feeds, None)


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("tail", ["gemm", "conv", "asked", "asked map"])
@pytest.mark.filterwarnings("ignore")  # the quantiser's own
def test_int8(save, tmp_path: Path, form: str, tail: str) -> None:
    """Both forms of a statically quantised file give the float32 numbers of their integers."""

    def build(net: Net) -> str:
        x = net.add("GlobalAveragePool", "map")
        if tail == "conv":
            return net.add("Flatten", net.conv(x, 12, CLASSES, 1))
        x = net.add("Flatten", x)
        return net.add(
            "Gemm", x, net.weights(CLASSES, 12), net.constant(np.zeros(CLASSES)), transB=1
        )

    path = tmp_path / "int8.onnx"
    quantization.quantize_static(
        save(build),
        path,
        _Calibration(),
        quant_format=quantization.QuantFormat[form],
        per_channel=True,
        reduce_range=True,  # processors without VNNI saturate with the full range
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    view = {node.op_type: node for node in onnx.load(path).graph.node}
    if tail.startswith("asked"):
        pool = view["QLinearGlobalAveragePool" if form == "QOperator" else "GlobalAveragePool"]
        output = pool.input[0] if tail == "asked map" else view["Flatten"].output[0]
    report = imported(path, output=output if tail.startswith("asked") else None)
    maps = run_file(tmp_path / "net.onnx", FEED, "map")[0]
    session = load_backbone(report.path).open_session("cpu")
    vectors = session.run(IMAGES)
    assert vectors.dtype == np.float32
    # Eight bits: near the float file, and far from being equal to it.
    assert 0.99 < compare(maps.mean(axis=(2, 3)), vectors) < 0.9999999
    assert 0.99 < compare(maps, session.feature_maps(IMAGES)) < 0.9999999
    assert report.cosine > 0.99999


@pytest.mark.filterwarnings("ignore")
def test_dynamic_quantisation(save, tmp_path: Path) -> None:
    """A scale for each batch would mix the images of a batch; in the classifier it is cut off."""

    def build(net: Net) -> str:
        x = net.add("Relu", net.add("MatMul", pooled(net), net.weights(12, 64)), out="hidden")
        return net.add("MatMul", x, net.weights(64, CLASSES), out="logits")

    path = tmp_path / "dynamic.onnx"
    quantization.quantize_dynamic(save(build), path, op_types_to_quantize=["MatMul"])
    message = refused(path)
    assert message.startswith(
        f"{path} gives an image another vector when other images stand beside it (cosine 0.9"
    )
    assert message.endswith(
        "); it quantises with a scale of its own for each batch (DynamicQuantizeLinear): use the "
        "float file, or one that is quantised statically"
    )
    path = tmp_path / "last.onnx"
    quantization.quantize_dynamic(
        tmp_path / "net.onnx", path, op_types_to_quantize=["MatMul"], nodes_to_exclude=["MatMul_10"]
    )
    report = imported(path)
    assert report.embedding == (
        "embedding: 'hidden', 64 numbers, what the last MatMulInteger reads"
    )
    check(report, run_file(path, FEED, "hidden")[0])


# What is inside a graph.


def test_a_graph_inside_a_graph_keeps_what_it_reads(save) -> None:
    """Branches of an If read tensors from outside: those are not dropped, nor left misnamed."""

    def branch(name: str) -> Any:
        node = helper.make_node("Mul", ["embedding", "factor"], [f"{name}_out"])
        value = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        return helper.make_graph([node], name, [], [value])

    def build(net: Net) -> str:
        net.constant(2.0, name="factor")
        pooled(net, out="embedding")
        both = {"then_branch": branch("yes"), "else_branch": branch("no")}
        x = net.add("If", net.constant(True, np.bool_), out="images", **both)
        return net.add("MatMul", x, net.weights(12, CLASSES), out="feature_map")

    path = save(build)
    check(imported(path), run_file(path, FEED, "images")[0])


def test_nodes_in_any_order(save) -> None:
    """ONNX Runtime sorts nodes by itself, so files in disorder are in use."""
    path = save(lambda net: net.add("MatMul", pooled(net), net.weights(12, CLASSES)))
    model = onnx.load(path)
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in model.graph.node]
    expected = run_file(path, FEED, "pooled", "map")
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    onnx.save(model, path)
    check(imported(path), *expected)


def test_functions_are_put_in_place_of_their_calls(save) -> None:
    """A function that the file brings along is no foreign operator."""

    def build(net: Net) -> str:
        x = net.add("classify", pooled(net), net.weights(12, CLASSES), domain="local")
        return net.add("Identity", x)

    path = save(build)
    model = onnx.load(path)
    body_ = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model.functions.append(
        helper.make_function(
            "local", "classify", ["x", "w"], ["y"], body_, [helper.make_opsetid("", 18)]
        )
    )
    onnx.save(model, path)
    report = imported(path)
    check(report, *run_file(path, FEED, "pooled", "map"))
    written = onnx.load(report.path)
    assert (len(written.functions), [o.domain for o in written.opset_import]) == (0, [""])


def test_what_the_embedding_does_not_need_is_dropped(tmp_path: Path) -> None:
    """Nodes and weights behind the embedding are gone, and do not count as parameters."""
    path = simple(tmp_path / "net.onnx")
    report = imported(path)
    written = onnx.load(report.path)
    assert "Gemm" not in {node.op_type for node in written.graph.node}
    # Convolutions 3·8·9, 8·8·9 + 8, 8·12·9 + 12, and a normalisation's scale and bias.
    assert report.card.parameters == 216 + 584 + 876 + 16
    assert report.card.exporter["onnx"] == onnx.__version__


# A batch that is burnt in.


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("opset", [13, 21])
def test_shapes_with_the_batch_in_them(save, batch: int, opset: int) -> None:
    """Reshape to [batch, …] in the middle and at the end, Expand and Squeeze, for one and many."""

    def build(net: Net) -> str:
        x = net.reshape("map", [batch, 3, 4, 8, 8])  # a shuffle of channels
        x = net.reshape(net.add("Transpose", x, perm=[0, 2, 1, 3, 4]), [batch, 12, 8, 8])
        x = net.add("Expand", x, net.constant([batch, 12, 8, 8], np.int64))
        x = net.squeeze(net.add("GlobalAveragePool", x))
        x = net.add("Reshape", x, net.constant([batch, 12], np.int64), out="vector")
        return net.add("MatMul", x, net.weights(12, CLASSES))

    path = save(build, shape=(batch, 3, SIZE, SIZE), opset=opset)
    model = onnx.load(path)
    for i, node in enumerate(model.graph.node):
        if node.op_type == "Reshape" and opset >= 14 and i % 2:
            node.attribute.append(helper.make_attribute("allowzero", 1))
    onnx.save(model, path)
    feed = np.concatenate([FEED, FEED])[: 8 if batch == 4 else 5]
    found = [run_file(path, feed[i : i + batch], "vector")[0] for i in range(0, len(feed), batch)]
    report = imported(path)
    session = load_backbone(report.path).open_session("cpu")
    assert compare(np.concatenate(found)[:5], session.run(IMAGES)) > 0.999999


def test_a_file_that_says_any_batch_and_takes_one(save) -> None:
    """A dynamic input before a Reshape to one image: run one by one, it still can be freed."""

    def build(net: Net) -> str:
        x = net.add(
            "Reshape",
            net.add("GlobalAveragePool", "map"),
            net.constant([1, 12], np.int64),
            out="vector",
        )
        return net.add("MatMul", x, net.weights(12, CLASSES))

    path = save(build)
    expected = np.concatenate([run_file(path, FEED[i : i + 1], "vector")[0] for i in range(5)])
    check(imported(path), expected, run_file(path, FEED[:1], "map") and _maps(path))


def _maps(path: Path) -> Any:
    return np.concatenate([run_file(path, FEED[i : i + 1], "map")[0] for i in range(5)])


@pytest.mark.parametrize(
    ("where", "node"),
    [
        ("gather", "Gather 'Gather_8'"),
        ("concat", "Concat 'Concat_9'"),
        ("slice", "Slice 'Slice_8'"),
    ],
)
def test_a_batch_that_cannot_be_freed(save, where: str, node: str) -> None:
    """The node that holds one image fast is named."""

    def build(net: Net) -> str:
        x = "map"
        if where == "gather":
            x = net.add("Gather", x, net.constant([0], np.int64), axis=0)
        elif where == "slice":
            x = net.add("Slice", x, *(net.constant([v], np.int64) for v in (0, 1, 0)))
        else:
            token = net.add("Identity", net.weights(1, 12, 8, 1))
            x = net.add("Concat", x, token, axis=3)
        return net.add("MatMul", pooled(net, x), net.weights(12, CLASSES))

    path = save(build, shape=(1, 3, SIZE, SIZE))
    assert refused(path) == (
        f"{path} holds a fixed number of images that cannot be freed, in the node {node}: export "
        "it with a dynamic batch axis"
    )


def test_a_graph_that_mixes_images_is_refused(save) -> None:
    """A normalisation over the batch, as in training mode, makes vectors depend on each other."""

    def build(net: Net) -> str:
        x = net.add("Sub", pooled(net), net.mean("pooled", [0], keep=1), out="centred")
        return net.add("MatMul", x, net.weights(12, CLASSES))

    path = save(build)
    message = refused(path)
    assert message.startswith(
        f"{path} gives an image another vector when other images stand beside it (cosine "
    )
    assert message.endswith("); export it in evaluation mode")


def test_weights_in_constant_nodes(save) -> None:
    """Some exporters write every weight and shape as a node of its own."""

    def build(net: Net) -> str:
        x = net.reshape(net.add("GlobalAveragePool", "map"), [1, 12, 1, 1])
        x = net.add("Relu", net.conv(x, 12, 12, 1), out="hidden")
        return net.add("Softmax", net.add("Flatten", net.conv(x, 12, 4, 1)))

    path = save(build, shape=(1, 3, SIZE, SIZE))
    expected = np.concatenate([run_file(path, FEED[i : i + 1], "hidden")[0] for i in range(5)])
    model = onnx.load(path)
    weights = sum(int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type == 1)
    last = 12 * 4 + 4
    nodes = [
        helper.make_node("Constant", [], [tensor.name], value=tensor)
        for tensor in model.graph.initializer
    ]
    nodes += [onnx.NodeProto.FromString(n.SerializeToString()) for n in model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)
    report = imported(path)
    check(report, expected[:, :, 0, 0])
    assert report.card.parameters == weights - last


def test_a_map_whose_axes_cannot_be_told(save) -> None:
    """As many channels as rows and columns: neither layout is more likely."""
    path = save(pooled, channels=8)
    assert refused(path, output="map") == (
        f"the shape of 'map' in {path}, (N, 8, 8, 8), does not tell which axis holds the channels: "
        "name another tensor with --output"
    )
    check(imported(path), *run_file(path, FEED, "pooled", "map"))


def test_integers_without_a_scale(save) -> None:
    """Whole numbers that nobody reads with a scale are no vector."""

    def build(net: Net) -> str:
        net.add("Cast", pooled(net), to=TensorProto.UINT8, out="whole")
        return "pooled"

    path = save(build)
    assert refused(path, output="whole") == (
        f"'whole' in {path} holds integers, and how they become numbers cannot be told: name "
        "another tensor with --output"
    )
