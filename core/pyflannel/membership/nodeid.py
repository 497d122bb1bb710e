"""Which node this is: an identity that survives reboots, new addresses and a reinstallation of pyflannel; and which
machine, for two that have one identity because one was copied from the other.

It is derived from the machine id, hashed so that a lease in a shared store does not give the machine id away
(``machine-id(5)`` calls it confidential), in the way of systemd's ``sd_id128_get_machine_app_specific(3)``: HMAC-SHA256
with the machine id as key and an id of our own as message, cut to 128 bits and marked as a version 4 UUID.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pyflannel.errors import ConfigError
from pyflannel.network.lease import MAX_NODE_ID
from pyflannel.network.marks import MOST_CARDS, Marks
from pyflannel.small import files
from pyflannel.small.digest import hmac_sha256
from pyflannel.small.scarcity import lacking

__all__ = ["APPLICATION_ID", "identify", "known_id", "machine_specific", "read_marks"]

APPLICATION_ID: Final = uuid.UUID("8d1d7f0c-3c5e-4f5e-9a57-5a7b4d1c2e90")
"""What makes our hash of the machine id differ from every other program's."""

_FILE: Final = "node-id"
"""Where a random id is kept, below the state directory."""


def identify(state_dir: Path, given: str | None = None, machine_id: Path = Path("/etc/machine-id")) -> str:
    """This node's id: ``given``, else derived from the machine id, else random and kept in ``state_dir/node-id``.

    :raises ConfigError: there is no machine id, and ``state_dir`` can't keep a random one.
    """
    said = given if given is not None else _from_machine(machine_id)
    return _kept(state_dir / _FILE, machine_id) if said is None else said


def known_id(state_dir: Path, given: str | None = None, machine_id: Path = Path("/etc/machine-id")) -> str:
    """The same for whoever only looks: empty where there is none yet, and none is made. Such a node holds no lease.

    :raises ConfigError: there is one in ``state_dir`` that can't be read.
    """
    said = given if given is not None else _from_machine(machine_id)
    if said is not None:
        return said
    path = state_dir / _FILE
    return _kept(path, machine_id) if os.path.exists(path) else ""  # noqa: PTH110 - for whom it is unreadable, too


def _from_machine(machine_id: Path) -> str | None:
    try:
        text = _content(machine_id)
    except OSError:  # containers and images often have none
        return None
    return str(machine_specific(uuid.UUID(text))) if re.fullmatch("[0-9a-f]{32}", text) else None


def machine_specific(machine: uuid.UUID, application: uuid.UUID = APPLICATION_ID) -> uuid.UUID:
    """``sd_id128_get_machine_app_specific(3)``."""
    return uuid.UUID(bytes=hmac_sha256(machine.bytes, application.bytes)[:16], version=4)


_PRODUCT: Final = (
    "sys/class/dmi/id/product_uuid",
    "sys/firmware/devicetree/base/serial-number",
    "sys/hypervisor/uuid",
)
"""Where a machine's own number is found, the first that there is. Only root may read the first one."""


def read_marks(cards: Iterable[str], root: Path = Path("/")) -> Marks:
    """What tells this machine from another one with its node id.

    :param cards: the lasting hardware addresses of its network cards.
    """
    boot, namespace = _text(root / "proc/sys/kernel/random/boot_id"), _namespace(root / "proc/self/ns/net")
    product = next(filter(None, (_text(root / name) for name in _PRODUCT)), "")
    return Marks(
        _hashed(f"run {boot} {namespace}") if boot else "",
        _hashed(f"product {product}") if len(set(product) - set("-")) > 1 else "",  # all zeros is nobody's number
        frozenset(sorted(_hashed(f"card {card}") for card in cards)[:MOST_CARDS]),
    )


def _hashed(text: str) -> str:
    return hmac_sha256(APPLICATION_ID.bytes, text.encode())[:12].hex()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip(" \n\0").lower()
    except OSError:
        return ""


def _namespace(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _kept(path: Path, machine_id: Path) -> str:
    try:
        if not path.exists():
            _keep(path)
        text = _content(path)
    except OSError as error:
        if lacking(error):  # not the directory's fault
            raise
        raise ConfigError(
            f"{machine_id} holds no machine id, and {path} can't keep a random one ({error.strerror}); "
            "use --node-id or --state-dir"
        ) from None
    if not text:
        raise ConfigError(f"{path} is empty; delete it, or use --node-id")
    if not (text.isascii() and text.isprintable()) or len(text) > MAX_NODE_ID:
        raise ConfigError(f"{path} holds something other than a node id; delete it, or use --node-id")
    return text


def _content(path: Path) -> str:
    return files.read_own(path).decode("ascii", "replace").strip()


def _keep(path: Path) -> None:
    """Put a random id there; of several who do, the first one wins, whole."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    files.create(fresh, f"{uuid.uuid4()}\n")
    try:
        os.link(fresh, path)
    except FileExistsError:
        pass
    finally:
        fresh.unlink()
