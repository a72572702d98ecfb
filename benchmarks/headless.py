"""A real browser without a screen, on pages that a server of this process gives it.

Nothing but this server can be reached from the browser. A page reports by posting JSON to
``/answer``; whoever has opened it waits for that.
"""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".css": "text/css",
    ".wasm": "application/wasm",
    ".png": "image/png",
    ".jpg": "image/jpeg",
}


class Served(ThreadingHTTPServer):
    """Folders and single files on a port of the loopback interface.

    Parameters
    ----------
    folders : dict
        Path on the server, such as ``/images/``, to a folder; the longest that fits is taken.
    isolated : bool
        Whether pages get the two headers that allow WebAssembly more than one thread.

    Attributes
    ----------
    files : dict
        Path on the server to content; goes before folders.
    links : dict
        Path on the server to a file.
    asked : list of str
        What was asked for.
    silent : bool
        Whether it answers nothing any more, but takes what is posted.
    """

    daemon_threads = True

    def __init__(self, folders: dict[str, Path], *, isolated: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folders, self.isolated = folders, isolated
        self.files: dict[str, bytes] = {}
        self.links: dict[str, Path] = {}
        self.asked: list[str] = []
        self.silent = False
        self.answers: queue.Queue[dict[str, Any]] = queue.Queue()

    @property
    def url(self) -> str:
        """Where it is, without a slash at the end."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def content(self, path: str) -> bytes | None:
        """Return what is at a path."""
        if path in self.files:
            return self.files[path]
        if path in self.links:
            return self.links[path].read_bytes()
        fitting = [prefix for prefix in self.folders if path.startswith(prefix)]
        if not fitting:
            return None
        prefix = max(fitting, key=len)
        found = self.folders[prefix] / (path[len(prefix) :] or "index.html")
        return found.read_bytes() if found.is_file() else None

    def answer(self, timeout: float) -> dict[str, Any]:
        """Wait for the next answer of a page."""
        return self.answers.get(timeout=timeout)


class _Handler(BaseHTTPRequestHandler):
    server: Served

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        if self.server.silent:
            self.close_connection = True
            return
        content = self.server.content(path)
        self.send_response(404 if content is None else 200)
        suffix = "." + path.rpartition(".")[2] if "." in path else ".html"
        self.send_header("Content-Type", TYPES.get(suffix, "application/octet-stream"))
        self.send_header("Content-Length", str(len(content or b"")))
        if self.server.isolated:
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.end_headers()
        self.wfile.write(content or b"")

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.answers.put(json.loads(text))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""
        del format, args


@contextmanager
def serving(folders: dict[str, Path], *, isolated: bool = False) -> Iterator[Served]:
    """Serve folders while the block runs."""
    with Served(folders, isolated=isolated) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def opened(url: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Open a page while the block runs; what the browser says is in ``stderr``, a pipe."""
    assert BROWSER is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            BROWSER,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-first-run",
            "--disable-background-networking",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--user-data-dir={profile}",
            "--enable-logging=stderr",
            *options,
            url,
        ]
        log = Path(profile) / "log"
        with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
            try:
                yield log
            finally:
                process.terminate()
                process.wait()
