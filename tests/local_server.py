"""A local HTTP server of a folder, that fails as it is told."""

import contextlib
import hashlib
import http.server
import threading
import time
from collections import Counter
from functools import partial

BIG = bytes(range(256)) * (20 << 10)  # 5 MiB


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and knows ranges; `faults[path]` has what goes wrong, request by request."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *args, server_state, **kwargs):
        self.state = server_state
        super().__init__(*args, **kwargs)

    def do_GET(self):
        self.state.asked[self.path] += 1
        fault = next(self.state.faults.get(self.path, iter(())), None)
        if fault == "refuse":
            self.send_error(503)
            return
        if fault == "stall":
            time.sleep(self.state.stall_s)
            return
        try:
            with open(self.translate_path(self.path), "rb") as f:
                data = f.read()
        except OSError:
            self.send_error(404)
            return
        if fault == "short":  # another file, it seems, and whole
            data = data[: len(data) // 3]
        status = 200
        whole = len(data)
        etag = hashlib.sha256(data).hexdigest()
        first = 0
        wanted = self.headers.get("Range")
        if wanted and self.state.knows_ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            first = int(first)
            data = data[first : int(last) + 1 if last else None]
            status = 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Range", f"bytes {first}-{first + len(data) - 1}/{whole}")
        self.send_header("ETag", etag)
        self.end_headers()
        if fault == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data)
            self.state.sent += len(data)

    def log_message(self, *_):
        pass


class Server:
    def __init__(self, folder):
        self.asked = Counter()
        self.faults = {}
        self.sent = 0
        self.knows_ranges = True
        self.stall_s = 30.0
        handler = partial(Handler, directory=str(folder), server_state=self)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def fail(self, path, *faults):
        self.faults[path] = iter(faults)

    def close(self):
        self._server.shutdown()
        self._server.server_close()
