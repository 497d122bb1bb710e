"""Which store a node uses: one location, from ``--store``, the file's ``[store]`` table, or flannel's own flags.

flannel's ``--kube-subnet-mgr`` and ``--etcd-*`` mean a store of pyflannel's as well. The higher source wins, and two
that contradict each other within one source are an error.
"""

from __future__ import annotations

import json
import logging
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pyflannel.errors import ConfigError
from pyflannel.settings.given import Given, GivenValues, Level
from pyflannel.settings.options import BY_NAME
from pyflannel.store import StoreLocation, hide_credentials

log = logging.getLogger(__name__)

__all__ = ["store_location"]

_ETCD_OPTIONS: Final = {
    "etcd-cafile": "cafile",
    "etcd-certfile": "certfile",
    "etcd-keyfile": "keyfile",
    "etcd-username": "username",
    "etcd-password": "password",
    "etcd-password-file": "password_file",
}


def store_location(given: GivenValues, warnings: list[str]) -> StoreLocation:
    """The store that was given, or the default.

    :param warnings: gets what is ignored.
    :raises ConfigError: two of one source contradict each other, or a value is wrong.
    """
    location = _kubernetes_store(given) or _etcd_or_other_store(given, warnings)
    return _with_kubernetes(location, given) if location.scheme == "kubernetes" else location


def _kubernetes_store(given: GivenValues) -> StoreLocation | None:
    """The store that ``--kube-subnet-mgr`` means, if it is given; flanneld looks at no ``--etcd-`` flag then."""
    switch = given.get("kube-subnet-mgr")
    if switch is None or not switch.value:
        return None
    others = [item for name, item in given.items() if name == "store" or name.startswith("etcd-")]
    if switch.level is not Level.FILE:  # which flanneld has none of
        others = [item for item in others if item is given.get("store")]
    rival = max(others, key=lambda item: item.level, default=None)
    if rival is None or rival.level < switch.level:
        return StoreLocation("kubernetes")
    location = _etcd_or_other_store(given, [])
    if location.scheme != "kubernetes" and rival.level == switch.level:
        raise ConfigError(f"{switch.origin} means store kubernetes://, but {rival.origin} another; keep one of them")
    return location


_KUBERNETES_OPTIONS: Final = {
    "kubeconfig-file": "kubeconfig",
    "kube-annotation-prefix": "annotation_prefix",
    "set-node-network-unavailable": "set_network_unavailable",
    "net-config-path": "net_config",
}


def _with_kubernetes(location: StoreLocation, given: GivenValues) -> StoreLocation:
    """The location with what flannel's flags say; a store's own option wins over a flag of a weaker source."""
    store = given.get("store")
    level = store.level if store is not None else Level.FILE
    options, hosts, path = dict(location.options), location.hosts, location.path
    for name, key in _KUBERNETES_OPTIONS.items():
        if name in given and (key not in options or given[name].level >= level):
            value = given[name].value
            options[key] = json.dumps(value) if isinstance(value, bool) else str(value)
    url = given.get("kube-api-url")
    if url is not None and (not hosts or url.level >= level):
        try:
            server = StoreLocation.parse(url.value if "://" in url.value else f"https://{url.value}")
        except ConfigError as error:
            raise ConfigError(f"{url.origin}: {error}") from None
        if server.scheme not in {"http", "https"} or len(server.hosts) != 1 or server.options:
            raise ConfigError(
                f"{url.origin}: {hide_credentials(url.value)!r} must be a URL such as https://192.0.2.1:6443"
            )
        host = server.hosts[0]
        if not re.search(r":[0-9]+$", host):
            host += ":443" if server.scheme == "https" else ":80"
        hosts, path = (host,), server.path.rstrip("/")
        options["tls"] = json.dumps(server.scheme == "https")
    return StoreLocation("kubernetes", hosts, path, options, location.shown)


def _etcd_or_other_store(given: GivenValues, warnings: list[str]) -> StoreLocation:
    store = given.get("store")
    etcd = _etcd_flags(given, warnings)
    if not etcd:
        return _store_location(store) if store is not None else StoreLocation.parse(BY_NAME["store"].default)
    strongest = max(etcd.values(), key=lambda item: item.level)
    if store is None:
        return _with_etcd(StoreLocation("etcd"), None, etcd)
    location = _store_location(store)
    if location.scheme == "etcd":
        return _with_etcd(location, store, etcd)
    if strongest.level == store.level:
        raise ConfigError(
            f"{strongest.origin} means the etcd store, but {store.origin} is {location}; keep one of them"
        )
    return location if store.level > strongest.level else _with_etcd(StoreLocation("etcd"), None, etcd)


def _etcd_flags(given: GivenValues, warnings: list[str]) -> dict[str, Given]:
    """flannel's etcd flags, without those that flanneld does not look at beside the others."""
    etcd = {name: item for name, item in given.items() if name.startswith("etcd-")}
    endpoints = etcd.get("etcd-endpoints")
    spoken = endpoints.value if endpoints is not None else BY_NAME["etcd-endpoints"].default
    if "store" not in given and all(endpoint.startswith("http://") for endpoint in spoken):
        for name in ("etcd-cafile", "etcd-certfile", "etcd-keyfile"):
            if name in etcd:
                warnings.append(f"{etcd[name].origin}: ignored: with endpoints of http:// there is no TLS")
                etcd[name] = etcd[name]._replace(value=None)
    if "store" not in given and "etcd-password-file" not in etcd:
        for name, other in (("etcd-username", "etcd-password"), ("etcd-password", "etcd-username")):
            if name in etcd and other not in etcd:
                warnings.append(f"{etcd[name].origin}: ignored without --{other}: nobody logs in to etcd")
                etcd[name] = etcd[name]._replace(value=None)
    return etcd


def _store_location(store: Given) -> StoreLocation:
    try:
        if isinstance(store.value, dict):
            return _store_table(store.value)
        return StoreLocation.parse(store.value)
    except ConfigError as error:
        raise ConfigError(f"{store.origin}: {error}") from None


def _store_table(table: Mapping[str, Any]) -> StoreLocation:
    """``url`` and the driver's options, or ``scheme``, ``hosts``, ``path`` and the driver's options."""
    options = {}
    for key, value in table.items():
        if key in {"url", "scheme", "hosts", "path"}:
            continue
        if type(value) not in (str, bool, int, float):
            raise ConfigError(f"{key} must be a string, a number, true or false")
        options[key] = json.dumps(value) if isinstance(value, bool) else str(value)
    if "url" in table:
        for key in ("scheme", "hosts", "path"):
            if key in table:
                raise ConfigError(f"url and {key} say the same twice; keep one of them")
        return StoreLocation.parse(_string(table, "url"), options)
    if "scheme" not in table:
        raise ConfigError("url is missing, such as url = 'file:///var/lib/pyflannel' (or scheme, hosts and path)")
    hosts = table.get("hosts", [])
    if not isinstance(hosts, list) or not all(isinstance(host, str) and host for host in hosts):
        raise ConfigError("hosts must be a list of strings such as 192.0.2.10:2379")
    path = _string(table, "path") if "path" in table else ""
    return StoreLocation(_string(table, "scheme"), tuple(hosts), path and "/" + path.lstrip("/"), options)


def _string(table: Mapping[str, Any], key: str) -> str:
    value = table[key]
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{key} must be a string")
    return value


def _with_etcd(location: StoreLocation, store: Given | None, etcd: GivenValues) -> StoreLocation:
    """``location`` with what flannel's etcd flags say; where both speak, the higher source wins."""
    hosts, path, options = location.hosts, location.path, dict(location.options)

    def merge(name: str, mine: Any, theirs: Any) -> Any:
        """What holds: ``mine`` from the store's location or ``theirs`` from the flag ``name``."""
        flag = etcd[name]
        if store is None or mine in ((), "", None, ("", "")) or mine == theirs or flag.level > store.level:
            return theirs
        if flag.level == store.level:
            raise ConfigError(f"{flag.origin} contradicts {store.origin}; keep one of them")
        return mine

    if "etcd-endpoints" in etcd or not hosts:
        flag = etcd.get("etcd-endpoints")
        endpoints = flag.value if flag is not None else BY_NAME["etcd-endpoints"].default
        theirs, tls = _endpoint_hosts(endpoints, flag.origin if flag is not None else "etcd")
        chosen = merge("etcd-endpoints", hosts, theirs) if flag is not None else theirs
        if chosen == theirs and tls:
            options["tls"] = "true"
        hosts = chosen
    if "etcd-prefix" in etcd:
        path, written = merge("etcd-prefix", (path, options.pop("prefix", "")), _key_prefix(etcd["etcd-prefix"].value))
        options |= {"prefix": written} if written else {}
    for name, key in _ETCD_OPTIONS.items():
        if name in etcd and etcd[name].value is not None:
            options[key] = merge(name, options.get(key), str(etcd[name].value))
    if not path and "prefix" not in options:
        path = BY_NAME["etcd-prefix"].default
    return StoreLocation("etcd", hosts, path, options)


def _key_prefix(text: str) -> tuple[str, str]:
    """``--etcd-prefix`` as a location's path or, where a path can't say it, as the driver's option."""
    cleaned = "/" + posixpath.normpath(text).lstrip("/")  # as Go's path.Join
    return (cleaned, "") if text.startswith("/") and cleaned != "/" else ("", text)


def _endpoint_hosts(endpoints: Sequence[str], origin: str) -> tuple[tuple[str, ...], bool]:
    """The hosts of ``http(s)://host:port`` texts, and whether they ask for TLS."""
    schemes = {endpoint.partition("://")[0] for endpoint in endpoints if "://" in endpoint}
    if len(schemes) > 1:
        raise ConfigError(f"{origin}: http and https endpoints can't be mixed")
    return tuple(endpoint.rpartition("://")[2].rstrip("/") for endpoint in endpoints), schemes == {"https"}
