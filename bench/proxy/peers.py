"""The balancers of the races: how each is configured, started and asked for its version.
The configurations themselves are in `configs/`, one file per program, rendered by `configuration`."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import configuration
from machine import BenchError, free_ports
from processes import Server
from setups import ORDINARY, Setup

GUIDEWAY = "guideway"
ENVOY = "envoy"
# HAProxy in TCP mode, which looks at no request: what it takes to move the bytes at all.
FLOOR = "floor"


class Unserved(Exception):
    """A balancer cannot do what a race asks for; the reason is part of the result."""


@dataclass(frozen=True)
class Place:
    """Where one balancer runs and what it may use."""

    binary: Path
    home: Path
    port: int
    cpu: int
    certificate: Mapping[str, str]
    # Client connections that it must have room for.
    connections: int


@dataclass(frozen=True)
class Peer:
    """One balancer: its name in tables, the program behind it, and how to run that."""

    name: str
    program: str
    template: str
    # One line per backend, with {index}, {port} and {scheme}.
    endpoint: str
    command: Callable[[Place, Path], list[str]]
    version_flag: str
    separator: str = "\n"
    # What it is not set up for here, by tag, and why.
    lacks: Mapping[str, str] | None = None
    # What it does for every setup, instead of what the setup says.
    tags: frozenset[str] | None = None
    check: Callable[[Place, Path], None] | None = None

    def start(self, place: Place, setup: Setup, backends: Sequence[int]) -> Running:
        """Writes the configuration and starts the balancer. Unserved if it cannot do what the setup asks for."""
        for tag, reason in (self.lacks or {}).items():
            if tag in setup.tags:
                raise Unserved(reason)
        place.home.mkdir()
        config = place.home / Path(self.template).name
        config.write_text(self._configuration(place, setup, backends))
        if self.check is not None:
            self.check(place, config)
        return Running(self, Server(self.name, self.command(place, config), place.cpu, place.home), place.port, setup)

    def version(self, binary: Path) -> str:
        """The dotted version the program reports of itself."""
        command = [str(binary), self.version_flag]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=20)
        match = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
        if match is None:
            raise BenchError(f"`{' '.join(command)}` names no version: {done.stdout}{done.stderr}")
        return match.group()

    def _configuration(self, place: Place, setup: Setup, backends: Sequence[int]) -> str:
        scheme = "h2c" if "grpc" in setup.tags else "http"
        endpoints = [self.endpoint.format(index=index, port=port, scheme=scheme) for index, port in enumerate(backends)]
        values = {
            "port": str(place.port),
            "user": "user root;" if os.geteuid() == 0 else "",
            "folder": str(place.home),
            "endpoints": self.separator.join(endpoints),
            "connections": str(setup.connections),
            # A client's connection may need one to a backend as well.
            "descriptors": str(min(2 * setup.connections, 20_000)),
            **place.certificate,
        }
        return configuration.render(self.template, self.tags or setup.tags, values, setup.pools)


@dataclass(frozen=True)
class Running:
    """A started balancer, the port it serves and what it was set up for."""

    peer: Peer
    server: Server
    port: int
    setup: Setup

    @property
    def name(self) -> str:
        return self.peer.name


def _nginx(place: Place, config: Path) -> list[str]:
    return [str(place.binary), "-e", "stderr", "-p", f"{config.parent}/", "-c", str(config)]


def _haproxy(place: Place, config: Path) -> list[str]:
    return [str(place.binary), "-db", "-f", str(config)]


def _envoy(place: Place, config: Path) -> list[str]:
    flags = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    return [str(place.binary), "-c", str(config), *flags]


def _caddy(place: Place, config: Path) -> list[str]:
    return [str(place.binary), "run", "--config", str(config), "--adapter", "caddyfile"]


def _traefik(place: Place, config: Path) -> list[str]:
    return [
        *(str(place.binary), f"--entryPoints.web.address=127.0.0.1:{place.port}"),
        *(f"--providers.file.filename={config}", "--providers.file.watch=false", "--log.level=ERROR"),
        *("--global.checkNewVersion=false", "--global.sendAnonymousUsage=false"),
    ]


def _guideway(place: Place, config: Path) -> list[str]:
    [metrics] = free_ports(1)
    # By itself it keeps more than half of its descriptors for backends.
    room = ["--max-connections", str(place.connections)] if place.connections > ORDINARY else []
    return [
        *(str(place.binary), "run", "--file", str(config), "--workers", "1", "--listen-address", "127.0.0.1"),
        # Every line is made and written; what a disk costs is not raced.
        *("--metrics-address", f"127.0.0.1:{metrics}", "--log-level", "warn", "--access-log", "/dev/null"),
        *room,
    ]


def _check_guideway(place: Place, config: Path) -> None:
    """A build that does not know a protocol yet says so itself."""
    done = subprocess.run(
        [str(place.binary), "check", "--standalone", str(config)],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines() or ["guideway check failed"]
        raise Unserved(lines[0].removeprefix(f"{config}:"))


_NGINX_ENDPOINT = "        server 127.0.0.1:{port} max_fails=1 fail_timeout=1s;"
_HAPROXY_ENDPOINT = "    server s{index} 127.0.0.1:{port}"
_ENVOY_ENDPOINT = "        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}"
_GUIDEWAY_ENDPOINT = "    - {{address: 127.0.0.1, port: {port}}}"
_TRAEFIK_ENDPOINT = '        - {{url: "{scheme}://127.0.0.1:{port}"}}'
_NO_STREAM = {"tcp": "Debian's nginx has TCP in a package of its own, and its mode for HTTP is what is raced here"}
_NO_TCP = {"tcp": "it carries HTTP only"}

PEERS = {
    peer.name: peer
    for peer in (
        Peer(GUIDEWAY, GUIDEWAY, "guideway.yaml", _GUIDEWAY_ENDPOINT, _guideway, "--version", check=_check_guideway),
        Peer("nginx", "nginx", "nginx.conf", _NGINX_ENDPOINT, _nginx, "-v", lacks=_NO_STREAM),
        Peer("nginx-mainline", "nginx-mainline", "nginx.conf", _NGINX_ENDPOINT, _nginx, "-v", lacks=_NO_STREAM),
        Peer("haproxy", "haproxy", "haproxy.cfg", _HAPROXY_ENDPOINT, _haproxy, "-v"),
        Peer("haproxy-lts", "haproxy-lts", "haproxy.cfg", _HAPROXY_ENDPOINT, _haproxy, "-v"),
        Peer(ENVOY, ENVOY, "envoy.yaml", _ENVOY_ENDPOINT, _envoy, "--version"),
        Peer("caddy", "caddy", "Caddyfile", "127.0.0.1:{port}", _caddy, "version", separator=" ", lacks=_NO_TCP),
        Peer(
            "traefik",
            "traefik",
            "traefik-routes.yaml",
            _TRAEFIK_ENDPOINT,
            _traefik,
            "version",
            lacks={"tcp": "not set up for it here"},
        ),
        Peer(
            FLOOR,
            "haproxy-lts",
            "haproxy.cfg",
            _HAPROXY_ENDPOINT,
            _haproxy,
            "-v",
            lacks={
                "tls": "it does not end TLS",
                "translated": "it does not make HTTP/1.1 of HTTP/2",
                "tcp": "haproxy-lts is the same here",
                "pools": "it knows no hosts",
            },
            tags=frozenset({"tcp", "plain"}),
        ),
    )
}
