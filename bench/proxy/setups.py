"""What a balancer is set up for in a race: what its clients speak, what its backends speak, and how many
pools it knows. The tags choose the lines of its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import configuration


class Backends(Enum):
    """The kinds of servers behind the balancers."""

    FILES = "one nginx that serves files over HTTP/1.1"
    RPC = "grpc-go's benchmark server"
    ECHO = "a WebSocket echo"


# Client connections that every balancer has room for in most races.
ORDINARY = 4096


@dataclass(frozen=True)
class Setup:
    """One way to configure every balancer alike."""

    name: str
    tags: frozenset[str]
    backends: Backends = Backends.FILES
    pools: int = 1
    # Room for client connections. Balancers pay for it in memory beforehand, so it is not more than needed.
    connections: int = ORDINARY

    @property
    def tls(self) -> bool:
        return "tls" in self.tags

    @property
    def host(self) -> str:
        """A host it answers for: that of the last pool where the hosts tell pools apart."""
        return configuration.host(self.pools - 1) if "pools" in self.tags else "bench.example"

    @property
    def answers_http1(self) -> bool:
        """Whether a GET over HTTP/1.1 tells that the balancer is ready."""
        return "h2" not in self.tags


def _setup(name: str, tags: str, **more: object) -> Setup:
    return Setup(name, frozenset(tags.split()), **more)  # type: ignore[arg-type]


# More than 10,000 connections, and with a connection to a backend for each still below 20,000 descriptors
# only where backends are shared, as they are in HTTP.
MANY = 12_000

HTTP = _setup("http", "http plain h1 one")
HTTPS = _setup("https", "http tls h1 one")
H2C = _setup("h2c", "http plain h2 translated one")
GRPC = _setup("grpc", "http plain h2 grpc one", backends=Backends.RPC)
WEBSOCKET = _setup("websocket", "http plain h1 websocket one", backends=Backends.ECHO)
TCP = _setup("tcp", "tcp plain")
FAULTS = _setup("faults", "http plain h1 one kill")
MANY_HTTP = _setup("many-http", "http plain h1 one", connections=MANY)
MANY_HTTPS = _setup("many-https", "http tls h1 one", connections=MANY)
ATTACK_HTTP = _setup("attack-http", "http plain h1 one attack", connections=MANY)
ATTACK_HTTPS = _setup("attack-https", "http tls h1 one attack", connections=MANY)


def pools(count: int) -> Setup:
    """So many pools on one port, told apart by their hosts."""
    return _setup(f"pools-{count}", "http plain h1 pools", pools=count)
