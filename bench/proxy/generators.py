"""Drives the load generators: wrk for HTTP/1.1, h2load for HTTP/2, grpc-go's benchmark client for gRPC, and
guideway-load for what they cannot do. Each says what it offered and what came of it, in the same words."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from backends import FILES
from machine import BenchError
from peers import Running
from processes import pinned

SCRIPT = Path(__file__).with_name("load.lua")
USERS = 1000

# A generator that takes so much longer than it was told waits for a balancer that is stuck.
PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class Load:
    """What a generator saw: answers of the unit that a scenario counts in, and how long they took."""

    answered: int
    failed: int
    seconds: float
    # None where the generator does not tell.
    p50_us: int | None = None
    p99_us: int | None = None
    # False when answers came without their whole body, which would make them cheap.
    complete: bool = True
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tools:
    """What generators need: the programs, the CPU they share with the backends, the certificate, a folder."""

    binaries: Mapping[str, Path]
    cpu: int
    certificate: Mapping[str, str]
    folder: Path

    def run(self, program: str, arguments: Sequence[str], seconds: float) -> str:
        """Runs a generator to its end and returns its output."""
        try:
            done = subprocess.run(
                pinned(self.cpu, [str(self.binaries[program]), *arguments]),
                check=False,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds + PATIENCE_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"{program} did not end {PATIENCE_SECONDS} s after its time") from error
        if done.returncode != 0:
            raise BenchError(f"{program} ended with code {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
        return done.stdout


class Generator(Protocol):
    """One kind of load against one balancer."""

    programs: ClassVar[tuple[str, ...]]

    def run(self, tools: Tools, running: Running, seconds: float) -> Load: ...


@dataclass(frozen=True)
class Wrk:
    """A closed loop over HTTP/1.1: every connection sends its next request when it has its answer."""

    programs: ClassVar[tuple[str, ...]] = ("wrk",)

    path: str
    connections: int = 64
    close: bool = False

    def run(self, tools: Tools, running: Running, seconds: float) -> Load:
        scheme = "https" if running.setup.tls else "http"
        script = ["close"] if self.close else []
        if "pools" in running.setup.tags:
            script.append(f"pools={running.setup.pools}")
        output = tools.run(
            "wrk",
            [
                *("--threads", "1", "--connections", str(self.connections), "--duration", f"{seconds:.0f}s"),
                *("--timeout", "5s", "--script", str(SCRIPT), f"{scheme}://127.0.0.1:{running.port}{self.path}"),
                *("--", *script),
            ],
            seconds,
        )
        result = json.loads(_line(output, "RESULT "))
        return Load(
            answered=result["requests"],
            failed=sum(result["errors"].values()),
            seconds=result["microseconds"] / 1e6,
            p50_us=result["p50_us"],
            p99_us=result["p99_us"],
            # wrk counts a 204 or 304 as success.
            complete=result["bytes"] >= result["requests"] * FILES[self.path],
            details=result["errors"],
        )


@dataclass(frozen=True)
class H2load:
    """A closed loop over HTTP/2: so many connections with so many streams each."""

    programs: ClassVar[tuple[str, ...]] = ("h2load",)

    path: str
    connections: int
    streams: int

    def run(self, tools: Tools, running: Running, seconds: float) -> Load:
        scheme = "https" if running.setup.tls else "http"
        base = f"{scheme}://127.0.0.1:{running.port}"
        # It cannot vary a header, so the key is in the query.
        addresses = tools.folder / f"h2load-{running.port}.txt"
        addresses.write_text("".join(f"{base}{self.path}?user={user}\n" for user in range(USERS)))
        output = tools.run(
            "h2load",
            [
                *("--threads", "1", "--clients", str(self.connections), "--max-concurrent-streams", str(self.streams)),
                *("--duration", f"{seconds:.0f}", "--input-file", str(addresses)),
            ],
            seconds,
        )
        if _protocol(output) not in ("h2", "h2c"):
            raise BenchError(f"{running.name} does not speak HTTP/2 here but {_protocol(output)}")
        answered, data = (int(_number(output, pattern)) for pattern in (r"(\d+) succeeded", r"\((\d+)\) data"))
        # What is under way when the time is up is neither; an answer that began by then has a status all the same.
        unwanted = (r"(\d+) failed", r"(\d+) errored", r"(\d+) timeout", r"(\d+) 3xx", r"(\d+) 4xx", r"(\d+) 5xx")
        return Load(
            answered=answered,
            failed=sum(int(_number(output, pattern)) for pattern in unwanted),
            seconds=seconds,
            complete=data >= answered * FILES[self.path],
        )


@dataclass(frozen=True)
class Rpc:
    """A closed loop over gRPC: unary calls, or messages that go back and forth on streams that stay."""

    programs: ClassVar[tuple[str, ...]] = ("grpc-client",)

    kind: str
    connections: int
    calls: int
    size: int = 1024

    def run(self, tools: Tools, running: Running, seconds: float) -> Load:
        name = tools.folder / f"grpc-client-{running.port}"
        output = tools.run(
            "grpc-client",
            [
                # It insists on writing profiles below /tmp, under this name, and ends at the first failed call.
                *(f"-port={running.port}", f"-test_name=..{name}", f"-rpc_type={self.kind}"),
                *(f"-c={self.connections}", f"-r={self.calls}", f"-req={self.size}", f"-resp={self.size}"),
                *("-w=0", f"-d={seconds:.0f}"),
            ],
            seconds,
        )
        p50, _, p99 = _line(output, "Latency: (50/90/99 %ile): ").split("/")
        return Load(
            answered=round(_number(output, r"qps: ([\d.e+]+)") * round(seconds)),
            failed=0,
            seconds=seconds,
            p50_us=_microseconds(p50),
            p99_us=_microseconds(p99),
        )


@dataclass(frozen=True)
class WebSocket:
    """A closed loop of messages: each connection has one under way, which must come back as it was."""

    programs: ClassVar[tuple[str, ...]] = ("guideway-load",)

    connections: int
    size: int

    def run(self, tools: Tools, running: Running, seconds: float) -> Load:
        return _own(tools, running, "websocket", seconds, connections=self.connections, seconds=seconds, size=self.size)


@dataclass(frozen=True)
class Pace:
    """An open loop over HTTP/1.1: so many requests per second, whatever the answers do."""

    programs: ClassVar[tuple[str, ...]] = ("guideway-load",)

    path: str
    connections: int
    rate: float
    sources: int = 1

    def run(self, tools: Tools, running: Running, seconds: float) -> Load:
        plan = {key: getattr(self, key) for key in ("path", "connections", "rate", "sources")}
        return _own(tools, running, "pace", seconds + 30, **plan, seconds=seconds)


def arguments(tools: Tools, running: Running, command: str, **plan: object) -> list[str]:
    """The command line of guideway-load against one balancer."""
    words = [command, f"--port={running.port}", *(f"--{key}={value}" for key, value in plan.items())]
    return [*words, f"--trust={tools.certificate['certificate']}"] if running.setup.tls else words


def _own(tools: Tools, running: Running, command: str, patience: float, **plan: object) -> Load:
    result = json.loads(tools.run("guideway-load", arguments(tools, running, command, **plan), patience))
    return Load(
        answered=result["answered"],
        failed=result["failed"],
        seconds=result["seconds"],
        p50_us=result["p50_us"],
        p99_us=result["p99_us"],
        details=result,
    )


def _line(output: str, start: str) -> str:
    for line in output.splitlines():
        if line.startswith(start):
            return line.removeprefix(start)
    raise BenchError(f"the generator's output has no line that begins with {start!r}:\n{output[-2000:]}")


def _number(output: str, pattern: str) -> float:
    found = re.search(pattern, output)
    if found is None:
        raise BenchError(f"the generator's output has nothing like {pattern}:\n{output[-2000:]}")
    return float(found[1])


def _protocol(output: str) -> str:
    found = re.search(r"Application protocol: (\S+)", output)
    return found[1] if found else "unknown"


def _microseconds(duration: str) -> int:
    """A duration as Go prints it, such as 1.234567ms or 1m2.5s."""
    units = {"ns": 1e-3, "µs": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6, "h": 3600e6}
    parts = re.findall(r"([\d.]+)(ns|µs|ms|s|m|h)", duration)
    return round(sum(float(value) * units[unit] for value, unit in parts))
