"""Ways to look for what a lab may have left behind."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any


def namespaces_of(pid: int) -> frozenset[str]:
    """The network, process and mount namespaces that ``pid`` lives in."""
    return frozenset(os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("net", "pid", "mnt"))


def inhabited(namespaces: frozenset[str]) -> list[int]:
    """Processes that still live in one of ``namespaces``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                own = namespaces_of(int(entry.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if own & namespaces:
                found.append(int(entry.name))
    return found


def _without_lifetimes(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_lifetimes(item) for key, item in value.items() if not key.endswith("_life_time")}
    if isinstance(value, list):
        return [_without_lifetimes(item) for item in value]
    return value


def network_state() -> dict[str, Any]:
    """This process's own network namespace as iproute2 shows it, and the names of namespaces."""
    shows = {
        what: _without_lifetimes(
            json.loads(subprocess.run(["ip", "-j", *what.split()], capture_output=True, check=True).stdout or b"[]")
        )
        for what in ("-d link", "address", "route show table all", "-6 route", "rule", "-6 rule")
    }
    forwarding = Path("/proc/sys/net/ipv4/ip_forward").read_text(encoding="ascii")
    return {**shows, "ip_forward": forwarding}
