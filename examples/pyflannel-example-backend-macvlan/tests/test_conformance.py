"""pyflannel's own kit for backends: what it asks of its in-tree backends, it asks of this one."""

from __future__ import annotations

from pyflannel.testing.backends import BackendConformance


class TestMacvlan(BackendConformance):
    """Planning as properties, and three nodes in a lab. The second variant moves the overlay to another device."""

    backend = "macvlan"
    variants = ({}, {"Device": "flannel-mv7"})
