"""A web server on this machine for a folder, with ETags and ranges; no test."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class WebServer:
    """Serves the files below a folder.

    Attributes
    ----------
    url : str
        ``http://127.0.0.1:PORT``.
    requests : list of str
        ``METHOD /path``, in the order of their coming.
    ask : callable
        Told of every request; returns None, or the status to answer with.
    forgets_times : bool
        Whether no answer tells when a file has changed.
    """

    def __init__(self, root: Path, *, etags: bool = True) -> None:
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.requests: list[str] = []
        self.ask: Callable[[str], int | None] = lambda _: None
        self.forgets_times = False
        self._root, self._etags = root, etags
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ, start_response):
        from werkzeug.utils import send_from_directory
        from werkzeug.wrappers import Response

        path = environ["PATH_INFO"].encode("latin1").decode()
        asked = f"{environ['REQUEST_METHOD']} {path}"
        self.requests.append(asked)
        status = self.ask(asked)
        if status is not None:
            response = Response("no", status)
        elif not (self._root / path.strip("/")).is_file():
            response = Response("not here", 404)
        else:
            response = send_from_directory(
                self._root, path.strip("/"), environ, etag=self._etags, max_age=None
            )
        if self.forgets_times:
            response.headers.pop("Last-Modified", None)
        return response(environ, start_response)


@contextmanager
def web_server(root: Path, *, etags: bool = True) -> Iterator[WebServer]:
    """Serve a folder for the time of the block."""
    import fsspec

    server = WebServer(root, etags=etags)
    try:
        yield server
    finally:
        server.close()
        fsspec.get_filesystem_class("http").clear_instance_cache()
