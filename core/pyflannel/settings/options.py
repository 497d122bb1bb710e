"""The one table of everything that can be set: flags, environment variables and keys of the config file.

Each row of :data:`OPTIONS` is one setting. The command line, the environment, the config file, the help texts and the
tables in the documentation are all derived from it, so that no setting exists in one of them alone. A row's ``kind``
reads the setting from text, whichever source the text came from.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, Final

from pyflannel.network.lease import JSON, MAX_NODE_ID, IPAddress
from pyflannel.settings.gopattern import compile_pattern

__all__ = ["BY_NAME", "OPTIONS", "Option", "ValueType"]


@dataclass(frozen=True, slots=True)
class ValueType:
    """A type of setting.

    :param metavar: what a value is called in help texts.
    :param parse: text to value; raises :class:`ValueError` with the rule that is broken ("must be ...").
    :param toml: the types that a config file may use for it, of those that the TOML parser returns.
    """

    metavar: str
    parse: Callable[[str], Any]
    toml: tuple[type, ...] = (str,)

    @property
    def toml_names(self) -> str:
        """The accepted TOML types, for people."""
        return " or ".join(_TOML_NAMES[kind] for kind in self.toml)


@dataclass(frozen=True, slots=True)
class Option:
    """One setting.

    :param name: the flag without its dashes, and the key in the config file.
    :param default: the value when no source gives one; its meaning if it is computed is in ``help``.
    :param scope: which commands take the flag: ``daemon``, ``store`` (all that open a store), ``node`` (all that deal
        with the daemon of this node), ``any``.
    :param repeatable: may be given several times; the value is a tuple.
    :param in_file: may stand in the config file.
    :param table: may be a table in the config file too.
    :param secret: never shown.
    """

    name: str
    kind: ValueType
    help: str
    default: Any = None
    section: str = ""
    scope: str = "daemon"
    repeatable: bool = False
    in_file: bool = True
    table: bool = False
    secret: bool = False

    @property
    def flag(self) -> str:
        """As it is written on a command line."""
        return f"-{self.name}" if len(self.name) == 1 else f"--{self.name}"

    @property
    def variables(self) -> tuple[str, str]:
        """The environment variables, the stronger one first."""
        name = self.name.upper().replace("-", "_")
        return f"PYFLANNEL_{name}", f"FLANNELD_{name}"

    @property
    def default_text(self) -> str:
        """The default as one would write it; empty if there is none, or if ``help`` tells."""
        if self.default is None or self.default == ():
            return ""
        if isinstance(self.default, bool):
            return str(self.default).lower()
        if isinstance(self.default, tuple):
            return ",".join(self.default)
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)

    @property
    def is_boolean(self) -> bool:
        """Whether the flag needs no value: ``--ip-masq`` means ``--ip-masq=true``, as in Go."""
        return self.kind is BOOLEAN


_TOML_NAMES = {str: "a string", bool: "true or false", int: "a whole number", float: "a number", dict: "a table"}


def _boolean(text: str) -> bool:
    if text in {"1", "t", "T", "true", "TRUE", "True"}:
        return True
    if text in {"0", "f", "F", "false", "FALSE", "False"}:
        return False
    raise ValueError("must be true or false")


def _text(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    return text


def _node_id(text: str) -> str:
    if len(_text(text)) > MAX_NODE_ID:
        raise ValueError(f"must have at most {MAX_NODE_ID} characters")
    if any("\ud800" <= character <= "\udfff" for character in text):  # bytes of the command line that are none
        raise ValueError("must be UTF-8")
    return text


def _path(text: str) -> Path:
    return Path(_text(text))


def _whole(minimum: int, maximum: int | None = None) -> ValueType:
    bounds = f"between {minimum} and {maximum}" if maximum is not None else f"of {minimum} or more"

    def parse(text: str) -> int:
        if re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            value = int(text)
            if minimum <= value and (maximum is None or value <= maximum):
                return value
        raise ValueError(f"must be a whole number {bounds}")

    return ValueType("N", parse, (int,))


_LONGEST: Final = 9_000_000_000
"""Seconds: 285 years, the longest lease of etcd's (lease.MaxLeaseTTL); a lock's timeout can't be much longer."""


def _seconds(minimum: float) -> ValueType:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if minimum <= value <= _LONGEST:
            return value
        raise ValueError(f"must be a number of seconds between {minimum:g} and {_LONGEST}")

    return ValueType("SECONDS", parse, (int, float))


def _choice(*names: str) -> ValueType:
    def parse(text: str) -> str:
        if text in names:
            return text
        raise ValueError(f"must be one of {', '.join(names)}")

    return ValueType("|".join(names), parse)


def _address(text: str) -> IPAddress:
    try:
        return ip_address(text)
    except ValueError:
        raise ValueError("must be an IP address, such as 192.0.2.1") from None


def _of_version(read: Callable[[str], Any], kind: type, rule: str) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = read(text)
        except ValueError:
            value = None
        if kind is IPv4Address and isinstance(value, IPv6Address):
            value = value.ipv4_mapped
        if isinstance(value, kind):
            return value
        raise ValueError(rule)

    return parse


def _network(text: str) -> IPv4Network | IPv6Network:
    if "/" not in text:
        raise ValueError
    return ip_network(text)


def _pattern(text: str) -> re.Pattern[str]:
    return compile_pattern(_text(text))


def _listening(text: str) -> IPAddress:
    return _address("127.0.0.1" if text == "localhost" else text)


def _modules(text: str) -> str:
    """klog's ``file=N,file=N``; nothing is done with it."""
    for part in text.split(","):
        number = re.fullmatch(r"[^=]+=(\+?[0-9]{1,32}|-0{1,32})", part)
        if part and (number is None or int(number[1]) >= 2**31):
            raise ValueError("must be file=N, separated by commas")
    return text


def _source_line(text: str) -> str:
    """klog's ``file.go:N``; nothing is done with it."""
    if text and not re.fullmatch(r"[^:]*\.[^:]*:\+?0*[1-9][0-9]{0,17}", text):
        raise ValueError("must be file.go:N")
    return text


def _assignment(text: str) -> tuple[str, JSON]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ValueError("must be KEY=VALUE, such as VNI=5")
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        return key, value


def _endpoints(text: str) -> tuple[str, ...]:
    endpoints = tuple(part.strip() for part in text.split(",") if part.strip())
    for endpoint in endpoints:
        scheme, separator, host = endpoint.rpartition("://")
        if "@" in endpoint:
            raise ValueError("must not hold a password, which process lists show; use --etcd-username")
        if (separator and scheme not in {"http", "https"}) or not host.rstrip("/") or "/" in host.rstrip("/"):
            raise ValueError("must be addresses such as http://127.0.0.1:2379, separated by commas")
    if not endpoints:
        raise ValueError("must not be empty")
    return endpoints


BOOLEAN: Final = ValueType("BOOL", _boolean, (bool,))
TEXT: Final = ValueType("TEXT", _text)
NODE_ID: Final = ValueType("TEXT", _node_id)
PATH: Final = ValueType("PATH", _path)
ADDRESS: Final = ValueType("ADDRESS", _address)
PATTERN: Final = ValueType("REGEX", _pattern)
ASSIGNMENT: Final = ValueType("KEY=VALUE", _assignment)
ENDPOINTS: Final = ValueType("URLS", _endpoints)
LISTENING: Final = ValueType("ADDRESS", _listening)
MODULES: Final = ValueType("FILE=N", _modules)
SOURCE_LINE: Final = ValueType("FILE:N", _source_line)
IPV4: Final = ValueType("ADDRESS", _of_version(_address, IPv4Address, "must be an IPv4 address, such as 192.0.2.1"))
IPV6: Final = ValueType("ADDRESS", _of_version(_address, IPv6Address, "must be an IPv6 address, such as 2001:db8::1"))
CIDR4: Final = ValueType("CIDR", _of_version(_network, IPv4Network, "must be an IPv4 network, such as 10.244.0.0/16"))
CIDR6: Final = ValueType("CIDR", _of_version(_network, IPv6Network, "must be an IPv6 network, such as fd00:10::/48"))

NETWORK, STORE, UNDERLAY, LEASE, FIREWALL, FILES, HEALTH, LOG, KUBERNETES = (
    "Network",
    "Store",
    "Underlay",
    "Lease",
    "Kernel and firewall",
    "Files and identity",
    "Health",
    "Logging",
    "Kubernetes",
)

OPTIONS: Final[tuple[Option, ...]] = (
    Option(
        "backend",
        TEXT,
        "How packets travel between nodes (see: pyflannel plugins). Must agree with Backend.Type in the store's "
        "network config, unless 'pyflannel network change' has led elsewhere; with --network it is written there "
        "(default there: vxlan).",
        section=NETWORK,
    ),
    Option(
        "network",
        CIDR4,
        "The overlay's IPv4 network. Creates the network config if the store has none.",
        section=NETWORK,
        table=True,
    ),
    Option("ipv6-network", CIDR6, "The same for IPv6; alone or with --network.", section=NETWORK),
    Option(
        "backend-option",
        ASSIGNMENT,
        "With --network: a key of the Backend dictionary, such as VNI=5. Repeatable.",
        (),
        section=NETWORK,
        repeatable=True,
        in_file=False,
    ),
    Option(
        "net-config-path",
        PATH,
        "A file with the network config (JSON). Creates it in the store if there is none, and refuses to run if the "
        "store's means something else. In Kubernetes it is the network config itself, a mounted ConfigMap; default "
        "there: /etc/kube-flannel/net-conf.json.",
        section=NETWORK,
    ),
    Option(
        "store",
        TEXT,
        "Where leases are kept, such as etcd://192.0.2.10:2379/coreos.com/network.",
        "file:///var/lib/pyflannel",
        section=STORE,
        scope="store",
        table=True,
    ),
    Option(
        "etcd-endpoints",
        ENDPOINTS,
        "etcd's addresses, separated by commas. Any etcd flag selects the etcd store.",
        ("http://127.0.0.1:4001", "http://127.0.0.1:2379"),
        section=STORE,
        scope="store",
    ),
    Option("etcd-prefix", TEXT, "The prefix of all keys.", "/coreos.com/network", section=STORE, scope="store"),
    Option("etcd-cafile", PATH, "The CA that signed etcd's certificate.", section=STORE, scope="store"),
    Option("etcd-certfile", PATH, "Our certificate.", section=STORE, scope="store"),
    Option("etcd-keyfile", PATH, "Our certificate's key.", section=STORE, scope="store"),
    Option("etcd-username", TEXT, "The user to log in as.", section=STORE, scope="store"),
    Option(
        "etcd-password",
        TEXT,
        "The user's password. Process lists show flags: prefer the environment, or --etcd-password-file.",
        section=STORE,
        scope="store",
        secret=True,
    ),
    Option("etcd-password-file", PATH, "A file that holds the password.", section=STORE, scope="store"),
    Option(
        "iface",
        TEXT,
        "The underlay interface, by name or address; the first that exists and has an address is used. Repeatable. "
        "Default: the default route's.",
        (),
        section=UNDERLAY,
        repeatable=True,
    ),
    Option(
        "iface-regex",
        PATTERN,
        "The same, by a regular expression that its name or address matches; tried after --iface. Repeatable.",
        (),
        section=UNDERLAY,
        repeatable=True,
    ),
    Option("iface-can-reach", ADDRESS, "The same: the interface from which this address is reached.", section=UNDERLAY),
    Option("public-ip", IPV4, "The IPv4 address other nodes reach us by. Default: the interface's.", section=UNDERLAY),
    Option("public-ipv6", IPV6, "The same for IPv6.", section=UNDERLAY),
    Option(
        "subnet-file",
        PATH,
        "Where this node's subnet and MTU are written for the container runtime.",
        Path("/run/flannel/subnet.env"),
        section=LEASE,
    ),
    Option(
        "lease-ttl",
        _seconds(1),
        "Seconds after which the lease of a node that is gone expires.",
        86400.0,
        section=LEASE,
    ),
    Option(
        "subnet-lease-renew-margin",
        _whole(1),
        "Minutes before expiry at which the lease is renewed; shorter than --lease-ttl. Default: 60, or a third of "
        "--lease-ttl if that is less.",
        section=LEASE,
    ),
    Option(
        "conflict-policy",
        _choice("refuse", "take-over"),
        "When another node holds the lease that is ours by address: stay out and say so, or take it over.",
        "refuse",
        section=LEASE,
    ),
    Option("ip-masq", BOOLEAN, "Masquerade traffic that leaves the overlay.", False, section=FIREWALL),
    Option(
        "ip-masq-fully-random-disable",
        BOOLEAN,
        "Masquerade without fully random source ports.",
        False,
        section=FIREWALL,
    ),
    Option(
        "iptables-resync",
        _seconds(1),
        "Seconds between looks at firewall rules that send no notifications.",
        5.0,
        section=FIREWALL,
    ),
    Option(
        "iptables-forward-rules",
        BOOLEAN,
        "Accept the overlay's traffic where a firewall on this host drops forwarded packets.",
        True,
        section=FIREWALL,
    ),
    Option(
        "check-overlay-sources",
        BOOLEAN,
        "Drop packets from overlay addresses that arrive neither by the overlay's device nor from containers here.",
        True,
        section=FIREWALL,
    ),
    Option(
        "check-overlay-exits",
        BOOLEAN,
        "Drop packets to overlay addresses that would leave by any device but the overlay's, if the backend encrypts.",
        True,
        section=FIREWALL,
    ),
    Option(
        "firewall",
        _choice("auto", "nftables", "iptables", "none"),
        "Where the rules go: where the host's own are, into one of the two, or nowhere.",
        "auto",
        section=FIREWALL,
    ),
    Option(
        "ip-blackhole-route",
        BOOLEAN,
        "Add a blackhole route for our subnet, so that packets to unused addresses don't loop.",
        False,
        section=FIREWALL,
    ),
    Option(
        "resync-interval",
        _seconds(1),
        "Seconds between full comparisons with the kernel, in addition to its notifications.",
        300.0,
        section=FIREWALL,
    ),
    Option(
        "config",
        PATH,
        "The config file. /etc/pyflannel/pyflannel.toml is read if it exists; a file named here must.",
        section=FILES,
        scope="any",
        in_file=False,
    ),
    Option(
        "run-dir",
        PATH,
        "The directory for the status socket and the lock; one per daemon.",
        Path("/run/pyflannel"),
        section=FILES,
        scope="node",
    ),
    Option(
        "state-dir",
        PATH,
        "The directory of what must outlive a reboot: keys, a random node id, the network config that was followed "
        "last.",
        Path("/var/lib/pyflannel"),
        section=FILES,
        scope="node",
    ),
    Option(
        "node-id",
        NODE_ID,
        "What identifies this node. Default: derived from /etc/machine-id, else random and kept in --state-dir.",
        section=FILES,
        scope="node",
    ),
    Option("healthz-ip", LISTENING, "The address of the health endpoint.", ip_address("0.0.0.0"), section=HEALTH),  # noqa: S104 - flannel's default; off unless a port is given
    Option("healthz-port", _whole(0, 65535), "Its port; 0 switches it off.", 0, section=HEALTH),
    Option(
        "log-format",
        _choice("text", "json"),
        "Log lines for people, or one JSON object a line.",
        "text",
        section=LOG,
        scope="any",
    ),
    Option(
        "log-level",
        _choice("debug", "info", "warning", "error"),
        "The lowest level logged. Default: info for the daemon (state changes), warning for the other commands.",
        section=LOG,
        scope="any",
    ),
    Option("v", _whole(0, 2**31 - 1), "As in flannel: 1 or more is --log-level debug.", 0, section=LOG, scope="any"),
    Option("vmodule", MODULES, "A flag of flannel's; ignored.", section=LOG, in_file=False),
    Option("log_backtrace_at", SOURCE_LINE, "A flag of flannel's; ignored.", section=LOG, in_file=False),
    Option(
        "kube-subnet-mgr",
        BOOLEAN,
        "Every Node of Kubernetes is a lease: the store kubernetes://.",
        False,
        section=KUBERNETES,
        scope="store",
    ),
    Option(
        "kube-api-url",
        TEXT,
        "The API server. Default: the kubeconfig's, or the one that every pod is told.",
        section=KUBERNETES,
        scope="store",
    ),
    Option(
        "kubeconfig-file",
        PATH,
        "A kubeconfig. Default: the pod's service account.",
        section=KUBERNETES,
        scope="store",
    ),
    Option(
        "kube-annotation-prefix",
        TEXT,
        "The prefix of the Nodes' annotations.",
        "flannel.alpha.coreos.com",
        section=KUBERNETES,
        scope="store",
    ),
    Option(
        "set-node-network-unavailable",
        BOOLEAN,
        "Say in the Node's condition NetworkUnavailable whether the overlay works here.",
        True,
        section=KUBERNETES,
    ),
    Option(
        "cni-conf",
        PATH,
        "Where the CNI network for pods and containers is written, such as /etc/cni/net.d/10-pyflannel.conflist, once "
        "this node has its subnet. Default: nowhere.",
        section=FILES,
        scope="node",
    ),
)

BY_NAME: Final = {option.name: option for option in OPTIONS}
