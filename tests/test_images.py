"""Decoding: every kind of image becomes the pixels of the reference, or a sentence."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import PHOTOS
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from featpipe.images import MAX_PIXELS, Decoded, decode_image, image_size
from featpipe.images.geometry import crop_box, resized_size
from featpipe.types import Failure, Pixels, ResizeRule

RULE = ResizeRule(resize=256, crop=224)
CAT = PHOTOS / "cat.jpg"


def reference(image: Image.Image, rule: ResizeRule = RULE) -> Pixels:
    """Resize the whole image and cut the centre out: what torchvision does to a PIL image."""
    image = ImageOps.exif_transpose(image).convert("RGB")
    size = resized_size(*image.size, rule)
    left, top = (round((side - rule.crop) / 2.0) for side in size)
    resized = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + rule.crop, top + rule.crop)))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return an image as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes, rule: ResizeRule = RULE) -> Decoded:
    """Decode what must decode."""
    result = decode_image(data, rule)
    assert isinstance(result, Decoded), result
    return result


def cat(mode: str = "RGB") -> Image.Image:
    """Return the photograph of a cat in a mode."""
    with Image.open(CAT) as image:
        return image.convert(mode)


def difference(a: Pixels, b: Pixels) -> float:
    """Mean absolute difference in grey levels."""
    return float(np.abs(a.astype(int) - b).mean())


@pytest.mark.parametrize("path", sorted(PHOTOS.glob("*.jpg")), ids=lambda p: p.stem)
def test_photograph_is_level_with_the_reference(path: Path) -> None:
    """A real JPEG differs from a full decode by less than a grey level on average."""
    with Image.open(path) as image:
        expected, size = reference(image), image.size
    result = decoded(path.read_bytes())
    assert result.pixels.shape == (224, 224, 3)
    assert result.pixels.dtype == np.uint8
    assert (result.width, result.height) == size
    assert difference(result.pixels, expected) < 1.0


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_reference_exactly(kind: str) -> None:
    """Resizing only the crop's box changes no pixel by more than two grey levels."""
    with Image.open(CAT) as image:
        rgb = image.convert("RGB")
    result = decoded(encode(rgb, kind))
    assert np.abs(result.pixels.astype(int) - reference(rgb)).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    """All eight EXIF orientations stand upright, as a viewer shows them."""
    image = cat()
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if kind in {"JPEG", "WEBP"} else {}
    data = encode(image, kind, exif=exif, **options)
    with Image.open(io.BytesIO(data)) as stored:
        stored.load()
        expected = reference(stored)
        upright = ImageOps.exif_transpose(stored).size
    result = decoded(data)
    assert (result.width, result.height) == upright == image_size(data)
    assert difference(result.pixels, expected) < 0.5


def test_large_oriented_photograph_is_drafted_upright() -> None:
    """Reduced-scale decoding and orientation go together."""
    with Image.open(CAT) as image:
        large = image.resize((2706, 1800), Image.Resampling.LANCZOS)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(large, "JPEG", exif=exif, quality=90)
    with Image.open(io.BytesIO(data)) as stored:
        expected = reference(stored)
    result = decoded(data)
    assert (result.width, result.height) == (1800, 2706)
    assert difference(result.pixels, expected) < 1.0


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "RGBA", "YCbCr"])
def test_modes_are_converted_as_the_reference_does(mode: str) -> None:
    """Grey, palette, CMYK and transparent images give the pixels of ``convert("RGB")``."""
    image = cat(mode)
    kind = {"CMYK": "JPEG", "YCbCr": "JPEG"}.get(mode, "PNG")
    data = encode(image, kind, **({"quality": 95} if kind == "JPEG" else {}))
    with Image.open(io.BytesIO(data)) as stored:
        expected = reference(stored)
    assert difference(decoded(data).pixels, expected) < 0.6


def test_transparent_palette_warns_of_nothing() -> None:
    """A palette with transparency decodes without a warning on the way."""
    with Image.open(CAT) as image:
        palette = image.quantize(16)
    data = encode(palette, "PNG", transparency=bytes(range(16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decoded(data).width == 451


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    """A 16-bit PNG looks like its 8-bit original; PIL's own conversion makes it white."""
    with Image.open(CAT) as image:
        grey = image.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    for kind in ("PNG", "TIFF"):
        assert difference(decoded(encode(deep, kind)).pixels, reference(grey)) < 0.5


def test_pixels_without_a_range_are_refused() -> None:
    """Floating-point and 32-bit pixels have no agreed white: the reason says what to do."""
    floating = Image.fromarray(np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64))
    assert decode_image(encode(floating, "TIFF"), RULE) == Failure(
        "undecodable", "its pixels are floating-point numbers: save it with 8 or 16 bits"
    )
    deep = Image.fromarray(np.full((64, 64), 1_000_000, dtype=np.int32))
    assert decode_image(encode(deep, "TIFF"), RULE) == Failure(
        "undecodable", "its pixels have 32 bits: save it with 8 or 16 bits a channel"
    )


def test_animation_gives_its_first_frame() -> None:
    """Of a GIF with several frames the first one counts."""
    with Image.open(CAT) as image:
        first = image.convert("P")
    second = Image.new("P", first.size)
    data = encode(first, "GIF", save_all=True, append_images=[second])
    with Image.open(io.BytesIO(data)) as stored:
        expected = reference(stored)
    assert np.abs(decoded(data).pixels.astype(int) - expected).max() <= 2


def test_progressive_jpeg_is_an_ordinary_one() -> None:
    """Progressive JPEG decodes to the pixels of the baseline file."""
    with Image.open(CAT) as image:
        baseline, progressive = (
            encode(image, "JPEG", quality=90, progressive=p) for p in (False, True)
        )
    assert np.array_equal(decoded(baseline).pixels, decoded(progressive).pixels)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (10_000, 3), (3, 10_000), (1, 5000)])
def test_extreme_shapes_are_images(size: tuple[int, int]) -> None:
    """One pixel and a strip of 10,000 × 3 are resized like any other image, in little memory."""
    image = Image.effect_noise(size, 64).convert("RGB")
    result = decoded(encode(image, "PNG"))
    assert result.pixels.shape == (224, 224, 3)
    assert (result.width, result.height) == size


def bomb(width: int, height: int) -> bytes:
    """Return a small PNG that claims to be large."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def test_bomb_is_refused_before_it_is_decoded() -> None:
    """30,000 × 30,000 pixels are refused by their number."""
    result = decode_image(bomb(30_000, 30_000), RULE)
    assert result == Failure(
        "undecodable",
        f"its size in pixels is more than the {MAX_PIXELS:,} that featpipe decodes: "
        "make it smaller",
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty (0 bytes)"),
        (b"\0" * 5000, "not an image: the file begins with zeros"),
        (b"this is a letter, not a photograph\n", "not an image in a format that can be read"),
    ],
)
def test_what_is_no_image_says_so(data: bytes, reason: str) -> None:
    """Empty files, zeros and text each have their own sentence."""
    assert decode_image(data, RULE) == Failure("undecodable", reason)


def test_size_of_no_image_is_none() -> None:
    """What has no pixels has no size."""
    assert image_size(b"no image") is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_truncated_file_is_a_failure(kind: str) -> None:
    """Half a file is never half an image."""
    with Image.open(CAT) as image:
        data = encode(image.convert("RGB"), kind)
    result = decode_image(data[: len(data) // 2], RULE)
    assert isinstance(result, Failure)
    assert result.status == "undecodable"


def test_truncated_jpeg_is_named_as_such() -> None:
    """The commonest damage has the plainest words."""
    data = CAT.read_bytes()
    result = decode_image(data[: len(data) // 2], RULE)
    assert isinstance(result, Failure)
    assert result.reason.startswith("the image is cut short (")


@given(st.integers(0, 25_000), st.binary(min_size=1, max_size=30))
def test_damaged_bytes_never_raise(at: int, noise: bytes) -> None:
    """Whatever stands in a file, the outcome is an image or a failure."""
    data = CAT.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = decode_image(data[:at] + noise + data[at + len(noise) :], RULE)
    assert isinstance(result, Decoded | Failure)


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(1, 300), st.data())
def test_crop_box_lies_inside(width: int, height: int, resize: int, data: st.DataObject) -> None:
    """The box is never empty and never leaves the image."""
    crop = data.draw(st.integers(1, resize))
    left, top, right, bottom = crop_box(width, height, ResizeRule(resize, crop))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_postscript_is_never_interpreted() -> None:
    """A PostScript file under another name is no image: no interpreter is started for it."""
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n"
    result = decode_image(data, RULE)
    assert result == Failure("undecodable", "not an image in a format that can be read")


@pytest.mark.parametrize("size", [(451, 300), (300, 451), (2000, 700)])
def test_a_squashed_image_is_the_references(size: tuple[int, int]) -> None:
    """Both sides become the same, whatever the shape; the crop is the middle of that."""
    rule = ResizeRule(resize=256, crop=224, squash=True)
    image = cat().resize(size)
    squashed = image.resize((256, 256), Image.Resampling.BICUBIC).crop((16, 16, 240, 240))
    found = decoded(encode(image, "PNG"), rule)
    assert (found.width, found.height) == size
    assert difference(found.pixels, np.asarray(squashed)) < 0.3
    drafted = decoded(encode(image, "JPEG", quality=95), rule)
    assert difference(drafted.pixels, np.asarray(squashed)) < 3
