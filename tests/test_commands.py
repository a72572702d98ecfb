"""The command line: what is printed where, and with which exit code."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import pyarrow.parquet as pq
import pytest
from conftest import Result

import featpipe
import featpipe.embedding
from featpipe import errors
from featpipe.commands import _COMMANDS, cli
from featpipe.errors import FeatpipeError

Run = Callable[..., Result]
CLI = [sys.executable, "-c", "from featpipe.commands import main; main()"]


def test_version_and_help_are_quick_and_light() -> None:
    """``--help`` lists every command and imports nothing heavy."""
    code = (
        "import sys\n"
        "from featpipe.commands import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'onnxruntime', 'sklearn', 'pyarrow', 'PIL', 'rich', 'torch', 'onnx'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    for name, (_, help_) in _COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert help_ in done.stdout


@pytest.mark.parametrize("name", list(_COMMANDS))
def test_every_command_has_help(run_cli: Run, name: str) -> None:
    """Each command and each of its options says what it does."""
    result = run_cli(name, "--help")
    assert result.code == 0
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts}"


def test_unknown_command_and_option_are_usage_errors(run_cli: Run) -> None:
    """What click cannot parse is exit code 2, with the nearest name where there is one."""
    result = run_cli("embd")
    assert result.code == errors.EXIT_USAGE
    assert "No such command 'embd'" in result.err
    assert run_cli("embed").code == errors.EXIT_USAGE
    assert run_cli("embed", "x", "--batch-size", "0").code == errors.EXIT_USAGE


def test_version(run_cli: Run) -> None:
    """``--version`` is one line."""
    assert run_cli("--version").out == f"featpipe {featpipe.__version__}\n"


def test_exit_codes_are_those_of_the_readme() -> None:
    """Every error class has the exit code that the README's table gives."""
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    table = {int(code) for code in re.findall(r"^\| (\d+) \|", readme, re.MULTILINE)}
    classes = [
        c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, FeatpipeError)
    ]
    codes = {c.exit_code for c in classes}
    assert table == codes | {
        errors.EXIT_OK,
        errors.EXIT_USAGE,
        errors.EXIT_DRIFT,
        errors.EXIT_INTERRUPTED,
        errors.EXIT_PIPE,
    }


def test_embed_says_one_line_and_prints_nothing_when_piped(
    run_cli: Run, photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Without a terminal: device and summary on stderr, nothing on stdout."""
    result = run_cli(
        "embed", photos, "--model", tiny_backbone, "-o", tmp_path / "s", "--device", "cpu"
    )
    assert (result.code, result.out) == (0, "")
    device, line = result.err.splitlines()
    assert device == "running on cpu, fp32 (it was asked for)"
    assert re.fullmatch(r"10 images: 10 embedded \([\d,]+/s\); \d+\.\d s → .*/s", line)
    again = run_cli("embed", photos, "--model", tiny_backbone, "-o", tmp_path / "s")
    assert "10 images: 0 embedded, 10 unchanged and not opened; " in again.err


def test_embed_json_goes_to_stdout(
    run_cli: Run, photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """``--json`` is one document on stdout, failures in it, exit code 3 for them."""
    (photos / "living" / "bad\n.jpg").write_bytes(b"")
    result = run_cli("embed", photos, "--model", tiny_backbone, "-o", tmp_path / "s", "--json")
    assert result.code == errors.EXIT_SOME_FAILED
    value = json.loads(result.out)
    assert (value["images"], value["computed"], value["failed"]) == (11, 10, 1)
    assert value["failures"] == [
        {
            "path": "living/bad\\n.jpg",
            "status": "undecodable",
            "reason": "the file is empty (0 bytes)",
        }
    ]
    assert "Failed: living/bad\\n.jpg: the file is empty (0 bytes)\n" in result.err


def test_many_failures_are_summed_up(
    run_cli: Run, photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Ten failures are named, the rest counted; what became of the others is said."""
    for i in range(12):
        (photos / "living" / f"x{i:02d}.jpg").write_bytes(b"")
    run_cli("embed", photos, "--model", tiny_backbone, "-o", tmp_path / "s")
    (photos / "living" / "cat.jpg").unlink()
    (photos / "things" / "coins.jpg").rename(photos / "things" / "money.jpg")
    result = run_cli("embed", photos, "--model", tiny_backbone, "-o", tmp_path / "s")
    assert result.err.count("Failed: ") == 11
    assert f"Failed: 2 more; `featpipe info {tmp_path}/s` lists them.\n" in result.err
    line = result.err.splitlines()[-1]
    assert line.startswith(
        "21 images: 0 embedded, 20 unchanged and not opened, 1 with known contents, "
        "2 gone since the last run, 12 failed; "
    )


def test_error_is_one_line_and_debug_shows_the_traceback(run_cli: Run, tmp_path: Path) -> None:
    """A sentence and its exit code; ``--debug``, anywhere, lets the traceback through."""
    result = run_cli("embed", tmp_path / "gone")
    assert result.code == 4
    assert result.err == (
        f"Error: there is nothing at {tmp_path}/gone: check the path (it is looked for from "
        f"{Path.cwd()})\n"
    )
    done = subprocess.run(
        [*CLI, "embed", str(tmp_path / "gone"), "--debug"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" in done.stderr
    assert "SourceError: there is nothing at" in done.stderr


def test_bug_asks_for_a_report(run_cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody foresaw is one line, too, and exit code 1."""
    monkeypatch.setattr(featpipe.embedding, "run_embedding", None)
    result = run_cli("embed", "x")
    assert result.code == 1
    assert result.err == (
        "Error: this is a bug in featpipe (TypeError: 'NoneType' object is not callable). "
        "Run the command again with --debug and report what it prints.\n"
    )


def test_closed_pipe_ends_quietly(photos: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    """``featpipe … | head`` ends without a word when head has gone."""
    environment = {**os.environ, "FEATPIPE": str(tmp_path)}
    store = tmp_path / "s"
    subprocess.run(
        [*CLI, "embed", str(photos), "--model", str(tiny_backbone), "-o", str(store)],
        check=True,
        capture_output=True,
    )
    with subprocess.Popen(
        [*CLI, "info", str(store), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        err = child.stderr.read()
        assert child.wait() == errors.EXIT_PIPE
    assert err == b""


def test_terminal_shows_progress(photos: Path, tiny_backbone: Path, tmp_path: Path) -> None:
    """On a terminal the run draws a bar with counts; the summary stays."""
    leader, follower = pty.openpty()
    with subprocess.Popen(
        [*CLI, "embed", str(photos), "--model", str(tiny_backbone), "-o", str(tmp_path / "s")],
        stdout=subprocess.DEVNULL,
        stderr=follower,
        env={**os.environ, "TERM": "xterm"},
    ) as child:
        os.close(follower)
        seen = b""
        while True:
            try:
                block = os.read(leader, 4096)
            except OSError:
                break
            if not block:
                break
            seen += block
        assert child.wait() == 0
    os.close(leader)
    assert b"10/10" in seen
    assert b"10 images: 10 embedded" in seen


def test_interrupt_is_said_and_loses_nothing(
    run_cli: Run, photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Ctrl-C: exit code 130, one line, and the next run goes on."""
    photo = (photos / "living" / "cat.jpg").read_bytes()
    for i in range(3000):
        (photos / "living" / f"{i}.jpg").write_bytes(photo + i.to_bytes(4, "big"))
    arguments = ["embed", str(photos), "--model", str(tiny_backbone), "-o", str(tmp_path / "s")]
    with subprocess.Popen([*CLI, *arguments, "--workers", "1"], stderr=subprocess.PIPE) as child:
        assert child.stderr is not None
        while not list((tmp_path / "s").glob("parts/*.keys")):
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        err = child.stderr.read().decode()
        assert child.wait() == errors.EXIT_INTERRUPTED
    assert err == "\nInterrupted. What was finished is kept; the same command goes on from there.\n"
    again = json.loads(run_cli(*arguments, "--json").out)
    assert (again["images"], again["failed"]) == (3010, 0)
    assert again["computed"] <= 3010 - 32


def test_info_describes_and_verifies(
    run_cli: Run, photos: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``info`` says what a store is; ``--verify`` finds a changed byte and exits with 7."""
    monkeypatch.chdir(tmp_path)
    (photos / "things" / "bad.jpg").write_bytes(b"")
    run_cli("embed", photos, "--model", tiny_backbone)
    result = run_cli("info", "--verify")
    assert result.code == 0
    lines = dict(line.split(None, 1) for line in result.out.splitlines())
    assert lines["vectors"] == "10 × 27 float32"
    assert lines["labels"] == "living 4, things 6"
    assert lines["splits"] == "none"
    assert lines["failed"] == "things/bad.jpg: the file is empty (0 bytes)"
    assert lines["verified"] == "every byte is as it was written"
    part = next(tmp_path.glob("embeddings/*/parts/*.npy"))
    part.write_bytes(part.read_bytes()[:-1] + b"\x01")
    result = run_cli("info", "--verify")
    assert result.code == 7
    assert (
        f"damaged    {part.relative_to(tmp_path)} is damaged (its bytes have changed)" in result.out
    )


def test_merge_gc_and_to_parquet(
    run_cli: Run, photos: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Stores are joined, cleaned and written as a table; each says what it did."""
    for name in ("living", "things"):
        run_cli("embed", photos / name, "--model", tiny_backbone, "-o", tmp_path / name)
    result = run_cli("merge", tmp_path / "all", tmp_path / "living", tmp_path / "things")
    assert (result.code, result.err) == (0, f"10 images from 2 stores → {tmp_path}/all\n")
    assert run_cli("gc", tmp_path / "all").err == "10 vectors kept, 0 dropped, 0.0 MB freed\n"
    result = run_cli("to-parquet", tmp_path / "all", tmp_path / "all.parquet")
    assert result.err == f"10 rows → {tmp_path}/all.parquet\n"
    assert pq.read_table(tmp_path / "all.parquet").num_rows == 10
