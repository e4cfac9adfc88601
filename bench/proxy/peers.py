"""The balancers of the race: how each is configured, started and asked for its version.
The configurations themselves are in `configs/`, one file per program."""

from __future__ import annotations

import os
import re
import string
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from machine import BenchError, free_ports
from processes import Server

CONFIGS = Path(__file__).with_name("configs")
GUIDEWAY = "guideway"


@dataclass(frozen=True)
class Peer:
    """One balancer: its name in tables, the program behind it, and how to run that."""

    name: str
    program: str
    template: str
    endpoint_line: str
    command: Callable[[Path, Path], list[str]]
    version_flag: str

    def start(self, binary: Path, upstreams: Sequence[int], cpu: int, folder: Path, fault_race: bool) -> Running:
        """Writes the configuration and starts the balancer on a free port."""
        home = folder / self.name
        home.mkdir()
        [port] = free_ports(1)
        config = home / Path(self.template).name
        lines = (self.endpoint_line.format(index=index, port=upstream) for index, upstream in enumerate(upstreams))
        user = "user root;" if os.geteuid() == 0 else ""
        config.write_text(
            render(
                self.template,
                {"port": str(port), "endpoints": "\n".join(lines), "user": user},
                fault_race=fault_race,
            )
        )
        return Running(self, Server(self.name, self.command(binary, config), cpu, home), port)

    def version(self, binary: Path) -> str:
        """The dotted version the program reports of itself."""
        done = subprocess.run([str(binary), self.version_flag], check=False, capture_output=True, text=True, timeout=20)
        match = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
        if match is None:
            raise BenchError(f"`{binary} {self.version_flag}` names no version: {done.stdout}{done.stderr}")
        return match.group()


@dataclass(frozen=True)
class Running:
    """A started balancer and the port it serves."""

    peer: Peer
    server: Server
    port: int

    @property
    def name(self) -> str:
        return self.peer.name


def render(template: str, values: Mapping[str, str], *, fault_race: bool = False) -> str:
    """A file of `configs/` with its placeholders filled; `#kill#` lines are kept for the fault race only."""
    lines = (CONFIGS / template).read_text().splitlines(keepends=True)
    kept = (line.removeprefix("#kill#") for line in lines if fault_race or not line.startswith("#kill#"))
    return string.Template("".join(kept)).substitute(values)


def _nginx(binary: Path, config: Path) -> list[str]:
    return [str(binary), "-e", "stderr", "-p", f"{config.parent}/", "-c", str(config)]


def _haproxy(binary: Path, config: Path) -> list[str]:
    return [str(binary), "-db", "-f", str(config)]


def _envoy(binary: Path, config: Path) -> list[str]:
    return [str(binary), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]


def _guideway(binary: Path, config: Path) -> list[str]:
    [metrics] = free_ports(1)
    return [
        *(str(binary), "run", "--file", str(config), "--workers", "1"),
        *("--metrics-address", f"127.0.0.1:{metrics}", "--log-level", "warn"),
    ]


_NGINX_LINE = "        server 127.0.0.1:{port} max_fails=1 fail_timeout=1s;"
_HAPROXY_LINE = "    server s{index} 127.0.0.1:{port}"
_ENVOY_LINE = "        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}"
_GUIDEWAY_LINE = "    - {{address: 127.0.0.1, port: {port}}}"

PEERS = {
    peer.name: peer
    for peer in (
        Peer(GUIDEWAY, GUIDEWAY, "guideway.yaml", _GUIDEWAY_LINE, _guideway, "--version"),
        Peer("nginx", "nginx", "nginx.conf", _NGINX_LINE, _nginx, "-v"),
        Peer("nginx-mainline", "nginx-mainline", "nginx.conf", _NGINX_LINE, _nginx, "-v"),
        Peer("haproxy", "haproxy", "haproxy.cfg", _HAPROXY_LINE, _haproxy, "-v"),
        Peer("haproxy-lts", "haproxy-lts", "haproxy.cfg", _HAPROXY_LINE, _haproxy, "-v"),
        Peer("envoy", "envoy", "envoy.yaml", _ENVOY_LINE, _envoy, "--version"),
    )
}
