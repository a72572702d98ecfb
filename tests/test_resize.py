"""The quick resize gives Pillow's pixels, and Pillow's is there where it cannot be had."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
from conftest import PHOTOS
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featpipe.images import resize
from featpipe.images.geometry import Box
from featpipe.images.resize import FILTERS, resize_box

CAT = PHOTOS / "cat.jpg"


def cat(mode: str = "RGB") -> Image.Image:
    """Return the photograph of a cat in a mode."""
    with Image.open(CAT) as image:
        return image.convert(mode)


def apart(image: Image.Image, box: Box, side: int, kind: str) -> np.ndarray:
    """Return by how many grey levels each pixel differs from Pillow's, rows first."""
    ours = np.asarray(resize_box(image, box, side, kind)).astype(int)  # type: ignore[arg-type]
    left, top, right, bottom = box
    rows = image.resize((side, image.height), FILTERS[kind], box=(left, 0, right, image.height))
    theirs = np.asarray(rows.resize((side, side), FILTERS[kind], box=(0, top, side, bottom)))
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs)


@st.composite
def boxes(draw: st.DrawFn, width: int, height: int) -> Box:
    """Draw a box inside an image, at least a pixel wide and high."""
    left = draw(st.floats(0, width - 1))
    top = draw(st.floats(0, height - 1))
    right = draw(st.floats(left + 1, width))
    bottom = draw(st.floats(top + 1, height))
    return left, top, right, bottom


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", ["bilinear", "bicubic", "lanczos"])
def test_a_photograph_is_pillows(kind: str, mode: str) -> None:
    """Hardly a pixel in a hundred differs, and then by a grey level or two."""
    image = cat(mode)
    levels = apart(image, (30.5, 12.25, image.width - 20.75, image.height - 8.5), 97, kind)
    assert levels.max() <= 2
    assert levels.mean() < 0.02


@pytest.mark.parametrize("mode", ["RGB", "L"])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_box_of_noise_is_pillows(mode: str, data: st.DataObject) -> None:
    """Whatever box, size and filter: even noise is a grey level or two off, by rounding twice."""
    width, height = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert(mode)
    box = data.draw(boxes(width, height))
    kind = data.draw(st.sampled_from(sorted(FILTERS)))
    levels = apart(image, box, data.draw(st.integers(1, 64)), kind)
    assert levels.max() <= 3


def test_without_the_package_it_is_pillow_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no wheel, Pillow resizes, and nothing else changes."""
    monkeypatch.setattr(resize, "simd", None)
    image = cat()
    assert apart(image, (3.5, 4.5, 200.25, 180.0), 64, "bicubic").max() == 0


def test_a_package_without_its_record_is_named_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a program that was packed whole, or for a user who may not read the record."""

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(resize, "version", missing)
    monkeypatch.setattr(resize, "simd", resize)
    assert resize.resize_version() == "cykooz.resizer of unknown version"
    monkeypatch.setattr(resize, "simd", None)
    assert resize.resize_version().startswith("pillow ")


def test_threads_do_not_disturb_each_other() -> None:
    """Every thread has its own buffers: the pixels are those of one thread."""
    image = cat()
    tasks = [
        (side, (0.5 * side, 3.0, image.width - 2.0, image.height - 1.5)) for side in range(20, 84)
    ]

    def one(task: tuple[int, Box]) -> bytes:
        return resize_box(image, task[1], task[0], "bicubic").tobytes()

    alone = [one(task) for task in tasks]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, tasks)) == alone
