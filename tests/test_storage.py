"""Bytes behind addresses: what is read, asked for again, and said without secrets."""

from __future__ import annotations

import errno
import gzip
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import repeat
from pathlib import Path

import pytest
from buckets import Server, Wire, server_of_buckets
from hypothesis import given, settings
from hypothesis import strategies as st
from webserver import WebServer, web_server

from featpipe import storage
from featpipe.errors import SourceError
from featpipe.storage import faults
from featpipe.storage import web as web_module
from featpipe.storage.reading import filesystem


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Return a server of S3 with some objects in ``bucket``."""
    with server_of_buckets() as running:
        system, _ = filesystem("s3://bucket/")
        for name in ("photos/a/1 ä?#%20.jpg", "photos/b.bin", "photos/.hidden"):
            system.pipe_file(f"bucket/{name}", bytes(range(256)) * 40)
        system.pipe_file("bucket/photos/a/", b"")
        yield running


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    """Return a web server with a file, ``/a.bin``."""
    root = tmp_path_factory.mktemp("web")
    (root / "a.bin").write_bytes(bytes(range(256)))
    with web_server(root) as running:
        yield running


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(faults.PATIENCE_VARIABLE, "20")


def test_a_bucket_is_listed_with_what_is_known_of_every_object(server: Server) -> None:
    """Names of any kind, in order; the mark of a folder is none of its files."""
    photos = storage.list_folder("s3://bucket/photos/")
    assert [(e.name, e.is_folder) for e in photos] == [
        (".hidden", False),
        ("a", True),
        ("b.bin", False),
    ]
    (inside,) = storage.list_folder("s3://bucket/photos/a")
    place = "s3://bucket/photos/a/1 ä?#%20.jpg"
    looked = storage.look_at(place)
    assert (inside.name, inside.size) == ("1 ä?#%20.jpg", 10240)
    assert (inside.version, inside.mtime_ns) == (looked.version, looked.mtime_ns)
    assert storage.read_file(place) == bytes(range(256)) * 40


def test_a_range_is_cut_at_the_end(server: Server) -> None:
    """As a file on this machine gives it; nothing is asked for where nothing is wanted."""
    assert storage.read_range("s3://bucket/photos/b.bin", 10235, 99) == bytes(range(251, 256))
    before = len(server.requests)
    assert storage.read_range("s3://bucket/photos/b.bin", 5, 0) == b""
    assert len(server.requests) == before


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 11_000), st.integers(0, 6000)), max_size=6))
def test_an_opened_object_reads_as_a_file_does(server: Server, steps: list) -> None:
    """Any seeks and reads."""
    import io

    model = io.BytesIO(bytes(range(256)) * 40)
    with storage.open_file("s3://bucket/photos/b.bin") as opened:
        for at, count in steps:
            assert opened.seek(at) == model.seek(at)
            assert opened.read(count) == model.read(count)
        assert opened.seek(-3, os.SEEK_END) == model.seek(-3, os.SEEK_END)
        assert opened.read() == model.read()


def test_here_and_there_have_the_same_functions(tmp_path: Path) -> None:
    """A local path goes the local way."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"0123456789")
    assert storage.read_file(str(path)) == b"0123456789"
    assert storage.read_range(str(path), 8, 9) == b"89"
    entry = storage.look_at(str(path))
    assert (entry.size, entry.mtime_ns) == (10, path.stat().st_mtime_ns)
    with storage.open_file(str(path)) as file:
        assert file.read(3) == b"012"


@pytest.mark.parametrize("place", ["s3://bucket/none.jpg", "s3://no-bucket/a.jpg"])
def test_what_is_not_there_is_said_at_once(server: Server, place: str) -> None:
    """Not asked for again: it would not come."""
    with pytest.raises(FileNotFoundError) as caught:
        storage.read_file(place)
    assert caught.value.strerror == f"there is nothing at {place}"


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (404, FileNotFoundError, "there is nothing at {}"),
        (403, PermissionError, "{} may not be read or written (403 FORBIDDEN)"),
        (418, storage.StorageError, "{} cannot be read or written (418 I'M A TEAPOT)"),
    ],
)
def test_a_web_server_that_refuses_is_not_asked_again(
    web: WebServer, status: int, kind: type[OSError], said: str
) -> None:
    """One request, and its reason in a sentence."""
    place = f"{web.url}/a.bin"
    web.requests.clear()
    web.ask = lambda _: status
    try:
        with pytest.raises(kind) as caught:
            storage.read_file(place)
    finally:
        web.ask = lambda _: None
    assert (caught.value.strerror or str(caught.value)) == said.format(place)
    assert web.requests == ["GET /a.bin"]


def test_a_server_in_trouble_is_asked_again(web: WebServer) -> None:
    """Too many requests, out of order, a bad gateway: the fourth answer counts."""
    answers = iter([429, 500, 502])
    web.ask = lambda _: next(answers, None)
    web.requests.clear()
    try:
        assert storage.read_file(f"{web.url}/a.bin") == bytes(range(256))
    finally:
        web.ask = lambda _: None
    assert web.requests == ["GET /a.bin"] * 4


def test_a_cut_wire_is_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests fail while it is cut, and go on when it is mended; else the storage is gone."""
    wire = Wire(server.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{wire.port}")
    filesystem("s3://bucket")[0].clear_instance_cache()
    place = "s3://bucket/photos/b.bin"
    assert len(storage.read_file(place)) == 10240
    wire.cut()
    mending = threading.Timer(1.0, wire.mend)
    mending.start()
    assert len(storage.read_file(place)) == 10240
    mending.join()
    wire.cut()
    monkeypatch.setenv(faults.PATIENCE_VARIABLE, "0.2")
    with pytest.raises(storage.StorageGoneError, match=f"^{place} does not answer \\("):
        storage.read_file(place)
    filesystem("s3://bucket")[0].clear_instance_cache()


def test_nobody_waits_after_the_end() -> None:
    """A thread whose run has ended gives up at once, however long it would have waited."""
    ended = threading.Event()
    calls = []

    def silent() -> None:
        calls.append(time.monotonic())
        ended.set()
        raise TimeoutError

    with storage.until(ended), pytest.raises(storage.StorageGoneError):
        faults.tried(silent, "s3://bucket/a")
    assert len(calls) <= 2


def test_waits_need_a_number_of_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything else is as if nothing had been said."""
    monkeypatch.setenv(faults.PATIENCE_VARIABLE, "soon")
    assert faults.patience() == 60
    monkeypatch.setenv(faults.PATIENCE_VARIABLE, "1.5")
    assert faults.patience() == 1.5


def caused(error: Exception, cause: Exception) -> Exception:
    """Return an error that was raised from another, as fsspec does."""
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "is_passing"),
    [
        (TimeoutError(), True),
        (ConnectionResetError(), True),
        (OSError(errno.EBUSY, "slow down"), True),
        (OSError(errno.EINVAL, "no"), False),
        (FileNotFoundError(), False),
        (PermissionError(), False),
        (ValueError("no"), False),
        (caused(FileNotFoundError("HEAD"), ConnectionRefusedError()), True),
        (caused(FileNotFoundError("HEAD"), ValueError("no")), False),
    ],
)
def test_what_passes_is_told_from_what_stays(error: Exception, is_passing: bool) -> None:
    """By kind, number or name."""
    assert faults.is_passing(error) is is_passing


def test_without_credentials_the_ways_to_give_them_are_named() -> None:
    """The class comes from a package that need not be there."""
    error = type("NoCredentialsError", (Exception,), {})("Unable to locate credentials")
    assert str(faults.translated(error, "s3://b/a")) == (
        "s3://b/a cannot be opened: no credentials were found for it: give them as its own tools "
        "expect them (for S3 AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or an "
        "instance role)"
    )


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:secret@host.org/a.jpg", "https://host.org/a.jpg"),
        (
            "https://host.org/a.jpg?X-Amz-Signature=ab&X-Amz-Date=c&w=2",
            "https://host.org/a.jpg?w=2",
        ),
        ("https://host.org/i?id=7&access_token=ab", "https://host.org/i?id=7"),
        ("https://acct.blob.net/c/a.jpg?sv=1&sig=ab%2B", "https://acct.blob.net/c/a.jpg?sv=1"),
        ("s3://key:secret@bucket/a?b#c.jpg", "s3://bucket/a?b#c.jpg"),
        ("https://[bad/a?sig=x", "https://[bad/a"),
        ("https://me:pass/word@host.org/a.jpg", "https://host.org/a.jpg"),
        ("s3://AKIA:sec/ret@bucket/a.jpg", "s3://bucket/a.jpg"),
        ("https://host.org:8080/a@2x.jpg?w=2", "https://host.org:8080/a@2x.jpg?w=2"),
    ],
)
def test_an_address_is_shown_without_what_opens_it(url: str, shown: str) -> None:
    """User, password, signatures; what tells images apart stays."""
    assert storage.shown(url) == shown
    assert storage.without_secrets(f"403, url='{url}'") == f"403, url='{shown}'"


@settings(max_examples=30)
@given(st.text(min_size=1), st.text(min_size=1))
def test_no_password_is_ever_shown(user: str, password: str) -> None:
    """Whatever its characters, where it stands in an address as it should."""
    from urllib.parse import quote

    secret = quote(password, safe="") + "zq9"
    shown = storage.shown(f"https://{quote(user, safe='')}:{secret}@host.org/a.jpg?sig={secret}")
    assert shown == "https://host.org/a.jpg"


def test_a_secret_of_the_environment_is_never_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some errors repeat what was sent."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t/value")
    assert storage.without_secrets("signed with s3cr3t/value") == (
        "signed with $AWS_SECRET_ACCESS_KEY"
    )


def test_other_addresses_are_refused() -> None:
    """By name, and with those that are read."""
    with pytest.raises(SourceError) as caught:
        storage.look_at("ftp://host/a.jpg")
    assert str(caught.value) == (
        "featpipe does not read ftp:// addresses: it reads s3://, gs://, gcs://, http://, https://"
    )


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceError) as caught:
        storage.look_at("s3://bucket/a.jpg")
    assert str(caught.value) == (
        "reading s3:// addresses needs a package that is not installed: pip install 'featpipe[s3]'"
    )


def test_a_server_that_knows_no_ranges_is_said(web: WebServer, tmp_path: Path) -> None:
    """It sends the whole file: that would be done for every image of an archive."""
    import http.server
    from functools import partial

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    (tmp_path / "a.bin").write_bytes(bytes(1000))
    simple = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path))
    thread = threading.Thread(target=simple.serve_forever, daemon=True)
    thread.start()
    place = f"http://127.0.0.1:{simple.server_port}/a.bin"
    try:
        assert len(storage.read_file(place)) == 1000
        with pytest.raises(storage.StorageError) as caught:
            storage.read_range(place, 5, 10)
    finally:
        simple.shutdown()
        simple.server_close()
        thread.join()
    assert str(caught.value) == (
        f"the server of {place} cannot send a part of a file: download the file and give its path"
    )


@pytest.mark.parametrize(
    "place", ["https://[bad/a.jpg", "http://host.invalid:port/a.jpg", "http:///a.jpg"]
)
def test_an_address_that_is_none_is_an_error_of_its_own(place: str) -> None:
    """Never one that nobody expects: a table may hold anything."""
    with pytest.raises(OSError, match=r"there is nothing at|cannot be read or written"):
        storage.look_at(place)
    with pytest.raises(OSError, match="cannot be read or written"):
        storage.read_file(place)
    assert storage.path_of(place) == "/a.jpg"


def test_a_signature_behind_a_space_is_not_repeated() -> None:
    """A space ends an address in a text, but not what signs it."""
    said = storage.without_secrets("no https://host:bad/a b.jpg?sig=ab&w=2&X-Amz-Signature=c here")
    assert said == "no https://host:bad/a b.jpg&w=2 here"


def test_colons_and_capitals_mean_nothing_else(server: Server) -> None:
    """To fsspec `::` is a file system in another one, and `S3` none."""
    for name in ("a::b.bin", "a::file:///etc/passwd"):
        storage.write_file(f"s3://bucket/{name}", b"here")
        assert storage.read_file(f"S3://bucket/{name}") == b"here"


class _Answers:
    """A server that sends what it is told to, and counts what was taken."""

    def __init__(self, head: bytes, pieces: Callable[[], Iterator[bytes]]) -> None:
        self._head, self._pieces, self.sent = head, pieces, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/a.jpg"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                with near, suppress(OSError):
                    asked = near.recv(2**16)
                    near.sendall(self._head)
                    for piece in () if asked.startswith(b"HEAD") else self._pieces():
                        near.sendall(piece)
                        self.sent += len(piece)


@pytest.fixture
def answers() -> Iterator[Callable[..., _Answers]]:
    """Return a function that starts such a server."""
    begun: list[_Answers] = []

    def start(head: str, pieces: Callable[[], Iterator[bytes]]) -> _Answers:
        begun.append(_Answers(head.replace("\n", "\r\n").encode("latin1"), pieces))
        return begun[-1]

    yield start
    for one in begun:
        one.close()


def _endless() -> Iterator[bytes]:
    return repeat(bytes(2**16))


def test_a_body_without_end_is_left(answers: Callable[..., _Answers]) -> None:
    """Whole, as a range, and as what a server says is packed."""
    server = answers("HTTP/1.1 200 OK\nConnection: close\n\n", _endless)
    with pytest.raises(storage.StorageError) as caught:
        storage.read_file(server.url, most=10**6)
    assert str(caught.value) == f"the server of {server.url} sends more than 1000000 bytes"
    with pytest.raises(storage.StorageError, match="cannot send a part of a file"):
        storage.read_range(server.url, 10, 10)
    assert server.sent < 2**26


def test_a_small_body_that_unpacks_to_a_large_one_is_left(
    answers: Callable[..., _Answers],
) -> None:
    """A gigabyte of zeros is a megabyte on the way."""
    packed = gzip.compress(bytes(2**26))
    head = f"HTTP/1.1 200 OK\nContent-Encoding: gzip\nContent-Length: {len(packed)}\n\n"
    server = answers(head, lambda: iter([packed]))
    with pytest.raises(storage.StorageError, match="sends more than 1000000 bytes"):
        storage.read_file(server.url, most=10**6)


def test_a_server_that_drips_is_left(
    answers: Callable[..., _Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte comes in time, all of them never would."""
    monkeypatch.setenv(faults.PATIENCE_VARIABLE, "0")
    server = answers("HTTP/1.1 200 OK\nContent-Length: 1000\n\n", lambda: iter([b"1"]))
    monkeypatch.setattr(web_module, "_LEAST_PACE", 1e12)
    with pytest.raises(storage.StorageError, match="sends less than a kilobyte a second"):
        storage.read_file(server.url)


def test_a_silent_body_is_given_up_at_the_end(answers: Callable[..., _Answers]) -> None:
    """Ctrl-C does not wait until the server has had all its time."""
    ended, is_asked, is_over = threading.Event(), threading.Event(), threading.Event()

    def silent() -> Iterator[bytes]:
        is_asked.set()
        is_over.wait()
        yield b""

    server = answers("HTTP/1.1 200 OK\nContent-Length: 1000\n\n", silent)
    threading.Thread(target=lambda: (is_asked.wait(), ended.set()), daemon=True).start()
    with storage.until(ended), pytest.raises(storage.StorageError) as caught:
        storage.read_file(server.url)
    is_over.set()
    assert str(caught.value) == "it is not waited for any more"


def test_headers_that_no_table_can_hold_are_made_fit(answers: Callable[..., _Answers]) -> None:
    """A time beyond 64 bits is none; an ETag may be no text, and very long."""
    head = "HTTP/1.1 200 OK\nContent-Length: 5\nLast-Modified: Fri, 31 Dec 9999 23:59:59 GMT\n"
    odd = storage.look_at(answers(head + 'ETag: "\xff"\n\n', _endless).url)
    assert (odd.size, odd.mtime_ns, odd.version) == (5, None, "\\xff")
    long = storage.look_at(answers(head + f'ETag: "{"x" * 5000}"\n\n', _endless).url)
    assert len(long.version or "") == 32
