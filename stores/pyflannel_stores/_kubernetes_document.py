"""Where the network document is: a file, as a rule a mounted ConfigMap, or the ConfigMap itself.

The idea: nodes read the file, which the kubelet keeps up to date and which costs the API server nothing; whoever wants
to write it, from anywhere, goes to the ConfigMap. Both are a :class:`Document`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from pyflannel.errors import ConfigError, ConflictError, StoreDeniedError, StoreUnavailableError
from pyflannel.store import CONFIG_KEY, Record
from pyflannel_stores._bounds import parsed

if TYPE_CHECKING:
    from pyflannel_stores._deadline import Deadline
    from pyflannel_stores._kubernetes_access import Access

__all__ = ["DEFAULT_CONFIG_MAP", "DEFAULT_FILE", "KEY", "ConfigMap", "Document", "File"]

DEFAULT_FILE: Final = "/etc/kube-flannel/net-conf.json"

DEFAULT_CONFIG_MAP: Final = "pyflannel/pyflannel"
"""Namespace and name of the one in ``contrib/kubernetes``."""

KEY: Final = "net-conf.json"
"""The ConfigMap's key that holds the document; the file's name where it is mounted."""


class Document(ABC):
    """The network document, in one of the two places."""

    interval: float
    """Seconds between two looks at it while somebody watches."""

    last: Record | None = None
    """As it was when it was read last."""

    @abstractmethod
    def read(self, deadline: Deadline) -> Record:
        """The document.

        :raises StoreDeniedError: there is none, or it may not be read.
        """

    @abstractmethod
    def write(self, value: str, expected: Record | None, deadline: Deadline) -> Record:
        """Write it if it is still ``expected``.

        :raises ConflictError: it is not.
        :raises StoreDeniedError: it can't be written here, or not with these rights.
        """

    def latest(self, deadline: Deadline) -> Record:
        """The document, if need be as it was when it was read last."""
        return self.read(deadline)

    def known(self, deadline: Deadline) -> Record:
        """The document, or as it was when it was read last, if there is none any more or it may not be read.

        :raises StoreDeniedError: it never was read.
        """
        try:
            return self.read(deadline)
        except StoreDeniedError:
            if self.last is None:
                raise
            return self.last

    def close(self) -> None:  # noqa: B027 - a file has nothing to let go of
        """Let go of connections."""


class File(Document):
    """A file, read again only when it is another one."""

    interval = 1.0

    def __init__(self, path: Path, where: str) -> None:
        self.path = path
        self._where = where
        self._stamp: tuple[int, int, int] | None = None

    def read(self, deadline: Deadline) -> Record:
        try:
            status = self.path.stat()
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            record = self.last
            if record is None or stamp != self._stamp:
                text = self.path.read_text(encoding="utf-8")
                record = Record(CONFIG_KEY, text, f"{stamp[0]}.{stamp[1]}", permanent=True)
                self._stamp, self.last = stamp, record
            return record
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text file"
            raise StoreDeniedError(
                f"{self._where}: network document {self.path}: {reason}; it is a ConfigMap's file as a rule: mount it "
                "there, or say where it is with --net-config-path"
            ) from None

    def write(self, value: str, expected: Record | None, deadline: Deadline) -> Record:
        """Refused: what is mounted can't be written."""
        raise StoreDeniedError(
            f"{self._where}: its network document is the file {self.path}, as a rule a mounted ConfigMap, which can't "
            "be written here: name the ConfigMap in the store's URL, such as "
            f"--store 'kubernetes://?config_map={DEFAULT_CONFIG_MAP}'"
        )


class ConfigMap(Document):
    """The ConfigMap itself, asked for by the API.

    :param name: ``NAMESPACE/NAME``.
    """

    interval = 10.0

    def __init__(self, name: str, access: Access, where: str) -> None:
        from pyflannel_stores import _kubernetes_http as http

        namespace, slash, own = name.partition("/")
        if not (slash and _is_name(namespace) and _is_name(own)):
            raise ConfigError(
                f"store {where}: config_map={name}: expected NAMESPACE/NAME, such as {DEFAULT_CONFIG_MAP}"
            )
        self.name, self._namespace, self._own = name, namespace, own
        self._where, self._http = where, http
        self._api = http.Api(access)
        self._path = f"/api/v1/namespaces/{namespace}/configmaps/{own}"

    def read(self, deadline: Deadline) -> Record:
        self.last = self._record(self._call("get", deadline))
        return self.last

    def latest(self, deadline: Deadline) -> Record:
        return self.last or self.read(deadline)

    def write(self, value: str, expected: Record | None, deadline: Deadline) -> Record:
        """See :class:`Document`. A version is the ConfigMap's resource version, which the API server compares."""
        if expected is None:
            found = self.read(deadline)
            raise ConflictError(
                f"{self._where}: ConfigMap {self.name} holds a network document: version {found.version}"
            )
        patch = {"metadata": {"resourceVersion": expected.version}, "data": {KEY: value}}
        try:
            return self._record(self._call("patch", deadline, patch))
        except self._http.Overtaken:
            found = self.read(deadline)
            if found.value == value:  # our own write, whose answer got lost; or another key was changed beside it
                return found
            if found.value == expected.value:
                return self.write(value, found, deadline)
            raise ConflictError(f"{self._where}: ConfigMap {self.name} was changed meanwhile") from None

    def close(self) -> None:
        self._api.close()

    def _call(self, verb: str, deadline: Deadline, patch: Mapping[str, Any] | None = None) -> Any:
        try:
            body = self._api.call(verb.upper(), self._path, deadline, body=patch, kind="application/merge-patch+json")
        except self._http.NotFound:
            raise StoreDeniedError(
                f"{self._where}: there is no ConfigMap {self.name}; name the one that the nodes' pods mount: "
                "--store 'kubernetes://?config_map=NAMESPACE/NAME'"
            ) from None
        except self._http.Forbidden as error:
            raise StoreDeniedError(
                f"{self._where}: no right to {verb} ConfigMap {self.name} ({error.reason}): grant the verb {verb!r} on "
                f"the resource 'configmaps' in namespace {self._namespace}, resourceNames [{self._own}]"
            ) from None
        try:
            return parsed(body)
        except ValueError:
            self._garbage()

    def _record(self, answer: Any) -> Record:
        try:
            data, version = answer.get("data") or {}, str(answer["metadata"]["resourceVersion"])
        except (KeyError, TypeError, AttributeError):
            self._garbage()
        text = data.get(KEY) if isinstance(data, dict) else None
        if not isinstance(text, str):
            raise StoreDeniedError(f"{self._where}: ConfigMap {self.name} has no key {KEY!r}")
        return Record(CONFIG_KEY, text, version, permanent=True)

    def _garbage(self) -> NoReturn:
        raise StoreUnavailableError(f"{self._where}: what answers for ConfigMap {self.name} is not Kubernetes")


def _is_name(text: str) -> bool:
    """Whether it may name an object (RFC 1123, a subdomain): it becomes part of a path."""
    return len(text) <= 253 and bool(re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", text))
