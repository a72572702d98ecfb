"""From a backbone and a folder of images to a smaller backbone, and what is said of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Result, as_nobody
from convnet import SIDE, build_convnet
from onnx import numpy_helper
from PIL import Image

from featpipe import load_backbone
from featpipe.backbones.card import CARD_KEY, QUANTISER
from featpipe.backbones.contract import with_fingerprint
from featpipe.backbones.gate import photographs
from featpipe.backbones.quantize import Runner, int8, observe, prepare
from featpipe.backbones.quantize.sensitivity import cosines
from featpipe.errors import BackboneError, HeadError, LabelError, SourceError, WriteError
from featpipe.quantization import (
    QuantizeOptions,
    draw_sample,
    quantize,
)
from featpipe.quantization import run as running
from featpipe.quantization.compare import measure_heads, pair
from featpipe.sources import open_source
from featpipe.types import Progress, ResizeRule

RULE = ResizeRule(resize=36, crop=SIDE)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Return a folder of backbones with a small convolutional one in it."""
    folder = tmp_path / "models"
    folder.mkdir()
    build_convnet(folder / "convnet.onnx")
    return folder


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 42 pieces of photographs in two classes, cut from different photographs."""
    root = tmp_path_factory.mktemp("pieces") / "pieces"
    for number, pixels in enumerate(photographs(42, 64)):
        folder = root / ("first" if number % 7 < 3 else "second")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return root


FAST = QuantizeOptions(method="percentile", float_layers=0, images=32)


# What is written


def test_an_int8_backbone_of_its_own(models: Path, pieces: Path) -> None:
    """It is found by its name, has a fingerprint of its own, and is close to the float one."""
    report = quantize("convnet", pieces, models_dir=models)
    small, large = load_backbone("convnet_int8", models), load_backbone("convnet", models)
    assert report.path == small.path == models / "convnet_int8.onnx"
    assert report.card == small.card
    assert small.fingerprint != large.fingerprint
    images = photographs(30, SIDE)
    vectors = [Runner(b.path.read_bytes()).embed(images) for b in (large, small)]
    assert cosines(*vectors).min() > 0.99
    assert report.cosine_mean >= 0.995
    assert 0.9 < report.cosine_min <= report.cosine_mean
    assert (report.images, report.held) == (34, 8)
    assert report.size_after == small.path.stat().st_size
    assert min(report.speed_before, report.speed_after) > 0


def test_the_card_tells_where_it_comes_from(models: Path, pieces: Path) -> None:
    """Weights, licence and preprocessing are the float backbone's; the note says what was done."""
    report = quantize("convnet", pieces, options=FAST, models_dir=models)
    before, after = load_backbone("convnet", models).card, report.card
    for field in ("weights", "license", "dimension", "resize", "mean", "std", "imagenet_top1"):
        assert getattr(after, field) == getattr(before, field)
    assert after.exporter["tests"] == "1"
    assert after.exporter[QUANTISER].startswith("onnxruntime 1.")
    assert after.note == (
        f"convnet ({before.fingerprint}) in 8 bits: static QDQ, weights signed with a scale for "
        "every channel, activations unsigned, ranges by percentile from 32 images of pieces. "
        "Layers in float: none. Cosine to fp32 on 8 other images: mean "
        f"{report.chosen.cosine_mean:.4f}, minimum {report.chosen.cosine_min:.4f}."
    )


def test_the_same_images_give_the_same_file(models: Path, pieces: Path) -> None:
    """A second run replaces the file by itself."""
    first = quantize("convnet", pieces, options=FAST, models_dir=models).path.read_bytes()
    assert quantize("convnet", pieces, options=FAST, models_dir=models).path.read_bytes() == first


def test_fp16_needs_no_images(models: Path) -> None:
    """Half-size weights are measured on the photographs that come with featpipe."""
    options = QuantizeOptions(precision="fp16")
    report = quantize("convnet", options=options, models_dir=models)
    assert report.path.name == "convnet_fp16.onnx"
    assert QUANTISER not in report.card.exporter
    assert (report.images, report.held) == (0, 21)
    assert report.cosine_min > 0.9999
    assert report.notes == ()
    assert report.card.note == (
        f"Weights of convnet ({load_backbone('convnet', models).fingerprint}) stored as 16-bit "
        "floats; the arithmetic is in 32 bits."
    )
    assert load_backbone("convnet_fp16", models).fingerprint == report.card.fingerprint


def test_fp16_is_measured_on_images_and_calibrated_on_none(models: Path, pieces: Path) -> None:
    """A folder of one's own may be given: a part of it is measured on, nothing is calibrated."""
    options = QuantizeOptions(precision="fp16", images=32)
    report = quantize("convnet", pieces, options=options, models_dir=models)
    assert (report.images, report.held, report.notes) == (0, 8, ())


def test_layers_left_in_float_are_named(models: Path, pieces: Path) -> None:
    """A number asks for so many of the dearest; the report and the card name them."""
    options = QuantizeOptions(method="minmax", float_layers=2, images=32)
    report = quantize("convnet", pieces, options=options, models_dir=models)
    assert len(report.float_layers) == 2
    assert set(report.float_layers) < {"stem", "depthwise", "project", "head"}
    assert f"Layers in float: {', '.join(report.float_layers)}." in str(report.card.note)
    assert [v.float_layers for v in report.tried] == [0, 2]
    assert report.tried[1].cosine_mean > report.tried[0].cosine_mean


def test_auto_tries_all_methods_and_takes_the_best(models: Path, pieces: Path) -> None:
    """Every variant that was tried stands in the report with its cosine."""
    options = QuantizeOptions(float_layers=0)
    report = quantize("convnet", pieces, options=options, models_dir=models)
    tried = {variant.method: variant.cosine_mean for variant in report.tried}
    assert set(tried) == {"minmax", "percentile", "entropy"}
    assert tried[report.chosen.method] == max(tried.values())


def test_auto_leaves_layers_in_float_until_it_is_near_enough(
    models: Path, pieces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the aim is missed, the ladder is climbed as far as half of the layers."""
    monkeypatch.setattr("featpipe.quantization.choice.AIM", 1.0)
    options = QuantizeOptions(method="minmax")
    report = quantize("convnet", pieces, options=options, models_dir=models)
    assert [v.float_layers for v in report.tried] == [0, 2]
    assert len(report.float_layers) == 2


def test_progress_goes_through_all_stages(models: Path, pieces: Path) -> None:
    """Each stage begins after the one before and reaches its end."""
    told: list[Progress] = []
    options = QuantizeOptions(float_layers=1, images=24)
    quantize("convnet", pieces, options=options, models_dir=models, progress=told.append)
    stages = list(dict.fromkeys(p.stage for p in told))
    assert stages == ["reading", "calibrating", "trying methods", "weighing layers"]
    for stage in stages:
        last = [p for p in told if p.stage == stage][-1]
        assert last.done == last.total


# What is refused


def test_an_unknown_backbone_is_refused(models: Path, pieces: Path) -> None:
    """Before any image is read."""
    with pytest.raises(BackboneError, match=r"^there is no backbone 'convnot'"):
        quantize("convnot", pieces, models_dir=models)


def test_int8_without_images_is_refused(models: Path) -> None:
    """The message names the option."""
    with pytest.raises(SourceError) as error:
        quantize("convnet", models_dir=models)
    assert str(error.value) == (
        "int8 is calibrated on images: give a folder of those that will be embedded with "
        "--calibrate"
    )


def test_a_folder_without_images_is_refused(models: Path, tmp_path: Path) -> None:
    """The message says what is in it instead."""
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("nothing")
    with pytest.raises(SourceError) as error:
        quantize("convnet", empty, models_dir=models)
    assert str(error.value) == (
        f"there is no image in {empty} (left out 1 files whose suffix is not an image's: 1 .txt): "
        "give a folder with images, a table of paths, or an image file"
    )
    assert sorted(p.name for p in models.iterdir()) == ["convnet.onnx"]


def test_too_few_images_are_refused(models: Path, pieces: Path, tmp_path: Path) -> None:
    """Doubles and broken files do not count, and the first broken one is named."""
    few = tmp_path / "few"
    few.mkdir()
    for number, path in enumerate(sorted(pieces.rglob("*.png"))[:12]):
        shutil.copy(path, few / f"{number}.png")
        shutil.copy(path, few / f"{number}-again.png")
    (few / "broken.png").write_bytes(b"")
    with pytest.raises(SourceError) as error:
        quantize("convnet", few, models_dir=models)
    assert str(error.value) == (
        f"{few} has 12 different images that can be used, of 25 that are listed, and "
        "quantisation needs 20 (first: broken.png: the file is empty (0 bytes)): give a folder "
        "with more images of the kind that will be embedded"
    )


def test_what_has_no_layers_is_refused(models: Path, pieces: Path, tiny_backbone: Path) -> None:
    """The baseline without a network stays as it is."""
    with pytest.raises(BackboneError, match=r"^tiny has no convolution and no matrix product"):
        quantize(tiny_backbone, pieces, models_dir=models)
    assert not (models / "tiny_int8.onnx").exists()


def test_a_quantised_backbone_is_refused(models: Path, pieces: Path) -> None:
    """int8 of int8 would only lose more."""
    quantize("convnet", pieces, options=FAST, models_dir=models)
    with pytest.raises(BackboneError, match=r"^convnet_int8 is quantised already "):
        quantize("convnet_int8", pieces, options=FAST, models_dir=models)


def test_it_does_not_replace_its_source(models: Path, pieces: Path) -> None:
    """The float file is what one goes back to."""
    before = (models / "convnet.onnx").read_bytes()
    options = QuantizeOptions(name="convnet")
    with pytest.raises(BackboneError) as error:
        quantize("convnet", pieces, options=options, models_dir=models)
    assert str(error.value) == (
        "the new backbone would take the place of the one that it is made of, "
        f"{models / 'convnet.onnx'}: give another --name"
    )
    assert (models / "convnet.onnx").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("efficientnet_lite0", "is a backbone that came with featpipe"),
        ("resnet50", "stands for published weights (IMAGENET1K_V1)"),
    ],
)
def test_a_name_that_means_something_else_is_refused(models: Path, name: str, what: str) -> None:
    """Smaller weights must not be found where the published ones are asked for."""
    with pytest.raises(BackboneError) as error:
        quantize("convnet", options=QuantizeOptions(precision="fp16", name=name), models_dir=models)
    assert str(error.value) == f"'{name}' {what}: give another name with --name"
    assert sorted(p.name for p in models.iterdir()) == ["convnet.onnx"]


def test_a_name_that_gets_too_long_is_explained(models: Path, pieces: Path) -> None:
    """Nobody typed the name that is refused; the message says where to give another."""
    build_convnet(models / f"{'x' * 97}.onnx", "x" * 97)
    with pytest.raises(BackboneError) as error:
        quantize("x" * 97, pieces, models_dir=models)
    assert str(error.value) == (
        f"{'x' * 97}_int8 would be the name of the new backbone, 102 letters where 100 are the "
        "most: give a shorter one with --name"
    )


def test_all_layers_in_float_are_refused(models: Path, pieces: Path) -> None:
    """The result would be as large as before, and be called int8."""
    options = QuantizeOptions(float_layers=4)
    with pytest.raises(BackboneError) as error:
        quantize("convnet", pieces, options=options, models_dir=models)
    assert str(error.value) == (
        "convnet has 4 layers, and 4 left in float leave none for int8: lower --float-layers, or "
        "leave it out"
    )


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_vectors_that_are_not_finite_are_refused(
    models: Path, pieces: Path, precision: str
) -> None:
    """The fault is the backbone's, and the message says so."""
    model = onnx.load(models / "convnet.onnx")
    bias = next(t for t in model.graph.initializer if t.name == "head.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(24, np.nan, np.float32), "head.bias"))
    card = with_fingerprint(
        load_backbone("convnet", models).card, model.SerializeToString(deterministic=True)
    )
    onnx.helper.set_model_props(model, {CARD_KEY: json.dumps(card.to_json())})
    onnx.save(model, models / "convnet.onnx")
    with pytest.raises(BackboneError) as error:
        options = QuantizeOptions(precision=precision)
        quantize("convnet", pieces, options=options, models_dir=models)
    assert str(error.value) == (
        "convnet gives vectors with NaN or infinity: nothing was written; its weights are "
        "probably wrong"
    )


def test_a_name_cannot_lead_elsewhere(models: Path, pieces: Path) -> None:
    """It is checked before it becomes part of a path."""
    with pytest.raises(BackboneError, match=r"^a backbone's name must be letters, digits"):
        quantize("convnet", pieces, options=QuantizeOptions(name="../x"), models_dir=models)


def test_what_is_too_far_from_float_is_not_written(
    models: Path, pieces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has the figure, what was needed, and two ways out."""
    monkeypatch.setattr(running, "FLOOR", 1.1)
    with pytest.raises(BackboneError) as error:
        quantize("convnet", pieces, options=FAST, models_dir=models)
    beginning, _, rest = str(error.value).partition(" on average ")
    assert beginning.startswith("convnet does not bear int8: the cosine to its fp32 vectors is ")
    assert rest == (
        "where 1.1 is needed, with 0 layers left in float: nothing was written; raise "
        "--float-layers, or take --precision fp16"
    )
    assert sorted(p.name for p in models.iterdir()) == ["convnet.onnx"]


def test_integers_that_overflow_are_not_written(
    models: Path, pieces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where weights have all 8 bits, a processor without VNNI gives other vectors."""
    everything = int8.safe_scales

    def unbounded(rows: np.ndarray, **_: bool) -> np.ndarray:
        return everything(rows, pairs=False)

    monkeypatch.setattr(int8, "safe_scales", unbounded)
    ready = prepare((models / "convnet.onnx").read_bytes(), "convnet")
    images = draw_sample(open_source(pieces), RULE, 32)
    ranges = observe(ready, images.calibrate).ranges("percentile")
    data = int8.quantize_int8(ready, ranges).SerializeToString()
    own, exact = Runner(data), Runner(data, exact=True)
    if (own.embed(images.held) == exact.embed(images.held)).all():
        pytest.skip("this processor's integers do not overflow (VNNI, or no x86)")
    with pytest.raises(BackboneError) as error:
        quantize("convnet", pieces, options=FAST, models_dir=models)
    beginning, _, rest = str(error.value).partition(" (")
    assert beginning == (
        "the int8 form of convnet_int8 gives other vectors with this processor's integer kernels "
        "than with exact ones"
    )
    assert rest.endswith(
        " % of the numbers): nothing was written; take --precision fp16, and report it"
    )
    assert sorted(p.name for p in models.iterdir()) == ["convnet.onnx"]


def test_a_folder_that_cannot_be_written_is_found_out_first(
    models: Path, pieces: Path, open_folder: Path
) -> None:
    """Not after minutes of calibration."""
    folder = open_folder / "models"
    folder.mkdir()
    shutil.copy(models / "convnet.onnx", folder)
    os.chmod(folder / "convnet.onnx", 0o644)
    os.chmod(folder, 0o555)
    told: list[Progress] = []
    with as_nobody(), pytest.raises(WriteError) as error:
        quantize("convnet", pieces, options=FAST, models_dir=folder, progress=told.append)
    assert str(error.value) == (
        f"cannot write {folder / 'convnet_int8.onnx'}: permission denied: choose another place "
        "(-o, or --models-dir for backbones), or change the permissions"
    )
    assert told == []


def test_a_folder_in_the_files_place_is_found_out_first(models: Path, pieces: Path) -> None:
    """Before any image is read."""
    (models / "convnet_int8.onnx").mkdir()
    told: list[Progress] = []
    with pytest.raises(WriteError) as error:
        quantize("convnet", pieces, options=FAST, models_dir=models, progress=told.append)
    assert str(error.value) == (
        f"cannot write {models / 'convnet_int8.onnx'}: there is a folder of that name"
    )
    assert told == []


def test_what_fails_leaves_no_folder(models: Path, tmp_path: Path) -> None:
    """A folder for backbones is made when there is one to write."""
    (tmp_path / "one").mkdir()
    Image.fromarray(photographs(1, 64)[0]).save(tmp_path / "one" / "only.png")
    with pytest.raises(SourceError, match=r" has 1 different images that can be used, "):
        quantize(models / "convnet.onnx", tmp_path / "one", models_dir=tmp_path / "new" / "models")
    assert not (tmp_path / "new").exists()
    options = QuantizeOptions(precision="fp16")
    report = quantize(
        models / "convnet.onnx", options=options, models_dir=tmp_path / "new" / "models"
    )
    assert report.path == tmp_path / "new" / "models" / "convnet_fp16.onnx"
    assert report.path.is_file()


# Samples


def test_a_sample_holds_no_image_twice(pieces: Path) -> None:
    """What is measured on was not calibrated with; the order is the same each time."""
    first, second = (draw_sample(open_source(pieces), RULE, 24) for _ in range(2))
    assert (first.calibrate.shape, first.held.shape) == ((24, SIDE, SIDE, 3), (6, SIDE, SIDE, 3))
    assert (first.calibrate == second.calibrate).all()
    everything = np.concatenate([first.calibrate, first.held])
    assert len({image.tobytes() for image in everything}) == 30


def test_images_that_fail_are_counted_and_not_fatal(pieces: Path, tmp_path: Path) -> None:
    """They are left out with their reason, and others take their place."""
    folder = tmp_path / "mixed"
    shutil.copytree(pieces, folder)
    (folder / "broken.png").write_bytes(b"no picture")
    sample = draw_sample(open_source(folder), RULE, 100)
    assert len(sample.calibrate) + len(sample.held) == 42
    assert sample.failures == (("broken.png", "not an image in a format that can be read"),)


def test_few_images_are_enough_with_a_note(pieces: Path) -> None:
    """The note says from how many on the figures are more certain."""
    sample = draw_sample(open_source(pieces), RULE, 128)
    assert sample.notes == (
        "42 images are few to calibrate with: with 80 or more the ranges are more certain, and "
        "so are the figures",
    )


# Heads, before and after


def test_heads_are_compared_by_cross_validation(models: Path, pieces: Path) -> None:
    """Without a split for testing, every labelled image is judged by a head without its fold."""
    options = replace(FAST, heads=("centroid",))
    report = quantize("convnet", pieces, compare=pieces, options=options, models_dir=models)
    (found,) = report.comparisons
    assert (found.source, found.head, found.images) == ("pieces", "centroid", 42)
    assert found.estimate == "nested cross-validation"
    assert found.difference == pytest.approx(found.after - found.before)
    assert found.difference == pytest.approx(100 * (found.won - found.lost) / 42)
    assert found.interval[0] <= found.difference <= found.interval[1]
    assert found.kept == (found.difference >= -0.5)


def test_heads_are_compared_on_the_test_split(models: Path, pieces: Path, tmp_path: Path) -> None:
    """With splits, heads learn on train and are judged on test, several of them in one run."""
    root = tmp_path / "split"
    for number, path in enumerate(sorted(pieces.rglob("*.png"))):
        folder = root / ("test" if number % 3 == 0 else "train") / path.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    options = QuantizeOptions(method="minmax", float_layers=0, images=32, heads=("knn", "centroid"))
    report = quantize("convnet", pieces, compare=root, options=options, models_dir=models)
    assert [c.head for c in report.comparisons] == ["knn", "centroid"]
    assert {(c.estimate, c.images) for c in report.comparisons} == {("split test", 14)}


def test_images_without_labels_cannot_be_compared_on(
    models: Path, pieces: Path, tmp_path: Path
) -> None:
    """The message says how to give labels, or to do without."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(pieces.rglob("*.png")):
        shutil.copy(path, flat / f"{number}.png")
    with pytest.raises(LabelError) as error:
        quantize("convnet", pieces, compare=flat, options=FAST, models_dir=models)
    assert str(error.value) == (
        "the images to compare on have no labels: put them into class folders, or leave "
        "--compare out"
    )
    assert sorted(p.name for p in models.iterdir()) == ["convnet.onnx"]


def test_one_class_cannot_be_compared_on(models: Path, pieces: Path, tmp_path: Path) -> None:
    """Found out before anything is calibrated, and no temporary folder is named."""
    shutil.copytree(pieces / "first", tmp_path / "one" / "first")
    with pytest.raises(LabelError) as error:
        quantize("convnet", pieces, compare=tmp_path / "one", options=FAST, models_dir=models)
    assert str(error.value) == (
        "the images to compare on have one label to learn, first: a head needs two classes at "
        "least; give another folder with --compare, or leave it out"
    )
    assert sorted(p.name for p in models.iterdir()) == ["convnet.onnx"]


def test_a_class_of_two_images_cannot_be_compared_on(
    models: Path, pieces: Path, tmp_path: Path
) -> None:
    """Nested cross-validation needs three of each class; nothing is written."""
    for folder, number in (("first", 2), ("second", 6)):
        (tmp_path / "few" / folder).mkdir(parents=True)
        for path in sorted((pieces / folder).iterdir())[:number]:
            shutil.copy(path, tmp_path / "few" / folder)
    with pytest.raises(LabelError, match=r"^class first has fewer than three distinct images "):
        quantize("convnet", pieces, compare=tmp_path / "few", options=FAST, models_dir=models)
    assert sorted(p.name for p in models.iterdir()) == ["convnet.onnx"]


def test_an_unknown_head_is_refused_before_images_are_read(models: Path, pieces: Path) -> None:
    """Nothing is embedded, nothing written."""
    told: list[Progress] = []
    options = replace(FAST, heads=("centroid", "nohead"))
    with pytest.raises(HeadError, match=r"^there is no head 'nohead'"):
        quantize(
            *("convnet", pieces),
            compare=pieces,
            options=options,
            models_dir=models,
            progress=told.append,
        )
    assert told == []
    assert sorted(p.name for p in models.iterdir()) == ["convnet.onnx"]


def test_images_that_change_meanwhile_are_not_compared(
    models: Path, pieces: Path, tmp_path: Path
) -> None:
    """Two measurements are paired when they are of the same images, and not otherwise."""
    folder = tmp_path / "changing"
    shutil.copytree(pieces, folder)
    before = measure_heads(folder, models / "convnet.onnx", ["centroid"])
    assert [c.difference for c in pair(before, before)] == [0.0]
    next((folder / "second").iterdir()).unlink()
    after = measure_heads(folder, models / "convnet.onnx", ["centroid"])
    with pytest.raises(SourceError) as error:
        pair(before, after)
    assert str(error.value) == (
        "the images of changing have changed between the two measurements: compare again when "
        "nothing writes there"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "precision must be int8 or fp16, not 'int4'"),
        (
            {"method": "max"},
            "method must be auto, minmax, percentile, entropy, not 'max'",
        ),
        ({"images": 19}, "images must be 20 or more, not 19"),
        ({"heads": ()}, "heads must name one at least"),
        ({"float_layers": -1}, "float_layers must be 0 or more, not -1"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    """The message has the value and what it may be."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        QuantizeOptions(**options)
    assert str(error.value) == message


# The command


def test_the_command_says_what_it_has_done(
    run_cli: Callable[..., Result], models: Path, pieces: Path
) -> None:
    """Piped, there is no progress: notes, figures, and the file in the last line."""
    result = run_cli(
        *("quantize", "convnet", "--calibrate", pieces, "--method", "minmax"),
        *("--float-layers", "0", "--models-dir", models, "--compare", pieces, "--head", "centroid"),
    )
    assert result.code == 0
    assert result.out == ""
    lines = result.err.splitlines()
    assert lines[0] == (
        "Note: 42 images are few to calibrate with: with 80 or more the ranges are more certain, "
        "and so are the figures."
    )
    assert lines[1] == "int8, ranges by minmax from 34 images; 0 of 4 layers in float"
    assert lines[2].startswith("cosine to convnet on 8 other images: mean ")
    assert "images/s on one core of this machine instead of" in lines[3]
    assert lines[4].startswith("centroid on pieces (nested cross-validation, 42 images): ")
    assert lines[4].endswith(("within half a point", "more than half a point lost"))
    assert lines[5].startswith("convnet_int8: 0.0 MB instead of 0.0 MB → ")
    assert lines[5].endswith(str(models / "convnet_int8.onnx"))
    assert len(lines) == 6


def test_the_command_writes_json(
    run_cli: Callable[..., Result], models: Path, pieces: Path
) -> None:
    """One document on stdout, with everything that was tried."""
    result = run_cli(
        *("quantize", "convnet", "--calibrate", pieces, "--models-dir", models, "--json"),
        *("--float-layers", "auto", "--name", "small"),
    )
    value = json.loads(result.out)
    assert value["name"] == "small"
    assert value["path"] == str(models / "small.onnx")
    assert value["precision"] == "int8"
    assert value["layers"] == 4
    assert value["cosine_mean"] > 0.99
    assert {v["method"] for v in value["tried"]} == {"minmax", "percentile", "entropy"}
    assert value["comparisons"] == []
    assert value["failed"] == []


def test_the_command_halves_weights(run_cli: Callable[..., Result], models: Path) -> None:
    """fp16 has no methods and no layers to tell of."""
    result = run_cli("quantize", "convnet", "--precision", "fp16", "--models-dir", models)
    assert result.code == 0
    lines = result.err.splitlines()
    assert lines[0] == "cosine to convnet on 21 images: mean 1.0000, minimum 1.0000"
    assert lines[-1].endswith(str(models / "convnet_fp16.onnx"))


def test_the_command_refuses_half_a_layer(run_cli: Callable[..., Result], models: Path) -> None:
    """A wrong option is a usage error."""
    result = run_cli("quantize", "convnet", "--float-layers", "some", "--models-dir", models)
    assert result.code == 2
    assert "'some' is neither a number of layers nor auto" in result.err


def test_the_command_lists_images_that_failed(
    run_cli: Callable[..., Result], models: Path, pieces: Path, tmp_path: Path
) -> None:
    """Ten of them, then how many more; the run is good all the same."""
    folder = tmp_path / "mixed"
    shutil.copytree(pieces, folder)
    for number in range(12):
        (folder / f"broken{number:02}.png").write_bytes(bytes([255, number]))
    result = run_cli(
        *("quantize", "convnet", "--calibrate", folder, "--method", "minmax"),
        *("--float-layers", "0", "--models-dir", models),
    )
    assert result.code == 0
    failed = [line for line in result.err.splitlines() if line.startswith("Failed: ")]
    assert len(failed) == 11
    assert failed[0].endswith(": not an image in a format that can be read")
    assert failed[10] == "Failed: 2 more; --json lists them."
