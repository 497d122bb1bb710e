"""A node's lease while clocks jump: whether it stays the same one, renewed at its own pace."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Final

from tests.integration.asking import get
from tests.storing import in_store
from tests.waiting import until

from pyflannel.lab import Node

TTL: Final = 12.0
"""Seconds; Consul takes no fewer than ten."""

OPTIONS: Final = ("--lease-ttl", f"{TTL:g}", "--healthz-ip", "127.0.0.1", "--healthz-port", "8401")
"""The options that a daemon is started with."""

_EARLIEST: Final = TTL - TTL / 3 * 1.1
"""Seconds between two renewals at least: the margin is a third of the time, stretched by a tenth at most.
A slow machine only makes it more."""


@dataclass(frozen=True)
class Renewals:
    """Those of the daemon on ``node``, whose lease in the store at ``url`` is looked at from another node."""

    node: Node
    observer: Node
    url: str

    def calls(self, name: str) -> int:
        """How often the daemon has called its store so."""
        _, text = get(self.node, "/metrics")
        label = f'pyflannel_store_call_duration_seconds_count{{call="{name}"}}'
        return next(int(float(line.rpartition(" ")[2])) for line in text.splitlines() if line.startswith(label))

    def record(self) -> list[str]:
        """Key, version and handle of the node's lease in the store: they change if it was lost and taken again."""
        code = """
            leases = [lease for lease in store.snapshot().leases if json.dumps(words[0]) in lease.value]
            print(json.dumps([(lease.key, lease.version, lease.handle) for lease in leases]))
        """
        (found,) = json.loads(in_store(self.observer, self.url, code, self.node.name))
        return list(map(str, found))

    def go_on(self, record: list[str]) -> None:
        """See that the lease is renewed, twice and for longer than it lives, not too often, and is still ``record``."""
        first, begin = self.calls("renew"), time.monotonic()
        until(
            lambda: time.monotonic() - begin > 1.5 * TTL and self.calls("renew") - first >= 2,
            "it is not renewed any more",
        )
        renewals = self.calls("renew") - first
        assert renewals <= (time.monotonic() - begin) / _EARLIEST + 1, "a storm of renewals"
        status = self.node.daemon.status()
        assert (status["ready"], status["store"]["connected"]) == (True, True), status["message"]
        assert self.record() == record
