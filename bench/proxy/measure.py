"""Measures one balancer in one round: what the generator saw, and what it cost by /proc."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from backends import FILES
from generators import Generator, Load, Tools, Wrk, arguments
from machine import BenchError, Cpus, cpu_busy_seconds
from peers import Running
from processes import fetch, pinned
from scenarios import Figure, Idle
from setups import Backends

# With more lag than this an open loop did not offer what it claims.
LAG_P99_LIMIT_US = 20_000

# What is freed and written back right after the last connection is accepted is not part of the cost of waiting.
SETTLE_SECONDS = 1.0


@dataclass(frozen=True)
class Sample:
    """What one balancer did in one round. `disturbed` is the share of its CPU that went to anything else."""

    load: Load
    user_seconds: float
    system_seconds: float
    elapsed: float
    disturbed: float

    @property
    def cpu_us(self) -> float:
        """CPU time for one of the units that the scenario counts."""
        return (self.user_seconds + self.system_seconds) / self.load.answered * 1e6

    @property
    def per_second(self) -> float:
        return self.load.answered / self.load.seconds

    @property
    def busy(self) -> float:
        """Share of its CPU that the balancer used: near 1, the balancer was the bottleneck."""
        return (self.user_seconds + self.system_seconds) / self.elapsed

    @property
    def failed(self) -> int:
        return self.load.failed

    @property
    def valid(self) -> bool:
        return self.failed == 0 and self.load.complete and self.load.details.get("lag_p99_us", 0) < LAG_P99_LIMIT_US

    def figure(self, figure: Figure) -> float:
        if figure is Figure.CPU:
            return self.cpu_us
        if self.load.p99_us is None:
            raise BenchError("this scenario compares latencies, and its generator does not tell them")
        return self.load.p99_us / 1000


@dataclass(frozen=True)
class MemorySample:
    """Memory of a fresh balancer before and while connections wait."""

    wanted: int
    open: int
    still_open: int
    before_kib: int
    after_kib: int
    first_failure: str | None

    @property
    def failed(self) -> int:
        return self.wanted - self.still_open

    @property
    def valid(self) -> bool:
        return self.failed == 0

    def figure(self, _figure: Figure) -> float:
        return (self.after_kib - self.before_kib) / max(1, self.open)


def verify(running: Running, load: Generator) -> None:
    """One request by hand where that can be done: the exact file comes back before anything is measured.
    The other generators look at what they get themselves."""
    setup = running.setup
    if setup.backends is not Backends.FILES or not setup.answers_http1:
        return
    path = load.path if isinstance(load, Wrk) else "/1k"
    status, body = fetch(running.port, path, tls=setup.tls, host=setup.host)
    if status != 200 or len(body) != FILES[path]:
        raise BenchError(
            f"{running.name} answered {path} with status {status} and {len(body)} bytes, "
            f"expected 200 and {FILES[path]}:\n{running.server.tail()}"
        )


def measure(tools: Tools, running: Running, load: Generator, cpus: Cpus, seconds: float) -> Sample:
    """One round: CPU time of the balancer before and after the load."""
    before, busy_before, began = running.server.cpu_time(), cpu_busy_seconds(cpus.proxy), time.monotonic()
    seen = load.run(tools, running, seconds)
    used, busy = running.server.cpu_time() - before, cpu_busy_seconds(cpus.proxy) - busy_before
    elapsed = time.monotonic() - began
    if seen.answered == 0:
        raise BenchError(f"no answer from {running.name}: {dict(seen.details)}\n{running.server.tail()}")
    return Sample(seen, used.user, used.system, elapsed, max(0.0, busy - used.total) / elapsed)


def measure_memory(tools: Tools, running: Running, idle: Idle) -> MemorySample:
    """Memory before and while connections wait."""
    before = running.server.pss_kib()
    words = arguments(tools, running, "idle", connections=idle.connections, sources=idle.sources)
    waiting = subprocess.Popen(
        pinned(tools.cpu, [str(tools.binaries["guideway-load"]), *words]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with waiting:
        assert waiting.stdout is not None and waiting.stdin is not None
        opened: dict[str, Any] = _report(waiting.stdout.readline())
        time.sleep(SETTLE_SECONDS)
        after = running.server.pss_kib()
        waiting.stdin.close()
        closed = _report(waiting.stdout.readline())
    return MemorySample(idle.connections, opened["open"], closed["still_open"], before, after, opened["first_failure"])


def _report(line: str) -> dict[str, Any]:
    if not line:
        raise BenchError("guideway-load ended without a report")
    report: dict[str, Any] = json.loads(line)
    return report
