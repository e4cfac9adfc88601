"""The servers behind the balancers: one nginx with several ports for the cost race,
and single-process nginxes that can be killed for the fault race."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from machine import BenchError, free_ports
from peers import render
from processes import Server

COST_PORTS = 3

# Path -> size of its body. Each file is plain text of exactly that many bytes.
FILES = {"/20b": 20, "/1k": 1024, "/100k": 100 * 1024}


def start_file_server(nginx: Path, cpu: int, folder: Path) -> tuple[Server, list[int]]:
    """One nginx that serves FILES on several loopback ports."""
    ports = free_ports(COST_PORTS)
    listens = "\n".join(f"        listen 127.0.0.1:{port} backlog=4096;" for port in ports)
    server = _start_nginx("backend", "backend.conf", nginx, cpu, folder, listens=listens)
    return server, ports


def start_killable(nginx: Path, cpu: int, folder: Path, index: int, service_time_ms: int) -> tuple[Server, int]:
    """A backend in a single process that takes `service_time_ms` to answer; `nginx` needs the echo module."""
    [port] = free_ports(1)
    pause = f"{service_time_ms / 1000:.3f}"
    server = _start_nginx(f"backend{index}", "killable.conf", nginx, cpu, folder, port=str(port), pause=pause)
    return server, port


def expect_refused(port: int) -> None:
    """Proves that a killed backend is gone; without this the fault race could pass without a fault."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise BenchError(f"port {port} still answers after SIGKILL: the fault was not injected")


def _start_nginx(name: str, template: str, nginx: Path, cpu: int, folder: Path, **values: str) -> Server:
    home = folder / name
    files = home / "files"
    files.mkdir(parents=True)
    for path, size in FILES.items():
        (files / path.lstrip("/")).write_bytes((b"guideway " * (size // 9 + 1))[:size])
    user = "user root;" if os.geteuid() == 0 else ""
    config = home / "nginx.conf"
    config.write_text(render(template, {"user": user, **values}))
    return Server(name, [str(nginx), "-e", "stderr", "-p", f"{home}/", "-c", str(config)], cpu, home)
