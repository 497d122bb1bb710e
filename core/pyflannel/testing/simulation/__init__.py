"""A whole cluster in one process, with every fault there is and a clock that is told (public API).

The nodes are daemons as they run: the loop, the lease keeper, the overlay, the tracker, the feed of a data plane, your
backend. What is simulated is what is around them: a store with the weaknesses of its kind
(:mod:`~pyflannel.testing.simulation.stores`), a network that loses and delays, kernels in memory, and time, which
stands still while something happens and jumps over what is empty. All of it follows from one seed::

    ending = run(draw_plan(17))
    assert ending.violation is None, shrink(ending).report()

After every step a judge looks whether what must hold does hold (:data:`INVARIANTS`). :func:`shrink` finds the shortest
history that still fails.

**A backend of your own**: give :func:`run` a ``make_backend``, and :func:`draw_plan` network documents that ask for
it. Whether packets arrive is read from the kernels where the devices are VXLAN devices or the routes lead through
gateways, and from :class:`Table` where a data plane such as :class:`MemoryBackend`'s moves them.

**A store of your own**: subclass :class:`StoreModel` and give :func:`run` a ``make_model``. The model is not your
driver, which talks to a real server in real time: it says what your server may do at its worst. Hold the two against
each other with one random history on both.

``python -m pyflannel.testing.simulation 0-999`` runs a thousand seeds. A history is the same again only with the same
``PYTHONHASHSEED``; that command sets it.
"""

from pyflannel.testing.simulation.cluster import Plan
from pyflannel.testing.simulation.faults import FAULTS, Fault
from pyflannel.testing.simulation.judge import INVARIANTS, PROMISE, Violation
from pyflannel.testing.simulation.plane import MemoryBackend, SecretBackend, Table
from pyflannel.testing.simulation.planning import DOCUMENTS, draw_plan
from pyflannel.testing.simulation.running import Ending, run, shrink
from pyflannel.testing.simulation.stores import (
    MODELS,
    ConsulModel,
    EtcdModel,
    Expired,
    FileModel,
    KubernetesModel,
    SimulatedStore,
    StoreModel,
)

__all__ = [
    "DOCUMENTS",
    "FAULTS",
    "INVARIANTS",
    "MODELS",
    "PROMISE",
    "ConsulModel",
    "Ending",
    "EtcdModel",
    "Expired",
    "Fault",
    "FileModel",
    "KubernetesModel",
    "MemoryBackend",
    "Outcome",
    "Plan",
    "SecretBackend",
    "SimulatedStore",
    "StoreModel",
    "Table",
    "Violation",
    "draw_plan",
    "run",
    "shrink",
]

Outcome = Ending
"""What :class:`Ending` was called; an outcome is an action's (:class:`pyflannel.backend.Outcome`)."""
