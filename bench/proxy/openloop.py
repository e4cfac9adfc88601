"""Sends requests at a fixed rate whatever the answers do, and records every failure and every latency.
Runs as a program of its own, so that starting and killing servers never delays its schedule.
Latency counts from the moment a request was due, so a stall is not hidden by requests not sent."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

KEYS = 1000
REQUEST_TIMEOUT_SECONDS = 5.0
SLOW_SECONDS = 0.5
EXAMPLES_KEPT = 20


@dataclass
class Tally:
    """What came of the requests, by the time each was due."""

    latencies: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)

    def answered(self, request: Request) -> None:
        self.latencies.append(time.monotonic() - request.due)

    def failed(self, request: Request, reason: str, start: float) -> None:
        self.failures[reason] += 1
        if len(self.examples) < EXAMPLES_KEPT:
            self.examples.append({"at": round(request.due - start, 3), "reason": reason})

    @property
    def settled(self) -> int:
        return len(self.latencies) + self.failures.total()

    def summary(self) -> dict[str, Any]:
        latencies = sorted(self.latencies)
        lags = sorted(self.lags)
        return {
            "requests": self.settled,
            "failed": self.failures.total(),
            "failures": dict(self.failures),
            "examples": self.examples,
            "slow": sum(latency > SLOW_SECONDS for latency in latencies),
            "p50_ms": percentile(latencies, 50) * 1000,
            "p99_ms": percentile(latencies, 99) * 1000,
            "max_ms": percentile(latencies, 100) * 1000,
            "lag_p99_ms": percentile(lags, 99) * 1000,
            "lag_max_ms": percentile(lags, 100) * 1000,
        }


@dataclass
class Request:
    """One request and when it was due. It is settled exactly once."""

    due: float
    text: bytes
    settled: bool = False


def percentile(ordered: list[float], percent: float) -> float:
    """Nearest rank; 0 for an empty list, which the count beside it shows."""
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


class Generator:
    """Paces the requests and keeps the idle connections, used in turn so that none grows old."""

    def __init__(self, port: int, path: str, rate: float, seconds: float) -> None:
        self.tally = Tally()
        self.idle: deque[Connection] = deque()
        self.start = 0.0
        self._port = port
        self._rate = rate
        self._count = int(rate * seconds)
        self._texts = [
            f"GET {path} HTTP/1.1\r\nHost: bench.example\r\nx-user: user{key}\r\n\r\n".encode() for key in range(KEYS)
        ]
        self._opening: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Sends each request when it is due and returns when all are settled."""
        self.start = time.monotonic()
        for number in range(self._count):
            due = self.start + number / self._rate
            ahead = due - time.monotonic()
            if ahead > 0:
                await asyncio.sleep(ahead)
            elif number % 16 == 0:
                await asyncio.sleep(0)  # Behind schedule: catch up, but let the answers in.
            self.tally.lags.append(max(0.0, time.monotonic() - due))
            self._send(Request(due, self._texts[number % KEYS]))
        while self.tally.settled < self._count:
            await asyncio.sleep(0.01)

    def settle(self, request: Request, failure: str | None) -> None:
        """Counts the request; later news about it changes nothing."""
        if request.settled:
            return
        request.settled = True
        if failure is None:
            self.tally.answered(request)
        else:
            self.tally.failed(request, failure, self.start)

    def _send(self, request: Request) -> None:
        if self.idle:
            self.idle.popleft().send(request)
            return
        task = asyncio.get_running_loop().create_task(self._open_and_send(request))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open_and_send(self, request: Request) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_SECONDS):
                _, connection = await loop.create_connection(lambda: Connection(self), "127.0.0.1", self._port)
        except (OSError, TimeoutError) as error:
            self.settle(request, f"connect: {type(error).__name__}")
            return
        connection.send(request)


class Connection(asyncio.Protocol):
    """One keep-alive connection to the balancer with at most one request on it."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._transport: asyncio.Transport | None = None
        self._request: Request | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, request: Request) -> None:
        assert self._transport is not None
        self._request = request
        self._buffer = b""
        self._timer = asyncio.get_running_loop().call_later(REQUEST_TIMEOUT_SECONDS, self._finish, "timeout", False)
        self._transport.write(request.text)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if self._request is None or not separator:
            return
        status, length, keep = parse_head(head)
        if length is None:
            self._finish(f"status {status}, no content-length", False)
        elif len(body) >= length:
            self._finish(None if status == 200 else f"status {status}", keep)

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish("reset before the answer" if exc else "closed before the answer", False)
        if self in self._generator.idle:
            self._generator.idle.remove(self)

    def _finish(self, failure: str | None, keep: bool) -> None:
        if self._request is None or self._transport is None:
            return
        request, self._request = self._request, None
        if self._timer is not None:
            self._timer.cancel()
        self._generator.settle(request, failure)
        if keep and not self._transport.is_closing():
            self._generator.idle.append(self)
        else:
            self._transport.close()


def parse_head(head: bytes) -> tuple[int, int | None, bool]:
    """Status, content length if given, and whether the connection may be used again."""
    first, *fields = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in fields)}
    length = headers.get("content-length")
    keep = headers.get("connection", "").lower() != "close"
    return int(first.split()[1]), int(length) if length is not None else None, keep


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True)
    parser.add_argument("--rate", type=float, required=True, help="requests per second")
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    generator = Generator(options.port, options.path, options.rate, options.seconds)
    asyncio.run(generator.run())
    json.dump(generator.tally.summary(), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
