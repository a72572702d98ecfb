"""What the README promises: nothing leaves the machine, nothing is left lying about, no torch."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import LIVING, PHOTOS

import featpipe

ROOT = Path(featpipe.__file__).parent.parent
TORCH = ("torch", "torchvision", "timm", "onnxscript", "safetensors")

# Runs the whole way in a process of its own and writes down what it imports and connects to.
_WHOLE_WAY = """
import json, os, sys

seen = {"asked": [], "telemetry": [], "network": [], "codes": []}

def asker():
    frame = sys._getframe(2)
    while "importlib" in frame.f_code.co_filename:
        frame = frame.f_back
    return frame.f_code.co_filename

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name in TORCH:
            seen["asked"].append(asker())
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if name == "onnxruntime":
            seen["telemetry"].append(os.environ.get("ORT_DISABLE_TELEMETRY"))

def audit(event, args):
    if event.startswith("socket.") and event != "socket.__new__":
        seen["network"].append([event, str(args[1:])])

TORCH = TORCH_NAMES
sys.meta_path.insert(0, Finder())
sys.addaudithook(audit)
from featpipe.commands import main
for command in COMMANDS:
    try:
        main(command)
    except SystemExit as stop:
        seen["codes"].append(stop.code or 0)
seen["loaded"] = [name for name in TORCH if name in sys.modules]
with open("../seen.json", "w") as file:
    json.dump(seen, file)
"""
COMMANDS = [
    ["embed", "photos"],
    ["fit", "--head", "logreg"],
    ["evaluate", "heads/photos-efficientnet_lite0-logreg", "embeddings/photos-efficientnet_lite0"],
    ["score", "photos", "-o", "predictions.csv"],
]


@dataclass(frozen=True)
class WholeWay:
    """What one run of embed, fit, evaluate and score has left."""

    root: Path
    seen: dict
    calls: str | None

    def files(self, folder: str) -> set[str]:
        """Every file below one of the folders, relative to it."""
        top = self.root / folder
        return {str(path.relative_to(top)) for path in top.rglob("*") if not path.is_dir()}


def _works(*command: str) -> bool:
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module")
def whole_way(tmp_path_factory: pytest.TempPathFactory) -> WholeWay:
    """Run the four commands with the built-in backbone in a fresh home, without a network."""
    root = tmp_path_factory.mktemp("fresh")
    for name in ("home", "work", "tmp"):
        (root / name).mkdir()
    for path in PHOTOS.glob("*.jpg"):
        folder = root / "work/photos" / ("living" if path.stem in LIVING else "things")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    script = _WHOLE_WAY.replace("TORCH_NAMES", repr(TORCH)).replace("COMMANDS", repr(COMMANDS))
    command = [sys.executable, "-c", script]
    trace = root / "calls"
    calls = "connect,sendto,sendmsg,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2"
    strace = ["strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={calls}"]
    traced = _works("strace", "-qq", "-o", os.devnull)
    if traced:
        command = [*strace, *command]
    if _works("unshare", "--net"):
        command = ["unshare", "--net", *command]
    done = subprocess.run(
        command,
        cwd=root / "work",
        env={
            **{
                name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ
            },
            "HOME": str(root / "home"),
            "TMPDIR": str(root / "tmp"),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "ORT_DISABLE_TELEMETRY": "0",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads((root / "seen.json").read_text())
    return WholeWay(root, seen, trace.read_text(errors="replace") if traced else None)


@pytest.mark.slow
def test_the_whole_way_works_without_a_network(whole_way: WholeWay) -> None:
    """In a fresh home and without a network all four commands end with code 0."""
    assert whole_way.seen["codes"] == [0, 0, 0, 0]
    assert (whole_way.root / "work/predictions.csv").read_bytes().count(b"\n") == 11


def test_no_file_stands_outside_the_named_places(whole_way: WholeWay) -> None:
    """Stores, heads and the output in the working folder; in the home only our own cache."""
    work = {path.split("/")[0] for path in whole_way.files("work")}
    assert work == {"photos", "embeddings", "heads", "predictions.csv"}
    assert len(whole_way.files("work/photos")) == 10
    assert whole_way.files("tmp") == set()
    home = whole_way.files("home")
    assert [path for path in home if not path.startswith(".cache/featpipe/")] == []


def test_nothing_is_written_anywhere_else(whole_way: WholeWay) -> None:
    """By the system's own record every file that is opened for writing lies in these places."""
    if whole_way.calls is None:
        pytest.skip("strace does not work here")
    opened = re.findall(
        r'(?:openat\(AT_FDCWD, |open\(|creat\()"([^"]+)", ([A-Z_|]+)', whole_way.calls
    )
    written = {path for path, flags in opened if re.search(r"O_(WRONLY|RDWR|CREAT)", flags)}
    assert any(path.endswith(".tmp") for path in written)
    outside = [
        path
        for path in written
        if os.path.isabs(path)
        and not path.startswith((str(whole_way.root), "/dev/", "/proc/self/", "/sys/"))
    ]
    assert outside == []


def test_nothing_is_sent(whole_way: WholeWay) -> None:
    """No socket is connected, no name is looked up: not by Python, not by a library below it."""
    assert whole_way.seen["network"] == []
    if whole_way.calls is not None:
        assert re.findall(r"connect\(.*AF_INET.*", whole_way.calls) == []
        assert re.findall(r"send(?:to|msg)\(.*AF_INET.*", whole_way.calls) == []


def test_telemetry_is_off_before_onnx_runtime_is_loaded(whole_way: WholeWay) -> None:
    """The variable stands in the environment when the import begins, whatever it was before."""
    assert set(whole_way.seen["telemetry"]) == {"1"}


def test_nothing_needs_torch(whole_way: WholeWay) -> None:
    """With torch and its kin out of reach the whole way works, and none of our files asks for them.

    scikit-learn looks for torch by itself, to see whether arrays may be tensors.
    """
    assert whole_way.seen["codes"] == [0, 0, 0, 0]
    assert whole_way.seen["loaded"] == []
    package = os.path.dirname(featpipe.__file__)
    assert [path for path in whole_way.seen["asked"] if path.startswith(package)] == []


def test_import_is_light() -> None:
    """``import featpipe`` loads neither NumPy nor anything heavier; its names are there."""
    code = (
        "import sys, featpipe\n"
        "heavy = {'numpy', 'onnxruntime', 'onnx', 'sklearn', 'scipy', 'pyarrow', 'PIL', 'rich',"
        " 'click', 'skops', 'joblib', 'matplotlib', 'torch'}\n"
        "print(sorted(heavy & set(sys.modules)), len(dir(featpipe)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"[] {len(featpipe.__all__)}\n"


def test_every_public_name_is_there() -> None:
    """Each name in ``__all__`` can be had, has a docstring, and an unknown one is an error.

    None is that of a package: once something has imported it, the name would mean the package.
    """
    for name in featpipe.__all__:
        assert getattr(featpipe, name).__doc__, name
        assert not (ROOT / "featpipe" / name).exists()
    with pytest.raises(AttributeError) as caught:
        _ = featpipe.nothing
    assert str(caught.value) == "module 'featpipe' has no attribute 'nothing'"


@pytest.mark.parametrize(
    ("first", "foreign"),
    [
        ("featpipe.embedding", {"sklearn", "skops", "onnx", "click", "rich"}),
        ("featpipe.evaluation", {"onnxruntime", "onnx", "PIL", "click"}),
    ],
)
def test_parts_load_only_what_they_need(first: str, foreign: set[str]) -> None:
    """Embedding needs no scikit-learn, learning neither ONNX Runtime nor images."""
    code = f"import sys, {first}; print(sorted({foreign!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
