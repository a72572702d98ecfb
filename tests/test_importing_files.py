"""Foreign files are not trusted: what they reach for, what they claim, where they are written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
from conftest import as_nobody
from foreign import SIZE, Net, body, nchw, normalise, run_file, simple
from onnx.external_data_helper import convert_model_to_external_data

from featpipe import load_backbone
from featpipe.backbones.catalog import read_catalog
from featpipe.backbones.gate import compare, realistic_images
from featpipe.backbones.importing import ImportOptions, ImportReport, import_backbone, reading
from featpipe.errors import BackboneError

IMAGES = realistic_images(3, SIZE, seed=9)


def imported(path: Path, **options: Any) -> ImportReport:
    return import_backbone(path, ImportOptions(models_dir=path.parent / "out", **options))


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(BackboneError) as error:
        imported(path, **options)
    assert not (path.parent / "out").exists()
    return str(error.value)


# External data.


@pytest.fixture
def apart(tmp_path: Path) -> Path:
    """Return a file whose weights lie in ``deep/weights.bin`` beside it."""
    path = simple(tmp_path / "plain.onnx")
    model = onnx.load(path)
    convert_model_to_external_data(model, location="deep/weights.bin", size_threshold=0)
    (tmp_path / "model" / "deep").mkdir(parents=True)
    onnx.save(model, tmp_path / "model" / "net.onnx")
    return tmp_path / "model" / "net.onnx"


def relocate(path: Path, **entries: str | None) -> None:
    """Change entries of the external data of the first tensor; None takes one away."""
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer[0]
    values = {entry.key: entry.value for entry in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, value in values.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


def test_weights_in_another_file_become_part_of_the_one_file(apart: Path) -> None:
    """What lies in the model's own folder is read, and the backbone is one file."""
    report = imported(apart)
    plain = run_file(apart.parent.parent / "plain.onnx", nchw(normalise(IMAGES)), "pooled")[0]
    (apart.parent / "deep" / "weights.bin").unlink()
    assert compare(plain, load_backbone(report.path).open_session("cpu").run(IMAGES)) > 0.999999


def test_weights_without_offset_and_length_are_a_whole_file(apart: Path) -> None:
    """The format leaves both out where a tensor has a file of its own."""
    model = onnx.load(apart, load_external_data=False)
    tensor = model.graph.initializer[0]
    size = 4 * 8 * 3 * 3 * 3
    data = (apart.parent / "deep" / "weights.bin").read_bytes()[:size]
    (apart.parent / "own.bin").write_bytes(data)
    assert tensor.external_data[1].value in {"0", ""} or tensor.external_data
    relocate(apart, location="own.bin", offset=None, length=None)
    plain = run_file(apart.parent.parent / "plain.onnx", nchw(normalise(IMAGES)), "pooled")[0]
    found = load_backbone(imported(apart).path).open_session("cpu").run(IMAGES)
    assert compare(plain, found) > 0.999999


@pytest.mark.parametrize(
    "location",
    ["../secret", "deep/../../secret", "{absolute}", "..\\secret", "C:\\secret", "", "\\\\host\\x"],
)
def test_weights_outside_of_the_folder_are_not_read(apart: Path, location: str) -> None:
    """No way up, no absolute path, on any system; the message has the place."""
    secret = apart.parent.parent / "secret"
    secret.write_bytes(bytes(10_000))
    location = location.format(absolute=secret)
    relocate(apart, location=location)
    assert refused(apart) == (
        f"{apart} keeps weights in '{location}', outside of its own folder: featpipe reads no such "
        "file; save the model as one file, or with its weights beside it"
    )


@pytest.mark.parametrize("link", ["file", "folder"])
def test_weights_behind_a_link_are_not_read(apart: Path, link: str) -> None:
    """A symbolic link is not followed, neither a file's nor a folder's."""
    elsewhere = apart.parent.parent / "elsewhere"
    inside = apart.parent / "deep"
    if link == "folder":
        inside.rename(elsewhere)
        inside.symlink_to(elsewhere)
    else:
        (inside / "weights.bin").rename(elsewhere)
        (inside / "weights.bin").symlink_to(elsewhere)
    assert refused(apart) == (
        f"{apart} keeps weights in 'deep/weights.bin', which is a symbolic link: featpipe follows "
        "none from a foreign file; put the file itself in its place"
    )


def test_a_model_behind_a_link_is_read_where_it_is_named(apart: Path) -> None:
    """The user may name a link to the folder of a model."""
    link = apart.parent.parent / "link"
    link.symlink_to(apart.parent)
    assert imported(link / apart.name).card.dimension == 12


def test_weights_that_are_missing_or_cut_short(apart: Path) -> None:
    """The message names both files."""
    weights = apart.parent / "deep" / "weights.bin"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    assert refused(apart) == (
        f"{apart} looks for 'c0' beyond the end of weights.bin: one of the two is cut short, or "
        "belongs to another"
    )
    weights.write_bytes(whole)
    relocate(apart, offset="-4")
    assert refused(apart).startswith(f"{apart} looks for 'c0' beyond the end of weights.bin: ")
    weights.unlink()
    assert refused(apart) == (
        f"{apart} keeps weights in 'deep/weights.bin', which is not there: put it beside the model"
    )


def test_weights_that_may_not_be_read(apart: Path, open_folder: Path) -> None:
    """A file without permission is named."""
    for path in (apart.parent, apart.parent / "deep"):
        path.chmod(0o777)
    weights = apart.parent / "deep" / "weights.bin"
    target = open_folder / "deep" / "weights.bin"
    target.parent.mkdir()
    target.parent.chmod(0o777)
    target.write_bytes(weights.read_bytes())
    target.chmod(0)
    path = open_folder / "net.onnx"
    path.write_bytes(apart.read_bytes())
    path.chmod(0o644)
    read_catalog()  # nobody may not enter every environment that the tests run in
    with as_nobody():
        assert refused(path) == f"cannot read {target}: Permission denied"


def test_more_weights_than_one_file_can_hold(apart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond 2 GB nothing is read; the limit is made small here."""
    weights = (apart.parent / "deep" / "weights.bin").stat().st_size
    message = (
        f"{apart} needs more than the 2 GB that one ONNX file can hold: featpipe's backbones are "
        "single files"
    )
    monkeypatch.setattr(reading, "MAX_FILE_BYTES", apart.stat().st_size + weights - 1)
    assert refused(apart) == message
    monkeypatch.setattr(reading, "MAX_FILE_BYTES", apart.stat().st_size - 1)
    assert refused(apart) == message


# Operators.


def test_an_operator_that_needs_a_library_is_refused(tmp_path: Path) -> None:
    """Custom domains are named, wherever the node stands; no library is ever loaded."""
    net = Net()
    net.add("Sneaky", body(net), domain="com.evil", out="y")
    path = net.save(tmp_path / "net.onnx", "y")
    assert refused(path) == (
        f"the backbone file {path} needs operators of the domain 'com.evil', which would need a "
        "custom library; featpipe loads none: export it with standard ONNX operators"
    )
    net = Net()
    net.add("EPContext", body(net), domain="com.microsoft", out="y", ep_cache_context="/etc/passwd")
    path = net.save(tmp_path / "net.onnx", "y")
    assert refused(path) == (
        f"the backbone file {path} contains the operator EPContext, which reads other files: "
        "export it with standard ONNX operators"
    )


def test_opsets_out_of_reach(tmp_path: Path) -> None:
    """Too new and too old are told with both numbers."""
    path = simple(tmp_path / "net.onnx")
    newest = onnx.defs.onnx_opset_version()
    model = onnx.load(path)
    model.opset_import[0].version = newest + 1
    onnx.save(model, path)
    assert refused(path) == (
        f"{path} uses opset {newest + 1}, newer than the {newest} that the installed onnx "
        f"{onnx.__version__} knows: upgrade onnx and onnxruntime, or write the file with opset "
        f"{newest} or lower"
    )
    model.opset_import[0].version = 6
    onnx.save(model, path)
    assert refused(path) == (
        f"{path} uses opset 6, older than the 7 that ONNX Runtime promises to read: convert it "
        "with onnx.version_converter.convert_version(model, 13)"
    )


def test_a_graph_that_onnx_runtime_does_not_load(tmp_path: Path) -> None:
    """Its first sentence is passed on, without codes."""
    net = Net()
    net.add("NoSuchOperator", body(net), out="y")
    path = net.save(tmp_path / "net.onnx", "y")
    message = refused(path)
    assert message.startswith(f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: ")
    assert "NoSuchOperator" in message
    assert "ONNXRuntimeError" not in message


def test_a_graph_that_goes_round_in_a_circle(tmp_path: Path) -> None:
    """It is refused before anybody runs it."""
    net = Net()
    body(net)
    net.add("Add", "map", "two", out="one")
    net.add("Relu", "one", out="two")
    path = net.save(tmp_path / "net.onnx", "two")
    assert refused(path) == f"{path} is damaged: its nodes read from each other in a circle"


def test_a_graph_that_fails_on_photographs(tmp_path: Path) -> None:
    """A size that the graph cannot take is told with the node."""
    net = Net()
    x = net.add("Reshape", body(net), net.constant([-1, 12 * 9 * 9], "int64"))
    net.add("MatMul", x, net.weights(12 * 9 * 9, 4), out="y")
    path = net.save(tmp_path / "net.onnx", "y", ("n", 3, "h", "w"))
    message = refused(path, size=SIZE)
    assert message.startswith(
        f"ONNX Runtime cannot run {path} on 1 photographs: Non-zero status code returned while "
        "running Reshape node. Name:'Reshape_8' Status Message: "
    )


# Files that are none.


@pytest.mark.parametrize("content", [b"", b"not onnx at all", bytes(range(256)) * 4])
def test_a_file_of_another_kind(tmp_path: Path, content: bytes) -> None:
    """Whatever it is, it is named."""
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    assert refused(path) == f"{path} is not an ONNX file, or it is cut short"


def test_a_truncated_file(tmp_path: Path) -> None:
    """Wherever it is cut, it is refused, and by a sentence."""
    path = simple(tmp_path / "net.onnx")
    whole = path.read_bytes()
    for length in range(1, len(whole) - 1, 611):
        path.write_bytes(whole[:length])
        assert refused(path) == f"{path} is not an ONNX file, or it is cut short"


def test_a_pytorch_file(tmp_path: Path) -> None:
    """A zip archive is told as what it is."""
    path = tmp_path / "net.pth"
    path.write_bytes(b"PK\x03\x04 and more")
    assert refused(path) == (
        f"{path} is a zip archive, as PyTorch and Keras write them, and no ONNX file: export the "
        "network to ONNX first (docs/importing.md)"
    )


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    """A path that is not there, and one that is no file."""
    path = tmp_path / "none.onnx"
    assert refused(path) == f"there is no file {path}: check the path"
    path.mkdir()
    assert refused(path) == f"cannot read {path}: Is a directory"


def test_what_has_no_end_is_not_read(tmp_path: Path) -> None:
    """A device and a pipe are refused before anything is read of them."""
    pipe = tmp_path / "pipe.onnx"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(BackboneError) as error:
            import_backbone(path, ImportOptions(models_dir=tmp_path / "out"))
        assert str(error.value) == (
            f"cannot read {path}: it is a device or a pipe: give the path of a file"
        )
    assert not (tmp_path / "out").exists()


def test_a_backbone_needs_no_import(tiny_backbone: Path, tmp_path: Path) -> None:
    """A featpipe file is told how it is used."""
    path = tmp_path / "net.onnx"
    path.write_bytes(tiny_backbone.read_bytes())
    assert refused(path) == (
        f"{path} is a featpipe backbone already: nothing has to be imported; use it with --model "
        f"{path}"
    )


# What is written, and where.


def test_the_name_comes_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything but letters, digits, ., _, + and - becomes _; the default place is the user's."""
    path = simple(tmp_path / "My net (v1.2).onnx")
    monkeypatch.setenv("FEATPIPE_MODELS", str(tmp_path / "models"))
    report = import_backbone(path)
    assert report.path == tmp_path / "models" / "My_net_v1.2.onnx"
    assert load_backbone("My_net_v1.2").card == report.card
    assert report.card.weights.startswith("My net (v1.2).onnx, SHA-256 ")
    report = import_backbone(path, ImportOptions(name="b", weights="our own", license="MIT"))
    assert (report.card.weights, report.card.license) == ("our own", "MIT")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "x" * 101])
def test_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    """A name is no path, and is looked at before it becomes part of one."""
    (tmp_path / "up.onnx").touch()
    path = simple(tmp_path / "net.onnx")
    assert refused(path, name=name) == (
        "a backbone's name must be letters, digits, '.', '_', '+' and '-' (100 at most), not "
        f"'{name[:100]}'"
    )


@pytest.mark.parametrize("name", ["efficientnet_lite0", "raw_pixels"])
def test_the_names_of_the_built_in_backbones_are_taken(tmp_path: Path, name: str) -> None:
    """Stores made with another backbone of that name would be mixed up."""
    path = simple(tmp_path / f"{name}.onnx")
    assert refused(path, replace=True) == (
        f"'{name}' is a backbone that came with featpipe: give another name with --name"
    )


def test_a_backbone_is_replaced_only_when_asked(tmp_path: Path) -> None:
    """An existing file stays as it is without ``--replace``."""
    path = simple(tmp_path / "net.onnx")
    first = imported(path)
    before = first.path.read_bytes()
    with pytest.raises(BackboneError) as error:
        imported(path, license="MIT")
    assert str(error.value) == (
        f"{first.path} exists already: give another name with --name, or overwrite it with "
        "--replace"
    )
    assert first.path.read_bytes() == before
    assert imported(path, license="MIT", replace=True).card.license == "MIT"
    assert first.path.read_bytes() != before


def test_a_file_does_not_overwrite_itself(tmp_path: Path) -> None:
    """A foreign file that lies in the folder of backbones stays."""
    path = simple(tmp_path / "net.onnx")
    with pytest.raises(BackboneError) as error:
        import_backbone(path, ImportOptions(models_dir=tmp_path, replace=True))
    assert str(error.value) == (
        f"{path} lies where the backbone 'net' would be written: give another name with --name, "
        "or another folder with --models-dir"
    )
    assert "featpipe.card" not in {p.key for p in onnx.load(path).metadata_props}


def test_the_same_file_gives_the_same_backbone(tmp_path: Path) -> None:
    """Bytes and fingerprint are the same, and nothing tells of this machine."""
    path = simple(tmp_path / "net.onnx", doc_string=f"exported on {tmp_path}")
    first, second = imported(path), imported(path, name="net", replace=True)
    assert first.card.fingerprint == second.card.fingerprint
    assert str(tmp_path).encode() not in second.path.read_bytes()
    assert first.to_json() == second.to_json()
    assert json.loads(json.dumps(first.to_json()))["card"]["name"] == "net"


def test_names_of_the_contract_in_a_foreign_file(tmp_path: Path) -> None:
    """Tensors that are called images, embedding and feature_map there are other ones."""
    net = Net()
    x = net.add("Identity", body(net, "images"), out="embedding")
    x = net.add("Flatten", net.add("GlobalAveragePool", x), out="feature_map")
    net.add("MatMul", x, net.weights(12, 4), out="embedding_of_the_file")
    path = net.save(tmp_path / "net.onnx", "embedding_of_the_file", image="images")
    report = imported(path)
    vectors, maps = run_file(path, nchw(normalise(IMAGES)), "feature_map", "embedding")
    session = load_backbone(report.path).open_session("cpu")
    assert compare(vectors, session.run(IMAGES)) > 0.999999
    assert compare(maps, session.feature_maps(IMAGES)) > 0.999999


def test_sizes_that_cannot_be(tmp_path: Path) -> None:
    """The card refuses a crop that is larger than what it is cut out of."""
    path = simple(tmp_path / "net.onnx")
    assert refused(path, resize=16) == (
        "the card of backbone net asks for a crop of 32 pixels from a shorter side of 16, "
        "antialias true: featpipe crops what it has resized with antialiasing, so the crop must "
        "not be larger"
    )
    assert refused(path, std=(0.0, 1.0, 1.0)) == (
        "the card of backbone net has a mean or std that cannot normalise anything: three finite "
        "numbers each, std above 0"
    )
