"""A web server of a folder: ranges, and what of a hub's API a reader asks for. It counts, and it can fail."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Served:
    """sent: bytes of file content. failures: how many of the next requests for content fail, and how."""

    folder: Path
    url: str = ""
    sent: int = 0
    requests: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def served(folder: Path) -> Iterator[Served]:
    state = Served(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(False)

        def do_GET(self) -> None:
            self.answer(True)

        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            found = re.fullmatch(r"/api/models/[^/]+/[^/]+/paths-info/([^/]+)", urlsplit(self.path).path)
            paths = re.findall(r"paths=([^&]+)", asked) or json.loads(asked or "{}").get("paths", [])
            listed = [entry(state.folder, unquote(path)) for path in paths] if found else []
            self.json([one for one in listed if one])

        def answer(self, body: bool) -> None:
            path, query = unquote(urlsplit(self.path).path), parse_qs(urlsplit(self.path).query)
            with state.lock:
                state.requests.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
            if re.fullmatch(r"/api/models/org/repo(/revision/[^/]+)?", path):
                self.json({"id": "org/repo", "modelId": "org/repo", "sha": COMMIT, "siblings": [], "tags": []})
            elif "list-type" in query:
                self.bucket(query.get("prefix", [""])[0])
            elif found := re.fullmatch(r"/api/models/org/repo/tree/([^/]+)/?(.*)", path):
                self.listing(state.folder / found[2])
            else:
                self.file(state.folder / re.sub(r"^/(org/repo/resolve/[^/]+|bucket)/", "/", path).lstrip("/"), body)

        def bucket(self, prefix: str) -> None:
            """As S3 lists a bucket, one level at a time."""
            here = state.folder / prefix
            inside = sorted(here.iterdir()) if here.is_dir() else []
            files = [one for one in inside if one.is_file()]
            time = "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;e&quot;</ETag>"
            text = "".join(
                f"<Contents><Key>{prefix}{one.name}</Key>{time}<Size>{one.stat().st_size}</Size></Contents>"
                for one in files
            )
            text += "".join(
                f"<CommonPrefixes><Prefix>{prefix}{one.name}/</Prefix></CommonPrefixes>"
                for one in inside
                if one.is_dir()
            )
            listed = f"<ListBucketResult><IsTruncated>false</IsTruncated>{text}</ListBucketResult>"
            self.content(listed.encode(), "application/xml")

        def listing(self, here: Path) -> None:
            if here.is_dir():
                names = [one.relative_to(state.folder).as_posix() for one in sorted(here.iterdir())]
                self.json([entry(state.folder, name) for name in names])
            else:
                self.error(404)

        def file(self, path: Path, body: bool) -> None:
            if not path.is_file():
                self.error(404)
                return
            content = path.read_bytes()
            mark = f'"{hashlib.sha256(content).hexdigest()[:20]}"'
            if self.headers.get("If-Match", mark) != mark:
                self.error(412)
                return
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            start, stop = (int(span[1]), int(span[2] or len(content) - 1) + 1) if span else (0, len(content))
            part = content[start:stop]
            failure = ""
            with state.lock:
                if span and body and state.failures:
                    failure = state.failures.pop(0)
            if failure == "503":
                self.error(503)
                return
            self.send_response(206 if span else 200)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", mark)
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.send_header("X-Repo-Commit", COMMIT)
            if span:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
            self.end_headers()
            if body:
                self.wfile.write(part[: len(part) // 2] if failure == "cut" else part)
                with state.lock:
                    state.sent += len(part)
            if failure == "cut":
                self.close_connection = True

        def json(self, value: object) -> None:
            self.content(json.dumps(value).encode(), "application/json")

        def content(self, text: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def error(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def entry(folder: Path, name: str) -> dict[str, object]:
    """As the hub's API lists a file or folder."""
    path = folder / name
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0}
    if not path.is_file():
        return {}
    content = path.read_bytes()
    oid = hashlib.sha1(content).hexdigest()
    large = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return {"type": "file", "path": name, "oid": oid, "size": len(content), "lfs": large}
