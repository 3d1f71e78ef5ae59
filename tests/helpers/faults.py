"""An S3 server (moto) behind a reverse proxy that fails on command: what a store under load, or a bad network, does.

    with s3_server() as proxy:                              # AWS_* variables point at the proxy
        proxy.fail("503", method="PUT", path=".tar", times=2)

A fault strikes the next `times` requests whose method and path match. ``proxy.uploads()`` lists unfinished multipart uploads.
"""

from __future__ import annotations

import http.client
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest import mock

BUCKET = "bucket"
STATUS = {
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "403": (403, "AccessDenied", "Access Denied"),
}
KINDS = (*STATUS, "reset-put", "lost-answer", "reset-get", "slow", "hang")


@dataclass
class Fault:
    """`kind`: a status; ``reset-put``: the connection is reset when half of the body has come; ``lost-answer``: the server does it
    and the answer is lost; ``reset-get``: half of the answer comes; ``slow``: nothing for `seconds`; ``hang``: half of the body
    is read and then nothing."""

    kind: str
    method: str = ""
    path: str = ""
    times: int = 1
    seconds: float = 0.0


class FaultProxy:
    """The proxy's faults, what it has seen, and a client that goes round it."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.upstream, self.faults, self.seen, self.struck = upstream, list[Fault](), list[tuple[str, str]](), 0
        self.hanging = threading.Event()
        self._lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def fail(self, kind: str, method: str = "", path: str = "", times: int = 1, seconds: float = 0.0) -> None:
        assert kind in KINDS
        self.faults.append(Fault(kind, method, path, times, seconds))

    def calm(self) -> None:
        self.faults.clear()
        self.seen.clear()
        self.struck = 0
        self.hanging.clear()

    def take(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.seen.append((method, path))
            for fault in self.faults:
                if fault.times > 0 and fault.method in ("", method) and fault.path in path:
                    fault.times -= 1
                    self.struck += 1
                    return fault
        return None

    def client(self) -> Any:
        import boto3

        return boto3.client("s3", endpoint_url=f"http://{self.upstream[0]}:{self.upstream[1]}")

    def names(self, prefix: str = "") -> list[str]:
        """What is in the bucket, asked of the server itself."""
        return [
            entry["Key"] for entry in self.client().list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        ]

    def uploads(self) -> list[Any]:
        """Uploads in parts that were begun and neither completed nor aborted."""
        found: list[Any] = self.client().list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
        return found


def _handler(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            with suppress(ConnectionError):
                super().handle_one_request()

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            fault = proxy.take(self.command, self.path)
            kind = fault.kind if fault else ""
            if kind in ("reset-put", "hang"):
                self.rfile.read(length // 2)
                if kind == "hang":
                    proxy.hanging.set()
                    time.sleep(fault.seconds if fault else 0)
                return self._reset()
            body = self.rfile.read(length)
            if fault is not None and kind == "slow":
                proxy.hanging.set()
                time.sleep(fault.seconds)
            if kind in STATUS:
                return self._refuse(*STATUS[kind])
            upstream = http.client.HTTPConnection(*proxy.upstream, timeout=30)
            upstream.request(self.command, self.path, body, dict(self.headers))
            answer = upstream.getresponse()
            content = answer.read()
            upstream.close()
            if kind == "lost-answer":
                return self._reset()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "content-length", "server", "date"):
                    self.send_header(name, value)
            size = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            self.send_header("Content-Length", size or "0")
            self.end_headers()
            if kind == "reset-get":
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                return self._reset()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

        def _refuse(self, status: int, code: str, message: str) -> None:
            text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        def _reset(self) -> None:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RD)
            self.connection.close()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@contextmanager
def s3_server(attempts: int = 3) -> Iterator[FaultProxy]:
    """moto's server with one bucket, the proxy before it, and the environment that makes clients use the proxy."""
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    proxy = FaultProxy(server.get_host_and_port())
    environment = {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": proxy.url, "AWS_MAX_ATTEMPTS": str(attempts), "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    with mock.patch.dict(os.environ, environment):
        s3fs.S3FileSystem.clear_instance_cache()
        proxy.client().create_bucket(Bucket=BUCKET)
        try:
            yield proxy
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            proxy.server.shutdown()
            server.stop()
