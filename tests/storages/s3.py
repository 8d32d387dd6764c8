"""An S3 for tests: moto's server, and before it a proxy that notes what is asked and makes some of it fail."""

from __future__ import annotations

import http.client
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BUCKET = "bucket"


@dataclass
class Fault:
    """kind: 503, cut (half of the answer, or none of it), lost (done, but never answered), slow, etag, gone.

    asked: what a request's line must hold, as a regular expression. times: how often.
    """

    kind: str
    asked: str
    times: int = 1


@dataclass
class S3:
    """url: of the proxy. log: ``METHOD /bucket/key?query`` of each request, in order."""

    url: str = ""
    log: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    keys: set[str] = field(default_factory=set)
    """Access keys that requests were signed with."""

    longest: int = 0
    pause: float = 0.0

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def begin(self) -> None:
        """Nothing was asked, and nothing fails."""
        with self.lock:
            self.log.clear()
            self.faults.clear()
            self.keys.clear()
            self.longest, self.pause = 0, 0.0

    def asked(self, pattern: str) -> list[str]:
        with self.lock:
            return [line for line in self.log if re.search(pattern, line)]

    def fail(self, kind: str, asked: str, times: int = 1) -> None:
        with self.lock:
            self.faults.append(Fault(kind, asked, times))

    def fault(self, line: str) -> str:
        with self.lock:
            self.log.append(line)
            for fault in self.faults:
                if fault.times and re.search(fault.asked, line):
                    fault.times -= 1
                    return fault.kind
        return ""


@contextmanager
def moto() -> Iterator[int]:
    """Its port."""
    command = [sys.executable, str(Path(__file__).with_name("moto_server.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        port = int(next(line for line in lines if line.strip().isdecimal()))
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("PUT", f"/{BUCKET}", headers={"Host": f"127.0.0.1:{port}"})
        assert connection.getresponse().status == 200
        connection.close()
        try:
            yield port
        finally:
            process.kill()


@contextmanager
def proxied(port: int) -> Iterator[S3]:
    state = S3()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.body()
            kind = state.fault(f"{self.command} {self.path}")
            with state.lock:
                state.keys.update(re.findall("Credential=([^/]+)/", self.headers.get("Authorization", "")))
            if kind == "503":
                self.answer(503, [], b"")
                return
            if kind == "gone":
                self.answer(404, [], b"<Error><Code>NoSuchUpload</Code><Message>gone</Message></Error>")
                return
            if kind == "slow":
                time.sleep(0.3)
            time.sleep(state.pause)
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            headers.pop("Transfer-Encoding", None)
            headers["Content-Length"] = str(len(body))
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            if kind == "lost":
                self.close_connection = True
                return
            told = [(name, value) for name, value in answer.getheaders() if name.lower() not in _HOP]
            if kind == "etag":
                told = [(name, '"' + "0" * 32 + '"' if name.lower() == "etag" else value) for name, value in told]
            if self.command == "HEAD":
                self.answer(answer.status, told, b"", answer.getheader("Content-Length"))
            else:
                self.answer(answer.status, told, content, cut=kind == "cut")

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

        def body(self) -> bytes:
            if self.headers.get("Expect", "").lower() == "100-continue":
                self.send_response_only(100)
                self.end_headers()
            with state.lock:
                state.longest = max(state.longest, int(self.headers.get("Content-Length", 0)))
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def handle_expect_100(self) -> bool:
            return True

        def answer(
            self, status: int, headers: list[tuple[str, str]], content: bytes, size: Any = None, cut: bool = False
        ) -> None:
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)) if size is None else size)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if cut else content)
            if cut:
                self.close_connection = True

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


_HOP = {"connection", "content-length", "transfer-encoding", "keep-alive", "date", "server"}
