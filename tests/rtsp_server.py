"""A small RTSP server for tests: one stream, over TCP, whose packets ffmpeg makes."""

import contextlib
import socket
import struct
import subprocess
import threading


class RtspServer:
    """Serves what ffmpeg makes of `source` (its input arguments) at .url, until it is closed."""

    def __init__(self, *source: str):
        self._rtp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._rtp.bind(("127.0.0.1", 0))
        self._clients: list[socket.socket] = []
        target = f"rtp://127.0.0.1:{self._rtp.getsockname()[1]}"
        self._ffmpeg = subprocess.Popen(
            ["ffmpeg", "-loglevel", "error", "-re", *source]
            + ["-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-g", "15"]
            + ["-f", "rtp", "-sdp_file", "/dev/stdout", target],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        self._described = threading.Event()
        self._sdp = b""
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"rtsp://127.0.0.1:{self._server.getsockname()[1]}/camera"
        for work in (self._describe, self._accept, self._forward):
            threading.Thread(target=work, daemon=True).start()

    def close(self) -> None:
        self._ffmpeg.kill()
        self._ffmpeg.wait()
        for each in (self._server, self._rtp, *self._clients):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _describe(self) -> None:
        lines = []
        assert self._ffmpeg.stdout is not None
        for line in self._ffmpeg.stdout:
            if line.startswith((b"SDP:", b"\n")) or not line.strip():
                continue
            # Its own transport is named, and where the stream is to be asked for.
            lines.append(
                b"m=video 0 RTP/AVP 96\r\n" if line[:2] == b"m=" else line.strip() + b"\r\n"
            )
            self._sdp = b"".join(lines) + b"a=control:track\r\n"
            if line.startswith(b"a=fmtp"):
                self._described.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        text = b""
        with contextlib.suppress(OSError):
            while part := client.recv(4096):
                text += part
                while b"\r\n\r\n" in text:
                    request, text = text.split(b"\r\n\r\n", 1)
                    if request[:1] == b"$":
                        continue
                    self._reply(client, request.decode(errors="replace"))

    def _reply(self, client: socket.socket, request: str) -> None:
        method = request.split()[0]
        number = next(x for x in request.splitlines() if x.lower().startswith("cseq"))
        head = f"RTSP/1.0 200 OK\r\n{number}\r\nSession: 1\r\n"
        body = b""
        if method == "OPTIONS":
            head += "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
        elif method == "DESCRIBE":
            self._described.wait(10)
            body = self._sdp
            head += f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
        elif method == "SETUP":
            head += "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
        client.sendall(head.encode() + b"\r\n" + body)
        if method == "PLAY":
            self._clients.append(client)

    def _forward(self) -> None:
        with contextlib.suppress(OSError):
            while packet := self._rtp.recv(65536):
                for client in list(self._clients):
                    try:
                        client.sendall(b"$\x00" + struct.pack(">H", len(packet)) + packet)
                    except OSError:
                        self._clients.remove(client)
