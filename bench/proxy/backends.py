"""The servers behind the balancers: for the cost race one nginx with several ports, grpc-go's benchmark
server or a WebSocket echo; for the fault race single-process nginxes that can be killed."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path

import configuration
from machine import BenchError, free_ports
from processes import Server
from setups import Backends

COST_PORTS = 3

# Path -> size of its body. Each file is plain text of exactly that many bytes.
FILES = {"/20b": 20, "/1k": 1024, "/100k": 100 * 1024, "/1m": 1024 * 1024}

# What starts each kind of backend.
PROGRAMS = {Backends.FILES: "nginx", Backends.RPC: "grpc-server", Backends.ECHO: "guideway-load"}


def start(kind: Backends, binary: Path, cpu: int, folder: Path, stack: ExitStack) -> list[int]:
    """Backends of one kind on three loopback ports; they end with the stack."""
    if kind is Backends.FILES:
        server, ports = _start_file_server(binary, cpu, folder)
        stack.enter_context(server).wait_ready(ports[0], "/1k")
        return ports
    ports = free_ports(COST_PORTS)
    if kind is Backends.ECHO:
        command = [str(binary), "echo", *(f"--port={port}" for port in ports)]
        stack.enter_context(Server("echo", command, cpu, folder)).wait_ready(ports[0], "/")
        return ports
    for port in ports:
        name = f"grpc-server-{port}"
        # It insists on writing a profile below /tmp, under this name.
        command = [str(binary), f"-port={port}", f"-test_name=..{folder / name}"]
        stack.enter_context(Server(name, command, cpu, folder)).wait_listening(port)
    return ports


def _start_file_server(nginx: Path, cpu: int, folder: Path) -> tuple[Server, list[int]]:
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
    config.write_text(configuration.render(template, (), {"user": user, **values}))
    return Server(name, [str(nginx), "-e", "stderr", "-p", f"{home}/", "-c", str(config)], cpu, home)
