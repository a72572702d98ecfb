"""``examples/web``: the page in a real browser, which can reach nothing but the test's server."""

from __future__ import annotations

import json
import os
import struct
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LIVING, PHOTOS

from featpipe import embed, fit
from featpipe.bundling import BundleOptions, bundle
from featpipe.images import whole_picture
from featpipe.ood import Novelty

REPOSITORY = Path(__file__).parent.parent
WEB = REPOSITORY / "examples" / "web"
sys.path.append(str(REPOSITORY / "benchmarks"))

from headless import BROWSER, Served, opened, serving  # noqa: E402

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason="there is no chromium here"),
    pytest.mark.skipif(
        not (WEB / "runtime").is_dir(),
        reason="onnxruntime-web is not here: npm ci && npm run build in examples/web",
    ),
]

HELPERS = """
const byId = (id) => document.getElementById(id);
const until = async (holds) => {
  for (let i = 0; i < 1200 && !holds(); i++) await new Promise((go) => setTimeout(go, 25));
};
const text = (id) => (byId(id).hidden ? "" : byId(id).textContent);
const shown = () => !byId("result").hidden;
const fileOf = async (path) => new File([await (await fetch(path)).blob()], path.slice(1));
const give = async (id, path) => {
  const data = new DataTransfer();
  data.items.add(await fileOf(path));
  byId(id).files = data.files;
  byId(id).dispatchEvent(new Event("change"));
};
const drop = async (path) => {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(await fileOf(path));
  document.dispatchEvent(new DragEvent("drop", { dataTransfer, cancelable: true }));
};
const answer = (out) => fetch("/answer", { method: "POST", body: JSON.stringify(out) });
"""


@pytest.fixture(scope="module")
def bundles(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return files by their path on the server: bundles of a tiny backbone, and pictures."""
    root = tmp_path_factory.mktemp("web")
    for path in PHOTOS.glob("*.jpg"):
        folder = root / "photos" / ("living" if path.stem in LIVING else "things")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    head = fit(
        embed(root / "photos", tiny_backbone, output=root / "store"),
        "centroid",
        cv=2,
        check=False,
        tune=False,
    )
    bundle(head, root / "small.onnx", model=tiny_backbone)
    assert head.novelty is not None
    # All of a hundred known images are less strange than any picture is to it.
    narrow = Novelty(head.novelty.rows, head.novelty.counts, np.linspace(-99.0, -98.0, 99))
    bundle(replace(head, novelty=narrow), root / "narrow.onnx", model=tiny_backbone)
    square = BundleOptions(resize=False)
    bundle(head, root / "square.onnx", model=tiny_backbone, options=square)
    files = {f"/{path.name}": path.read_bytes() for path in root.glob("*.onnx")}
    files |= {f"/{path.name}": path.read_bytes() for path in PHOTOS.glob("*.jpg")}
    return files | {"/text.jpg": b"no image", "/text.onnx": b"no model", "/empty.jpg": b""}


def ask(
    files: dict[str, bytes], script: str, *, width: int = 0, dark: bool = False
) -> tuple[dict[str, Any], Served]:
    """Open the page, run a script in it that calls ``answer(out)``, and return ``out``."""
    with serving({"/": WEB}) as server:
        prepare(server, files, script)
        page = "/index.html"
        if width:
            page = "/frame.html"
            server.files[page] = (
                f'<!doctype html><iframe src="/index.html" width="{width}" height="1500">'
            ).encode()
        scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
        with opened(server.url + page, scheme) as log:
            found = server.answer(120)
            found["console"] = [x for x in log.read_text().splitlines() if "CONSOLE" in x]
    return found, server


def prepare(server: Served, files: dict[str, bytes], script: str) -> None:
    """Let the page have a script at its end; the page's own rules for scripts stay in force."""
    page = (WEB / "index.html").read_bytes()
    probe = b'<script type="module" src="probe.js"></script></body>'
    server.files = {**files, "/index.html": page.replace(b"</body>", probe)}
    server.files["/"] = server.files["/index.html"]
    server.files["/probe.js"] = (HELPERS + script).encode()


def expected(files: dict[str, bytes], name: str) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Return labels and probabilities of a picture, by ONNX Runtime in Python."""
    import onnxruntime

    session = onnxruntime.InferenceSession(files["/small.onnx"], providers=["CPUExecutionProvider"])
    labels = json.loads(session.get_modelmeta().custom_metadata_map["featpipe.labels"])
    pixels = whole_picture(files[name])
    found = session.run(["probabilities"], {"images": np.asarray(pixels)[None]})[0][0]
    return labels, found


@pytest.mark.slow
def test_a_picture_is_classified(bundles: dict[str, bytes]) -> None:
    """A picture that is dropped: label, every class with its probability, time, no complaint."""
    found, server = ask(
        bundles | {"/classifier.onnx": bundles["/small.onnx"]},
        """
        await until(() => text("status").startsWith("Ready"));
        const ready = text("status");
        await drop("/cat.jpg");
        await until(shown);
        await answer({
          ready, status: text("status"), error: text("error"), label: text("label"),
          time: text("time"), alt: byId("preview").alt, drawn: byId("preview").src.slice(0, 5),
          rows: [...byId("classes").children].map((row) => [...row.children].map(
            (cell) => cell.textContent || cell.style.width)),
        });
        """,
    )
    labels, probabilities = expected(bundles, "/cat.jpg")
    order = np.argsort(-probabilities)
    best = f"{100 * probabilities[order[0]]:.1f} %"
    assert found["console"] == []
    assert found["error"] == ""
    assert found["ready"] == "Ready: classifier.onnx knows 2 classes."
    assert found["status"] == f"cat.jpg: {labels[order[0]]}, {best}"
    assert found["label"] == labels[order[0]]
    assert found["time"].startswith("451 × 300 pixels; read in ")
    assert (found["alt"], found["drawn"]) == ("cat.jpg", "blob:")
    assert [row[1:] for row in found["rows"]] == [
        [labels[i], f"{100 * probabilities[i]:.1f} %"] for i in order
    ]
    widths = [float(row[0].rstrip("%")) for row in found["rows"]]
    assert widths == pytest.approx([100 * probabilities[i] for i in order], abs=0.01)
    assert "/runtime/ort-wasm-simd-threaded.wasm" in server.asked


def test_a_picture_that_is_unlike_all_others(bundles: dict[str, bytes]) -> None:
    """A label stands for it, and beside it that it may be nothing the classifier knows."""
    found, _ = ask(
        bundles | {"/classifier.onnx": bundles["/narrow.onnx"]},
        """
        await until(() => text("status").startsWith("Ready"));
        await drop("/cat.jpg");
        await until(shown);
        const out = { strange: text("strange"), status: text("status"), console: [] };
        await give("bundle", "/small.onnx");
        await until(() => text("status").startsWith("Ready"));
        await drop("/cat.jpg");
        await until(() => text("status").startsWith("cat.jpg: "));
        await answer({ ...out, known: text("strange") });
        """,
    )
    assert found["strange"] == (
        "This may be nothing the classifier knows: 1.0 % of the images that it has learnt on look "
        "as strange."
    )
    assert found["status"].endswith(" %, but unlike what is known")
    assert found["known"] == ""


def test_what_goes_wrong_is_a_sentence(bundles: dict[str, bytes]) -> None:
    """No classifier, a wrong one, no picture: each is said, and the next try goes on."""
    found, _ = ask(
        bundles,
        """
        const out = {};
        const saying = async (name, act) => {
          byId("error").textContent = "";
          await act();
          await until(() => byId("error").textContent !== "");
          out[name] = byId("error").textContent;
        };
        await saying("none", () => {});
        out.open = byId("other").open;
        await saying("early", () => give("picture", "/cat.jpg"));
        await saying("text", () => give("bundle", "/text.onnx"));
        await saying("square", () => give("bundle", "/square.onnx"));
        await give("bundle", "/small.onnx");
        await until(() => text("status").startsWith("Ready"));
        out.ready = [text("status"), text("error")];
        await saying("picture", () => give("picture", "/text.jpg"));
        await saying("empty", () => drop("/empty.jpg"));
        await give("picture", "/brick.jpg");
        await until(shown);
        out.good = [text("label"), text("error")];
        await answer(out);
        """,
    )
    assert found["open"] is True
    cannot = "cannot be used: it"
    assert found["none"] == (
        "There is no classifier.onnx beside this page: choose a file of featpipe bundle below."
    )
    assert found["early"] == "There is no classifier yet: wait until it is loaded, or choose one."
    assert found["text"] == f"text.onnx {cannot} is not an ONNX file, or it is cut short."
    assert found["square"] == (
        f"square.onnx {cannot} takes squares of 32 pixels alone: bundle the head with the resize."
    )
    assert found["ready"] == ["Ready: small.onnx knows 2 classes.", ""]
    assert found["picture"] == (
        "text.jpg cannot be classified: it is damaged, or not an image in a format that this "
        "browser reads."
    )
    assert found["empty"] == "empty.jpg cannot be classified: the file is empty."
    labels, probabilities = expected(bundles, "/brick.jpg")
    assert found["good"] == [labels[int(probabilities.argmax())], ""]


CONTRAST = """
        await until(() => text("status").startsWith("Ready"));
        await drop("/cat.jpg");
        await until(shown);
        byId("other").open = true;
        byId("error").hidden = false;
        const light = (colour) => {
          const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((x) => x / 255)
            .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        const of = (element, what) => light(getComputedStyle(element)[what]);
        const ground = of(document.body, "backgroundColor");
        const row = byId("classes").firstChild;
        const ink = of(row, "color");
        await answer({
          contrasts: [
            ...["about", "status", "error", "label", "time"].map(
              (id) => ratio(of(byId(id), "color"), ground)),
            ratio(ink, of(row, "backgroundColor")),
            ratio(ink, of(row.firstChild, "backgroundColor")),
            ratio(ink, of(byId("drop"), "backgroundColor")),
          ],
          dark: ground < 0.2,
          wide: document.documentElement.scrollWidth - innerWidth,
          width: innerWidth,
          unnamed: [...document.querySelectorAll("input")].filter((x) => !x.labels.length).length,
          low: [...document.querySelectorAll("input, summary")].map((x) => x.offsetHeight),
          roles: ["status", "error"].map((id) => byId(id).getAttribute("role")),
        });
"""


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone(bundles: dict[str, bytes], dark: bool) -> None:
    """390 pixels wide nothing sticks out; text stands out in light and dark; inputs have names."""
    found, _ = ask(
        bundles | {"/classifier.onnx": bundles["/small.onnx"]}, CONTRAST, width=390, dark=dark
    )
    assert (found["width"], found["wide"], found["dark"]) == (390, 0, dark)
    assert min(found["contrasts"]) >= 4.5
    assert found["unnamed"] == 0
    assert min(found["low"]) >= 44
    assert found["roles"] == ["status", "alert"]


def test_without_a_network(bundles: dict[str, bytes]) -> None:
    """Once it has been open the page works when its server does not answer any more."""
    script = """
        const stage = Number(localStorage.getItem("stage"));
        localStorage.setItem("stage", stage + 1);
        await until(() => text("status").startsWith("Ready"));
        if (stage < 2) {
          await navigator.serviceWorker.ready;
          const kept = async () => (await (await caches.open("featpipe-bundle")).keys()).length;
          await fetch("/cat.jpg");
          while ((await kept()) < 10) await new Promise((go) => setTimeout(go, 50));
          await answer({ stage });
          const gone = () => fetch("/gone").then(() => false, () => true);
          while (stage === 1 && !(await gone())) await new Promise((go) => setTimeout(go, 50));
          location.reload();
        } else {
          await drop("/cat.jpg");
          await until(shown);
          await answer({ stage, label: text("label"), error: text("error") });
        }
    """
    files = bundles | {"/classifier.onnx": bundles["/small.onnx"]}
    with serving({"/": WEB}) as server:
        prepare(server, files, script)
        with opened(server.url + "/"):
            assert server.answer(120)["stage"] == 0
            assert server.answer(120)["stage"] == 1
            server.silent = True
            found = server.answer(120)
    labels, probabilities = expected(bundles, "/cat.jpg")
    assert found == {"stage": 2, "label": labels[int(probabilities.argmax())], "error": ""}


def test_the_same_as_in_python(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the built-in backbone: pixels are Pillow's bit for bit, probabilities within 1e-4."""
    import onnxruntime

    monkeypatch.chdir(tmp_path)
    fit(embed(photos, output="store", device="cpu"), "ridge", cv=2, check=False, tune=False).save(
        "head"
    )
    bundle("head", "classifier.onnx", images=photos / "living")
    paths = sorted(photos.glob("*/c*.jpg"))
    session = onnxruntime.InferenceSession("classifier.onnx", providers=["CPUExecutionProvider"])
    with serving({"/web/": WEB, "/": REPOSITORY / "benchmarks"}) as server:
        server.files["/task.json"] = json.dumps({"count": len(paths)}).encode()
        server.files["/bundle.onnx"] = Path("classifier.onnx").read_bytes()
        page = b'<!doctype html><script type="module" src="/bundle_browser.mjs"></script>'
        server.files["/page.html"] = page
        for i, path in enumerate(paths):
            pixels = np.asarray(whole_picture(path.read_bytes()))
            size = struct.pack("<II", pixels.shape[1], pixels.shape[0])
            server.files[f"/image/{i}"] = path.read_bytes()
            server.files[f"/pixels/{i}"] = size + pixels.tobytes()
        with opened(server.url + "/page.html"):
            found = server.answer(240)
    assert found["labels"] == ["living", "things"]
    for path, picture in zip(paths, found["pictures"], strict=True):
        pixels = np.asarray(whole_picture(path.read_bytes()))
        label, wanted = session.run(["label", "probabilities"], {"images": pixels[None]})
        assert picture["apart"] == {"largest": 0, "mean": 0, "share": 0}, path.name
        assert picture["own"]["label"] == label[0]
        assert picture["own"]["probabilities"] == pytest.approx(wanted[0].tolist(), abs=1e-4)


def test_the_page_names_no_other_place() -> None:
    """No file of the page has an address in it: it loads nothing from elsewhere."""
    for name in os.listdir(WEB):
        if name.endswith((".html", ".js", ".css")):
            assert "//" not in (WEB / name).read_text().replace("// ", "").replace("//\n", ""), name
