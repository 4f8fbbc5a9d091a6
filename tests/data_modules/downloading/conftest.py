"""A real server on this machine, which serves byte ranges and can be made to fail."""

import hashlib
import http.server
import re
import threading

import pytest

from data_modules.downloading import transfer


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # noqa: N802 (the name is the library's)
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        data = server.files.get(self.path)
        if server.errors or data is None:
            return self.send_error(server.errors.pop() if server.errors else 404)
        start = 0
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if wanted and server.ranges and self.headers.get("If-Range") in (None, tag):
            start = int(wanted[1])
            if start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", tag)
        for name, value in server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        end = start + server.breaks.pop() if server.breaks else len(data)
        self.wfile.write(data[start:end])

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    """A server of `files`. It closes connections after the numbers of bytes in `breaks`, and sends `errors` first."""
    monkeypatch.setattr(transfer, "PAUSE", 0.0)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.files, made.requests, made.breaks, made.errors, made.headers = {}, [], [], [], {}
        made.ranges = True
        made.address = f"http://127.0.0.1:{made.server_port}"
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        yield made
        made.shutdown()
        thread.join()
