"""A web server for stores, whole or with faults."""

import contextlib
import http.server
import time
from pathlib import Path
from typing import Any

from typing_extensions import override


class Handler(http.server.BaseHTTPRequestHandler):
    """Sends files, or parts of them, and whatever faults `server.faults` asks for."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    @override
    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        server: Any = self.server
        faults = [f for part, f in server.faults.items() if part in self.path]
        file = server.folder / self.path.partition("?")[0].lstrip("/")
        status, body = (200, file.read_bytes()) if file.is_file() else (404, b"")
        wanted = self.headers.get("Range")
        if wanted and status == 200 and "no ranges" not in faults:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            body = (
                body[int(first) : int(last) + 1 if last else None] if first else body[-int(last) :]
            )
            status = 206
        for fault in faults:
            if isinstance(fault, int):
                status, body = fault, b""
            elif fault == "slow":
                time.sleep(1)
        server.log.append((self.command, self.path, len(body)))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "GET":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)


class Server(http.server.ThreadingHTTPServer):
    """Serves a directory from this process; `faults` are looked for by part of the path."""

    request_queue_size = 256
    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.faults: dict[str, int | str] = {}
        self.log: list[tuple[str, str, int]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
