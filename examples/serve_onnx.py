r"""Classify images with a bundle of ``featpipe bundle``, without featpipe.

    pip install onnxruntime numpy pillow
    python serve_onnx.py classifier.onnx photos/ one.jpg > predictions.csv

One row an image, on standard output: path, status, reason, label, probability, and ``ood_p``,
how many of the known images look as strange; with ``--json`` one JSON object a line, which has
the probability of every class. An image that cannot be read
or decoded is a row with the reason. Resize, crop, network, head and calibration are in the
bundle; what is left to do is `pixels_of`: upright, RGB, 8 bits.

Exit codes: 0 every image has a label; 2 the command line was wrong; 3 some images failed; 4
there is no image; 5 the bundle cannot be used; 141 whoever read the output has gone.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

# Since 1.29 ONNX Runtime reports its use over the network, unless told so before its import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".webp", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".tga"),
)
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "TGA")
"""Others are not tried: Pillow hands PostScript to an interpreter."""
Image.init()
MAX_PIXELS = 178_956_970
ORIENTATION = 0x0112
TURN = Image.Transpose
TURNS = {
    2: TURN.FLIP_LEFT_RIGHT,
    3: TURN.ROTATE_180,
    4: TURN.FLIP_TOP_BOTTOM,
    5: TURN.TRANSPOSE,
    6: TURN.ROTATE_270,
    7: TURN.TRANSVERSE,
    8: TURN.ROTATE_90,
}
"""What makes a picture upright, by its EXIF orientation."""
FORMULA = frozenset("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
COLUMNS = ("path", "status", "reason", "label", "probability", "ood_p")


class ServeError(Exception):
    """What ends the program: a sentence and an exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Row:
    """One image: ``status`` is ``ok``, ``unreadable`` or ``undecodable``."""

    path: str
    status: str
    reason: str = ""
    label: str = ""
    probability: float | None = None
    ood_p: float | None = None
    probabilities: dict[str, float] | None = None


class Bundle:
    """A classifier in one ONNX file; threads may share it.

    Parameters
    ----------
    path : path
    threads : int
        That one image is spread over. To classify many, use as many threads as there are cores
        with one each: that keeps decoding busy, too.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        try:
            # As bytes: so no file beside it is ever read.
            self._session = onnxruntime.InferenceSession(
                Path(path).read_bytes(), options, providers=["CPUExecutionProvider"]
            )
        except OSError as exc:
            raise ServeError(f"cannot read {path}: {exc.strerror}", 5) from exc
        except Exception as exc:
            # ONNX Runtime's exceptions have no public base class.
            raise ServeError(f"{path} is not a model that ONNX Runtime can read", 5) from exc
        self.labels = labels_of(self._session, path)
        outputs = {output.name for output in self._session.get_outputs()}
        self._asked = [name for name in ("probabilities", "ood_p") if name in outputs]
        side = self._session.get_inputs()[0].shape[1]
        if not isinstance(side, str):
            raise ServeError(
                f"{path} takes squares of {side} pixels alone: bundle the head again, with the "
                "resize",
                5,
            )

    def answer(self, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float | None]:
        """Return the probability of every class, (K,), for one picture, uint8 (H, W, 3).

        And how many of the known images look as strange, or None where the head cannot tell.
        """
        found, *strange = self._session.run(self._asked, {"images": pixels[None]})
        return found.reshape(-1), round(float(strange[0][0]), 6) if strange else None

    def classify(self, path: str) -> Row:
        """Return the row of one image file; it never raises for anything about that file."""
        try:
            data = Path(path).read_bytes()
        except OSError as exc:
            return Row(path, "unreadable", exc.strerror or type(exc).__name__)
        try:
            found, strange = self.answer(pixels_of(data))
        # Pillow's decoders meet hostile bytes with any exception.
        except Exception as exc:  # noqa: BLE001
            return Row(path, "undecodable", reason_of(exc))
        best = int(found.argmax())
        each = {name: round(float(p), 6) for name, p in zip(self.labels, found, strict=True)}
        return Row(path, "ok", "", self.labels[best], float(found[best]), strange, each)


def labels_of(session: onnxruntime.InferenceSession, path: str | os.PathLike[str]) -> list[str]:
    """Return the labels in a bundle's metadata, in the order of its probabilities."""
    about = session.get_modelmeta().custom_metadata_map
    if "featpipe.labels" not in about:
        raise ServeError(f"{path} is no bundle: featpipe bundle makes one", 5)
    try:
        labels = json.loads(about["featpipe.labels"])
    except ValueError:
        labels = None
    widths = [found.shape[-1] for found in session.get_outputs() if found.name == "probabilities"]
    if not isinstance(labels, list) or widths != [len(labels)]:
        raise ServeError(
            f"{path} is damaged: its labels are not those of its probabilities: bundle the head "
            "again",
            5,
        )
    return [str(label) for label in labels]


def pixels_of(data: bytes) -> NDArray[np.uint8]:
    """Return an image file's pixels as featpipe sees them: uint8 (H, W, 3), upright, RGB.

    Of animations the first frame is taken, transparency is dropped, 16-bit grey is scaled
    (Pillow would clip it), colour profiles are left alone.
    """
    readable = [name for name in FORMATS if name in Image.OPEN]
    with Image.open(io.BytesIO(data), formats=readable) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} × {image.height} pixels are too many")
        image.load()
        # Asked for after loading: Pillow turns a TIFF by itself and drops the tag.
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
        colours = eight_bits(image)
        upright = colours if turn is None else colours.transpose(turn)
        return np.asarray(upright.convert("RGB"))


def eight_bits(image: Image.Image) -> Image.Image:
    """Give grey of more than 8 bits a pixel 8, and leave others as they are."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("its pixels have 32 bits")
    return Image.fromarray((values.astype(np.uint32) // 257).astype(np.uint8))


def reason_of(error: Exception) -> str:
    """Return what was wrong with an image, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image in a format that can be read"
    text = " ".join(str(error).split()) or type(error).__name__
    return f"the image cannot be decoded ({text})"


def images_in(sources: Sequence[str]) -> Iterator[str]:
    """Yield files as they are named, and the images of folders in order."""
    for source in sources:
        if not os.path.isdir(source):
            yield source
            continue
        for folder, folders, names in os.walk(source):
            folders.sort()
            for name in sorted(names):
                if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                    yield os.path.join(folder, name)


def in_order(use: Callable[[str], Row], paths: Iterable[str], threads: int) -> Iterator[Row]:
    """Yield ``use(path)`` of all paths in order, computed by threads that are little ahead."""
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[Row]] = deque()
        for path in paths:
            ahead.append(pool.submit(use, path))
            if len(ahead) > 4 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def write(rows: Iterable[Row], file: TextIO, *, as_json: bool) -> tuple[int, int]:
    """Write rows as they come; return how many there were, and how many failed."""
    table = csv.writer(file, lineterminator="\n")
    if not as_json:
        table.writerow(COLUMNS)
    done = failed = 0
    for row in rows:
        done, failed = done + 1, failed + (row.status != "ok")
        if as_json:
            values = {**asdict(row), "probability": rounded(row.probability)}
            file.write(json.dumps(values, ensure_ascii=False) + "\n")
        else:
            texts = (row.path, row.status, row.reason, row.label)
            numbers = (row.probability, row.ood_p)
            shown = ("" if number is None else f"{number:.6f}" for number in numbers)
            table.writerow([*map(harmless, texts), *shown])
    return done, failed


def rounded(value: float | None) -> float | None:
    """Return a probability with six decimals."""
    return None if value is None else round(value, 6)


def harmless(text: str) -> str:
    """Put a ``'`` before what a spreadsheet would take for a formula, as featpipe does."""
    risky = text[:1] in FORMULA or text.lstrip()[:1] in FORMULA or text[:1] == "'"
    return f"'{text}" if text and risky else text


def main(arguments: Sequence[str] | None = None) -> int:
    """Classify what is named, and return the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("bundle", help="file of featpipe bundle")
    parser.add_argument("images", nargs="+", help="files, or folders with images")
    parser.add_argument("--json", action="store_true", help="JSON lines with every probability")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, metavar="N")
    options: Any = parser.parse_args(arguments)
    if options.threads < 1:
        parser.error("--threads must be 1 or more")
    warnings.simplefilter("ignore")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace", newline="")
    try:
        bundle = Bundle(options.bundle)
        rows = in_order(bundle.classify, images_in(options.images), options.threads)
        done, failed = write(rows, sys.stdout, as_json=options.json)
        sys.stdout.flush()
    except ServeError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return exc.exit_code
    except BrokenPipeError:
        # Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    if not done:
        print("error: there is no image in what was named: check the path", file=sys.stderr)
        return 4
    return 3 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
