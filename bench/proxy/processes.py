"""Owns every process the harness starts: pinned to a CPU, in a session of its own, so that CPU time,
memory and the end of a server cover all of its processes and nothing of anyone else's."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from machine import TICKS_PER_SECOND, BenchError

READY_WITHIN_SECONDS = 20.0
POLITE_STOP_SECONDS = 1.0


@dataclass(frozen=True)
class CpuTime:
    """CPU seconds used so far, in user space and in the kernel."""

    user: float
    system: float

    def __sub__(self, earlier: CpuTime) -> CpuTime:
        return CpuTime(self.user - earlier.user, self.system - earlier.system)

    @property
    def total(self) -> float:
        return self.user + self.system


class Server:
    """A server process with its children. Leaving the `with` block ends all of them."""

    def __init__(self, name: str, command: Sequence[str], cpu: int, folder: Path) -> None:
        self.name = name
        self._command = command
        self._cpu = cpu
        self._folder = folder
        self._log = folder / f"{name}.log"
        self._process = self._spawn()

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait_ready(self, port: int, path: str, *, tls: bool = False, host: str = "bench.example") -> None:
        """Returns at the first 200 from `path`; fails if the process ends or the time is up."""

        def answers() -> str | None:
            status, _ = fetch(port, path, tls=tls, host=host)
            return None if status == 200 else f"status {status} from {path}"

        self._wait(answers)

    def wait_listening(self, port: int) -> None:
        """The same for a server that a plain GET tells nothing about: returns once it accepts connections."""

        def accepts() -> None:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()

        self._wait(accepts)

    def _wait(self, missing: Callable[[], str | None]) -> None:
        deadline = time.monotonic() + READY_WITHIN_SECONDS
        reason: str | None = "no connection"
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise BenchError(f"{self.name} ended with code {self._process.returncode} at its start:\n{self.tail()}")
            try:
                reason = missing()
            except (OSError, http.client.HTTPException) as error:
                reason = str(error)
            if reason is None:
                return
            time.sleep(0.02)
        raise BenchError(f"{self.name} was not ready within {READY_WITHIN_SECONDS:.0f} s ({reason}):\n{self.tail()}")

    def cpu_time(self) -> CpuTime:
        """CPU time of all threads of all processes of this server, the ended threads included."""
        stats = list(_session_stats(self._process.pid))
        if not stats:
            raise BenchError(f"{self.name} is no longer running:\n{self.tail()}")
        return CpuTime(
            user=sum(stat.user_ticks for stat in stats) / TICKS_PER_SECOND,
            system=sum(stat.system_ticks for stat in stats) / TICKS_PER_SECOND,
        )

    def pss_kib(self) -> int:
        """Proportional set size: pages shared by the server's own processes count once."""
        sizes = [_pss_kib(stat.pid) for stat in _session_stats(self._process.pid)]
        if not sizes:
            raise BenchError(f"{self.name} is no longer running:\n{self.tail()}")
        return sum(sizes)

    def descriptors(self) -> int:
        """Open files and sockets of all of its processes."""
        return sum(len(os.listdir(f"/proc/{stat.pid}/fd")) for stat in _session_stats(self._process.pid))

    def kill(self) -> None:
        """SIGKILL to every process of the server, the leader first so that it respawns nothing."""
        self._signal(self._process.pid, signal.SIGKILL)
        for stat in _session_stats(self._process.pid):
            self._signal(stat.pid, signal.SIGKILL)
        self._process.wait()

    def restart(self) -> None:
        """Starts the same command again after `kill`."""
        self._process = self._spawn()

    def stop(self) -> None:
        """SIGTERM to the leader, which lets it collect its children; then SIGKILL for what is left."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(POLITE_STOP_SECONDS)
        self.kill()

    def tail(self, lines: int = 15) -> str:
        """The end of what the process wrote."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                pinned(self._cpu, self._command),
                cwd=self._folder,
                # A GUIDEWAY_ variable of the caller would change what is measured.
                env={name: value for name, value in os.environ.items() if not name.startswith("GUIDEWAY_")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @staticmethod
    def _signal(pid: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def pinned(cpu: int, command: Sequence[str]) -> list[str]:
    """The command on one CPU. The kernel ends it if the harness dies without cleaning up."""
    return ["setpriv", "--pdeathsig", "TERM", "taskset", "--cpu-list", str(cpu), *command]


def fetch(port: int, path: str, *, tls: bool = False, host: str = "bench.example") -> tuple[int, bytes]:
    """One GET on a new loopback connection; over TLS, whatever the certificate."""
    if tls:
        # The certificate is made for this run, and the load generators look at it.
        context = ssl._create_unverified_context()  # noqa: S323
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=5, context=context
        )
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path, headers={"Host": host})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@dataclass(frozen=True)
class _Stat:
    pid: int
    user_ticks: int
    system_ticks: int


def _session_stats(session: int) -> Iterator[_Stat]:
    """The living processes of a session. Membership survives a re-parenting, a parent id does not."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            line = Path("/proc", entry, "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # The command name is in brackets and may hold anything; the rest follows the last bracket.
        state, _parent, _group, its_session, *rest = line.rpartition(")")[2].split()
        if int(its_session) == session and state != "Z":
            yield _Stat(pid=int(entry), user_ticks=int(rest[7]), system_ticks=int(rest[8]))


def _pss_kib(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0  # It ended since it was listed.
    for line in lines:
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise BenchError(
        f"/proc/{pid}/smaps_rollup has no Pss line; the kernel must be built with CONFIG_PROC_PAGE_MONITOR"
    )
