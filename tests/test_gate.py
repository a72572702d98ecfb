"""The comparison that decides whether a file or a device is trusted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from featpipe.backbones import load_backbone
from featpipe.backbones.contract import read_backbone
from featpipe.backbones.device_check import check_device, check_folder
from featpipe.backbones.gate import compare, photographs, realistic_images, verify
from featpipe.backbones.writing import gate, gate_images
from featpipe.errors import BackboneError, DeviceError
from featpipe.types import Pixels, Vectors

IDENTITY = {"fingerprint": "f", "gpu": "a GPU", "onnxruntime": "1"}


def colours(images: Pixels) -> Vectors:
    """Embed an image as its colours in quarters, which is enough to compare."""
    n, size = len(images), images.shape[1]
    quarters = images.reshape(n, 2, size // 2, 2, size // 2, 3).mean(axis=(2, 4))
    return quarters.reshape(n, 12).astype(np.float32)


def test_realistic_images_are_reproducible_and_varied() -> None:
    """The same seed gives the same pixels, another one others; no two images are alike."""
    images = realistic_images(4, 64, seed=3)
    assert images.shape == (4, 64, 64, 3)
    assert images.dtype == np.uint8
    assert (images == realistic_images(4, 64, seed=3)).all()
    assert not (images == realistic_images(4, 64, seed=4)).all()
    assert len({image.tobytes() for image in images}) == 4


def test_realistic_images_have_the_spectrum_of_photographs() -> None:
    """Power falls with frequency: low frequencies hold most of it, as in natural scenes."""
    grey = realistic_images(8, 64).mean(axis=-1)
    power = (np.abs(np.fft.fft2(grey - grey.mean(axis=(1, 2), keepdims=True))) ** 2).mean(axis=0)
    radius = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)[None])
    low = power[(radius > 0) & (radius < 0.1)].mean()
    high = power[radius > 0.3].mean()
    assert low > 20 * high > 0


def test_photographs_are_reproducible_and_no_two_alike() -> None:
    """Seven photographs, then other parts of them; the same ones for the same arguments."""
    images = photographs(33, 48)
    assert images.shape == (33, 48, 48, 3)
    assert images.dtype == np.uint8
    assert (images == photographs(33, 48)).all()
    assert (images[:5] == photographs(5, 48)).all()
    assert len({image.tobytes() for image in images}) == 33
    assert images.reshape(33, -1).std(axis=1).min() > 5


def test_the_gate_sees_photographs_and_generated_images_in_turn() -> None:
    """Even places hold photographs, odd ones images that only look like them."""
    images = gate_images(5, 48, seed=2)
    assert (images[::2] == photographs(5, 48)[::2]).all()
    assert (images[1::2] == realistic_images(5, 48, 2)[1::2]).all()


def test_compare_returns_the_worst_row() -> None:
    """The smallest cosine counts, whatever the shape of a row."""
    a = np.ones((3, 2, 2), np.float32)
    b = a.copy()
    b[1, 0, 0] = 0
    assert compare(a, b) == pytest.approx(6 / 7)
    assert compare(a, a) == 1.0
    assert compare(a[:0], b[:0]) == 1.0


def test_compare_trusts_no_broken_numbers() -> None:
    """NaN and infinity count as -1, zeros beside another vector as 0; equal zeros are equal."""
    ones, zeros = np.ones((1, 2), np.float32), np.zeros((1, 2), np.float32)
    for bad in (np.nan, np.inf):
        assert compare(ones, np.array([[1, bad]], np.float32)) == -1.0
    assert compare(ones, zeros) == 0.0
    assert compare(zeros, zeros) == 1.0


def test_compare_sees_a_wrong_scale() -> None:
    """Parallel vectors of another length do not pass: a head would notice."""
    ones = np.ones((1, 4), np.float32)
    assert compare(ones, 2 * ones) == pytest.approx(0.8)
    assert compare(ones, 1.001 * ones) > 0.999999 - 1e-6


@pytest.mark.parametrize(("answer", "word"), [(0.0, "zero"), (3.0, "alike")])
def test_a_network_that_tells_no_images_apart_is_refused(
    tiny_backbone: Path, answer: float, word: str
) -> None:
    """A file agrees with it perfectly, and is of no use; one image alone says nothing."""
    file = read_backbone(tiny_backbone)

    def constant(images: Pixels) -> list[Vectors]:
        # As far apart as rounding may set them.
        return [(answer * (1 + 1e-9 * colours(images)[:, :1].repeat(27, 1))).astype(np.float32)]

    with pytest.raises(BackboneError) as error:
        gate(file.data, file.card, constant, verb="import", batches=(8,))
    assert str(error.value) == (
        f"the import of tiny does not tell images apart: its embeddings of 8 different "
        f"photographs are all {word}; its weights are probably wrong, or another layer should be "
        "the embedding: nothing was written"
    )


def test_a_network_that_tells_images_apart_passes(tiny_backbone: Path) -> None:
    """The gate returns what it measured."""
    file = read_backbone(tiny_backbone)
    session = load_backbone(tiny_backbone).open_session("cpu")
    assert gate(file.data, file.card, lambda images: [session.run(images)]) == 1.0


def test_compare_refuses_other_shapes() -> None:
    """Two shapes cannot be compared."""
    with pytest.raises(ValueError, match=r"^shapes differ: \(1, 2\) and \(1, 3\)$"):
        compare(np.ones((1, 2), np.float32), np.ones((1, 3), np.float32))


def test_verify_sees_a_burnt_in_batch_size() -> None:
    """A candidate that always answers with one row fails as soon as two are asked for."""
    assert verify(colours, colours, 32, batches=(1, 2)) == 1.0
    assert verify(colours, lambda images: colours(images[:1]), 32, batches=(1, 2)) == -1.0


def test_a_device_is_checked_once() -> None:
    """The figure is kept: the second time, the device is not asked again."""
    calls = []

    def counted(images: Pixels) -> Vectors:
        calls.append(len(images))
        return colours(images)

    assert check_device(colours, counted, 32, IDENTITY, "cuda") == 1.0
    assert calls == [1, 5, 64]
    assert check_device(colours, counted, 32, IDENTITY, "cuda") == 1.0
    assert calls == [1, 5, 64]
    [file] = check_folder().iterdir()
    assert json.loads(file.read_text()) == {**IDENTITY, "cosine": 1.0}


def test_another_driver_is_another_check() -> None:
    """Whatever is part of the identity makes the check new."""
    check_device(colours, colours, 32, IDENTITY, "cuda")
    check_device(colours, colours, 32, {**IDENTITY, "gpu": "another"}, "cuda")
    assert len(list(check_folder().iterdir())) == 2


def test_a_device_that_disagrees_is_refused_with_the_figure() -> None:
    """Garbage without an error, as seen from real providers, is refused, now and next time."""

    def wrong(images: Pixels) -> Vectors:
        vectors = colours(images)
        vectors[:, ::2] *= -0.2
        return vectors

    for _ in range(2):
        with pytest.raises(DeviceError) as error:
            check_device(colours, wrong, 32, IDENTITY, "cuda with fp16 on this machine")
        figure = float(str(error.value).split("cosine ")[1].split(",")[0])
        assert figure < 0.999
        assert str(error.value) == (
            "cuda with fp16 on this machine gives other vectors than the CPU (cosine "
            f"{figure:.4f}, at least 0.999 is needed) and is not used: take --device cpu, or "
            "update the driver and onnxruntime"
        )
    assert check_device(colours, colours, 32, IDENTITY, "cuda") == 1.0


@pytest.mark.parametrize("content", ["{", "[]", '{"cosine": 1.0}', '{"cosine": "1"}'])
def test_a_damaged_figure_is_measured_again(content: str) -> None:
    """A file that is not what was written is replaced."""
    check_device(colours, colours, 32, IDENTITY, "cuda")
    [file] = check_folder().iterdir()
    file.write_text(content)
    assert check_device(colours, colours, 32, IDENTITY, "cuda") == 1.0
    assert json.loads(file.read_text()) == {**IDENTITY, "cosine": 1.0}


def test_no_place_for_the_figure_is_no_obstacle() -> None:
    """Where the cache cannot be written, the check is made each time and nothing fails."""
    (Path(os.environ["HOME"]) / ".cache").write_text("not a folder")
    assert check_device(colours, colours, 32, IDENTITY, "cuda") == 1.0
