"""The conformance kit for backends: the contract of :mod:`pyflannel.backend`, checked as properties and in a lab.

Subclass it in a test module of your own distribution and name your backend::

    class TestMyBackend(BackendConformance):
        backend = "my-backend"
        variants = ({}, {"Port": 4790})

:class:`BackendPlanning` asks the planner: hypothesis draws networks, options, nodes and hostile peers. It needs no
rights and no installation. :class:`BackendBehaviour` runs three nodes with real daemons in a lab (root, or user
namespaces), for which the backend must be installed: traffic, repairs, restarts, departures, a change of options and
back, and a cleanup that leaves nothing. :class:`BackendConformance` is both.

A test that asks for what a backend does not claim skips with a reason that begins with ``not applicable:``. No test
hangs with its backend: whatever is waited for has a limit, and is named when it does not come.
"""

from __future__ import annotations

from pyflannel.testing._behaviour import BackendBehaviour
from pyflannel.testing._live import LiveOverlay as LiveOverlay
from pyflannel.testing._planner import Planner
from pyflannel.testing._planning import BackendPlanning
from pyflannel.testing._scenes import Scene
from pyflannel.testing.clauses import not_applicable

__all__ = [
    "BackendBehaviour",
    "BackendConformance",
    "BackendPlanning",
    "Planner",
    "Scene",
    "not_applicable",
]


class BackendConformance(BackendPlanning, BackendBehaviour):
    """Both kits. See the module's docstring."""
