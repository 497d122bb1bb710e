"""The firewall's rules that follow from an overlay and from a node's settings: what the daemon has written, and what
doctor looks for.
"""

from __future__ import annotations

from pyflannel.firewall.model import Mode, Rules, plan
from pyflannel.firewall.state import UNGUARDED
from pyflannel.planning.overlay import Overlay
from pyflannel.planning.transition import encrypts
from pyflannel.settings.settings import Settings

__all__ = ["planned", "unguarded"]


def planned(overlay: Overlay, settings: Settings, *, forward: bool = False) -> Rules:
    """The rules that this node should have.

    :param forward: assume that those for passing are on, whatever the settings say.
    """
    node = overlay.node
    return plan(
        node.network,
        node.subnets,
        forward=forward or settings.forward_rules,
        masquerade=settings.ip_masq,
        fully_random=settings.ip_masq_fully_random,
        entrances=overlay.entrances if settings.check_sources else (),
        underlay=node.underlay.interface,
        addresses=[address for address in (node.underlay.ipv4, node.underlay.ipv6) if address is not None],
        exits=overlay.exits if settings.check_exits else (),
        ipsec=overlay.ipsec,
    )


def unguarded(overlay: Overlay, settings: Settings) -> str:
    """Why nothing holds back what others route past the encryption; empty if rules do, or if nothing is encrypted."""
    if not encrypts(overlay.backend):
        return ""
    if not overlay.exits:
        return f"backend {overlay.backend.name} has no device of its own through which all must leave"
    if settings.firewall is Mode.NONE:
        return "--firewall none"
    return "" if settings.check_exits else UNGUARDED
