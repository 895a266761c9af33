"""A server of files on this machine that can misbehave."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FileServer:
    """``files`` by path. ``cut`` is how many bytes an answer has before the connection drops, for the answers to come."""

    files: dict[str, bytes]
    cut: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"1"'})
    status: int | None = None
    ranges: bool = True
    # The first byte that each request asked for, or None for all.
    asked: list[int | None] = field(default_factory=list)
    port: int = 0

    def url(self, path: str = "/data.bin") -> str:
        return f"http://127.0.0.1:{self.port}{path}"


@contextmanager
def serving(files: dict[str, bytes], **options: Any) -> Iterator[FileServer]:
    state = FileServer(dict(files), **options)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(span[1]) if span else None
            state.asked.append(start)
            body = state.files.get(self.path)
            if state.status is not None or body is None:
                self.send_response(state.status or 404)
                for name, value in state.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            wanted = self.headers.get("If-Range")
            known = wanted is None or wanted in (state.headers.get("ETag"), state.headers.get("Last-Modified"))
            partial = start is not None and state.ranges and known
            if partial and start is not None and start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            part = body[start:] if partial else body
            self.send_response(206 if partial else 200)
            if partial:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            for name, value in state.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            cut = state.cut.pop(0) if state.cut else len(part)
            self.wfile.write(part[:cut])
            if cut < len(part):
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.port = server.server_port
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
