"""What the harness needs from the machine: two CPUs, free loopback ports, and a description
of itself for the report, because a figure without its machine means little."""

from __future__ import annotations

import os
import platform
import resource
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """Something the person at the terminal can put right; shown without a traceback."""


@dataclass(frozen=True)
class Cpus:
    """Where each side runs: the proxy alone on one CPU, load and backends on the other."""

    proxy: int
    load: int


def choose_cpus() -> Cpus:
    """The first two CPUs this process may use (0 and 1 on an ordinary machine)."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        raise BenchError("two CPUs are needed, one for the proxy and one for the load; this process may use one")
    return Cpus(proxy=allowed[0], load=allowed[1])


def free_ports(count: int) -> list[int]:
    """Distinct loopback ports that nobody listens on; held together so that none comes twice."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def raise_descriptors() -> int:
    """Lets this process and those it starts open as many files as the machine allows; returns how many."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def cpu_busy_seconds(cpu: int) -> float:
    """Seconds that one CPU has worked since boot, for whomever; stolen time is not among them."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *values = line.split()
        if name == f"cpu{cpu}":
            user, nice, system, _idle, _iowait, irq, softirq = map(int, values[:7])
            return (user + nice + system + irq + softirq) / TICKS_PER_SECOND
    raise BenchError(f"/proc/stat does not list CPU {cpu}")


def describe() -> dict[str, str]:
    """CPU model, kernel, distribution and the load before the run."""
    return {
        "cpu": _first_value("/proc/cpuinfo", "model name", ":"),
        "cpus": str(os.cpu_count()),
        "kernel": platform.release(),
        "system": _first_value("/etc/os-release", "PRETTY_NAME", "=").strip('"'),
        "load_before": " ".join(f"{value:.2f}" for value in os.getloadavg()),
    }


def _first_value(path: str, key: str, separator: str) -> str:
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(separator)
        if name.strip() == key:
            return value.strip()
    return "unknown"
