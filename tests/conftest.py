"""What the tests share: the command line in this process, real photographs, a tiny backbone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A shell starts a job in the background with Ctrl-C ignored, and its children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Two cores, shared: no deadline, and few enough examples for a run of minutes.
settings.register_profile(
    "featpipe", deadline=None, max_examples=40, suppress_health_check=list(HealthCheck)
)
settings.load_profile("featpipe")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests: at the end no process is alone with one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@dataclass(frozen=True)
class Result:
    """What one command has left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session", autouse=True)
def _run_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Name the folder that all processes of this run share; see `vectors.made_once`."""
    own = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
        patch.setenv("FEATPIPE_TEST_RUN", str(shared))
        yield


@pytest.fixture(autouse=True)
def _own_places(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep caches and user folders of a test away from the home of whoever runs it."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "FEATPIPE_MODELS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Return a function that runs ``featpipe ARGS`` in this process."""
    from featpipe.commands import main

    def run(*args: object) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([os.fspath(a) if isinstance(a, Path) else str(a) for a in args])
        out, err = capsys.readouterr()
        code = stop.value.code
        return Result(code if isinstance(code, int) else 0 if code is None else 1, out, err)

    return run


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder with real data sets, or skip."""
    folder = os.environ.get("FEATPIPE_SHARED")
    if not folder:
        pytest.skip("FEATPIPE_SHARED is unset: it names the folder with the real data sets")
    return Path(folder).resolve()


PHOTOS = Path(__file__).parent / "data" / "photos"
LIVING = ("astronaut", "cat", "grass", "retina")
"""The photographs that `photos` puts into the class ``living``; the others are ``things``."""


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with two classes of real photographs: living (4) and things (6)."""
    root = tmp_path / "photos"
    for path in sorted(PHOTOS.glob("*.jpg")):
        folder = root / ("living" if path.stem in LIVING else "things")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.name)
    return root


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a five-node backbone that keeps the whole contract: 3 × 3 mean colours of 32 × 32."""
    path = tmp_path_factory.mktemp("models") / "tiny.onnx"
    build_tiny_backbone(path)
    return path


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Return a folder that everybody may enter; for tests of permissions."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o777)
        yield Path(name)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Run a block without the rights of root, where the tests have them."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def build_tiny_backbone(path: Path, name: str = "tiny", scale: float = 1 / 255) -> None:
    """Write a backbone of five nodes; another ``scale`` gives another fingerprint."""
    from onnx import TensorProto, helper

    from featpipe.backbones.card import CARD_KEY, BackboneCard
    from featpipe.backbones.contract import with_fingerprint
    from featpipe.types import ResizeRule

    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["nchw", "scale"], ["scaled"]),
        helper.make_node(
            "AveragePool", ["scaled"], ["pooled"], kernel_shape=[10, 10], strides=[11, 11]
        ),
        helper.make_node("Flatten", ["pooled"], ["embedding"]),
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 32, 32, 3])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 27])],
        [helper.make_tensor("scale", TensorProto.FLOAT, [], [scale])],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, producer_name="tests"
    )
    card = BackboneCard(
        name=name,
        weights="none: mean colours",
        license="Apache-2.0",
        dimension=27,
        resize=ResizeRule(resize=36, crop=32),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    card = with_fingerprint(card, model.SerializeToString())
    helper.set_model_props(model, {CARD_KEY: json.dumps(card.to_json())})
    path.write_bytes(model.SerializeToString())
