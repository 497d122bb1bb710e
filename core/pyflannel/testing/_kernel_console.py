"""A process in a node's namespace that shows what the daemon keeps in the kernel, and takes things out of it.

One JSON document a line, in and out: ``{"do": "dump", "sysctls": [...], "any_mac": [...]}`` answers with the objects as
texts, without the MAC addresses of links whose plan names none; ``{"do": "remove", "object": text, ...}`` takes that
object away behind the daemon's back (what can't be removed, a kernel parameter or a WireGuard device's port, gets
another value) and answers with what the kernel had against it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyflannel.kernel.model import KernelObject, Link, Sysctl, WireguardDevice
from pyflannel.kernel.netlink import NetlinkPort
from pyflannel.kernel.port import Scope, Write


def _answer(port: NetlinkPort, request: dict[str, Any]) -> dict[str, Any]:
    sysctls = frozenset(request["sysctls"])
    found = port.dump(Scope(sysctls=sysctls))
    wireguard = [item.name for item in found.values() if isinstance(item, Link) and item.info.kind == "wireguard"]
    if wireguard:
        found = port.dump(Scope(sysctls=sysctls, wireguard=frozenset(wireguard)))
    shown = {_text(item, request["any_mac"]): item for item in found.values()}
    if request["do"] == "dump":
        return {"objects": sorted([item.key[0].name, text] for text, item in shown.items())}
    chosen = shown.get(request["object"])
    if chosen is None:
        return {"errors": ["it was not there"]}
    if isinstance(chosen, Sysctl):  # not by the port, which looks at it again: the daemon may have been faster
        return {"errors": _set(chosen, "1" if chosen.value == "0" else "0")}
    return {"errors": [str(error) for error in port.apply([Write(chosen, _other(chosen))]).values()]}


def _text(item: KernelObject, any_mac: Sequence[str]) -> str:
    return repr(replace(item, mac=None) if isinstance(item, Link) and item.name in any_mac else item)


def _set(item: Sysctl, value: str) -> list[str]:
    try:
        Path("/proc/sys", item.path).write_text(value)
    except OSError as error:
        return [str(error)]
    return []


def _other(item: KernelObject) -> KernelObject | None:
    """What stands for the absence of an object."""
    if isinstance(item, WireguardDevice):  # far from its own port: the neighbouring one may be another device's
        return replace(item, listen_port=item.listen_port ^ 256)
    return None


def main() -> None:
    """Answer until the input ends."""
    port = NetlinkPort()
    for line in sys.stdin:
        print(json.dumps(_answer(port, json.loads(line))), flush=True)
    port.close()


if __name__ == "__main__":
    main()
