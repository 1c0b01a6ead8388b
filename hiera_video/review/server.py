"""The server of a review page: on this machine alone, for whoever has the token.

Every request needs the token, and the name of this machine as its host, so that no other page of
the browser can ask. Videos are served by the number of their row, never by a path.
"""

import contextlib
import hmac
import http.server
import json
import mimetypes
import re
import secrets
import threading
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hiera_video.review.corrections import Correction, Corrections, write_corrected
from hiera_video.review.items import Item
from hiera_video.review.page import review_page
from hiera_video.review.small_video import small_video
from hiera_video.system.errors import VideoError

PLAYABLE = (".mp4", ".webm", ".m4v", ".mov")
MOST_BYTES = 1 << 16  # of a request's body
PIECE = 1 << 18


class Review:
    """What is reviewed. token: that every request has to bring."""

    def __init__(
        self,
        items: list[Item],
        orders: dict[str, list[int]],
        names: list[str],
        corrections: Corrections,
        *,
        multilabel: bool,
        title: str,
        folder: Path,
        open_video: Any,
        table: Any,
        target: Path,
        own_words: bool,
    ):
        """folder: for small videos. open_video: as VideoSource.open. table: the list that is
        corrected, into `target`. own_words: see write_corrected.
        """
        self.items = {item.row: item for item in items}
        self.orders = orders
        self.names = names
        self.corrections = corrections
        self.multilabel = multilabel
        self.title = title
        self.token = secrets.token_urlsafe(24)
        self.target = target
        self._folder = folder
        self._open_video = open_video
        self._table = table
        self._own_words = own_words
        self._writing = threading.Lock()
        # One thread that stays: a decoding process ends with the thread that started it.
        self._decoding = ThreadPoolExecutor(1)

    def state(self) -> dict[str, Any]:
        """What the page shows."""
        shown = {row for rows in self.orders.values() for row in rows}
        return {
            "names": self.names,
            "multilabel": self.multilabel,
            "orders": self.orders,
            "items": {
                row: {
                    "path": item.path,
                    "segment": item.segment,
                    "labels": item.labels,
                    "best": item.best,
                    "playable": item.place.lower().endswith(PLAYABLE) and Path(item.place).exists(),
                }
                for row, item in self.items.items()
                if row in shown
            },
            "corrections": {row: self._said(c) for row, c in self.corrections.of_rows.items()},
            "target": str(self.target),
        }

    @staticmethod
    def _said(correction: Correction) -> dict[str, Any]:
        return {
            "labels": correction.labels,
            "segment": correction.segment,
            "left_out": correction.left_out,
        }

    def correct(self, said: dict[str, Any]) -> int:
        """Keeps it, and writes the table. Returns how many rows of that differ.

        Raises ValueError, OSError.
        """
        row = said.get("row")
        if row not in self.items:
            raise ValueError(f"row={row!r} is none of those that were tested")
        with self._writing:
            if said.get("labels") is None:
                self.corrections.take_back(row)
            else:
                self.corrections.add(self._checked(row, said))
            return self.write()

    def write(self) -> int:
        """The table as it is now. Returns how many of its rows differ. Raises OSError."""
        changed = self.corrections.changed()
        if not changed and not self.target.exists():
            return 0
        return write_corrected(
            self.target,
            self._table,
            changed,
            self.names,
            own_words=self._own_words,
            several=self.multilabel,
        )

    def _checked(self, row: int, said: dict[str, Any]) -> Correction:
        labels = said["labels"]
        known = isinstance(labels, list) and all(label in self.names for label in labels)
        if not known or (not self.multilabel and len(labels) > 1):
            raise ValueError(f"labels={labels!r} are none of the classes")
        segment = said.get("segment")
        if segment is not None:
            start, end = (round(float(t), 3) for t in segment)
            if not 0 <= start < end:
                raise ValueError(f"segment={segment!r}: 0 <= start < end")
            before = self.items[row].segment
            is_same = before is not None and (start, end) == tuple(round(t, 3) for t in before)
            segment = None if is_same else (start, end)
        return Correction(row, tuple(labels), segment, bool(said.get("left_out")))

    def small(self, row: int) -> Path:
        """The item as a small MP4, for browsers that do not play its file. Raises VideoError."""
        file = self._folder / f"{row:06d}.mp4"
        work = self._decoding.submit(small_video, self.items[row], file, self._open_video)
        return work.result()


class ReviewServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, review: Review, port: int):
        """Raises OSError where the port is taken."""
        self.review = review
        super().__init__(("127.0.0.1", port), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/?token={self.review.token}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ReviewServer

    def do_GET(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        token = urllib.parse.parse_qs(parts.query).get("token", [""])[0]
        if not self._may(token):
            return
        review = self.server.review
        numbered = re.fullmatch(r"/(video|small)/(\d+)", parts.path)
        if parts.path == "/":
            nonce = secrets.token_urlsafe(12)
            body = review_page(review.title, nonce).encode()
            self._send(200, "text/html; charset=utf-8", body, policy=_policy(nonce))
        elif parts.path == "/items":
            self._send_json(review.state())
        elif numbered and int(numbered[2]) in review.items:
            row = int(numbered[2])
            try:
                place = Path(review.items[row].place)
                self._send_file(place if numbered[1] == "video" else review.small(row))
            except (VideoError, OSError) as e:
                self._send(404, "text/plain; charset=utf-8", str(e).encode(errors="replace"))
        else:
            self._send(404, "text/plain", b"there is no such page")

    def do_POST(self) -> None:
        if not self._may(self.headers.get("X-Token", "")):
            return
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            length = -1
        if self.path != "/correct" or not 0 <= length <= MOST_BYTES:
            self.close_connection = True
            self._send(400, "text/plain", b"POST /correct with a small body")
            return
        try:
            said = json.loads(self.rfile.read(length))
            if not isinstance(said, dict):
                raise ValueError("the body is no object")
            rows = self.server.review.correct(said)
        except (ValueError, TypeError) as e:
            self._send(400, "text/plain; charset=utf-8", str(e).encode(errors="replace"))
        except OSError as e:
            self._send(507, "text/plain; charset=utf-8", f"cannot write: {e}".encode())
        else:
            self._send_json({"rows": rows})

    def _may(self, token: str) -> bool:
        """Answers 403 where the token or the host is wrong."""
        port = self.server.server_port
        host = self.headers.get("Host", "")
        is_here = host in (f"127.0.0.1:{port}", f"localhost:{port}")
        if is_here and hmac.compare_digest(token.encode(), self.server.review.token.encode()):
            return True
        self.close_connection = True
        self._send(403, "text/plain", b"the token is wrong: open the address that was printed")
        return False

    def _send_json(self, content: dict[str, Any]) -> None:
        # Names of files are any bytes.
        body = json.dumps(content).encode(errors="surrogateescape")
        self._send(200, "application/json", body)

    def _send(self, status: int, kind: str, body: bytes, *, policy: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", policy or "default-src 'none'")
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def _send_file(self, file: Path) -> None:
        """A part of it, where one is asked for. Raises OSError."""
        size = file.stat().st_size
        first, last = _range(self.headers.get("Range", ""), size)
        with open(file, "rb") as f:
            partial = "Range" in self.headers
            self.send_response(206 if partial else 200)
            self.send_header("Content-Type", mimetypes.guess_type(file.name)[0] or "video/mp4")
            self.send_header("Content-Length", str(last - first + 1))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Cache-Control", "no-store")
            if partial:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.end_headers()
            f.seek(first)
            left = last - first + 1
            with contextlib.suppress(ConnectionError):
                while left > 0 and (piece := f.read(min(PIECE, left))):
                    self.wfile.write(piece)
                    left -= len(piece)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the token is in the addresses."""


def _range(text: str, size: int) -> tuple[int, int]:
    """(first, last) byte of `Range`; all of them where it says nothing that is understood."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", text)
    if not found or found[0] == "bytes=-":
        return 0, size - 1
    if not found[1]:
        return max(size - int(found[2]), 0), size - 1
    first = int(found[1])
    last = min(int(found[2]), size - 1) if found[2] else size - 1
    return (first, last) if first <= last else (0, size - 1)


def _policy(nonce: str) -> str:
    return (
        "default-src 'none'; connect-src 'self'; media-src 'self'; img-src data:; "
        f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    )
