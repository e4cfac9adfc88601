"""What all races share: the balancers' binaries, the CPUs, a working folder that is removed, and an
orderly end on a signal, so that no process and no file outlives the harness."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import backends
import certificate
import machine
import tools
from generators import Tools
from machine import BenchError, Cpus, free_ports
from peers import GUIDEWAY, PEERS, Place, Running
from setups import Setup

REPOSITORY = Path(__file__).resolve().parent.parent.parent
DEFAULT_GUIDEWAY = REPOSITORY / "target" / "release" / "guideway"

# The load generators of our own, built beside Guideway.
LOAD = "guideway-load"


@dataclass(frozen=True)
class Session:
    """One run of a race. What enters `stack` is ended with it, last in first out."""

    stack: ExitStack
    folder: Path
    cpus: Cpus
    binaries: dict[str, Path]
    certificate: dict[str, str]
    about: dict[str, str]

    @property
    def tools(self) -> Tools:
        return Tools(self.binaries, self.cpus.load, self.certificate, self.folder)

    def start_backends(self, setup: Setup, stack: ExitStack, folder: Path) -> list[int]:
        """Starts what the setup puts behind the balancers; returns the ports."""
        return backends.start(
            setup.backends, self.binaries[backends.PROGRAMS[setup.backends]], self.cpus.load, folder, stack
        )

    def start_peer(self, name: str, setup: Setup, upstreams: Sequence[int], stack: ExitStack, folder: Path) -> Running:
        """Starts a balancer and returns once it answers. Unserved if it cannot do what the setup asks for."""
        running = self.launch(name, setup, upstreams, stack, folder)
        if setup.answers_http1:
            running.server.wait_ready(running.port, "/1k", tls=setup.tls, host=setup.host)
        else:
            running.server.wait_listening(running.port)
        return running

    def launch(self, name: str, setup: Setup, upstreams: Sequence[int], stack: ExitStack, folder: Path) -> Running:
        """The same without waiting, for backends that do not answer yet."""
        [port] = free_ports(1)
        place = Place(self._binary(name), folder / name, port, self.cpus.proxy, self.certificate, setup.connections)
        running = PEERS[name].start(place, setup, upstreams)
        stack.enter_context(running.server)
        return running

    def versions(self, names: Iterable[str]) -> dict[str, str]:
        return {name: PEERS[name].version(self._binary(name)) for name in names}

    def heading(self) -> str:
        about = self.about
        return (
            f"{about['cpu']}, {about['cpus']} CPUs, {about['system']}, Linux {about['kernel']}; "
            f"load average before: {about['load_before']}"
        )

    def _binary(self, name: str) -> Path:
        return self.binaries[PEERS[name].program]


def main(race: Callable[[Session], int], names: Sequence[str], guideway: Path, also: Iterable[str]) -> int:
    """Prepares a session for the named balancers and the programs in `also`, runs the race in it,
    and ends everything it started, whatever happens. Returns the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="guideway-bench-")))
            cpus = machine.choose_cpus()
            machine.raise_descriptors()
            binaries = _binaries(names, guideway, {*also, "openssl"})
            made = certificate.make(binaries["openssl"], folder)
            session = Session(stack, folder, cpus, binaries, made, machine.describe())
            os.sched_setaffinity(0, {cpus.load})
            return race(session)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def progress(text: str) -> None:
    """One line that the next one replaces; nothing where nobody watches."""
    if sys.stderr.isatty():
        print(f"\r{text:<60}", end="\r", file=sys.stderr, flush=True)


def _binaries(names: Sequence[str], guideway: Path, also: Iterable[str]) -> dict[str, Path]:
    programs = {PEERS[name].program for name in names} | set(also)
    # The load may come from another build than the balancer, such as one that is to be compared.
    own = {GUIDEWAY: [guideway], LOAD: [guideway.with_name(LOAD), DEFAULT_GUIDEWAY.with_name(LOAD)]}
    found: dict[str, Path] = {}
    for name in own.keys() & programs:
        path = next((path for path in own[name] if path.is_file()), None)
        if path is None:
            raise BenchError(
                f"no {name} at {own[name][-1]}: run `cargo build --release --features e2e --bins`"
                + (", name another with --guideway PATH, or leave it out" if name == GUIDEWAY else "")
            )
        found[name] = path.resolve()
    found.update(tools.provide(programs - own.keys()))
    return found


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
