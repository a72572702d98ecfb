"""A foreign ONNX file becomes a backbone that gives what the file gives, or nothing is written."""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from foreign import CLASSES, SIZE, Net, body, nchw, normalise, run_file, simple, tensorflow
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from featpipe import load_backbone
from featpipe.backbones.gate import compare, photographs, realistic_images
from featpipe.backbones.importing import ImportOptions, ImportReport, import_backbone
from featpipe.errors import BackboneError
from featpipe.types import ResizeRule

IMAGES = realistic_images(5, SIZE, seed=7)


def imported(path: Path, **options: Any) -> ImportReport:
    """Import into ``out`` beside the file."""
    return import_backbone(path, ImportOptions(models_dir=path.parent / "out", **options))


def refused(path: Path, **options: Any) -> str:
    """Return the message of an import that must leave nothing behind."""
    with pytest.raises(BackboneError) as error:
        imported(path, **options)
    assert not (path.parent / "out").exists()
    return str(error.value)


def vectors_of(report: ImportReport, images: Any = IMAGES) -> Any:
    return load_backbone(report.path).open_session("cpu").run(images)


def maps_of(report: ImportReport, images: Any = IMAGES) -> Any:
    return load_backbone(report.path).open_session("cpu").feature_maps(images)


# What the tail of a classifier looks like, in the tools and years that people export from.


def classify(net: Net, x: str, nhwc: bool, pool: str, flat: str, head: str) -> tuple[str, int]:
    """Put pooling, flattening and classifier behind a map; return scores, and classes."""
    if nhwc:
        x = net.add("Transpose", x, perm=[0, 2, 3, 1], out="nhwc")
    if head == "conv before":
        x = net.conv(net.add("Identity", "map"), 12, 1000, 1)
        return net.add("Flatten", net.add("GlobalAveragePool", net.add("Relu", x))), 1000
    x = pooled(net, x, nhwc, pool)
    if head == "conv":
        x = net.reshape(x, [-1, 12, 1, 1])
        return net.add("Flatten", net.conv(x, 12, CLASSES, 1)), CLASSES
    x = flattened(net, x, flat)
    if head == "gemm":
        bias = net.constant(net.rng.normal(size=CLASSES))
        return net.add("Gemm", x, net.weights(CLASSES, 12), bias, transB=1), CLASSES
    x = net.add("MatMul", x, net.weights(12, CLASSES))
    if head == "matmul and add":
        x = net.add("Add", net.constant(net.rng.normal(size=CLASSES)), x)
    return x, CLASSES


def pooled(net: Net, x: str, nhwc: bool, pool: str) -> str:
    """Average over space: (N, 12, 1, 1), (N, 1, 1, 12) or (N, 12)."""
    if nhwc:
        return net.mean(x, [1, 2] if pool != "mean, negative" else [-3, -2], keep=pool == "mean")
    if pool == "average":
        return net.add("AveragePool", x, kernel_shape=[8, 8])
    if pool == "mean, flat":
        return net.mean(net.reshape(x, [0, 12, 64]), [2], keep=0)
    if pool == "global":
        return net.add("GlobalAveragePool", x)
    return net.mean(x, [2, 3] if pool == "mean" else [-2, -1], keep=pool == "mean")


def flattened(net: Net, x: str, flat: str) -> str:
    if flat == "flatten":
        return net.add("Flatten", x)
    if flat == "squeeze":  # the axis of the images goes with the others at batch 1
        return net.squeeze(x)
    if flat == "nothing":
        x = net.reshape(x, [-1, 12])
        return net.add("Identity", x)
    return net.reshape(x, {"reshape": [0, -1], "burnt": [1, -1], "sized": [-1, 12]}[flat])


def scored(net: Net, x: str, scores: str) -> list[str]:
    if scores == "softmax":
        return [net.add("Softmax", x, axis=1)]
    if scores == "sigmoid":
        return [net.add("Sigmoid", x)]
    if scores == "softmax in pieces":
        exp = net.add("Exp", net.add("Sub", x, net.axes("ReduceMax", x, [1], 18, keepdims=1)))
        return [net.add("Div", exp, net.axes("ReduceSum", exp, [1], 13, keepdims=1))]
    if scores == "label":
        probabilities = net.add("Softmax", net.add("Dropout", x), axis=1)
        return [net.add("ArgMax", probabilities, axis=1, keepdims=0), probabilities]
    return [net.add("Identity", x)]


@settings(max_examples=30)
@given(
    opset=st.sampled_from([9, 11, 13, 17, 18, 21]),
    nhwc=st.booleans(),
    pool=st.sampled_from(["global", "mean", "mean, negative", "average", "mean, flat"]),
    flat=st.sampled_from(["flatten", "reshape", "burnt", "sized", "squeeze", "nothing"]),
    head=st.sampled_from(["gemm", "matmul", "matmul and add", "conv", "conv before"]),
    scores=st.sampled_from(["", "softmax", "sigmoid", "softmax in pieces", "label"]),
)
def test_the_vector_before_the_classifier_is_found(
    tmp_path_factory: pytest.TempPathFactory,
    opset: int,
    nhwc: bool,
    pool: str,
    flat: str,
    head: str,
    scores: str,
) -> None:
    """Whatever stands around the last layer, the embedding is the mean of the map before it."""
    net = Net(opset)
    x, _ = classify(net, body(net), nhwc, pool, flat, head)
    path = net.save(
        tmp_path_factory.mktemp("tail") / "net.onnx",
        scored(net, x, scores),
        (1 if flat == "burnt" else "n", 3, SIZE, SIZE),
    )
    report = imported(path)
    feed = nchw(normalise(IMAGES))
    step = 1 if flat == "burnt" else len(feed)
    maps = np.concatenate(
        [run_file(path, feed[i : i + step], "map")[0] for i in range(0, len(feed), step)]
    )
    assert compare(maps.mean(axis=(2, 3)), vectors_of(report)) > 0.999999
    assert compare(maps, maps_of(report)) > 0.999999
    assert (report.card.dimension, report.card.layer) == (12, None)
    assert report.cosine > 0.99999


def test_a_tensorflow_graph_gives_its_own_predictions(tmp_path: Path) -> None:
    """NHWC, SAME pads, NHWC pooling: the last layer on the embedding gives the file's output."""
    path = tensorflow(tmp_path / "mobilenet.onnx")
    report = imported(path, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    prefix = "StatefulPartitionedCall/mobilenet/"
    assert report.embedding == (
        f"embedding: '{prefix}dropout/Identity:0', 48 numbers, what the last MatMul reads"
    )
    assert report.feature_map == f"'{prefix}out_relu/Relu6:0', 48 × 8 × 8"
    images = photographs(9, 64)
    feed = images.astype(np.float32) / np.float32(127.5) - 1
    expected, maps = run_file(path, feed, "predictions", f"{prefix}out_relu/Relu6:0")
    vectors = vectors_of(report, images)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    scores = np.exp(vectors @ weights["kernel"] + weights["bias"])
    np.testing.assert_allclose(scores / scores.sum(axis=1, keepdims=True), expected, atol=2e-6)
    assert expected.std(axis=0).max() > 0.01  # the photographs differ
    assert compare(maps.transpose(0, 3, 1, 2), maps_of(report, images)) > 0.999999


@pytest.mark.export
@pytest.mark.no_cover
@pytest.mark.parametrize("batch", ["dynamic", 1])
def test_resnet18_from_torch_gives_what_torch_gives(
    tmp_path: Path, shared: Path, batch: str | int
) -> None:
    """torchvision's network with its weights: eager torch and the backbone agree on photographs."""
    torch = pytest.importorskip("torch", reason="the `export` extra (torch) is not installed")
    torchvision = pytest.importorskip("torchvision", reason="the `export` extra is not installed")
    safetensors = pytest.importorskip("safetensors.torch", reason="the `export` extra")
    packed = (shared / "weights" / "resnet18.safetensors.xz").read_bytes()
    network = torchvision.models.resnet18()
    network.load_state_dict(safetensors.load(lzma.decompress(packed)))
    network.eval()
    path = tmp_path / "network.onnx"
    torch.onnx.export(
        network,
        (torch.zeros(1 if batch == 1 else 2, 3, 224, 224),),
        path,
        dynamo=True,
        external_data=batch == 1,
        dynamic_shapes=None if batch == 1 else {"x": {0: "batch"}},
        verbose=False,
    )
    report = imported(path, license="BSD-3-Clause")
    assert (report.card.dimension, report.card.parameters) == (512, 11_171_712)
    assert report.card.resize == ResizeRule(256, 224, "bilinear")
    images = photographs(10, 224)
    kept: list[Any] = []
    network.avgpool.register_forward_hook(lambda *a: kept.extend((a[1][0], a[2].flatten(1))))
    with torch.no_grad():
        network(torch.from_numpy(nchw(normalise(images))))
    assert compare(kept[1].numpy(), vectors_of(report, images)) > 0.999999
    assert compare(kept[0].numpy(), maps_of(report, images)) > 0.999999


@pytest.mark.parametrize(
    ("name", "tensor", "what", "dimension", "shape"),
    [
        ("squeezenet", "r61", "Conv", 512, "512 × 13 × 13"),
        ("shufflenet", "r200", "Gemm", 544, "544 × 7 × 7"),
    ],
)
def test_graphs_of_the_model_zoo(
    tmp_path: Path, name: str, tensor: str, what: str, dimension: int, shape: str
) -> None:
    """Caffe2's graphs of opset 9, with a batch of one burnt in, as they come with onnx."""
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    path = folder / f"light_{name}.onnx"
    if not path.is_file():
        pytest.skip("this version of onnx comes without the zoo's graphs")
    report = import_backbone(path, ImportOptions(models_dir=tmp_path))
    assert f"'{tensor}', {dimension} numbers, what the last {what} reads" in report.embedding
    assert str(report.feature_map).endswith(f"', {shape}")


# The input: layout, size, type, normalisation.


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        (("n", 3, SIZE, SIZE), {}),
        (("n", 3, "h", "w"), {"size": SIZE}),
        ((None, None, SIZE, SIZE), {}),
        ((0, -1, SIZE, SIZE), {}),
        ((3, 3, SIZE, SIZE), {}),
        (None, {"size": SIZE, "layout": "nchw"}),
        (("n", "c", "h", "w"), {"size": SIZE, "layout": "nchw"}),
    ],
)
def test_shapes_of_the_input(tmp_path: Path, shape: Any, options: Any) -> None:
    """What the shape leaves open is taken from the options; a fixed batch becomes any."""
    path = simple(tmp_path / "net.onnx", shape)
    plain = simple(tmp_path / "plain.onnx")
    expected = run_file(plain, nchw(normalise(IMAGES)), "pooled")[0]
    assert compare(expected, vectors_of(imported(path, **options))) > 0.999999


@pytest.mark.parametrize("opset", [7, 8, 10, 12, 16, 20])
def test_old_and_new_opsets(tmp_path: Path, opset: int) -> None:
    """The added nodes mean the same in every opset."""
    path = simple(tmp_path / "net.onnx", opset=opset)
    expected = run_file(path, nchw(normalise(IMAGES)), "pooled")[0]
    assert compare(expected, vectors_of(imported(path))) > 0.999999


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize(
    ("mean", "std", "bgr"),
    [
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), False),
        ((0.485, 0.458, 0.408), (1 / 255, 1 / 255, 1 / 255), True),
        ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255), False),
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), True),
    ],
)
def test_normalisation_and_order_of_channels(
    tmp_path: Path, layout: str, mean: Any, std: Any, bgr: bool
) -> None:
    """mean and std are those of R, G, B on the scale 0 to 1, whatever the file's order."""
    shape = ("n", 3, SIZE, SIZE) if layout == "nchw" else ("n", SIZE, SIZE, 3)
    path = simple(
        tmp_path / "net.onnx",
        shape,
        start=lambda net: net.add("Transpose", "x", perm=[0, 3, 1, 2]) if layout != "nchw" else "x",
    )
    feed = normalise(IMAGES, mean, std)
    feed = np.ascontiguousarray(feed[..., ::-1]) if bgr else feed
    expected = run_file(path, nchw(feed) if layout == "nchw" else feed, "pooled")[0]
    report = imported(path, mean=mean, std=std, bgr=bgr)
    assert compare(expected, vectors_of(report)) > 0.999999
    assert (report.card.mean, report.card.std) == (mean, std)
    assert ("the file reads B, G, R" in (report.card.note or "")) is bgr


def test_half_precision(tmp_path: Path) -> None:
    """A graph in float16 from end to end gives float32 vectors."""
    path = simple(tmp_path / "net.onnx", dtype=TensorProto.FLOAT16)
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    onnx.save(model, path)
    expected = run_file(path, nchw(normalise(IMAGES)).astype(np.float16), "pooled")[0]
    report = imported(path)
    found = vectors_of(report)
    assert (expected.dtype, found.dtype) == (np.float16, np.float32)
    assert compare(expected.astype(np.float32), found) > 0.99999


def test_a_file_that_reads_uint8_normalises_by_itself(tmp_path: Path) -> None:
    """Pixels go in as they are; the card says so, and nothing is assumed about mean and std."""

    def start(net: Net) -> str:
        return net.add("Div", net.add("Cast", "x", to=1), net.constant(255.0))

    path = simple(tmp_path / "net.onnx", dtype=TensorProto.UINT8, start=start)
    report = imported(path, license="MIT", resize=SIZE)
    assert compare(run_file(path, nchw(IMAGES), "pooled")[0], vectors_of(report)) > 0.999999
    assert (report.card.mean, report.card.std) == ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
    assert report.notes == ()
    assert report.card.note == (
        "embedding: 'pooled', 12 numbers, what the last Gemm reads. the file normalises by itself"
    )
    assert refused_beside(path, mean=(0.0, 0.0, 0.0)) == (
        f"{path} reads 'x' (?, 3, 32, 32, uint8): it takes pixels as they are and normalises them "
        "by itself, so --mean and --std cannot be had"
    )


def refused_beside(path: Path, **options: Any) -> str:
    """Return the message of an import under another name."""
    with pytest.raises(BackboneError) as error:
        imported(path, name="another", **options)
    return str(error.value)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 64), {}, "(1, 64, float): a batch of images has four axes"),
        (("n", 1, 28, 28), {}, "(?, 1, 28, 28, float): an image has 3 channels, at axis 1 or at "
         "axis 3"),
        (("n", 3, 32, 64), {}, "(?, 3, 32, 64, float): 32 × 64 pixels, and featpipe's backbones "
         "read squares; export it with a square input"),
        (("n", 3, 32, 32), {"size": 64}, "(?, 3, 32, 32, float): 32 pixels are fixed, --size 64 "
         "cannot be had"),
        (("n", 3, 32, 32), {"layout": "nhwc"}, "(?, 3, 32, 32, float): that is nchw, and --layout "
         "nhwc cannot be had"),
        (("n", 3, "h", "w"), {}, "(?, 3, ?, ?, float), of any height and width: say with --size "
         "how many pixels it was trained with (often 224)"),
        (("n", None, None, None), {"size": 32}, "(?, ?, ?, ?, float): its shape does not tell "
         "where the channels are; say --layout nchw (as PyTorch has it) or --layout nhwc (as "
         "TensorFlow has it)"),
        (None, {"size": 32}, "(of unknown shape, float): its shape does not tell where the "
         "channels are; say --layout nchw (as PyTorch has it) or --layout nhwc (as TensorFlow has "
         "it)"),
    ],
)  # fmt: skip
def test_inputs_that_are_refused(tmp_path: Path, shape: Any, options: Any, message: str) -> None:
    """The message shows name, shape and type of the input, and what would be right."""
    path = simple(tmp_path / "net.onnx", shape)
    assert refused(path, **options) == f"{path} reads 'x' {message}"


def test_an_input_of_integers_is_refused(tmp_path: Path) -> None:
    """Only pixels and floats are images."""
    path = simple(
        tmp_path / "net.onnx", dtype=TensorProto.INT64, start=lambda n: n.add("Cast", "x", to=1)
    )
    assert refused(path) == (
        f"{path} reads 'x' (?, 3, 32, 32, int64): images are float32, float16 or uint8"
    )


def test_several_inputs_are_refused_and_constants_among_them_are_none(tmp_path: Path) -> None:
    """A second input is named; initialisers that old files list as inputs do not count."""
    path = simple(tmp_path / "net.onnx", opset=8, ir_version=3)
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )
    onnx.save(model, path)
    expected = run_file(path, nchw(normalise(IMAGES)), "pooled")[0]
    assert compare(expected, vectors_of(imported(path))) > 0.999999
    model.graph.input.append(helper.make_tensor_value_info("training", TensorProto.BOOL, []))
    onnx.save(model, path)
    assert refused_beside(path) == (
        f"{path} has 2 inputs, where a backbone reads images and nothing else: "
        "'x' (?, 3, 32, 32, float), 'training' (of unknown shape, bool); export it with one input"
    )


def test_a_file_that_seems_to_normalise_asks(tmp_path: Path) -> None:
    """Keras' EfficientNet scales by itself: ImageNet's mean and std would be silently wrong."""

    def start(net: Net) -> str:
        return net.add("Mul", net.add("Transpose", "x", perm=[0, 3, 1, 2]), net.constant(1 / 255))

    path = simple(tmp_path / "net.onnx", ("n", SIZE, SIZE, 3), start=start)
    assert refused(path) == (
        f"{path} reads 'x' (?, 32, 32, 3, float) and begins with Mul 'Mul_1', so it seems to "
        "normalise by itself: say what it wants, --mean 0 --std 1/255 for numbers from 0 to 255, "
        "--mean 0 --std 1 for 0 to 1"
    )
    report = imported(path, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
    expected = run_file(path, IMAGES.astype(np.float32), "pooled")[0]
    assert compare(expected, vectors_of(report)) > 0.999999
    assert len(report.notes) == 2
