"""What both races share: the balancers' binaries, the CPUs, a working folder that is removed, and an
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

import machine
import tools
from machine import BenchError, Cpus
from peers import GUIDEWAY, PEERS, Running

REPOSITORY = Path(__file__).resolve().parent.parent.parent
DEFAULT_GUIDEWAY = REPOSITORY / "target" / "release" / "guideway"


@dataclass(frozen=True)
class Session:
    """One run of the harness. What enters `stack` is ended with it, last in first out."""

    stack: ExitStack
    folder: Path
    cpus: Cpus
    binaries: dict[str, Path]
    about: dict[str, str]

    def start_peer(
        self, name: str, upstreams: Sequence[int], stack: ExitStack, folder: Path, *, fault_race: bool
    ) -> Running:
        """Starts a balancer on its own CPU and returns once it answers."""
        running = PEERS[name].start(self._binary(name), upstreams, self.cpus.proxy, folder, fault_race)
        stack.enter_context(running.server)
        running.server.wait_ready(running.port, "/1k")
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


def main(race: Callable[[Session], int], names: Sequence[str], guideway: Path, also: Sequence[str]) -> int:
    """Prepares a session for the named balancers and the programs in `also`, runs the race in it,
    and ends everything it started, whatever happens. Returns the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="guideway-bench-")))
            cpus = machine.choose_cpus()
            session = Session(stack, folder, cpus, _binaries(names, guideway, also), machine.describe())
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


def _binaries(names: Sequence[str], guideway: Path, also: Sequence[str]) -> dict[str, Path]:
    programs = {PEERS[name].program for name in names} | set(also)
    found: dict[str, Path] = {}
    if GUIDEWAY in programs:
        if not guideway.is_file():
            raise BenchError(
                f"no Guideway at {guideway}: run `cargo build --release`, name another with --guideway PATH, "
                "or leave it out with --without guideway"
            )
        found[GUIDEWAY] = guideway.resolve()
    found.update(tools.provide(programs - {GUIDEWAY}))
    return found


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
