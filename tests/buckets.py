"""Buckets on this machine: moto's S3 on loopback, and a wire to it that can be cut; no test."""

from __future__ import annotations

import http.client
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "not-to-be-shown",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Server:
    """A server of S3 that tells what it was asked for, and may keep a request waiting.

    Attributes
    ----------
    port : int
    requests : list of str
        ``METHOD /bucket/key?query range``, in the order of their coming.
    """

    def __init__(self) -> None:
        from moto.moto_server.werkzeug_app import (
            DomainDispatcherApplication,
            MotoRequestHandler,
            create_backend_app,
        )
        from werkzeug.serving import make_server

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.requests: list[str] = []
        self._turn = threading.Lock()
        self.ask: Callable[[str], None] = lambda _: None
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server(
            "127.0.0.1", 0, self._answer, threaded=True, request_handler=MotoRequestHandler
        )
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop it; its buckets are gone."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ, start_response):
        query = environ.get("QUERY_STRING", "")
        asked = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        asked += f"?{query}" if query else ""
        asked += f" {environ['HTTP_RANGE']}" if "HTTP_RANGE" in environ else ""
        self.requests.append(asked)
        self.ask(asked)
        # One at a time: between moto's look for an object and its making of it another may come,
        # which S3 rules out.
        with self._turn:
            return self._app(environ, start_response)


class Wire:
    """A port that leads to another one, until it is cut."""

    def __init__(self, to: int) -> None:
        self._to, self._open = to, list[socket.socket]()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._start()

    def cut(self) -> None:
        """Break what is under way and refuse what comes."""
        self._listener.close()
        # A thread that waits for a connection would take one more.
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        self._thread.join()
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def mend(self) -> None:
        """Listen again, on the same port."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._start()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._to))
            self._open += [near, far]
            for ends in ((near, far), (far, near)):
                threading.Thread(target=_carry, args=ends, daemon=True).start()


def _carry(near: socket.socket, far: socket.socket) -> None:
    with suppress(OSError):
        while data := near.recv(2**16):
            far.sendall(data)
    for end in (near, far):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    near.close()


@contextmanager
def server_of_buckets() -> Iterator[Server]:
    """Run a server for the time of the block, with the environment that leads to it."""
    import s3fs

    former = dict(os.environ)
    server = Server()
    os.environ.update(CREDENTIALS, AWS_ENDPOINT_URL=f"http://127.0.0.1:{server.port}")
    # What was opened before knows another server.
    s3fs.S3FileSystem.clear_instance_cache()
    # moto keeps its buckets in the process, whichever server they were made with.
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("POST", "/moto-api/reset")
    connection.getresponse().read()
    connection.close()
    s3fs.S3FileSystem().mkdir("bucket")
    try:
        yield server
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        os.environ.clear()
        os.environ.update(former)
        server.close()
