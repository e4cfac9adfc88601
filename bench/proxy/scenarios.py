"""What is raced: each scenario says how the balancers are set up, what load they get, what is counted, and
which figure of it is compared."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import setups
from generators import Generator, H2load, Pace, Rpc, WebSocket, Wrk
from setups import Setup


class Figure(Enum):
    """What is compared, less of it being better."""

    CPU = "CPU us"
    P99 = "p99 ms"
    MEMORY = "KiB"


@dataclass(frozen=True)
class Scenario:
    """One kind of load, the same for every balancer."""

    name: str
    title: str
    setup: Setup
    unit: str
    load: Generator
    figure: Figure = Figure.CPU


@dataclass(frozen=True)
class Idle:
    """Connections that sent one request each and wait; measured on a process that did nothing before."""

    # HAProxy counts two files for each client whether it needs them or not, and files end at 20,000 on many machines.
    connections: int = 9_900
    # A balancer may limit what one address opens.
    sources: int = 4


@dataclass(frozen=True)
class MemoryScenario:
    """What a connection that waits costs in memory."""

    name: str
    title: str
    setup: Setup
    idle: Idle = Idle()
    unit: str = "connection"
    figure: Figure = Figure.MEMORY


# At half load each balancer gets half of the requests per second that it answered in this closed loop.
FULL_LOAD = Wrk("/1k")
HALF_LOAD = Pace("/1k", connections=64, rate=0)


def _wrk(name: str, title: str, setup: Setup, path: str, connections: int = 64, close: bool = False) -> Scenario:
    return Scenario(name, title, setup, "request", Wrk(path, connections, close))


def _rpc(name: str, title: str, unit: str, kind: str) -> Scenario:
    return Scenario(name, title, setups.GRPC, unit, Rpc(kind, connections=8, calls=8))


def _pools(count: int) -> Scenario:
    title = f"HTTP/1.1, 1 KiB, {count:,} pools on one port, told apart by host, 64 keep-alive connections"
    return _wrk(f"pools-{count}", title, setups.pools(count), "/1k")


SCENARIOS: dict[str, Scenario | MemoryScenario] = {
    scenario.name: scenario
    for scenario in (
        _wrk("20b", "HTTP/1.1, 20 B, 64 keep-alive connections", setups.HTTP, "/20b"),
        _wrk("1k", "HTTP/1.1, 1 KiB, 64 keep-alive connections", setups.HTTP, "/1k"),
        _wrk("100k", "HTTP/1.1, 100 KiB, 32 keep-alive connections", setups.HTTP, "/100k", 32),
        _wrk("1m", "HTTP/1.1, 1 MiB, 16 keep-alive connections", setups.HTTP, "/1m", 16),
        _wrk("close", "HTTP/1.1, 1 KiB, a new connection for each request, 32 at once", setups.HTTP, "/1k", 32, True),
        Scenario(
            "p99",
            "HTTP/1.1, 1 KiB, open loop on 64 connections at half of what each balancer answers at most",
            setups.HTTP,
            "at half load",
            HALF_LOAD,
            Figure.P99,
        ),
        _wrk("tls-h1", "HTTP/1.1 over TLS 1.3, 1 KiB, 64 keep-alive connections", setups.HTTPS, "/1k"),
        Scenario(
            "tls-h2",
            "HTTP/2 over TLS 1.3, 1 KiB, 16 connections of 16 streams",
            setups.HTTPS,
            "request",
            H2load("/1k", connections=16, streams=16),
        ),
        _wrk(
            "tls-close", "TLS 1.3, 1 KiB, a new connection for each request, 32 at once", setups.HTTPS, "/1k", 32, True
        ),
        Scenario(
            "h2c",
            "HTTP/2 without TLS, 1 KiB, 16 connections of 16 streams",
            setups.H2C,
            "request",
            H2load("/1k", connections=16, streams=16),
        ),
        _rpc("grpc-unary", "gRPC without TLS, calls of 1 KiB each way, 8 connections of 8 calls", "call", "unary"),
        _rpc("grpc-stream", "gRPC without TLS, 8 connections of 8 streams of 1 KiB to and fro", "message", "streaming"),
        Scenario(
            "websocket",
            "WebSocket, 64 connections, messages of 125 B to and fro",
            setups.WEBSOCKET,
            "message",
            WebSocket(connections=64, size=125),
        ),
        _wrk("tcp", "TCP, 64 connections that carry requests of 1 KiB", setups.TCP, "/1k"),
        _pools(1),
        _pools(100),
        _pools(1000),
        MemoryScenario("idle", "9,900 connections over HTTP/1.1 that wait", setups.MANY_HTTP),
        MemoryScenario("idle-tls", "9,900 connections over TLS 1.3 that wait", setups.MANY_HTTPS),
    )
}
