"""A lab: nodes, their underlay and their containers, real in the kernel and all inside one sandbox.

:class:`Lab` builds what :mod:`pyflannel.lab.topology` plans. A :class:`Node` is a machine that can run a daemon; its
containers come up when it knows its subnet. Everything that happens to machines in real life is a method: cables are
pulled, addresses and MTUs change, packets are captured, pings run meanwhile::

    with Lab(nodes=3) as lab:
        for node in lab.nodes:
            node.start_daemon(store=lab.file_store, backend="vxlan", network="10.244.0.0/16")
        for node in lab.nodes:
            node.daemon.wait_ready(peers=2)
            node.attach_containers()
        assert lab.reachability().complete

Methods of different nodes may be called from different threads; those of one node from one at a time.
"""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Final, TypeVar

from pyflannel.errors import ConfigError, DaemonError, StoreUnavailableError
from pyflannel.lab import topology
from pyflannel.lab.daemon import Daemon, DaemonOptions
from pyflannel.lab.measure import Capture, Matrix, Ping, Throughput, measure_row, measure_throughput
from pyflannel.lab.sandbox import LAB_DIRECTORY, Namespace, Sandbox
from pyflannel.lab.served import url_of, why_not
from pyflannel.lab.topology import BRIDGE, UPLINK, ContainerNetwork, Host
from pyflannel.small.interpreter import module_command

__all__ = ["Container", "Lab", "Machine", "Node"]

T = TypeVar("T")
R = TypeVar("R")

_WORKERS: Final = 32
"""Commands run side by side; they mostly wait for the kernel."""


class Machine(Namespace):
    """A namespace of a lab that packets come from and go to."""

    def __init__(self, lab: Lab, name: str) -> None:
        super().__init__(lab.sandbox, name)
        self.lab = lab

    @property
    def directory(self) -> PurePosixPath:
        """A directory of this machine's own, as seen from inside; :meth:`Sandbox.outside` gives the way to it."""
        return LAB_DIRECTORY / self.name

    @property
    def shell_hint(self) -> str:
        """A command line that opens a shell here."""
        return " ".join([*self.entry, "bash"])

    def ping(self, address: str, interval: float = 0.05) -> Ping:
        """Start to ping ``address`` every ``interval`` seconds; the result's ``stop`` accounts for every packet."""
        return Ping(self, address, interval, log=self.lab.new_file(f"ping-{self.name}"))

    def capture(self, interface: str = UPLINK) -> Capture:
        """Start to record what passes ``interface``, as a pcap file inside the lab."""
        return Capture(self, interface, file=self.lab.new_file(f"capture-{self.name}"))

    def ip(self, lines: Iterable[str]) -> None:
        """Run lines of iproute2 here, in one batch."""
        self.lab.shell(self.name, lines)


class Container(Machine):
    """A namespace behind a node, with one address per leased subnet."""

    def __init__(self, node: Node, index: int) -> None:
        super().__init__(node.lab, f"{node.name}-c{index + 1}")
        self.node = node
        self.index = index
        self.addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
        """IPv4 first; empty until :meth:`Node.attach_containers`."""

    @property
    def port(self) -> str:
        """The other end of its cable, in the node."""
        return f"veth{self.index + 1}"

    def address(self, version: int = 4) -> str:
        """Its address of one family.

        :raises LookupError: it has none.
        """
        for address in self.addresses:
            if address.version == version:
                return str(address.ip)
        raise LookupError(f"{self.name} has no IPv{version} address")


class Node(Machine):
    """A machine on the underlay: ``eth0`` into the switch, a daemon, containers behind a bridge."""

    def __init__(self, lab: Lab, host: Host, containers: int = 0) -> None:
        super().__init__(lab, host.name)
        self.host = host
        self.ipv4 = host.ipv4
        self.ipv6 = host.ipv6
        self.mtu = host.mtu
        self.containers = tuple(Container(self, index) for index in range(containers))
        self.network: ContainerNetwork | None = None
        self._daemon: Daemon | None = None

    @property
    def subnet_file(self) -> PurePosixPath:
        """Where this node's daemon writes subnet.env."""
        return self.directory / "subnet.env"

    @property
    def daemon(self) -> Daemon:
        """The daemon started last.

        :raises DaemonError: none was.
        """
        if self._daemon is None:
            raise DaemonError(f"{self.name}: no daemon was started here")
        return self._daemon

    def start_daemon(
        self, store: str, backend: str | None, network: str | None = None, arguments: Sequence[str] = (), **options: Any
    ) -> Daemon:
        """Start pyflannel in the foreground here, its log into a file.

        :param store: the store's URL, as this node sees it.
        :param backend: ``--backend``: what the network has unless it is changed; ``None``: whatever it has.
        :param network: ``--network``: creates the network document if there is none.
        :param arguments: more words for its command line.
        :param options: ``node_id``, ``interface``: in place of the node's name and ``eth0``; ``wrapper``.
        """
        self._daemon = Daemon(self, DaemonOptions(store, backend, network, tuple(arguments), **options))
        self._daemon.start()
        return self._daemon

    def state(self) -> str:
        """The daemon's own word for its state; ``ended`` or ``silent`` when there is no such word."""
        if self._daemon is None:
            return "no daemon"
        try:
            return str(self._daemon.status()["state"])
        except DaemonError:
            return "silent" if self._daemon.running else f"ended with status {self._daemon.process.returncode}"

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of the daemon's log; empty if there was no daemon."""
        return "" if self._daemon is None else self._daemon.log(lines)

    def attach_containers(self, network: ContainerNetwork | None = None) -> None:
        """Connect the containers through a bridge with this node's addresses in its subnets.

        Done again with another network, it takes the earlier one away first.

        :param network: as the daemon's subnet.env has it if ``None``.
        """
        network = network or self.daemon.container_network()
        addresses = [network.container(container.index) for container in self.containers]
        self.detach_containers()
        ports = [container.port for container in self.containers]
        self.lab.shell(
            "",
            (
                f"link add {container.port} netns {self.name} mtu {network.mtu} type veth "
                f"peer name {UPLINK} netns {container.name} mtu {network.mtu}"
                for container in self.containers
            ),
        )
        self.ip(topology.configure_bridge(network, ports))
        for container, own in zip(self.containers, addresses, strict=True):
            container.ip(topology.configure_container(network, container.index))
            container.addresses = own
        self.network = network

    def detach_containers(self) -> None:
        """Take the containers' bridge and cables away, if there are any."""
        if self.network is not None:
            self.ip([f"link delete {BRIDGE}", *(f"link delete {container.port}" for container in self.containers)])
            self.network = None
            for container in self.containers:
                container.addresses = ()

    def unplug(self) -> None:
        """Pull the underlay cable: the switch's end goes down, so ``eth0`` loses its carrier."""
        self.lab.switch.ip([f"link set {self.name} down"])

    def plug(self) -> None:
        """Put the underlay cable back."""
        self.lab.switch.ip([f"link set {self.name} up"])

    def set_address(self, address: IPv4Interface | IPv6Interface) -> None:
        """Give ``eth0`` another underlay address of one family in place of the one it has."""
        old = self.ipv4 if address.version == 4 else self.ipv6
        nodad = " nodad" if address.version == 6 else ""
        gateway = self.host.router_ipv4 if address.version == 4 else self.host.router_ipv6
        self.ip(
            [
                f"address add {address} dev {UPLINK}{nodad}",
                f"address del {old} dev {UPLINK}",
                f"route replace default via {gateway} dev {UPLINK}",
            ]
        )
        if isinstance(address, IPv4Interface):
            self.ipv4 = address
        else:
            self.ipv6 = address

    def set_mtu(self, mtu: int) -> None:
        """Change the MTU of ``eth0``, in bytes; the switch's end keeps its own."""
        self.ip([f"link set {UPLINK} mtu {mtu}"])
        self.mtu = mtu


class Lab:
    """Nodes on an underlay, all in one sandbox. A context manager; whatever happens, :meth:`close` leaves nothing.

    :param nodes: how many nodes, 1 to 400; beyond 200 they fill the second segment.
    :param containers: how many containers behind each node.
    :param routed: how many of them, the last ones, are in the second segment, behind the router.
    :param mtu: the underlay's, in bytes.
    :raises ConfigError: numbers that make no lab.
    :raises KernelError: the namespaces can't be made; says why.
    """

    def __init__(self, nodes: int = 3, containers: int = 1, *, routed: int = 0, mtu: int = 1500) -> None:
        hosts = topology.plan_hosts(nodes, routed, mtu)
        if not 0 <= containers <= 250:
            raise ConfigError(f"{containers} containers per node: must be 0 to 250")
        self._numbers = itertools.count(1)
        self.sandbox = Sandbox()
        try:
            self.switch = Machine(self, topology.SWITCH)
            self.nodes = tuple(Node(self, host, containers) for host in hosts)
            self.servers: tuple[Node, ...] = ()
            self._server_addresses = 0
            self._build()
        except BaseException:
            self.close()
            raise

    @property
    def containers(self) -> tuple[Container, ...]:
        """All containers, node by node."""
        return tuple(container for node in self.nodes for container in node.containers)

    @property
    def file_store(self) -> str:
        """The URL of a file store inside the lab, which all nodes see as a shared file system."""
        return f"file://{LAB_DIRECTORY / 'store'}"

    def _build(self) -> None:
        hosts = [node.host for node in self.nodes]
        names = [self.switch.name, *(node.name for node in self.nodes), *(item.name for item in self.containers)]
        script = [
            *_ip("", (*topology.create_namespaces(names), *topology.connect_hosts(hosts))),
            *_ip(self.switch.name, (*topology.configure_switch(), *topology.plug_in(hosts))),
            *_inside(self.switch.name, topology.configure_forwarding()),
        ]
        for node in self.nodes:
            script += _set_up(node.host, (*topology.FORWARDING, *topology.PROMOTE_SECONDARIES))
        directories = " ".join(str(machine.directory) for machine in (self.switch, *self.nodes, *self.containers))
        self._sh([f"mkdir {directories}", *script])

    def add_server(self, name: str, addresses: int = 1) -> Node:
        """One more machine on the underlay, without containers, for a store's server.

        :param addresses: how many it will use: its own, and those that follow.
        """
        server = Node(self, topology.plan_server(name, self._server_addresses))
        self._server_addresses += addresses
        self._sh(
            [
                f"mkdir {server.directory}",
                *_ip("", (*topology.create_namespaces([name]), *topology.connect_hosts([server.host]))),
                *_ip(self.switch.name, topology.plug_in([server.host])),
                *_set_up(server.host, ()),
            ]
        )
        self.servers += (server,)
        return server

    def start_store(self, scheme: str, members: int = 1) -> str:
        """Start real servers of a store in a namespace of their own, and return the store's URL.

        :param scheme: one of :func:`pyflannel.lab.serve.schemes`.
        :raises StoreUnavailableError: they did not come up.
        """
        addresses = [topology.plan_server("", self._server_addresses + index).ipv4 for index in range(members)]
        server = self.add_server(f"{scheme}{len(self.servers) or ''}", members)
        server.ip(f"address add {address} dev {UPLINK}" for address in addresses[1:])
        directory = server.directory / "data"
        words = module_command("pyflannel.lab.serve", scheme, str(directory))
        log = server.directory / "serve.log"
        with self.outside(log).open("w", encoding="utf-8") as said:
            process = server.start(
                [*words, *(str(address.ip) for address in addresses)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
            )
        assert process.proxy.stdout is not None
        url = url_of(process.proxy.stdout, self.outside(log), process.kill)
        if not url:
            with process.proxy:
                process.proxy.communicate()
            raise StoreUnavailableError(f"no {scheme} servers in the lab: {why_not(self.outside(log))}")
        return url.replace("{}", "lab")

    def shell(self, name: str, lines: Iterable[str]) -> None:
        """Run lines of iproute2 in the namespace ``name``, in one batch.

        :raises CommandError: one of them failed.
        """
        self._sh(_ip(name, lines))

    def _sh(self, script: Iterable[str]) -> None:
        self.sandbox.namespace.run(["sh", "-es"], input="\n".join(script) + "\n", timeout=300)

    def new_file(self, stem: str) -> PurePosixPath:
        """The name of a file inside the lab that nothing else uses."""
        return LAB_DIRECTORY / f"{stem}-{next(self._numbers)}"

    def outside(self, path: PurePosixPath) -> Path:
        """Where a path inside the lab is found from outside, as long as the lab lives."""
        return self.sandbox.outside(path)

    def each(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Call ``function`` for all items, several at a time; the first error is raised when all have ended.

        Ctrl-C closes the lab, because that ends whatever the calls wait for.
        """
        with ThreadPoolExecutor(_WORKERS) as pool:
            try:
                return list(pool.map(function, items))
            except BaseException as error:
                if not isinstance(error, Exception):
                    self.close()
                raise

    def reachability(
        self, containers: Sequence[Container] | None = None, *, versions: Sequence[int] = (4, 6), timeout: float = 3.0
    ) -> Matrix:
        """Ping from each container to each other one, in every family that both have.

        :param timeout: seconds within which a pair must have answered one of several pings.
        """
        chosen = self.containers if containers is None else containers
        addresses = {
            container.name: tuple(str(item.ip) for item in container.addresses if item.version in versions)
            for container in chosen
        }
        rows = self.each(lambda container: measure_row(container, addresses, timeout), chosen)
        return Matrix(tuple(addresses), tuple(pair for row in rows for pair in row))

    def throughput(self, source: Container, target: Container, *, version: int = 4, seconds: float = 1.0) -> Throughput:
        """Send over one TCP connection as fast as it goes, for so long."""
        return measure_throughput(source, target, target.address(version), seconds)

    def close(self) -> None:
        """End all that runs in the lab and let the kernel take it down. Idempotent."""
        self.sandbox.close()

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _ip(name: str, lines: Iterable[str]) -> Iterator[str]:
    """Shell lines that feed ``lines`` to iproute2 in the namespace ``name``."""
    yield f"ip {f'-n {name} ' if name else ''}-batch - <<'END'"
    yield from lines
    yield "END"


def _inside(name: str, lines: Iterable[str]) -> Iterator[str]:
    """Shell lines that run ``lines`` in the namespace ``name``."""
    yield f"nsenter --net=/run/netns/{name} sh -es <<'END'"
    yield from lines
    yield "END"


def _set_up(host: Host, sysctls: Sequence[str]) -> Iterator[str]:
    yield from _inside(host.name, topology.enable_sysctls(sysctls))
    yield from _ip(host.name, topology.configure_host(host))
