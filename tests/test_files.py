"""Files that are whole or not there."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featpipe._files import (
    atomic_file,
    content_key,
    escape_path,
    file_key,
    file_sha256,
    first_line,
    lock,
    make_folder,
    nearest,
    printable,
    read_json,
    read_regular,
    unescape_path,
    write_error,
    write_json,
)
from featpipe.errors import LockedError, StoreError, WriteError

names = st.binary(min_size=1, max_size=40).map(os.fsdecode)


@given(names)
def test_escaped_path_is_unicode_and_comes_back(name: str) -> None:
    """Any name, whatever its bytes, survives the way into a table and back."""
    escaped = escape_path(name)
    assert escaped.encode("utf-8").decode("utf-8") == escaped
    assert unescape_path(escaped) == name


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
def test_ordinary_names_stay_as_they_are(name: str) -> None:
    """Only names with foreign bytes or with what looks like an escape change."""
    if "\\x" not in name:
        assert escape_path(name) == name


@given(names)
def test_printable_is_one_harmless_line(name: str) -> None:
    """No control character of a file name reaches a terminal."""
    shown = printable(name)
    assert shown.isprintable()


def test_content_key_is_that_of_the_file(tmp_path: Path) -> None:
    """A key is BLAKE2b-128 of the bytes, whether they come from memory or disk."""
    path = tmp_path / "a"
    path.write_bytes(b"photograph" * 100_000)
    assert file_key(path) == content_key(path.read_bytes())
    assert len(content_key(b"")) == 16


def test_the_digest_is_the_one_that_publishers_state(tmp_path: Path) -> None:
    """SHA-256, as `sha256sum` prints it."""
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """A device without end and a pipe that nobody fills are refused; so is what is too large."""
    path, pipe = tmp_path / "a", tmp_path / "pipe"
    path.write_bytes(b"abc")
    os.mkfifo(pipe)
    assert read_regular(path, 3) == b"abc"
    assert read_regular(path, 2) is None
    for other in (pipe, Path("/dev/zero")):
        with pytest.raises(OSError, match=r"^it is a device or a pipe: give the path of a file$"):
            read_regular(other, 3)
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path, 2**20)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("\n one\x1b line \nand another"), "one\\x1b line "),
        (ValueError("x" * 301), "x" * 300),
        (RuntimeError(), "RuntimeError"),
        (RuntimeError(" \n"), "RuntimeError"),
    ],
)
def test_the_first_line_of_an_error(error: Exception, line: str) -> None:
    """It is short and harmless, and where nothing is said the class says something."""
    assert first_line(error) == line


def test_near_names_are_three_at_most_and_printable() -> None:
    """The nearest first; none where none is near."""
    known = ["abcd", "abce", "abcf", "abcg", "ab\x1bcd"]
    assert nearest("abcd", known).startswith("abcd or ab\\x1bcd or abc")
    assert nearest("abcd", known).count(" or ") == 2
    assert nearest("zzzz", known) == ""


def test_atomic_file_replaces_whole(tmp_path: Path) -> None:
    """The new content takes the old one's place with the permissions of any new file."""
    path, other = tmp_path / "a.json", tmp_path / "plain"
    path.write_text("old")
    other.write_text("x")
    with atomic_file(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert path.stat().st_mode == other.stat().st_mode
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "plain"]


def test_atomic_file_leaves_nothing_when_the_block_raises(tmp_path: Path) -> None:
    """An error in the block leaves the former file, and no temporary one."""
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(KeyError), atomic_file(path) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "no space is left on the disk: free some and run the same command again"),
        (
            errno.EFBIG,
            "the system's limit on file sizes is reached: raise it (ulimit -f) and run again",
        ),
        (
            errno.EACCES,
            "permission denied: choose another place (-o, or --models-dir for backbones), or "
            "change the permissions",
        ),
        (errno.EIO, "Input/output error"),
    ],
)
def test_write_error_names_file_and_remedy(code: int, remedy: str) -> None:
    """A refused write is a sentence that says what to do."""
    error = write_error(Path("out") / "x.npy", OSError(code, os.strerror(code)))
    assert str(error) == f"cannot write out/x.npy: {remedy}"


def test_folder_below_a_file_is_a_write_error(tmp_path: Path) -> None:
    """A file where a folder should be gives a sentence, not a traceback."""
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(WriteError, match=r"cannot write .*file/sub: Not a directory"):
        make_folder(blocker / "sub")


def test_json_comes_back_and_ends_in_a_newline(tmp_path: Path) -> None:
    """JSON files are whole, readable and ordinary."""
    path = tmp_path / "a.json"
    write_json(path, {"α": [1, None]})
    assert read_json(path, StoreError) == {"α": [1, None]}
    assert path.read_text(encoding="utf-8").endswith("}\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "{} is damaged: it is not valid JSON"),
        (b"\xff\xfe", "{} is damaged: it is not valid JSON"),
        (b"[" * 100_000, "{} is damaged: it is not valid JSON"),
        (b"[]", "{} is damaged: it does not hold a JSON object"),
        (None, "{} is missing"),
    ],
)
def test_damaged_json_names_the_file(tmp_path: Path, content: bytes | None, message: str) -> None:
    """Whatever is wrong with a JSON file, the sentence names it."""
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreError) as caught:
        read_json(path, StoreError)
    assert str(caught.value) == message.format(path)


def test_json_folder_is_a_sentence(tmp_path: Path) -> None:
    """A folder in the place of a file is said, too."""
    with pytest.raises(StoreError) as caught:
        read_json(tmp_path, StoreError)
    assert str(caught.value) == f"cannot read {tmp_path}: Is a directory"


def test_lock_keeps_a_second_writer_out(tmp_path: Path) -> None:
    """A second writer is told at once; after the first one it gets in."""
    path = tmp_path / ".lock"
    with lock(path, what="the store x"):
        with pytest.raises(LockedError) as caught, lock(path, what="the store x"):
            pass
        assert str(caught.value) == (
            "the store x is being written by another process: wait until it has finished, "
            "or give another place with -o"
        )
    with lock(path, what="the store x", timeout=1):
        assert path.exists()


def test_lock_goes_with_its_process(tmp_path: Path) -> None:
    """A lock whose holder was killed keeps nobody out."""
    path = tmp_path / ".lock"
    code = (
        "import sys, time; from pathlib import Path; from featpipe._files import lock\n"
        "with lock(Path(sys.argv[1]), what='x'): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LockedError), lock(path, what="x"):
            pass
        holder.kill()
    with lock(path, what="x", timeout=5):
        assert path.exists()
