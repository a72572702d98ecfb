"""Foreign ONNX files for the tests, built node by node as other tools write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from featpipe.types import Pixels

SIZE = 32
CLASSES = 10


class Net:
    """A graph that grows node by node; each method returns the name of what it has computed."""

    def __init__(self, opset: int = 18, seed: int = 0) -> None:
        self.opset = opset
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(
        self, operator: str, *inputs: str, out: str = "", domain: str = "", **attributes
    ) -> str:
        out = out or f"t{len(self.nodes)}"
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(operator, inputs, [out], name=name, domain=domain, **attributes)
        )
        return out

    def constant(self, value: Any, dtype: Any = np.float32, name: str = "") -> str:
        name = name or f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def weights(self, *shape: int) -> str:
        """Random weights that keep the size of what goes through them."""
        fan = int(np.prod(shape[1:]))
        return self.constant(self.rng.normal(0, np.sqrt(2 / fan), shape))

    def conv(self, x: str, c_in: int, c_out: int, k: int = 3, *, bias: bool = True, **kw) -> str:
        group = kw.get("group", 1)
        names = [self.weights(c_out, c_in // group, k, k)]
        if bias:
            names.append(self.constant(self.rng.normal(0, 0.1, c_out)))
        return self.add("Conv", x, *names, **{"kernel_shape": [k, k], **kw})

    def norm(self, x: str, channels: int) -> str:
        values = [
            self.rng.uniform(0.7, 1.3, channels),
            self.rng.normal(0, 0.2, channels),
            self.rng.normal(0, 0.2, channels),
            self.rng.uniform(0.5, 1.5, channels),
        ]
        return self.add("BatchNormalization", x, *(self.constant(v) for v in values), epsilon=1e-3)

    def axes(self, operator: str, x: str, axes: list[int] | None, since: int, **kw) -> str:
        """A node whose axes are an attribute before opset ``since``, and an input from it on."""
        if axes is None:
            return self.add(operator, x, **kw)
        if self.opset < since:
            return self.add(operator, x, axes=axes, **kw)
        return self.add(operator, x, self.constant(axes, np.int64), **kw)

    def mean(self, x: str, axes: list[int], keep: int) -> str:
        return self.axes("ReduceMean", x, axes, 18, keepdims=keep)

    def squeeze(self, x: str, axes: list[int] | None = None) -> str:
        return self.axes("Squeeze", x, axes, 13)

    def reshape(self, x: str, shape: list[int]) -> str:
        return self.add("Reshape", x, self.constant(shape, np.int64))

    def save(
        self,
        path: Path,
        output: str | list[str],
        shape: tuple[int | str | None, ...] | None = ("n", 3, SIZE, SIZE),
        dtype: int = TensorProto.FLOAT,
        image: str = "x",
        **model: Any,
    ) -> Path:
        outputs = [output] if isinstance(output, str) else output
        graph = helper.make_graph(
            self.nodes,
            "foreign",
            [helper.make_tensor_value_info(image, dtype, shape)],
            [onnx.ValueInfoProto(name=name) for name in outputs],
            self.constants,
        )
        made = helper.make_model(
            graph,
            opset_imports=[
                helper.make_opsetid("", self.opset),
                *[helper.make_opsetid(d, 1) for d in {n.domain for n in self.nodes} - {""}],
            ],
            **{"ir_version": 8, "producer_name": "tests", **model},
        )
        path.write_bytes(made.SerializeToString())
        return path


def body(net: Net, x: str = "x", channels: int = 12) -> str:
    """Two convolutions, a normalisation, a residual: (N, 3, 32, 32) to (N, channels, 8, 8)."""
    x = net.conv(x, 3, 8, strides=[2, 2], pads=[1, 1, 1, 1], bias=False)
    x = net.add("Relu", net.norm(x, 8))
    y = net.conv(x, 8, 8, pads=[1, 1, 1, 1])
    x = net.add("Relu", net.add("Add", x, y))
    x = net.conv(x, 8, channels, strides=[2, 2], pads=[1, 1, 1, 1])
    return net.add("Relu", x, out="map")


def simple(path: Path, shape: Any = ("n", 3, SIZE, SIZE), opset: int = 18, **kw: Any) -> Path:
    """An ordinary classifier: body, global average, Flatten, Gemm."""
    net = Net(opset)
    x = kw.pop("start", lambda net: "x")(net)
    x = net.add("Flatten", net.add("GlobalAveragePool", body(net, x)), out="pooled")
    bias = net.constant(np.zeros(CLASSES))
    net.add("Gemm", x, net.weights(CLASSES, 12), bias, transB=1, out="logits")
    return net.save(path, kw.pop("output", "logits"), shape, **kw)


def tensorflow(path: Path, size: int = 64, classes: int = CLASSES) -> Path:
    """A MobileNet as tf2onnx writes Keras': NHWC in, SAME pads, Transposes, NHWC pooling."""
    net = Net(opset=15, seed=1)
    prefix = "StatefulPartitionedCall/mobilenet/"
    x = net.add("Transpose", "input_1:0", perm=[0, 3, 1, 2], out=f"{prefix}conv1/Conv2D__6:0")
    # TensorFlow's SAME at stride 2 and an even size: nothing before, one behind.
    pads = net.constant([0, 0, 0, 0, 0, 0, 1, 1], np.int64)
    x = net.add("Pad", x, pads, mode="constant", out=f"{prefix}conv1_pad:0")
    x = net.conv(x, 3, 16, strides=[2, 2], bias=False)
    x = _relu6(net, net.norm(x, 16))
    channels = 16
    for block, (wider, stride) in enumerate([(24, 1), (32, 2), (48, 2)]):
        x = net.conv(
            x, channels, channels, group=channels, strides=[stride] * 2,
            auto_pad="SAME_UPPER", bias=False,
        )  # fmt: skip
        x = _relu6(net, net.norm(x, channels))
        x = net.add("Transpose", x, perm=[0, 2, 3, 1], out=f"{prefix}block{block}/nhwc:0")
        x = net.add("Transpose", x, perm=[0, 3, 1, 2], out=f"{prefix}block{block}/nchw:0")
        x = net.conv(x, channels, wider, 1, bias=False)
        x = _relu6(net, net.norm(x, wider))
        channels = wider
    x = net.add("Transpose", x, perm=[0, 2, 3, 1], out=f"{prefix}out_relu/Relu6:0")
    x = net.axes("ReduceMean", x, [1, 2], 18, keepdims=0, out=f"{prefix}avg_pool/Mean:0")
    x = net.add("Identity", x, out=f"{prefix}dropout/Identity:0")
    kernel = net.constant(net.rng.normal(0, 0.2, (channels, classes)), name="kernel")
    bias = net.constant(net.rng.normal(0, 0.1, classes), name="bias")
    x = net.add("MatMul", x, kernel, out=f"{prefix}predictions/MatMul:0")
    x = net.add("Add", x, bias, out=f"{prefix}predictions/BiasAdd:0")
    net.add("Softmax", x, out="predictions")
    return net.save(
        path, "predictions", (None, size, size, 3), image="input_1:0", producer_name="tf2onnx",
        producer_version="1.16.1",
    )  # fmt: skip


def _relu6(net: Net, x: str) -> str:
    return net.add("Clip", x, net.constant(0.0), net.constant(6.0))


def run_file(path: Path, feed: Any, *names: str) -> list[Any]:
    """Run a file as its user would; ``names`` are tensors that it need not give by itself."""
    model = onnx.load(path)
    known = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in known)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(list(names) or None, {session.get_inputs()[0].name: feed})


def normalise(images: Pixels, mean: Any = (0.485, 0.456, 0.406), std: Any = (0.229, 0.224, 0.225)):
    """Normalise as torchvision's ToTensor and Normalize do: float32 (N, H, W, 3)."""
    pixels = images.astype(np.float32) / np.float32(255)
    return (pixels - np.array(mean, np.float32)) / np.array(std, np.float32)


def nchw(images: Any) -> Any:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
