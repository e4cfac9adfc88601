"""Drives wrk against one balancer and reads what it cost: requests from wrk, CPU time from /proc."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from backends import FILES
from machine import BenchError, Cpus, cpu_busy_seconds
from peers import Running
from processes import fetch, pinned

SCRIPT = Path(__file__).with_name("load.lua")


@dataclass(frozen=True)
class Scenario:
    """One kind of load, the same for every balancer."""

    name: str
    title: str
    path: str
    connections: int = 64
    close: bool = False


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("1k", "HTTP/1.1, 1 KiB, 64 keep-alive connections", "/1k"),
        Scenario("20b", "HTTP/1.1, 20 B, 64 keep-alive connections", "/20b"),
        Scenario("100k", "HTTP/1.1, 100 KiB, 32 keep-alive connections", "/100k", connections=32),
        Scenario("close", "HTTP/1.1, 1 KiB, a new connection for each request, 32 at once", "/1k", 32, close=True),
    )
}


@dataclass(frozen=True)
class Sample:
    """What one balancer did in one round. `disturbed` is the share of its CPU that went to anything else."""

    requests: int
    seconds: float
    user_seconds: float
    system_seconds: float
    disturbed: float
    p50_us: int
    p99_us: int
    errors: dict[str, int]
    short_answers: bool

    @property
    def cpu_us_per_request(self) -> float:
        return (self.user_seconds + self.system_seconds) / self.requests * 1e6

    @property
    def requests_per_second(self) -> float:
        return self.requests / self.seconds

    @property
    def busy(self) -> float:
        """Share of its CPU that the balancer used: near 1, the balancer was the bottleneck."""
        return (self.user_seconds + self.system_seconds) / self.seconds

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    @property
    def valid(self) -> bool:
        return self.failed == 0 and not self.short_answers


def verify(running: Running, scenario: Scenario) -> None:
    """One request by hand: the balancer must hand out exactly the file before it is measured."""
    status, body = fetch(running.port, scenario.path)
    if status != 200 or len(body) != FILES[scenario.path]:
        raise BenchError(
            f"{running.name} answered {scenario.path} with status {status} and {len(body)} bytes, "
            f"expected 200 and {FILES[scenario.path]}:\n{running.server.tail()}"
        )


def measure(wrk: Path, running: Running, *, scenario: Scenario, seconds: int, cpus: Cpus) -> Sample:
    """One round: CPU time of the balancer before and after wrk ran against it."""
    before, busy_before, began = running.server.cpu_time(), cpu_busy_seconds(cpus.proxy), time.monotonic()
    result = _run_wrk(wrk, running, scenario, seconds, cpus.load)
    used, busy = running.server.cpu_time() - before, cpu_busy_seconds(cpus.proxy) - busy_before
    elapsed = time.monotonic() - began
    requests = int(result["requests"])
    if requests == 0:
        raise BenchError(f"wrk got no answer from {running.name}: {result}\n{running.server.tail()}")
    return Sample(
        requests=requests,
        seconds=result["microseconds"] / 1e6,
        user_seconds=used.user,
        system_seconds=used.system,
        disturbed=max(0.0, busy - used.total) / elapsed,
        p50_us=result["p50_us"],
        p99_us=result["p99_us"],
        errors=result["errors"],
        # wrk counts a 204 or 304 as success; an answer without its body would be cheap, so it is caught here.
        short_answers=result["bytes"] < requests * FILES[scenario.path],
    )


def _run_wrk(wrk: Path, running: Running, scenario: Scenario, seconds: int, cpu: int) -> dict:
    command = [
        *(str(wrk), "--threads", "1", "--connections", str(scenario.connections), "--duration", f"{seconds}s"),
        *("--timeout", "5s", "--script", str(SCRIPT), f"http://127.0.0.1:{running.port}{scenario.path}"),
        *(["--", "close"] if scenario.close else []),
    ]
    done = subprocess.run(
        pinned(cpu, command),
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds + 30,
    )
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    raise BenchError(f"wrk ended with code {done.returncode} and no result:\n{done.stdout}{done.stderr}")
