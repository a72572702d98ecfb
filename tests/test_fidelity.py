"""Vectors of real photographs against Pillow's full decode and the source framework."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from featpipe import embed
from featpipe.images.geometry import resized_size
from featpipe.types import ResizeRule

pytestmark = pytest.mark.export
torch = pytest.importorskip("torch", reason="needs the `export` extra: torch is not installed")


def reference_vectors(paths: list[Path]) -> np.ndarray:
    """Embed by the book: Pillow, the whole image resized, centre crop, eager torch, float32."""
    from featpipe.backbones.export.packages import PACKAGES, build_lite, find_checkpoint

    model = build_lite("efficientnet_lite0", find_checkpoint(PACKAGES["efficientnet_lite0"]).path)
    vectors = []
    with torch.inference_mode():
        for start in range(0, len(paths), 32):
            pixels = np.stack([_pixels(p) for p in paths[start : start + 32]]).astype(np.float32)
            batch = torch.from_numpy((pixels - 127.0) / 128.0).permute(0, 3, 1, 2)
            vectors.append(model.forward_features(batch).mean((2, 3)).numpy())
    return np.concatenate(vectors)


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    size = resized_size(*image.size, ResizeRule(256, 224))
    left, top = (round((side - 224) / 2.0) for side in size)
    resized = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + 224, top + 224)))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("hymenoptera_data", 398), ("clothing_small", 872)])
def test_vectors_are_those_of_the_source(
    shared: Path, tmp_path: Path, name: str, count: int
) -> None:
    """Every photograph: cosine at least 0.999 to the source, 0.9999 on average."""
    folder = shared / "datasets" / name
    store = embed(folder, output=tmp_path / "store", device="cpu")
    assert (len(store), store.failures) == (count, [])
    expected = reference_vectors([folder / path for path in store.paths])
    norms = np.linalg.norm(store.X, axis=1) * np.linalg.norm(expected, axis=1)
    cosines = (store.X * expected).sum(axis=1) / norms
    print(f"{name}: cosine mean {cosines.mean():.6f}, minimum {cosines.min():.6f}", file=sys.stderr)
    assert cosines.min() >= 0.999
    assert cosines.mean() >= 0.9999


@pytest.mark.no_cover
@pytest.mark.parametrize(("name", "photographs"), [("resnet18", 90)])
def test_exported_vectors_are_the_librarys_own(
    shared: Path, tmp_path: Path, name: str, photographs: int
) -> None:
    """torchvision's transform and network on photographs; benchmarks/backbones.py does all."""
    import lzma
    import shutil

    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    from featpipe.backbones.export import ExportOptions, export_backbone

    weights = tmp_path / f"{name}-pqf.safetensors"
    packed = next((shared / "weights").glob(f"{name}*.safetensors.xz"))
    with lzma.open(packed) as source, weights.open("wb") as file:
        shutil.copyfileobj(source, file)
    done = export_backbone(name, ExportOptions(weights=str(weights), models_dir=tmp_path))
    root = shared / "datasets" / "hymenoptera_data"
    # Every fourth: a GIF, odd names and a large photograph are among them.
    paths = sorted(p for p in root.rglob("*") if p.is_file())[::4][:photographs]
    store = embed(paths, done.path, output=tmp_path / "store", device="cpu")
    model = torchvision.models.get_model(name)
    model.load_state_dict(safetensors.load_file(weights))
    model.fc = torch.nn.Identity()
    transform = next(iter(torchvision.models.get_model_weights(name))).transforms()
    with torch.inference_mode():
        batch = torch.stack([transform(Image.open(p).convert("RGB")) for p in store.paths])
        expected = model.eval()(batch).numpy()
    norms = np.linalg.norm(store.X, axis=1) * np.linalg.norm(expected, axis=1)
    cosines = (store.X * expected).sum(axis=1) / norms
    assert len(cosines) == photographs
    assert cosines.min() >= 0.999
    assert cosines.mean() >= 0.9999
