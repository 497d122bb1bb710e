"""A process in a node's namespace that shows what the daemon keeps in the kernel, and takes things out of it.

One JSON document a line, in and out: ``{"do": "dump", "sysctls": [...]}`` answers with the objects as texts,
``{"do": "remove", "object": text, "sysctls": [...]}`` takes that object away behind the daemon's back (a kernel
parameter gets another value) and answers with what the kernel had against it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

from pyflannel.kernel.model import Kind, Sysctl
from pyflannel.kernel.netlink import NetlinkPort
from pyflannel.kernel.port import Scope, Write


def _answer(port: NetlinkPort, request: dict[str, Any]) -> dict[str, Any]:
    found = port.dump(Scope(sysctls=frozenset(request["sysctls"])))
    if request["do"] == "dump":
        return {"objects": sorted([key[0].name, repr(item)] for key, item in found.items())}
    chosen = next((item for item in found.values() if repr(item) == request["object"]), None)
    if chosen is None:
        return {"errors": ["it was not there"]}
    new = replace(chosen, value="1" if chosen.value == "0" else "0") if isinstance(chosen, Sysctl) else None
    assert (new is not None) == (chosen.key[0] is Kind.SYSCTL)
    return {"errors": [str(error) for error in port.apply([Write(chosen, new)]).values()]}


def main() -> None:
    """Answer until the input ends."""
    port = NetlinkPort()
    for line in sys.stdin:
        print(json.dumps(_answer(port, json.loads(line))), flush=True)
    port.close()


if __name__ == "__main__":
    main()
