"""Settings: what the operator wants of this node, from flags, environment and config file.

Each source is first read into :class:`Given` values that know where they came from; then, setting by setting, the
highest source wins: flags over environment (``PYFLANNEL_X`` over ``FLANNELD_X``) over the file over the default. The
outcome is one frozen :class:`Settings`. All but :func:`load` and :meth:`Settings.read_seed` is free of I/O.

Three settings are made of several: the store (:mod:`~pyflannel.settings.store_location`), the network
document that seeds an empty store (``--network`` and its family, or the file's ``[network]`` table), and the log level
(``--log-level`` or ``-v``). There, too, the higher source wins, and two that contradict each other within one source
are an error.
"""

from __future__ import annotations

import difflib
import importlib
import json
import logging
import re
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import urlencode

from pyflannel.errors import ConfigError
from pyflannel.firewall.model import Mode
from pyflannel.membership.allocation import ConflictPolicy
from pyflannel.network.document import DEFAULT_BACKEND, NetworkConfig, NetworkSeed, with_backend
from pyflannel.network.document import KEYS as NETWORK_KEYS
from pyflannel.network.lease import DEFAULT_MARGIN, JSON, IPAddress
from pyflannel.settings import flanneld
from pyflannel.settings.given import Given, GivenValues, Level, nearest
from pyflannel.settings.options import BY_NAME, OPTIONS, Option
from pyflannel.settings.store_location import store_location
from pyflannel.small import files
from pyflannel.small.text import cut
from pyflannel.store import StoreLocation, hide_credentials

__all__ = [
    "DEFAULT_CONFIG",
    "ConflictPolicy",
    "Loaded",
    "Settings",
    "load",
    "resolve",
]

log = logging.getLogger(__name__)

DEFAULT_CONFIG: Final = Path("/etc/pyflannel/pyflannel.toml")

FLANNELS_NET_CONFIG: Final = Path("/etc/kube-flannel/net-conf.json")
"""flanneld's default for ``--net-config-path``, which some write out though it has no meaning outside Kubernetes."""

Flags: TypeAlias = Mapping[str, "str | Sequence[str]"]
"""Option name to text as given on the command line; a sequence for a repeatable one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the operator wants. Durations are in seconds; ``resolve({}, {})`` gives the defaults.

    ``node_id`` is ``None`` unless it was given: :func:`pyflannel.membership.nodeid.identify` derives it.
    ``network_document`` is the JSON text that the network flags and the ``[network]`` table make up.
    """

    store: StoreLocation
    backend: str | None
    network_document: str | None
    network_source: str
    net_config_path: Path | None
    iface: tuple[str, ...]
    iface_regex: tuple[re.Pattern[str], ...]
    iface_can_reach: IPAddress | None
    public_ip: IPv4Address | None
    public_ipv6: IPv6Address | None
    subnet_file: Path
    lease_ttl: float
    renew_margin: float
    conflict_policy: ConflictPolicy
    ip_masq: bool
    ip_masq_fully_random: bool
    iptables_resync: float
    firewall: Mode
    forward_rules: bool
    check_sources: bool
    check_exits: bool
    blackhole_route: bool
    resync_interval: float
    cni_conf: Path | None
    run_dir: Path
    state_dir: Path
    node_id: str | None
    healthz_ip: IPAddress
    healthz_port: int
    log_format: str
    log_level: str
    told: Mapping[str, JSON] = field(default_factory=dict, compare=False, repr=False)
    """What was given, as texts (lists of them) of flags without their dashes, but for secrets and for what only the
    daemon's start needs: what makes another command see the node as the daemon does."""
    warnings: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """What is ignored of what a daemon was told, and what is no good idea."""

    def read_seed(self) -> NetworkSeed | None:
        """The network document to create in an empty store, or ``None`` if the settings name none.

        :raises ConfigError: it can't be read, is invalid, or is of another backend than ``--backend``.
        """
        if self.net_config_path is not None:
            source = str(self.net_config_path)
            try:
                text = files.read_text(self.net_config_path)
            except (OSError, UnicodeDecodeError) as error:
                if isinstance(error, FileNotFoundError) and self.net_config_path == FLANNELS_NET_CONFIG:
                    log.warning("--net-config-path %s: does not exist; ignored, as flanneld does", source)
                    return None
                raise ConfigError(f"{BY_NAME['net-config-path'].flag} {source}: {_reason(error)}") from None
            NetworkConfig.from_json(text, source)
            seed = NetworkSeed(text if self.backend is None else with_backend(text, self.backend), source, True)
        elif self.network_document is not None:
            seed = NetworkSeed(self.network_document, self.network_source, False)
        else:
            return None
        network = NetworkConfig.from_json(seed.document, seed.source)
        if self.backend is not None and network.backend_type != self.backend.lower():
            raise ConfigError(
                f"{seed.source}: Backend.Type is {network.backend_type!r}, but --backend is {self.backend!r}; "
                "they must agree"
            )
        return seed


class Loaded(NamedTuple):
    """Settings, and what the operator should hear about them."""

    settings: Settings
    warnings: tuple[str, ...]


def load(
    flags: Flags, environ: Mapping[str, str], *, daemon: bool = False, beneath: Mapping[str, JSON] | None = None
) -> Loaded:
    """Read the config file and put all sources together.

    :param daemon: the caller will run as the daemon: log state changes.
    :param beneath: what another process was told (:attr:`Settings.told`), for what no source of ours says.
    :raises ConfigError: a value, a key or a combination is wrong; the message names its source.
    """
    config = _from_flags_or_environment(BY_NAME["config"], flags, environ, [])
    path = config.value if config is not None else DEFAULT_CONFIG
    try:
        text = files.read_text(path)
        mode = path.stat().st_mode
    except FileNotFoundError:
        if config is not None:
            raise ConfigError(f"{config.origin}: {path} does not exist") from None
        return resolve(flags, environ, daemon=daemon, beneath=beneath)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path}: {_reason(error)}") from None
    document = _parse_toml(text, path)
    loaded = resolve(flags, environ, document, path, daemon=daemon, beneath=beneath)
    if mode & (stat.S_IRGRP | stat.S_IROTH) and any(option.secret and option.name in document for option in OPTIONS):
        warning = f"config file {path} holds a password and others can read it: chmod 600 {path}"
        return Loaded(loaded.settings, (*loaded.warnings, warning))
    return loaded


def resolve(
    flags: Flags,
    environ: Mapping[str, str],
    document: Mapping[str, Any] | None = None,
    path: Path = DEFAULT_CONFIG,
    *,
    daemon: bool = False,
    beneath: Mapping[str, JSON] | None = None,
) -> Loaded:
    """The settings that three sources make together; ``document`` is the parsed config file, ``path`` its name.

    :raises ConfigError: see :func:`load`.
    """
    given: dict[str, Given] = _from_document(document or {}, path)
    warnings: list[str] = []
    for option in OPTIONS:
        stronger = _from_flags_or_environment(option, flags, environ, warnings)
        if stronger is None:
            continue
        if option.table and option.name in given and isinstance(given[option.name].value, dict):
            given[f"[{option.name}]"] = given[option.name]
        given[option.name] = stronger
    given = _with_told(beneath or {}, given)
    settings = _settings(given, daemon, warnings)
    # What is ignored the daemon says; to another command it would be noise.
    said = (*_warnings(given, environ), *(dict.fromkeys(warnings) if daemon else ()))
    return Loaded(replace(settings, warnings=said), said)


def _reason(error: OSError | UnicodeDecodeError) -> str:
    return str(error.strerror) if isinstance(error, OSError) else "is not UTF-8 text"


# Reading the sources -------------------------------------------------------------------------------------------------


def _parse_toml(text: str, path: Path) -> dict[str, Any]:
    if text.startswith("\ufeff"):
        raise ConfigError(f"config file {path}: begins with a byte order mark; save it without one")
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        document: dict[str, Any] = toml.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"config file {path}: not valid TOML: {error}") from None
    return document


def _from_flags_or_environment(
    option: Option, flags: Flags, environ: Mapping[str, str], warnings: list[str]
) -> Given | None:
    """The value of the strongest source that has one, as flanneld would mean it; adds to ``warnings``."""
    for texts, level, origin in _texts(option, flags, environ):
        meant = flanneld.meaning(option.name, texts, origin.startswith("environment variable FLANNELD_"))
        if meant.warning:
            warnings.append(f"{origin}: {meant.warning}")
        if meant.texts:
            return _read(option, meant.texts, level, origin)
        if level is Level.FLAG:  # an empty one: flanneld looks at no variable then
            return None
    return None


def _texts(option: Option, flags: Flags, environ: Mapping[str, str]) -> Iterator[tuple[tuple[str, ...], Level, str]]:
    """What each source says, the strongest first, with its name."""
    text = flags.get(option.name)
    if text is not None and text != ():
        yield (text,) if isinstance(text, str) else tuple(text), Level.FLAG, f"flag {option.flag}"
    for name in option.variables:
        if environ.get(name):
            texts = tuple(environ[name].splitlines()) if option.repeatable else (environ[name],)
            yield texts, Level.ENVIRONMENT, f"environment variable {name}"


def _read(option: Option, texts: Sequence[str], level: Level, origin: str) -> Given:
    values = []
    for text in texts:
        try:
            values.append(option.kind.parse(text))
        except ValueError as rule:
            shown = "its value" if option.secret else repr(cut(hide_credentials(text) if "@" in text else text))
            raise ConfigError(f"{origin}: {shown} {rule}") from None
    return Given(tuple(values) if option.repeatable else values[-1], level, origin, tuple(texts))


def _from_document(document: Mapping[str, Any], path: Path) -> dict[str, Given]:
    known = {option.name: option for option in OPTIONS if option.in_file}
    given = {}
    for key, value in document.items():
        origin = f"config file {path}: key {key!r}"
        option = known.get(key)
        if option is None:
            raise ConfigError(f"config file {path}: unknown key {key!r}{nearest(key, known)}")
        if option.table and isinstance(value, dict):
            given[key] = Given(value, Level.FILE, f"config file {path}: table [{key}]")
        elif option.repeatable and isinstance(value, list):
            given[key] = _read(option, [_toml_text(option, item, origin) for item in value], Level.FILE, origin)
        else:
            given[key] = _read(option, [_toml_text(option, value, origin)], Level.FILE, origin)
    return given


def _toml_text(option: Option, value: Any, origin: str) -> str:
    if type(value) not in option.kind.toml:
        expected = option.kind.toml_names
        if option.repeatable:
            expected += ", or a list of such"
        if option.table:
            expected += ", or a table"
        shown = "its value" if option.secret else json.dumps(value, default=str)
        raise ConfigError(f"{origin}: {shown} must be {expected}")
    return json.dumps(value) if isinstance(value, bool) else str(value)


# Putting them together -----------------------------------------------------------------------------------------------


def _warnings(given: GivenValues, environ: Mapping[str, str]) -> list[str]:
    warnings = []
    password = given.get("etcd-password")
    if password is not None and password.level is Level.FLAG:
        warnings.append(
            "flag --etcd-password: process lists show it; use --etcd-password-file or the environment variable "
            f"{BY_NAME['etcd-password'].variables[0]}"
        )
    if environ.get("FLANNELD_VERSION"):
        warnings.append("environment variable FLANNELD_VERSION: ignored: only the flag --version prints it")
    known = [name for option in OPTIONS for name in option.variables] + ["FLANNELD_VERSION"]
    for name in sorted(environ):
        # Only what looks like a slip: Kubernetes makes up variables such as PYFLANNEL_PORT for a service of our name.
        if name.startswith(("PYFLANNEL_", "FLANNELD_")) and name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.9)
            if near:
                warnings.append(f"environment variable {name} is not known and ignored; did you mean {near[0]}?")
    return warnings


def _ignored(given: GivenValues, in_kubernetes: bool) -> list[str]:
    """What flanneld, too, would not look at."""
    if in_kubernetes:
        names, reason = flanneld.NOT_IN_KUBERNETES, "has no meaning in Kubernetes"
    else:
        names, reason = flanneld.IN_KUBERNETES, "has a meaning in Kubernetes only (--kube-subnet-mgr)"
    warnings = [f"{given[name].origin}: ignored: it {reason}" for name in names if name in given]
    return warnings + [
        f"{given[name].origin}: ignored: {flanneld.NO_LEVELS}"
        for name in ("vmodule", "log_backtrace_at")
        if name in given and given[name].value
    ]


def _settings(given: GivenValues, daemon: bool, warnings: list[str]) -> Settings:
    def value(name: str) -> Any:
        if name in given:
            return given[name].value
        return BY_NAME[name].default

    store = store_location(given, warnings)
    document, source = _network_document(given)
    in_kubernetes = store.scheme == "kubernetes"
    warnings += _ignored(given, in_kubernetes)
    if in_kubernetes and document is not None:
        raise ConfigError(
            f"{source}: has no meaning in Kubernetes, where the network config is a file (a mounted ConfigMap); "
            "write it there, and say where it is with --net-config-path"
        )
    return Settings(
        store=store,
        backend=value("backend"),
        network_document=document,
        network_source=source,
        net_config_path=None if in_kubernetes else value("net-config-path"),
        iface=value("iface"),
        iface_regex=value("iface-regex"),
        iface_can_reach=value("iface-can-reach"),
        public_ip=value("public-ip"),
        public_ipv6=value("public-ipv6"),
        subnet_file=value("subnet-file"),
        lease_ttl=value("lease-ttl"),
        renew_margin=_renew_margin(given, value("lease-ttl")),
        conflict_policy=ConflictPolicy(value("conflict-policy")),
        ip_masq=value("ip-masq"),
        ip_masq_fully_random=not value("ip-masq-fully-random-disable"),
        iptables_resync=value("iptables-resync"),
        firewall=Mode(value("firewall")),
        forward_rules=value("iptables-forward-rules"),
        check_sources=value("check-overlay-sources"),
        check_exits=value("check-overlay-exits"),
        blackhole_route=value("ip-blackhole-route"),
        resync_interval=value("resync-interval"),
        cni_conf=value("cni-conf"),
        run_dir=value("run-dir"),
        state_dir=value("state-dir"),
        node_id=value("node-id"),
        healthz_ip=value("healthz-ip"),
        healthz_port=value("healthz-port"),
        log_format=value("log-format"),
        log_level=_log_level(given, daemon),
        told=_told(given, store),
    )


_STARTING: Final = frozenset({"backend-option", "config", "ipv6-network", "log-format", "log-level", "network", "v"})
"""What the daemon alone needs, or may hold a secret (a key of the backend's)."""

_WHICH_STORE: Final = frozenset({"etcd-endpoints", "etcd-prefix", "kube-subnet-mgr", "store"})
_KUBERNETES: Final = frozenset({"kube-api-url", "kubeconfig-file"})


def _told(given: GivenValues, store: StoreLocation) -> dict[str, JSON]:
    told: dict[str, JSON] = {}
    for name, item in given.items():
        option = BY_NAME.get(name)
        if option is None or option.secret or name in _STARTING or item.value is None:
            continue
        if item.texts:
            told[name] = list(item.texts) if option.repeatable else item.texts[-1]
        elif name == "store":  # a table
            known = {key: text for key, text in store.options.items() if not re.search("password$|token$|secret", key)}
            told[name] = f"{store}?{urlencode(known)}" if known else str(store)
    return told


def _with_told(told: Mapping[str, JSON], given: GivenValues) -> dict[str, Given]:
    """The values with what another process was told: it has read the file, too, so only what is given here is stronger.

    Of its store the file's word counts where it is the same one, because secrets are not told.
    """
    here = {name: item for name, item in given.items() if item.level is not Level.FILE}
    file = {name: item for name, item in given.items() if item.level is Level.FILE}
    found = _told_values(told, here)
    of_store = [name for name in found if _is_store(name)]
    if all(name in file and _says(file[name], told[name]) for name in of_store):
        found = {name: item for name, item in found.items() if name not in of_store}
    else:
        file = {name: item for name, item in file.items() if not _is_store(name) or BY_NAME[name].secret}
    return {**file, **found, **here}


def _told_values(told: Mapping[str, JSON], here: GivenValues) -> dict[str, Given]:
    """What another process was told, without its store if ``here`` says that another one is meant."""
    elsewhere = any(not _says(here[name], told.get(name)) for name in _WHICH_STORE & here.keys())
    found = {}
    for name, text in told.items():
        option = BY_NAME.get(name)
        if option is not None and name not in here and not (elsewhere and _is_store(name)):
            found[name] = _read(option, _told_texts(text), Level.DAEMON, f"the daemon's flag {option.flag}")
    return found


def _is_store(name: str) -> bool:
    return name in _WHICH_STORE | _KUBERNETES or name.startswith("etcd-")


def _says(item: Given, told: JSON) -> bool:
    """Whether a value is what was told; a table of a store is told as its URL."""
    if isinstance(item.value, dict):
        return str(told).partition("?")[0] == str(store_location({"store": item}, []))
    return list(item.texts) == _told_texts(told)


def _told_texts(told: JSON) -> list[str]:
    return [str(each) for each in told] if isinstance(told, list) else [str(told)]


def _renew_margin(given: GivenValues, ttl: float) -> float:
    margin = given.get("subnet-lease-renew-margin")
    if margin is None:
        return min(DEFAULT_MARGIN, ttl / 3)
    seconds: float = margin.value * 60.0
    if seconds >= ttl:
        raise ConfigError(
            f"{margin.origin}: {margin.value} minutes ({seconds:g} s) must be shorter than --lease-ttl ({ttl:g} s)"
        )
    return min(seconds, ttl * 2 / 3)  # with a longer one it would be renewed for ever


def _log_level(given: GivenValues, daemon: bool) -> str:
    level, verbosity = given.get("log-level"), given.get("v")
    if verbosity is not None and verbosity.value > 0 and (level is None or verbosity.level > level.level):
        return "debug"
    if level is not None:
        return str(level.value)
    return "info" if daemon else "warning"


# The network document ------------------------------------------------------------------------------------------------


def _network_document(given: GivenValues) -> tuple[str | None, str]:
    """The document that the network flags and the [network] table make up, and where it came from."""
    parts = [given[name] for name in ("[network]", "network", "ipv6-network", "backend-option") if name in given]
    if not parts:
        return None, ""
    path = given.get("net-config-path")
    if path is not None:
        raise ConfigError(f"{path.origin} and {parts[0].origin} both give the network config; keep one of them")
    table = next((part for part in parts if isinstance(part.value, dict)), None)
    document: dict[str, JSON] = _network_table(table) if table is not None else {}
    if "network" in given and given["network"] is not table:
        document["Network"] = str(given["network"].value)
    if "ipv6-network" in given:
        document |= {"IPv6Network": str(given["ipv6-network"].value), "EnableIPv6": True}
        if "Network" not in document:
            document["EnableIPv4"] = False
    if "backend" in given:
        _set_backend_key(document, "Type", given["backend"].value)
        parts.append(given["backend"])
    elif "backend-option" in given and "Backend" not in document:
        _set_backend_key(document, "Type", DEFAULT_BACKEND)
    for key, value in given["backend-option"].value if "backend-option" in given else ():
        _set_backend_key(document, key, value)
    return json.dumps(document), "network config from " + " and ".join(dict.fromkeys(part.origin for part in parts))


def _network_table(table: Given) -> dict[str, JSON]:
    """The [network] table with its keys in flannel's spelling."""
    names = {name.lower(): name for name in NETWORK_KEYS}
    document = {}
    for key, value in table.value.items():
        if key.lower() not in names:
            raise ConfigError(f"{table.origin}: unknown key {key!r}{nearest(key, NETWORK_KEYS)}")
        try:
            json.dumps(value)
        except TypeError:
            raise ConfigError(f"{table.origin}: {key}: a date or time has no meaning here") from None
        document[names[key.lower()]] = value
    return document


def _set_backend_key(document: dict[str, JSON], key: str, value: JSON) -> None:
    backend = document.get("Backend", {})
    if isinstance(backend, dict):  # else the document's validation names the fault
        document["Backend"] = {name: old for name, old in backend.items() if name.lower() != key.lower()} | {key: value}
