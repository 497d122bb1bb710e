"""Where the Kubernetes API is and who we are there: a pod's service account, a kubeconfig, or options of the store.

The idea: files are asked for what they say when it is needed, not once, since all of them rotate (a service account's
token hourly). :meth:`Access.tls` and :meth:`Access.token` are called for every connection and every request; what an
exec plugin answered is kept until it expires or the API server does not accept it.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from pyflannel.errors import ConfigError, StoreDeniedError, StoreUnavailableError
from pyflannel.store import hide_credentials
from pyflannel_stores._names import check_host

__all__ = ["Access", "ApiServer", "ExecPlugin", "from_kubeconfig", "in_cluster", "parse_endpoint"]

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")

_EXEC_TIMEOUT: Final = 3.0
"""Seconds for an exec plugin: a call of the store has five."""

_EXEC_SKEW: Final = 10.0
"""Seconds before the end of its life that a plugin's token is not used any more."""


@dataclass(frozen=True, slots=True)
class ApiServer:
    """The API server's address; ``path`` is what stands before ``/api``."""

    host: str
    port: int
    tls: bool = True
    path: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.path}"


def parse_endpoint(url: str, source: str) -> ApiServer:
    """An API server's URL.

    :raises ConfigError: it is none; begins with ``source``.
    """
    parts = _split(url if "://" in url else f"https://{url}", source)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise ConfigError(f"{source}: {hide_credentials(url)!r} is not a URL such as https://192.0.2.1:6443")
    check_host(parts.hostname, source)
    tls = parts.scheme == "https"
    return ApiServer(parts.hostname, parts.port or (443 if tls else 80), tls, parts.path.rstrip("/"))


def _split(url: str, source: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # which is read only here
    except ValueError:
        raise ConfigError(f"{source}: {hide_credentials(url)!r} is not a URL") from None
    return parts


@dataclass(frozen=True, slots=True)
class ExecPlugin:
    """A program that hands out credentials (client.authentication.k8s.io)."""

    command: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    api_version: str = "client.authentication.k8s.io/v1"
    cluster: Mapping[str, Any] | None = None
    hint: str = ""


@dataclass(slots=True)
class Access:
    """How to reach the API server and prove who we are. For any thread.

    Of a pair ``..._file`` and ``..._data`` the data count. :param proxy: a URL; ``None``: as the environment says.
    """

    endpoint: ApiServer
    where: str
    token_file: Path | None = None
    token_text: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    ca_data: str | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    cert_data: str | None = None
    key_data: str | None = field(default=None, repr=False)
    verify: bool = True
    server_name: str | None = None
    proxy: str | None = None
    plugin: ExecPlugin | None = None
    _granted: _Granted | None = field(default=None, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def token(self) -> str | None:
        """The bearer token for a request, as things are now.

        :raises StoreDeniedError: its file can't be read, or the exec plugin gives none.
        """
        if self.token_file is not None:
            return _word(_read(self.token_file, self.where), f"{self.where}: token file {self.token_file}")
        if self.plugin is not None:
            return self._grant().token
        return self.token_text

    def refused(self) -> bool:
        """The API server did not accept our credentials; whether others may be had at once."""
        with self._lock:
            again, self._granted = self._granted is not None, None
        return again or self.token_file is not None

    def identity(self) -> tuple[object, ...]:
        """Differs when TLS has to begin anew, since a certificate's file or the plugin's answer is another one."""
        paths = [path for path in (self.ca_file, self.cert_file, self.key_file) if path is not None]
        granted = self._grant() if self.plugin is not None else None
        return (*(_stamp(path) for path in paths), (granted.cert, granted.key) if granted is not None else None)

    def tls(self) -> ssl.SSLContext:
        """A context with the authorities and certificates of now.

        :raises StoreDeniedError: one of them can't be read or used.
        """
        context = ssl.create_default_context()
        # Go, and so every other client, takes authorities without key usage; Python would not since 3.13.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        try:
            if not self.verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            elif self.ca_data or self.ca_file:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.load_verify_locations(None if self.ca_data else str(self.ca_file), None, self.ca_data)
            self._load_certificate(context)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise StoreDeniedError(f"{self.where}: the TLS files can't be used: {error}") from None
        return context

    def _load_certificate(self, context: ssl.SSLContext) -> None:
        granted = self._grant() if self.plugin is not None else None
        if granted is not None and granted.cert and granted.key:
            _load_pair(context, granted.cert, granted.key)
        elif self.cert_data or self.key_data:
            cert = self.cert_data or _read(self.cert_file, self.where)
            _load_pair(context, cert, self.key_data or _read(self.key_file, self.where))
        elif self.cert_file is not None:
            context.load_cert_chain(self.cert_file, self.key_file)

    def _grant(self) -> _Granted:
        assert self.plugin is not None
        with self._lock:
            if self._granted is None or self._granted.expires - _EXEC_SKEW < time.time():
                self._granted = _ask(self.plugin, self.where)
            return self._granted


@dataclass(frozen=True, slots=True)
class _Granted:
    """What an exec plugin answered."""

    token: str | None
    cert: str | None
    key: str | None
    expires: float


def _stamp(path: Path) -> tuple[int, int, int] | None:
    with suppress(OSError):
        status = path.stat()
        return status.st_ino, status.st_mtime_ns, status.st_size
    return None


def _read(path: Path | None, where: str) -> str:
    if path is None:
        raise StoreDeniedError(f"{where}: a client certificate needs its key, and the key its certificate")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise StoreDeniedError(f"{where}: {path}: {reason}") from None


def _word(text: str, source: str) -> str:
    token = text.strip()
    if not (token and token.isascii() and token.isprintable() and " " not in token):
        raise StoreDeniedError(f"{source}: this is not a token: it has to be one word of printable ASCII")
    return token


def _load_pair(context: ssl.SSLContext, cert: str, key: str) -> None:
    """Load PEM texts; OpenSSL as Python has it takes files alone, so they are ones that only memory has."""
    files = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("cert", "key")]
    try:
        for descriptor, text in zip(files, (cert, key), strict=True):
            os.write(descriptor, text.encode())
        context.load_cert_chain(*(f"/proc/self/fd/{descriptor}" for descriptor in files))
    finally:
        for descriptor in files:
            os.close(descriptor)


# The exec plugin ------------------------------------------------------------------------------------------------------


def _ask(plugin: ExecPlugin, where: str) -> _Granted:
    spec: dict[str, Any] = {"interactive": False}
    if plugin.cluster is not None:
        spec["cluster"] = plugin.cluster
    info = {"apiVersion": plugin.api_version, "kind": "ExecCredential", "spec": spec}
    name = f"{where}: exec plugin {plugin.command}"
    try:
        done = subprocess.run(
            [plugin.command, *plugin.arguments],
            env={**os.environ, **plugin.environment, "KUBERNETES_EXEC_INFO": json.dumps(info)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_EXEC_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise StoreUnavailableError(f"{name} has not answered within {_EXEC_TIMEOUT:g} s") from None
    except OSError as error:
        raise StoreDeniedError(f"{name}: {error.strerror}. {plugin.hint}".rstrip()) from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-200:]
        raise StoreDeniedError(f"{name} failed with status {done.returncode}: {said or 'it says nothing'}")
    return _granted(done.stdout, plugin, name)


def _granted(output: bytes, plugin: ExecPlugin, name: str) -> _Granted:
    try:
        answer = json.loads(output)
        status, version = answer["status"], answer["apiVersion"]
        expires = status.get("expirationTimestamp")
        until = datetime.fromisoformat(expires.replace("Z", "+00:00")).timestamp() if expires else float("inf")
        token, cert, key = (status.get(part) for part in ("token", "clientCertificateData", "clientKeyData"))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise StoreDeniedError(f"{name} answered something other than an ExecCredential with a status") from None
    if version != plugin.api_version:
        raise StoreDeniedError(f"{name} answered as {version}, asked for was {plugin.api_version}")
    if not token and not (cert and key):
        raise StoreDeniedError(f"{name} gave neither a token nor a client certificate with its key")
    return _Granted(_word(str(token), name) if token else None, cert, key, until)


# A pod's service account ----------------------------------------------------------------------------------------------


def in_cluster(environ: Mapping[str, str], where: str, directory: Path = SERVICE_ACCOUNT) -> Access | None:
    """What every pod has, or ``None`` outside of one."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        return None
    authority = f"[{host}]" if ":" in host else host
    endpoint = parse_endpoint(f"https://{authority}:{port}", "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT")
    return Access(endpoint, where, token_file=directory / "token", ca_file=directory / "ca.crt")


# A kubeconfig ---------------------------------------------------------------------------------------------------------


def from_kubeconfig(paths: Sequence[Path], context: str | None, where: str) -> Access:
    """What a kubeconfig says for a context; ``None``: for its current one.

    Of several files each adds to those before it. Those that are not there are passed over, unless none is.

    :raises ConfigError: it can't be read, or says something that can't be done here.
    """
    there = [path for path in paths if os.path.exists(path)]  # noqa: PTH110 - which fails where a directory is closed
    return _Kubeconfig(there or paths[:1], where).access(context)


class _Section(dict[str, Any]):
    """A section of a kubeconfig, in the file ``path``: paths in it are relative to where that lies."""

    path: Path


class _Kubeconfig:
    """One kubeconfig, in one file or several."""

    def __init__(self, paths: Sequence[Path], where: str) -> None:
        self._where = where
        self._source = f"kubeconfig {':'.join(map(str, paths))}"
        self._documents = [(path, self._load(path)) for path in paths]

    def access(self, context: str | None) -> Access:
        given = (document.get("current-context") for _, document in self._documents)
        name = context or next(filter(None, given), None)
        if not name:
            raise self._error("it has no current-context; choose one with the option context")
        chosen = self._named("contexts", "context", name)
        cluster = self._named("clusters", "cluster", chosen.get("cluster"))
        user = self._named("users", "user", chosen.get("user")) if chosen.get("user") else _Section()
        server = cluster.get("server")
        if not server:
            raise self._error(f"cluster {chosen.get('cluster')!r} has no server")
        if user.get("auth-provider"):
            raise self._error("auth-provider was removed from Kubernetes; use a token, a client certificate or exec")
        if user.get("username"):
            raise self._error("Kubernetes knows no passwords any more; use a token, a client certificate or exec")
        return Access(
            parse_endpoint(str(server), self._source),
            self._where,
            token_file=self._file(user, "tokenFile"),
            token_text=_word(str(user["token"]), self._source) if user.get("token") else None,
            ca_file=self._file(cluster, "certificate-authority"),
            ca_data=self._data(cluster, "certificate-authority-data"),
            cert_file=self._file(user, "client-certificate"),
            key_file=self._file(user, "client-key"),
            cert_data=self._data(user, "client-certificate-data"),
            key_data=self._data(user, "client-key-data"),
            verify=not cluster.get("insecure-skip-tls-verify"),
            server_name=cluster.get("tls-server-name"),
            proxy=cluster.get("proxy-url"),
            plugin=self._plugin(user, cluster) if user.get("exec") else None,
        )

    def _load(self, path: Path) -> Mapping[str, Any]:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise self._error(str(error.strerror) if isinstance(error, OSError) else "not a text file") from None
        document = _parse_yaml(text, f"kubeconfig {path}")
        if not isinstance(document, dict):
            raise self._error("it is not a kubeconfig: expected a mapping")
        return document

    def _named(self, listing: str, part: str, name: Any) -> _Section:
        for path, document in self._documents:
            entries = document.get(listing) or ()
            for entry in entries if isinstance(entries, Sequence) else ():
                if isinstance(entry, dict) and entry.get("name") == name and isinstance(entry.get(part), dict):
                    found = _Section(entry[part])
                    found.path = path
                    return found
        raise self._error(f"there is no {part} {name!r} in {listing}")

    def _file(self, section: _Section, key: str) -> Path | None:
        return section.path.parent / str(section[key]) if section.get(key) else None

    def _data(self, section: Mapping[str, Any], key: str) -> str | None:
        if not section.get(key):
            return None
        try:
            return base64.b64decode(str(section[key]), validate=True).decode()
        except (binascii.Error, ValueError):
            raise self._error(f"{key} is not base64 of a PEM text") from None

    def _plugin(self, user: _Section, cluster: Mapping[str, Any]) -> ExecPlugin:
        section = user["exec"]
        version = str(section.get("apiVersion", ""))
        if version not in ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"):
            raise self._error(f"exec: apiVersion {version!r} is not known; v1 and v1beta1 are")
        if section.get("interactiveMode") == "Always":
            raise self._error("exec: interactiveMode is Always, and there is nobody to ask here")
        command = str(section.get("command", ""))
        if os.sep in command:
            command = str(user.path.parent / command)
        elif not (command and shutil.which(command)):
            raise self._error(f"exec: there is no program {command!r}. {section.get('installHint', '')}".rstrip())
        environment = {str(each["name"]): str(each["value"]) for each in section.get("env") or ()}
        given = {
            key: cluster[key]
            for key in ("server", "tls-server-name", "insecure-skip-tls-verify", "certificate-authority-data")
            if key in cluster
        }
        return ExecPlugin(
            command,
            tuple(str(each) for each in section.get("args") or ()),
            environment,
            version,
            given if section.get("provideClusterInfo") else None,
            str(section.get("installHint", "")),
        )

    def _error(self, reason: str) -> ConfigError:
        return ConfigError(f"store {self._where}: {self._source}: {reason}")


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return json.loads(text)  # which every kubeconfig may be, and which needs nothing else
    except ValueError:
        pass
    try:
        import yaml
    except ImportError:
        raise ConfigError(
            f"{source}: reading YAML needs PyYAML; install it with: pip install 'pyflannel[kubernetes]'"
        ) from None
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid YAML{_place(error)}") from None


def _place(error: Exception) -> str:
    """Where a text is not YAML. PyYAML's own message quotes the line, which may be a token's."""
    mark = getattr(error, "problem_mark", None)
    return "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
