"""A bundle in Python, Node.js and the browser, on the same files: what `bundle.py` compares.

Every runtime is the program of ``examples/`` itself: its decoder and its call of ONNX Runtime.
Pillow's pixels of every file are handed over beside it, so that decoder and runtime are told
apart.
"""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from headless import BROWSER, opened, serving

from featpipe.images import whole_picture
from featpipe.types import Failure

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent / "examples"
sys.path.append(str(EXAMPLES))

THREADS = 2
BROWSER_PATIENCE = 3600.0


@dataclass(frozen=True)
class Found:
    """What one runtime made of pictures; nothing stands for one that it cannot decode.

    Attributes
    ----------
    own, given : list of ndarray or None
        Probabilities from the runtime's own decoder, and from Pillow's pixels.
    largest, mean : list of float
        How far its decoder's pixels are from Pillow's.
    milliseconds : list of float
        Decoding and classifying, a picture.
    """

    own: list[Any]
    given: list[Any]
    largest: list[float | None]
    mean: list[float | None]
    milliseconds: list[float]

    @property
    def rate(self) -> str:
        """Images a second by the median, and by the best tenth, which neighbours disturb least."""
        median, best = np.percentile(self.milliseconds, [50, 10])
        return f"{1000 / median:.3g} ({1000 / best:.3g})"


@dataclass(frozen=True)
class Pictures:
    """Files, and beside each Pillow's pixels in a file: sides (uint32), then RGB."""

    files: list[Path]
    pixels: list[Path]

    @classmethod
    def of(cls, files: list[Path], folder: Path) -> Pictures:
        """Decode all into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        pixels = []
        for i, path in enumerate(files):
            found = whole_picture(path.read_bytes())
            assert not isinstance(found, Failure), (path, found)
            pixels.append(folder / f"{i}.rgb")
            sides = struct.pack("<II", found.shape[1], found.shape[0])
            pixels[-1].write_bytes(sides + found.tobytes())
        return cls(files, pixels)


def in_python(bundle: Path, pictures: Pictures) -> Found:
    """Classify with the function of ``serve_onnx.py``, on one thread as that does."""
    from serve_onnx import Bundle, pixels_of

    model = Bundle(bundle)
    own, times, apart = [], [], []
    for path, given in zip(pictures.files, pictures.pixels, strict=True):
        begun = time.perf_counter()
        pixels = pixels_of(path.read_bytes())
        own.append(model.answer(pixels)[0])
        times.append(1000 * (time.perf_counter() - begun))
        there = np.frombuffer(given.read_bytes(), np.uint8, offset=8)
        apart.append(float(np.abs(pixels.ravel().astype(np.int16) - there).max()))
    return Found(own, own, list(apart), list(apart), times)


def in_node(bundle: Path, pictures: Pictures) -> Found:
    """Classify with the functions of ``examples/node``."""
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "list.json"
        both = zip(pictures.files, pictures.pixels, strict=True)
        pairs.write_text(json.dumps([[str(path) for path in pair] for pair in both]))
        done = subprocess.run(
            ["node", HERE / "bundle_node.mjs", bundle, str(THREADS), pairs],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    return _read(json.loads(done.stdout))


def in_browser(bundle: Path, pictures: Pictures) -> Found:
    """Classify with the functions of ``examples/web`` in headless Chromium."""
    with serving({"/web/": EXAMPLES / "web", "/": HERE}) as server:
        page = b'<!doctype html><script type="module" src="/bundle_browser.mjs"></script>'
        server.files["/page.html"] = page
        server.files["/bundle.onnx"] = bundle.read_bytes()
        server.files["/task.json"] = json.dumps({"count": len(pictures.files)}).encode()
        for i, (path, pixels) in enumerate(zip(pictures.files, pictures.pixels, strict=True)):
            server.links[f"/image/{i}"] = path
            server.links[f"/pixels/{i}"] = pixels
        with opened(f"{server.url}/page.html"):
            answer = server.answer(BROWSER_PATIENCE)
    assert "error" not in answer, answer["error"]
    return _read(answer)


def _read(answer: dict[str, Any]) -> Found:
    good = [p for p in answer["pictures"] if "error" not in p]
    for picture in good:
        best = int(np.argmax(picture["own"]["probabilities"]))
        assert picture["own"]["label"] == answer["labels"][best], picture

    def each(use: Callable[[dict[str, Any]], Any]) -> list[Any]:
        return [None if "error" in p else use(p) for p in answer["pictures"]]

    return Found(
        each(lambda p: np.array(p["own"]["probabilities"])),
        each(lambda p: np.array(p["given"]["probabilities"])),
        each(lambda p: p["apart"]["largest"]),
        each(lambda p: p["apart"]["mean"]),
        [p["decoding"] + p["classifying"] for p in good],
    )


def runtimes() -> dict[str, Callable[[Path, Pictures], Found]]:
    """Return those that can be had here, and say what the others lack."""
    found = {"Python": in_python}
    if shutil.which("node") and (EXAMPLES / "node" / "node_modules").is_dir():
        found["Node.js"] = in_node
    else:
        print("no Node.js: npm ci in examples/node\n", file=sys.stderr)
    if BROWSER and (EXAMPLES / "web" / "runtime").is_dir():
        found["browser"] = in_browser
    else:
        print("no browser: chromium; npm ci && npm run build in examples/web", file=sys.stderr)
    return found


def versions() -> str:
    """Return what was compared with what."""
    import onnxruntime
    import PIL

    found = [f"onnxruntime {onnxruntime.__version__} and Pillow {PIL.__version__} in Python"]
    for name, packages in (("node", ("onnxruntime-node", "sharp")), ("web", ("onnxruntime-web",))):
        wanted = json.loads((EXAMPLES / name / "package.json").read_text())["dependencies"]
        found += [f"{package} {wanted[package]}" for package in packages]
    for program in ("node", BROWSER):
        if program and shutil.which(program):
            asked = [program, "--version"]
            said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
            found.append(f"Node.js {said.strip()}" if program == "node" else said.split("built")[0])
    return ", ".join(text.strip() for text in found)
