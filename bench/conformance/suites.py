"""Finds the suites and installs those that are missing, in a folder of the cache, and starts what they need: a web
server of this process, and processes that end with the run."""

from __future__ import annotations

import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

# What go installs, each at a version of its own, so that a run means the same on every machine.
H2SPEC = "github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible"
GRPC = "google.golang.org/grpc/interop/{}@v1.85.0"

READY_WITHIN_SECONDS = 20.0

POOL = """\
---
apiVersion: guideway.dev/v1alpha1
kind: LoadBalancerPool
metadata: {{name: {name}, namespace: conformance}}
spec:
  listeners:
  - {{name: plain, port: {plain}, protocol: HTTP}}
  - name: secure
    port: {secure}
    protocol: HTTPS
    tls: {{certificateFiles: [{{certificate: {folder}/certificate.pem, key: {folder}/key.pem}}]}}
  backends: [{{name: all, protocol: {protocol}, endpoints: [{{address: 127.0.0.1, port: {backend}}}]}}]
"""


class ConformanceError(Exception):
    """Something the person at the terminal can put right; shown without a traceback."""


@dataclass(frozen=True)
class Tools:
    """The programs of the suites."""

    h2spec: Path
    grpc_client: Path
    grpc_server: Path


def provide() -> Tools:
    """The programs, installed first where they are missing."""
    return Tools(_install(H2SPEC), _install(GRPC.format("client")), _install(GRPC.format("server")))


def _install(module: str) -> Path:
    name, version = module.split("/")[-1].split("@")
    folder = _cache() / "tools" / f"{module.split('/')[1]}-{name}-{version}"
    binary = folder / name
    if binary.exists():
        return binary
    if shutil.which("go") is None:
        raise ConformanceError("go is missing; install it, on Debian with apt-get install golang")
    print(f"installing {module}", file=sys.stderr)
    # Beside the module's own requirements, h2spec needs some that it does not name.
    environment = {**os.environ, "GOBIN": str(folder), "GOFLAGS": "-mod=mod"}
    done = subprocess.run(["go", "install", module], check=False, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise ConformanceError(f"go install {module} ended with code {done.returncode}:\n{done.stderr[-2000:]}")
    return binary


def _cache() -> Path:
    """The project's cache folder; GUIDEWAY_CACHE names another."""
    own = os.environ.get("GUIDEWAY_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "guideway"


def certificate(folder: Path) -> None:
    """Makes the certificate that the pools name."""
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
        *("-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")),
    ]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError as error:
        raise ConformanceError(f"openssl: {error}; on Debian it is in the package openssl") from error
    if done.returncode != 0:
        raise ConformanceError(f"openssl made no certificate:\n{done.stderr}")


def free_ports(count: int) -> list[int]:
    """Distinct loopback ports that nobody listens on; held together so that none comes twice."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class _Pages(http.server.BaseHTTPRequestHandler):
    """Answers every request with a page, after having read it."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        if "chunked" in self.headers.get("transfer-encoding", ""):
            while (size := int(self.rfile.readline() or b"0", 16)) > 0:
                self.rfile.read(size + 2)
            self.rfile.readline()
        else:
            self.rfile.read(int(self.headers.get("content-length", 0)))
        page = b"a page that is longer than a few bytes, so that windows have a meaning\n"
        self.send_response(200)
        self.send_header("content-length", str(len(page)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page)

    do_GET = do_HEAD = do_POST = do_OPTIONS = answer

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing to say of it."""


class _Server(http.server.ThreadingHTTPServer):
    """Many cases break their request off, which is theirs to do."""

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing to say of it."""


@contextmanager
def page_server(port: int) -> Iterator[None]:
    """A web server for as long as the block lasts."""
    server = _Server(("127.0.0.1", port), _Pages)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def process(name: str, command: Sequence[str], folder: Path, *ports: int) -> Iterator[None]:
    """A process for as long as the block lasts, which begins when it listens on all `ports`."""
    log = folder / f"{name}.log"
    try:
        with log.open("wb") as output:
            running = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    except OSError as error:
        raise ConformanceError(f"{command[0]}: {error}; build it with cargo build --release") from error
    try:
        for port in ports:
            _wait_for(port, name, running, log)
        yield
    finally:
        running.terminate()
        try:
            running.wait(READY_WITHIN_SECONDS)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def _wait_for(port: int, name: str, running: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN_SECONDS
    while time.monotonic() < deadline and running.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise ConformanceError(f"{name} does not listen on {port}:\n{log.read_text(errors='replace')[-2000:]}")


def output(command: Sequence[str], seconds: int) -> str:
    """What a program writes."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise ConformanceError(f"{command[0]} did not end within {seconds} s") from error
    return done.stdout + done.stderr
