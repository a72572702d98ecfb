"""Card, contract and registry: what a backbone file must be, and how one is found."""

from __future__ import annotations

import json
import os
import runpy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

import featpipe
from featpipe.backbones import find_backbone, list_backbones, load_backbone
from featpipe.backbones.card import CARD_KEY, BackboneCard
from featpipe.backbones.contract import read_backbone, with_fingerprint
from featpipe.errors import BackboneError
from featpipe.types import ResizeRule

CARD = BackboneCard(
    name="tiny",
    weights="made by a test",
    license="Apache-2.0",
    dimension=27,
    resize=ResizeRule(resize=36, crop=32),
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    imagenet_top1=70.5,
    parameters=1,
    gflops=0.1,
    exporter={"onnx": "1"},
)


def edited(
    source: Path, target: Path, edit: Callable[[onnx.ModelProto], object], *, refit: bool = True
) -> Path:
    """Write a changed copy of a backbone; ``refit`` makes its fingerprint fit again."""
    model = onnx.load_model_from_string(source.read_bytes())
    edit(model)
    if refit:
        properties = {entry.key: entry.value for entry in model.metadata_props}
        card = BackboneCard.from_json(json.loads(properties[CARD_KEY]))
        card = with_fingerprint(card, model.SerializeToString())
        helper.set_model_props(model, {CARD_KEY: json.dumps(card.to_json())})
    target.write_bytes(model.SerializeToString())
    return target


def with_card(source: Path, target: Path, card: str | bytes) -> Path:
    """Write a copy of a backbone with another card."""
    text = card if isinstance(card, str) else card.decode("latin-1")
    return edited(
        source, target, lambda m: helper.set_model_props(m, {CARD_KEY: text}), refit=False
    )


def message(path: Path) -> str:
    with pytest.raises(BackboneError) as error:
        read_backbone(path)
    assert error.value.exit_code == 5
    return str(error.value)


# --- card -----------------------------------------------------------------------------------


def test_a_card_survives_json() -> None:
    """What `to_json` writes, `from_json` reads back unchanged, through real JSON."""
    assert BackboneCard.from_json(json.loads(json.dumps(CARD.to_json()))) == CARD
    assert CARD.input_size == 32


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"name": "../evil"},
            (
                "a backbone's name must be letters, digits, '.', '_', '+' and '-' (100 at most), "
                "not '../evil'"
            ),
        ),
        (
            {"weights": " "},
            (
                "the card of backbone tiny lacks 'weights': state where the weights come from and "
                "under which licence"
            ),
        ),
        (
            {"license": ""},
            (
                "the card of backbone tiny lacks 'license': state where the weights come from and "
                "under which licence"
            ),
        ),
        (
            {"dimension": 0},
            "the card of backbone tiny says dimension = 0: it must be between 1 and 65536",
        ),
        (
            {"resize": ResizeRule(resize=36, crop=-1)},
            "the card of backbone tiny says crop = -1: it must be between 1 and 65536",
        ),
        (
            {"std": (1.0, 0.0, 1.0)},
            (
                "the card of backbone tiny has a mean or std that cannot normalise anything: three "
                "finite numbers each, std above 0"
            ),
        ),
        (
            {"fingerprint": "ABC"},
            "the card of backbone tiny has a fingerprint that is not 32 hexadecimal digits",
        ),
    ],
)
def test_a_card_refuses_to_exist_without_what_matters(change: dict[str, Any], said: str) -> None:
    """Source, licence, dimension and a usable preprocessing are asked for by name."""
    with pytest.raises(BackboneError) as error:
        replace(CARD, **change)
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("name", 3, "name = 3, which is not a text"),
        ("dimension", True, "dimension = True, which is not a whole number"),
        ("dimension", 2.0, "dimension = 2.0, which is not a whole number"),
        ("resize", [1], "resize = [1], which is not an object"),
        ("mean", [1, 2], "mean = [1, 2], which is not three numbers"),
        ("std", [1, 2, "3"], "std = [1, 2, '3'], which is not three numbers"),
        ("gflops", "many", "gflops = 'many', which is not a number or null"),
        ("parameters", 1.5, "parameters = 1.5, which is not a whole number or null"),
        ("exporter", {"torch": 2}, "exporter = {'torch': 2}, which is not an object of texts"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(field: str, value: object, said: str) -> None:
    """The message has the field, what stands there and what should."""
    with pytest.raises(BackboneError) as error:
        BackboneCard.from_json({**CARD.to_json(), field: value})
    assert str(error.value) == f"the backbone's card has {said}"


def test_what_came_later_is_written_where_it_says_something() -> None:
    """Layer, note and squash survive JSON; a card without them reads as it always did."""
    card = replace(CARD, layer="features", note="by hand", resize=ResizeRule(36, 32, squash=True))
    assert BackboneCard.from_json(json.loads(json.dumps(card.to_json()))) == card
    assert '"squash":true' in card.preprocessing()
    plain = CARD.to_json()
    assert {"layer", "note"}.isdisjoint(plain)
    assert "squash" not in plain["resize"]
    assert BackboneCard.from_json(plain) == CARD


def test_a_wrong_resize_rule_is_named() -> None:
    """Fields inside ``resize`` are checked like the others."""
    rule = {"resize": 36, "crop": 32, "interpolation": "magic", "antialias": True}
    with pytest.raises(BackboneError) as error:
        BackboneCard.from_json({**CARD.to_json(), "resize": rule})
    assert str(error.value) == (
        "the backbone's card has interpolation = 'magic', which is not one of nearest, bilinear, "
        "bicubic, lanczos"
    )


def test_a_missing_field_is_named() -> None:
    """A card without a field says which one."""
    value = CARD.to_json()
    del value["license"]
    with pytest.raises(BackboneError) as error:
        BackboneCard.from_json(value)
    assert str(error.value) == (
        "the backbone's card lacks 'license': it was not written by featpipe, or was edited"
    )


def test_a_newer_card_says_so() -> None:
    """A card of a later featpipe asks for an upgrade instead of being misread."""
    with pytest.raises(BackboneError) as error:
        BackboneCard.from_json({**CARD.to_json(), "format": 2})
    assert str(error.value) == (
        "the backbone's card has format 2, newer than the 1 that this featpipe reads: "
        "upgrade featpipe"
    )


# --- contract -------------------------------------------------------------------------------


def test_a_good_file_is_read_whole(tiny_backbone: Path) -> None:
    """The tiny backbone keeps the contract; its bytes are handed on as they were checked."""
    file = read_backbone(tiny_backbone)
    assert (file.card.name, file.card.dimension, file.has_feature_map) == ("tiny", 27, False)
    assert file.data == tiny_backbone.read_bytes()


def test_the_fingerprint_is_independent_of_the_place(tiny_backbone: Path, tmp_path: Path) -> None:
    """A moved or renamed file keeps its fingerprint."""
    moved = shutil.copy(tiny_backbone, tmp_path / "other name.onnx")
    assert load_backbone(moved).fingerprint == load_backbone(tiny_backbone).fingerprint


def test_the_fingerprint_depends_on_the_preprocessing(tiny_backbone: Path) -> None:
    """The same graph with another resize rule is another backbone; another licence is not."""
    card, data = read_backbone(tiny_backbone).card, tiny_backbone.read_bytes()
    other = with_fingerprint(replace(card, resize=ResizeRule(resize=40, crop=32)), data)
    assert other.fingerprint != card.fingerprint
    assert with_fingerprint(replace(card, license="MIT"), data).fingerprint == card.fingerprint


def test_an_edited_weight_is_found(tiny_backbone: Path, tmp_path: Path) -> None:
    """One changed weight makes the fingerprint differ; both are in the message."""

    def edit(model: onnx.ModelProto) -> None:
        model.graph.initializer[0].float_data[0] += 1

    path = edited(tiny_backbone, tmp_path / "edited.onnx", edit, refit=False)
    card = read_backbone(tiny_backbone).card
    found = with_fingerprint(card, path.read_bytes()).fingerprint
    assert message(path) == (
        f"the backbone file {path} is damaged or was edited: its fingerprint is {found}, its "
        f"card says {card.fingerprint}: install or export it again"
    )


def test_a_file_that_is_not_onnx_is_named(tmp_path: Path) -> None:
    """Text, an image or half a file is 'damaged', with the file's name."""
    path = tmp_path / "text.onnx"
    path.write_bytes(b"this is not a model\n" * 50)
    assert message(path) == (
        f"the backbone file {path} is damaged: it is not an ONNX file, or it is cut short"
    )


def test_a_truncated_file_is_named(tiny_backbone: Path, tmp_path: Path) -> None:
    """A download that broke off is recognised."""
    path = tmp_path / "half.onnx"
    path.write_bytes(tiny_backbone.read_bytes()[:200])
    assert message(path) == (
        f"the backbone file {path} is damaged: it is not an ONNX file, or it is cut short"
    )


def test_an_empty_file_carries_no_card(tmp_path: Path) -> None:
    """Zero bytes are a valid empty message to protobuf, and no backbone."""
    path = tmp_path / "empty.onnx"
    path.write_bytes(b"")
    assert message(path) == (
        f"the backbone file {path} carries no featpipe card: it is an ONNX file of another kind; "
        "use a backbone that featpipe has exported"
    )


@pytest.mark.parametrize("card", ["", "[1]", "{", "[" * 30000, "x" * 70000])
def test_a_card_that_is_no_json_object_is_refused(
    tiny_backbone: Path, tmp_path: Path, card: str
) -> None:
    """Broken, deeply nested and oversized cards all end in one sentence."""
    path = with_card(tiny_backbone, tmp_path / "card.onnx", card)
    assert message(path) == (
        f"the backbone file {path} has a card that is not a JSON object: export it again"
    )


def test_a_card_with_a_field_missing_names_file_and_field(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    """The card's own complaint comes with the file's name."""
    path = with_card(tiny_backbone, tmp_path / "card.onnx", '{"format": 1}')
    assert message(path) == (
        f"the backbone file {path} cannot be used: the backbone's card lacks 'name': it was not "
        "written by featpipe, or was edited"
    )


def test_external_data_is_refused(tiny_backbone: Path, tmp_path: Path) -> None:
    """A tensor that lies in another file (here: outside the folder) is never read."""

    def edit(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("float_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../../etc/passwd")

    path = edited(tiny_backbone, tmp_path / "external.onnx", edit)
    assert message(path) == (
        f"the backbone file {path} keeps weights in other files, which featpipe does not read: "
        "save it as one file without external data"
    )


def nested(depth: int, inner: onnx.NodeProto) -> onnx.NodeProto:
    """Return ``inner`` inside ``depth`` levels of If."""
    for _ in range(depth):
        branch = helper.make_graph([inner], "branch", [], [])
        inner = helper.make_node("If", ["c"], ["x"], then_branch=branch, else_branch=branch)
    return inner


def external_constant(sparse: bool) -> onnx.NodeProto:
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[1], name="t")
    tensor.external_data.add(key="location", value="weights.bin")
    if not sparse:
        return helper.make_node("Constant", [], ["x"], value=tensor)
    index = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    return helper.make_node(
        "Constant", [], ["x"], sparse_value=helper.make_sparse_tensor(tensor, index, [1])
    )


@pytest.mark.parametrize("sparse", [False, True])
def test_external_data_is_found_in_graphs_inside_graphs(
    tiny_backbone: Path, tmp_path: Path, sparse: bool
) -> None:
    """Constants of inner graphs, dense and sparse, are looked at as well."""
    node = nested(3, external_constant(sparse))
    path = edited(tiny_backbone, tmp_path / "deep.onnx", lambda m: m.graph.node.append(node))
    assert "keeps weights in other files" in message(path)


def test_a_sparse_initializer_with_external_data_is_found(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    """Sparse initializers are weights, too."""
    tensor = TensorProto(data_type=TensorProto.FLOAT, dims=[1], name="t")
    tensor.data_location = TensorProto.EXTERNAL
    index = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    sparse = helper.make_sparse_tensor(tensor, index, [1])
    path = edited(
        tiny_backbone, tmp_path / "s.onnx", lambda m: m.graph.sparse_initializer.append(sparse)
    )
    assert "keeps weights in other files" in message(path)


def test_graphs_nested_without_end_are_refused(tiny_backbone: Path, tmp_path: Path) -> None:
    """Nesting that only serves to exhaust a reader ends as a damaged file."""
    node = helper.make_node("Identity", ["x"], ["y"])
    for _ in range(20):
        branch = helper.make_graph([node], "branch", [], [])
        node = helper.make_node("If", ["c"], ["x"], then_branch=branch)
    path = edited(tiny_backbone, tmp_path / "n.onnx", lambda m: m.graph.node.append(node))
    assert message(path) == (
        f"the backbone file {path} is damaged: it is not an ONNX file, or it is cut short"
    )


def test_an_operator_of_a_custom_library_is_refused(tiny_backbone: Path, tmp_path: Path) -> None:
    """A foreign domain would need a library; featpipe loads none, and names the domain."""
    node = helper.make_node("Evil", ["images"], ["x"], domain="com.example\n")
    path = edited(tiny_backbone, tmp_path / "custom.onnx", lambda m: m.graph.node.append(node))
    assert message(path) == (
        f"the backbone file {path} needs operators of the domain 'com.example\\n', which would "
        "need a custom library; featpipe loads none: export it with standard ONNX operators"
    )


def test_an_operator_that_loads_files_is_refused(tiny_backbone: Path, tmp_path: Path) -> None:
    """EPContext names a compiled file that a provider would load."""
    node = helper.make_node("EPContext", [], ["x"], domain="com.microsoft")
    path = edited(tiny_backbone, tmp_path / "context.onnx", lambda m: m.graph.node.append(node))
    assert message(path) == (
        f"the backbone file {path} contains the operator EPContext, which reads other files: "
        "export it with standard ONNX operators"
    )


def test_a_local_function_is_looked_into(tiny_backbone: Path, tmp_path: Path) -> None:
    """Functions in the file may have a domain of their own, but only standard operators."""

    def add(domain: str) -> Callable[[onnx.ModelProto], None]:
        def edit(model: onnx.ModelProto) -> None:
            node = helper.make_node("Relu", ["a"], ["b"], domain=domain)
            opset = [helper.make_opsetid("", 18)]
            model.functions.append(helper.make_function("local", "F", ["a"], ["b"], [node], opset))
            model.graph.node.append(helper.make_node("F", ["float"], ["z"], domain="local"))

        return edit

    good = edited(tiny_backbone, tmp_path / "good.onnx", add(""))
    assert read_backbone(good).card.name == "tiny"
    bad = edited(tiny_backbone, tmp_path / "bad.onnx", add("evil"))
    assert "needs operators of the domain 'evil'" in message(bad)


def set_shape(value: onnx.ValueInfoProto, shape: list[Any], kind: int = TensorProto.FLOAT) -> None:
    value.CopyFrom(helper.make_tensor_value_info(value.name, kind, shape))


NEEDS_INPUT = "one input 'images', uint8, (N, 32, 32, 3) with N dynamic is needed"
NEEDS_OUTPUT = "an output 'embedding', float32, (N, 27) with N dynamic is needed"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (
            lambda m: setattr(m.graph.input[0], "name", "pixels\x1b"),
            f"{NEEDS_INPUT}, its inputs are: pixels\\x1b",
        ),
        (lambda m: m.graph.ClearField("input"), f"{NEEDS_INPUT}, its inputs are: none"),
        (
            lambda m: set_shape(m.graph.input[0], ["batch", 32, 32, 3]),
            f"{NEEDS_INPUT}, it has 'images', float32, (batch, 32, 32, 3)",
        ),
        (
            lambda m: set_shape(m.graph.input[0], [1, 32, 32, 3], TensorProto.UINT8),
            f"{NEEDS_INPUT}, it has 'images', uint8, (1, 32, 32, 3)",
        ),
        (
            lambda m: set_shape(m.graph.input[0], [None, 3, 32, 32], TensorProto.BOOL),
            f"{NEEDS_INPUT}, it has 'images', ONNX type 9, (?, 3, 32, 32)",
        ),
        (
            lambda m: setattr(m.graph.output[0], "name", "out"),
            f"{NEEDS_OUTPUT}, its outputs are: out",
        ),
        (
            lambda m: set_shape(m.graph.output[0], ["batch", 28]),
            f"{NEEDS_OUTPUT}, it has 'embedding', float32, (batch, 28)",
        ),
        (
            lambda m: set_shape(m.graph.output[0], ["batch", 27], TensorProto.FLOAT16),
            f"{NEEDS_OUTPUT}, it has 'embedding', float16, (batch, 27)",
        ),
        (
            lambda m: m.graph.output.append(
                helper.make_tensor_value_info("feature_map", TensorProto.FLOAT, ["batch", 3])
            ),
            (
                "an output 'feature_map' must be float32, (N, C, h, w), it has 'feature_map', "
                "float32, (batch, 3)"
            ),
        ),
    ],
)
def test_other_inputs_and_outputs_break_the_contract(
    tiny_backbone: Path, tmp_path: Path, edit: Callable[[onnx.ModelProto], object], said: str
) -> None:
    """The message has what the contract asks for and what the file has instead."""
    path = edited(tiny_backbone, tmp_path / "io.onnx", edit)
    assert message(path) == f"the backbone file {path} breaks the contract: {said}"


def test_a_feature_map_is_welcome(tiny_backbone: Path, tmp_path: Path) -> None:
    """The optional second output is recognised."""
    value = helper.make_tensor_value_info("feature_map", TensorProto.FLOAT, ["batch", 3, 3, 3])
    node = helper.make_node("Identity", ["pooled"], ["feature_map"])

    def edit(model: onnx.ModelProto) -> None:
        model.graph.node.append(node)
        model.graph.output.append(value)

    path = edited(tiny_backbone, tmp_path / "map.onnx", edit)
    assert read_backbone(path).has_feature_map


def test_a_missing_and_an_unreadable_file_are_named(tmp_path: Path) -> None:
    """No file, and a folder in its place."""
    assert message(tmp_path / "none.onnx") == (
        f"there is no backbone file {tmp_path / 'none.onnx'}: check the path"
    )
    assert message(tmp_path) == f"cannot read the backbone file {tmp_path}: Is a directory"


def test_a_pipe_is_no_backbone(tmp_path: Path) -> None:
    """Nobody would write into it: it is refused, not waited for."""
    path = tmp_path / "pipe.onnx"
    os.mkfifo(path)
    assert message(path) == (
        f"cannot read the backbone file {path}: it is a device or a pipe: give the path of a file"
    )
    with pytest.raises(BackboneError) as error:
        find_backbone(path)
    assert str(error.value) == f"there is no backbone file {path}: check the path"


def test_a_file_of_more_than_two_gigabytes_is_not_read(tmp_path: Path) -> None:
    """A sparse file of 2 GB is refused by its size."""
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)
    assert message(path) == (
        f"the backbone file {path} is larger than 2 GB, more than one ONNX file can hold"
    )


@given(cut=st.integers(0, 2000), at=st.integers(0, 2000), byte=st.integers(0, 255))
def test_no_damage_gets_through(
    tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory, cut: int, at: int, byte: int
) -> None:
    """A changed byte or a cut leaves the same backbone, or ends in a BackboneError."""
    data = bytearray(tiny_backbone.read_bytes())
    good = read_backbone(tiny_backbone).card
    data[at % len(data)] = byte
    path = tmp_path_factory.mktemp("damage") / "x.onnx"
    path.write_bytes(bytes(data[: len(data) - cut % 3]))
    try:
        card = read_backbone(path).card
    except BackboneError as error:
        assert str(path) in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert card.fingerprint == good.fingerprint


# --- registry -------------------------------------------------------------------------------


def test_the_built_in_backbone_needs_no_name() -> None:
    """None and its name find the same file, which is listed."""
    path = find_backbone()
    assert path == find_backbone("efficientnet_lite0") == list_backbones()["efficientnet_lite0"]
    assert path.name == "efficientnet_lite0.onnx"


def test_an_environment_variable_adds_folders_in_front(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FEATPIPE_MODELS is searched first, folder by folder; a missing one does no harm."""
    first, second = tmp_path / "first", tmp_path / "second"
    second.mkdir()
    shutil.copy(tiny_backbone, second / "tiny.onnx")
    monkeypatch.setenv("FEATPIPE_MODELS", os.pathsep.join([str(first), str(second)]))
    assert find_backbone("tiny") == second / "tiny.onnx"
    assert list(list_backbones()) == ["efficientnet_lite0", "raw_pixels", "tiny"]


def test_the_user_folder_is_searched(tiny_backbone: Path) -> None:
    """``featpipe/models`` in the user's data folder holds the user's own backbones."""
    folder = Path(os.environ["HOME"]) / ".local" / "share" / "featpipe" / "models"
    folder.mkdir(parents=True)
    shutil.copy(tiny_backbone, folder / "mine.onnx")
    assert find_backbone("mine") == folder / "mine.onnx"


def test_a_path_is_taken_as_it_is(tiny_backbone: Path) -> None:
    """A path as text or as Path finds that file."""
    assert find_backbone(str(tiny_backbone)) == find_backbone(tiny_backbone) == tiny_backbone


def test_an_unknown_name_brings_the_nearest() -> None:
    """A slip of the keyboard is answered with the name that was meant."""
    with pytest.raises(BackboneError) as error:
        find_backbone("efficientnet-lite")
    assert str(error.value) == (
        "there is no backbone 'efficientnet-lite': did you mean efficientnet_lite2 or "
        "efficientnet_lite1 or efficientnet_lite0? featpipe models lists all that can be had; the "
        "path of an .onnx file that featpipe has written may be given, too"
    )


def test_a_name_far_from_all_brings_the_list() -> None:
    """Where nothing is near, all there are is told; control characters are escaped."""
    with pytest.raises(BackboneError) as error:
        find_backbone("zzz\n")
    assert str(error.value) == (
        "there is no backbone 'zzz\\n': there are: efficientnet_lite0, raw_pixels. "
        "featpipe models lists all that can be had; the path of an .onnx file that featpipe has "
        "written may be given, too"
    )


@pytest.mark.parametrize("name", ["x" * 300, "timm/" + "x" * 300])
def test_a_name_that_no_file_can_have_is_unknown(name: str) -> None:
    """It is cut to the length that names have, and no file of that name is looked for."""
    with pytest.raises(BackboneError) as error:
        load_backbone(name)
    assert str(error.value) == (
        f"there is no backbone '{name[:100]}': there are: efficientnet_lite0, raw_pixels. "
        "featpipe models lists all that can be had; the path of an .onnx file that featpipe has "
        "written may be given, too"
    )
    path = f"{name}.onnx"
    with pytest.raises(BackboneError) as error:
        load_backbone(path)
    assert str(error.value) == f"there is no backbone file {path}: check the path"


def test_a_path_that_is_no_onnx_file_is_refused(tmp_path: Path) -> None:
    """A folder or a checkpoint is no backbone, and a missing file is missing."""
    with pytest.raises(BackboneError) as error:
        find_backbone(tmp_path / "weights.pth")
    assert str(error.value) == (
        f"{tmp_path / 'weights.pth'} is neither the name of a backbone nor an .onnx file: "
        "give one of efficientnet_lite0, raw_pixels, or the path of an .onnx file"
    )
    with pytest.raises(BackboneError) as error:
        find_backbone("models/none.onnx")
    assert str(error.value) == "there is no backbone file models/none.onnx: check the path"


def test_the_library_names_what_it_loads() -> None:
    """`featpipe.load_backbone` gives name, dimension, fingerprint and a readable repr."""
    backbone = featpipe.load_backbone()
    assert (backbone.name, backbone.dimension) == ("efficientnet_lite0", 1280)
    assert repr(backbone) == (
        "<Backbone efficientnet_lite0: 224 pixels to 1280 numbers, fingerprint "
        f"{backbone.fingerprint}>"
    )


def test_raw_pixels_are_a_backbone_too() -> None:
    """The baseline gives the pixels, scaled to 0 … 1, row by row; its tool writes it again."""
    backbone = load_backbone("raw_pixels")
    images = np.arange(2 * 32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(2, 32, 32, 3)
    vectors = backbone.open_session("cpu").run(images)
    assert (vectors == images.reshape(2, -1) / np.float32(255)).all()
    tool = Path(__file__).parent.parent / "tools" / "make_raw_pixels.py"
    assert runpy.run_path(str(tool))["build"]() == backbone.path.read_bytes()
