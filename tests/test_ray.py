"""The engine on Ray: a real cluster of two workers, started once, and what kills leave behind."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from conftest import PHOTOS, build_tiny_backbone
from PIL import Image

from featpipe import fit, score
from featpipe.embedding import EmbedOptions, EmbedReport, run_embedding
from featpipe.embedding.block_worker import DEADLY
from featpipe.errors import DeviceError, TooManyFailuresError
from featpipe.sources import FolderSource
from featpipe.store import EmbeddingStore, parts
from featpipe.types import ImageRef

if find_spec("ray") is None:
    pytest.skip("the `ray` extra is not installed", allow_module_level=True)
if not Path("/proc/self/children").exists() and not Path("/proc/self/task").exists():
    pytest.skip("the tests find the workers of Ray in /proc", allow_module_level=True)

# Ray warns of its own future, and leaves sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore")
COUNT = 600


class Recording(FolderSource):
    """A folder that notes what the environment of each worker says of telemetry."""

    def read(self, ref: ImageRef) -> bytes:
        names = ("ORT_DISABLE_TELEMETRY", "RAY_USAGE_STATS_ENABLED", "HOME")
        said = json.dumps([os.environ.get(name) for name in names])
        (self.root.parent / f"seen-{os.getpid()}.json").write_text(said)
        return super().read(ref)

    def reader(self) -> Recording:
        return self


class Poisonous(Recording):
    """A folder with an image that kills whoever opens it."""

    def read(self, ref: ImageRef) -> bytes:
        data = super().read(ref)
        if ref.path.endswith("poison.jpg"):
            os.kill(os.getpid(), signal.SIGKILL)
        return data


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.onnx"
    build_tiny_backbone(path)
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def cluster(home: Path) -> Iterator[str]:
    """Start Ray as ``--engine ray`` does, with two workers; return its address."""
    from featpipe.embedding.ray_cluster import connect, import_ray

    here = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(action="ignore"):
        patch.setenv("PYTHONPATH", os.pathsep.join([*here, os.environ.get("PYTHONPATH", "")]))
        patch.setenv("HOME", str(home))
        for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "FEATPIPE_MODELS"):
            patch.delenv(name, raising=False)
        ray = import_ray(None)
        connect(ray, None, 2)
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of 600 small pieces of real photographs; one is there twice, one is none."""
    root = tmp_path_factory.mktemp("many") / "images"
    root.mkdir()
    photographs = [Image.open(path).convert("RGB") for path in sorted(PHOTOS.glob("*.jpg"))]
    for number in range(COUNT - 2):
        photograph = photographs[number % len(photographs)]
        left = number // len(photographs)
        piece = photograph.crop((left, left, left + 200, left + 160))
        # Some pieces are equal; files are not.
        piece.save(root / f"{number:04d}.jpg", quality=85, comment=str(number))
    (root / "0100-again.jpg").write_bytes((root / "0100.jpg").read_bytes())
    (root / "0200-broken.jpg").write_bytes(b"no image at all")
    return root


@pytest.fixture(scope="module")
def local(many: Path, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    """Return what the local engine makes of these images."""
    output = tmp_path_factory.mktemp("stores") / "local"
    return run_embedding(many, tiny, output=output).store


def assert_equal(store: EmbeddingStore, other: EmbeddingStore) -> None:
    """The same rows but for where the vectors lie, the same vectors, the same record."""
    rows, theirs = (s.index.table.drop_columns(["part", "row"]) for s in (store, other))
    assert rows.equals(theirs)
    assert np.array_equal(store.X, other.X)
    assert store.manifest.engines == other.manifest.engines


def written(store: Path) -> list[bytes]:
    """Return every key of every finished part: a content computed twice is there twice."""
    return [key for n in parts.list_parts(store) for key in parts.read_keys(store, n)]


def workers_of(pid: int) -> list[int]:
    """Return the processes below ``pid`` in which actors of Ray Data work."""
    found, parents = [], {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(
                folder.joinpath("stat").read_text().rsplit(")")[1].split()[1]
            )
            if b"ray::MapWorker" in folder.joinpath("cmdline").read_bytes():
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue

    def is_below(child: int) -> bool:
        while child > 1 and child != pid:
            child = parents.get(child, 0)
        return child == pid

    return [worker for worker in found if is_below(worker)]


def wait_for(what: Callable[[], object], seconds: float = 900) -> None:
    """Wait until it is so; the limit is for what hangs."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.005)


def wait_for_parts(count: int, store: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a run has finished so many parts, and is not done yet."""
    wait_for(lambda: len(parts.list_parts(store)) >= count or process.poll() is not None)
    assert process.poll() is None, process.communicate()[1]


def start_embedding(
    source: Path, tiny: Path, store: Path, address: str, home: Path
) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from featpipe.commands import main; main()", "embed"]
    command += [str(source), "--model", str(tiny), "-o", str(store), "--json"]
    command += ["--engine", "ray", "--address", address]
    # The token of the cluster lies there.
    environment = {**os.environ, "HOME": str(home)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_sigterm_is_left_alone(cluster: str) -> None:
    """Ray's own answer to it, an exit of another name, does not outlive its start."""
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_killed_worker(
    cluster: str, home: Path, many: Path, tiny: Path, local: EmbeddingStore, tmp_path: Path
) -> None:
    """Its block is done again, nothing else is; stdout holds the JSON and no word of Ray's."""
    output = tmp_path / "store"
    with start_embedding(many, tiny, output, cluster, home) as process:
        wait_for_parts(1, output, process)
        os.kill(workers_of(os.getpid())[0], signal.SIGKILL)
        out, err = process.communicate(timeout=900)
    assert process.returncode == 3, err
    report = json.loads(out)
    assert (report["images"], report["computed"], report["known"]) == (COUNT, COUNT - 2, 1)
    assert [f["path"] for f in report["failures"]] == ["0200-broken.jpg"]
    assert report["device"].endswith(f"; 2 workers of Ray at {cluster}")
    assert_equal(EmbeddingStore.open(output), local)
    assert len(written(output)) == len(set(written(output))) == COUNT - 2


def test_killed_driver(
    cluster: str, home: Path, many: Path, tiny: Path, local: EmbeddingStore, tmp_path: Path
) -> None:
    """The workers end, and the next run, with either engine, computes what has no part alone."""
    output = tmp_path / "store"
    with start_embedding(many, tiny, output, cluster, home) as process:
        wait_for_parts(2, output, process)
        process.kill()
        process.communicate()
    wait_for(lambda: not workers_of(os.getpid()))
    kept = len(written(output))
    assert 0 < kept < COUNT - 2
    report = run_embedding(many, tiny, output=output)
    assert (report.computed, report.known) == (COUNT - 2 - kept, kept + 1)
    assert_equal(report.store, local)
    assert len(written(output)) == len(set(written(output))) == COUNT - 2
    promised = report.store.manifest.next_part
    assert max(parts.list_parts(output)) >= promised > 0


def test_poisonous_image(
    cluster: str, home: Path, photos: Path, tiny: Path, tmp_path: Path
) -> None:
    """An image that kills whoever opens it is a row; the others have their vectors, once."""
    (photos / "living" / "poison.jpg").write_bytes(b"deadly")
    report = embed_by_ray(Poisonous(photos), tiny, tmp_path / "store")
    assert report.store.failures == [("living/poison.jpg", "unreadable", DEADLY.reason)]
    assert (report.images, report.computed, report.failed) == (11, 10, 1)
    assert len(written(tmp_path / "store")) == 10
    said = [json.loads(path.read_text()) for path in tmp_path.glob("seen-*.json")]
    assert len(said) > 3  # two workers, and one for each death
    assert {tuple(words) for words in said} == {("1", "0", str(home))}
    assert not [path for path in home.rglob("*") if "onnxruntime" in str(path).lower()]


def test_stopped_by_a_failure(cluster: str, photos: Path, tiny: Path, tmp_path: Path) -> None:
    """``strict`` stops the run; what was finished is kept, and the next run goes on from there."""
    (photos / "things" / "broken.jpg").write_bytes(b"no image")
    output = tmp_path / "store"
    with pytest.raises(TooManyFailuresError, match=r"^stopped, as --strict asks, at things/broken"):
        embed_by_ray(Recording(photos), tiny, output, strict=True)
    again = run_embedding(photos, tiny, output=output)
    assert (again.images, again.failed, len(again.store)) == (11, 1, 10)
    assert len(written(output)) == 10
    assert embed_by_ray(FolderSource(photos), tiny, output).device.startswith("nothing had to be")


def test_score(
    cluster: str, many: Path, tiny: Path, local: EmbeddingStore, photos: Path, tmp_path: Path
) -> None:
    """The rows come in the order of the source, and are those of the local engine."""
    labelled = run_embedding(photos, tiny, output=tmp_path / "labelled").store
    head = fit(labelled, "centroid", check=False, baselines=False)
    for engine in ("local", "ray"):
        options = {"workers": 2, "top_k": 2, "model": tiny}
        summary = score(many, head, output=tmp_path / f"{engine}.csv", engine=engine, **options)
        assert (summary.images, summary.failed) == (COUNT, 1)
    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "local.csv").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"workers": 3},
            "the Ray cluster has 2 CPUs, and 3 workers need one each: give --workers 2, or add "
            "machines",
        ),
        (
            {"device": "cuda"},
            "--device cuda cannot be had: the Ray cluster has no GPU; give --device cpu, or start "
            "its machines with ray start --num-gpus",
        ),
        (
            {"device": "cuda:1"},
            "with --engine ray the GPUs are given out by Ray: give --device cuda, not cuda:1",
        ),
    ],
)
def test_what_the_cluster_lacks(
    cluster: str, options: dict[str, object], message: str, photos: Path, tiny: Path, tmp_path: Path
) -> None:
    """It is said in one line, before anything waits for it, and no store is left behind."""
    with pytest.raises(DeviceError) as raised:
        embed_by_ray(FolderSource(photos), tiny, tmp_path / "store", **options)
    assert str(raised.value) == message
    assert not (tmp_path / "store").exists()


def embed_by_ray(source: FolderSource, tiny: Path, output: Path, **options: object) -> EmbedReport:
    asked = EmbedOptions(engine="ray", **options)
    return run_embedding(source, tiny, output=output, options=asked)


def test_recipe_for_kubernetes() -> None:
    """The YAML in docs/scale.md has the fields that KubeRay wants, and a true command."""
    import yaml

    from featpipe.commands.embed import embed

    page = (Path(__file__).parent.parent / "docs" / "scale.md").read_text(encoding="utf-8")
    [text] = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    job = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    program, command, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (program, command) == ("featpipe", "embed")
    given = embed.make_context("embed", arguments).params
    assert (given["engine"], given["address"]) == ("ray", "auto")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        assert {"name", "image", "env", "resources", "volumeMounts"} == set(container)
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
        assert {e["name"]: e["value"] for e in container["env"]} == {
            "RAY_USAGE_STATS_ENABLED": "0",
            "ORT_DISABLE_TELEMETRY": "1",
        }
