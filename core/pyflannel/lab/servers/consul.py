"""Real Consul servers for tests, benchmarks and the lab: one, or a cluster, with ACLs and TLS when asked for.

The idea: every server has a loopback address of its own out of 127.0.0.0/8 (or one it was given) and ports probed at
that address, so that any number of clusters run side by side; it keeps both when it is killed and started again, as
clients expect. All it needs lies in one directory. Nothing leaves the host: no update check, no DNS, no WAN gossip.

A server dies with the thread that started it (``PR_SET_PDEATHSIG``), so that nothing outlives a test
run that was killed. Start servers from a thread that lasts as long as they shall, in the network namespace they are
to be in.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pyflannel.errors import ConfigError, StoreUnavailableError
from pyflannel.lab.servers.process import HERE, PORTS, Cluster, Server

__all__ = ["ConsulCluster", "ConsulServer", "ConsulTLS", "find_consul"]

START_TIMEOUT: Final = 30.0
"""Seconds a cluster may take to elect a leader and answer; on an idle machine it takes 1 to 3."""

_POLL: Final = 0.05
_PORT_NAMES: Final = ("http", "server", "serf_lan")


@dataclass(frozen=True, slots=True)
class ConsulTLS:
    """Files for HTTPS: the authority's certificate, and the servers' certificate and key.

    :param verify_clients: whether clients need a certificate of the same authority.
    """

    cafile: Path
    certfile: Path
    keyfile: Path
    verify_clients: bool = False


def find_consul() -> Path | None:
    """The Consul binary: ``$PYFLANNEL_CONSUL``, else what ``tools/fetch-consul`` fetched, else the one on ``PATH``.

    :raises ConfigError: ``PYFLANNEL_CONSUL`` names something other than a program.
    """
    if given := os.environ.get("PYFLANNEL_CONSUL"):
        if not os.access(given, os.X_OK):
            raise ConfigError(f"PYFLANNEL_CONSUL={given}: no such program")
        return Path(given)
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = Path(os.environ.get("PYFLANNEL_CACHE") or f"{user_cache}/pyflannel").expanduser()
    fetched = sorted(cache.glob("consul-*/usr/bin/consul"))
    if fetched:
        return fetched[-1]
    on_path = shutil.which("consul")
    return Path(on_path) if on_path else None


class ConsulServer(Server):
    """One server of a :class:`ConsulCluster`, which makes it."""

    def __init__(self, name: str, directory: Path, address: str, ports: Mapping[str, int]) -> None:
        super().__init__(f"Consul {name}", directory / "log")
        self.name = name
        self.directory = directory
        self.address = address
        self.ports = dict(ports)
        self.host = f"{address}:{ports['http']}"
        """``address:port`` for clients, as it stands in a store's URL."""
        self.config_file = directory / "config.json"
        self.config: Mapping[str, Any] = {}

    def configure(self, config: Mapping[str, Any]) -> None:
        """Write the configuration, which may hold a token: for the owner's eyes alone."""
        self.config = config
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.config_file.touch(mode=0o600)
        self.config_file.write_text(json.dumps(config, indent=1), encoding="utf-8")

    def wipe(self) -> None:
        """Forget all data; it must not run."""
        shutil.rmtree(self.directory / "data", ignore_errors=True)

    def get(self, path: str) -> Any:
        """What it answers at ``path`` of its HTTP interface, as JSON, to the one with all rights; ``None``: nothing."""
        return _get(self.config, path)


class ConsulCluster(Cluster):
    """Servers that know each other; with ``size=1`` a single one. A context manager that starts and stops them all.

    :param directory: where configuration, data and logs go; it belongs to the caller, who removes it.
    :param acl: whether everything is denied but to those with a token; :attr:`token` may do everything.
    :param tls: serve HTTPS instead of HTTP.
    :param addresses: one per server; default: loopback, all different.
    :param config: further keys of Consul's configuration, for every server.
    :raises ConfigError: Consul is not there.
    """

    def __init__(
        self,
        directory: Path,
        size: int = 1,
        *,
        acl: bool = False,
        tls: ConsulTLS | None = None,
        addresses: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
    ) -> None:
        binary = find_consul()
        if binary is None:
            raise ConfigError("no Consul is there: run tools/fetch-consul, or set PYFLANNEL_CONSUL to a Consul binary")
        self._binary = binary
        self._tls = tls
        self.token = str(uuid.uuid4()) if acl else None
        """The token that may do everything; ``None`` without ACLs."""
        places = [_choose_place(addresses[number] if addresses else None) for number in range(size)]
        self.servers = tuple(
            ConsulServer(f"server{number}", directory / f"server{number}", address, ports)
            for number, (address, ports) in enumerate(places)
        )
        for server in self.servers:
            server.configure({**self._config(server), **(config or {})})

    @property
    def hosts(self) -> str:
        """All servers as the host part of a store's URL."""
        return ",".join(server.host for server in self.servers)

    def start(self) -> None:
        """Start all servers that don't run and wait until the cluster is whole and answers.

        :raises StoreUnavailableError: one ended or is not healthy in time; the message has the end of its log.
        """
        for server in self.servers:
            if not server.running:
                self.launch(server)
        self.wait_healthy()

    def launch(self, server: ConsulServer) -> None:
        """Start one server, on its data if it has any, without waiting."""
        words = [str(self._binary), "agent", "-config-file", str(server.config_file)]
        server.launch(HERE, ["setpriv", "--pdeathsig", "SIGKILL", *words])

    def stop(self) -> None:
        """End all servers at once. Idempotent; data stay."""
        for server in self.servers:
            if server.running:
                server.kill()

    def wait_healthy(self, servers: Iterable[ConsulServer] | None = None, timeout: float = START_TIMEOUT) -> None:
        """Wait until ``servers`` (default: all) know each other and a leader that answers consistent reads.

        :raises StoreUnavailableError: one ended or is not healthy in time.
        """
        waiting = list(self.servers if servers is None else servers)
        deadline = time.monotonic() + timeout
        while not all(_healthy(server.config) for server in waiting):
            if ended := next((server for server in waiting if not server.running), None):
                raise StoreUnavailableError(f"Consul {ended.name} ended: {ended.last_words()}")
            if time.monotonic() > deadline:
                words = "; ".join(server.last_words(2) for server in waiting)
                raise StoreUnavailableError(f"Consul at {self.hosts} is not healthy after {timeout:g} s: {words}")
            time.sleep(_POLL)

    def leader(self, among: Iterable[ConsulServer] | None = None) -> ConsulServer | None:
        """The server that leads, as the first of ``among`` (default: all) that answers says; ``None`` if none does."""
        for server in self.servers if among is None else among:
            answer = server.get("/v1/status/leader")
            for candidate in self.servers:
                if answer == f"{candidate.address}:{candidate.ports['server']}":
                    return candidate
        return None

    def _config(self, server: ConsulServer) -> dict[str, Any]:
        ports = {**server.ports, "dns": -1, "serf_wan": -1, "grpc": -1}
        config: dict[str, Any] = {
            "server": True,
            "bootstrap_expect": len(self.servers),
            "node_name": server.name,
            "disable_host_node_id": True,
            "bind_addr": server.address,
            "client_addr": server.address,
            "ports": ports,
            "data_dir": str(server.directory / "data"),
            "retry_join": [
                f"{other.address}:{other.ports['serf_lan']}" for other in self.servers if other is not server
            ],
            "retry_interval": "1s",
            "leave_on_terminate": False,
            "disable_update_check": True,
            "disable_anonymous_signature": True,
            "log_level": "WARN",
            "performance": {"raft_multiplier": 1, "leave_drain_time": "0s"},
            # Every client here comes from one address.
            "limits": {"http_max_conns_per_client": 4000},
        }
        if self.token:
            tokens = {"master": self.token, "agent": self.token}
            config["acl"] = {"enabled": True, "default_policy": "deny", "token_ttl": "1s", "tokens": tokens}
        if self._tls:
            ports["https"] = ports.pop("http")
            ports["http"] = -1
            config |= {
                "ca_file": str(self._tls.cafile),
                "cert_file": str(self._tls.certfile),
                "key_file": str(self._tls.keyfile),
                "verify_incoming_https": self._tls.verify_clients,
            }
        return config


def _choose_place(given: str | None) -> tuple[str, dict[str, int]]:
    """An address (``given``, or one of loopback) and ports of it that nothing is bound to."""
    dice = random.SystemRandom()
    for _ in range(100):
        address = given or "127.{}.{}.{}".format(*(dice.randrange(1, 255) for _ in range(3)))
        ports = dict(zip(_PORT_NAMES, dice.sample(PORTS, len(_PORT_NAMES)), strict=True))
        if _free(address, ports.values()):
            return address, ports
    raise StoreUnavailableError(f"no free ports between {PORTS.start} and {PORTS.stop} on {given or '127.0.0.0/8'}")


def _free(address: str, ports: Iterable[int]) -> bool:
    try:
        with ExitStack() as sockets:
            for port in ports:
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    sockets.enter_context(socket.socket(socket.AF_INET, kind)).bind((address, port))
    except OSError:
        return False
    return True


def _get(config: Mapping[str, Any], path: str) -> Any:
    tls = "ca_file" in config
    scheme = "https" if tls else "http"
    base = f"{scheme}://{config['client_addr']}:{config['ports'][scheme]}"
    headers = {"X-Consul-Token": config["acl"]["tokens"]["master"]} if "acl" in config else {}
    request = urllib.request.Request(base + path, headers=headers)  # noqa: S310 - an address of our own
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if tls:
        context = ssl.create_default_context(cafile=config["ca_file"])
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # Consul takes any certificate that Go takes
        context.load_cert_chain(config["cert_file"], config["key_file"])
        handlers.append(urllib.request.HTTPSHandler(context=context))
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=1.0) as answer:
            return json.load(answer)
    except (OSError, ValueError):
        return None


def _healthy(config: Mapping[str, Any]) -> bool:
    answers = (_get(config, path) for path in ("/v1/status/peers", "/v1/catalog/nodes?consistent"))
    return all(isinstance(found, list) and len(found) >= config["bootstrap_expect"] for found in answers)
