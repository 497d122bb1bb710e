"""How the daemon stands, put down as one frozen view at the end of each turn: all that anybody is shown is in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pyflannel.backend import Backend, Node
from pyflannel.daemon.announcing import Announcements
from pyflannel.daemon.calls import Calls
from pyflannel.daemon.crossing import own_progress
from pyflannel.daemon.joined import Joined
from pyflannel.daemon.kernel_side import KernelSide
from pyflannel.daemon.node_files import NodeFiles
from pyflannel.daemon.store_side import StoreSide
from pyflannel.errors import PyflannelError
from pyflannel.firewall.keeper import FirewallKeeper
from pyflannel.membership.slot import Slot
from pyflannel.planning.guard import guarded
from pyflannel.planning.transition import encrypts
from pyflannel.settings.settings import Settings
from pyflannel.show.measures import Measures
from pyflannel.show.status import ChangeStatus
from pyflannel.show.view import Details, View, Window

__all__ = ["Account"]


class Account:
    """Looks at the parts of the loop, and says how they stand. For the loop's thread."""

    def __init__(
        self,
        window: Window,
        slot: Slot,
        kernel: KernelSide,
        store_side: StoreSide,
        firewall: FirewallKeeper,
        files: NodeFiles,
        announcements: Announcements,
        calls: Calls,
        measures: Measures,
        clock: Callable[[], float],
    ) -> None:
        self._window, self._slot, self._kernel, self._store_side = window, slot, kernel, store_side
        self._firewall, self._files, self._announcements = firewall, files, announcements
        self._calls, self._measures, self._clock = calls, measures, clock
        self.stopping = False
        self.unguarded = ""
        """Why no rule holds back packets that somebody's route takes past the encryption."""

    def view(self, settings: Settings, joined: Joined | None) -> View:
        """How all stands now."""
        kernel, last, generation = self._kernel, self._window.last, self._store_side.generation
        refusals = kernel.refusals
        node = joined.overlay.node if joined is not None else None
        return replace(
            last,
            settings=settings.told,
            warnings=settings.warnings,
            lease=self._slot.state,
            node_id=node.node_id if node is not None else last.node_id,
            stopping=self.stopping,
            underlay=kernel.underlay.found,
            backend=self._calls.backend,
            network=node.network if node is not None else None,
            overruled=generation.overruled if generation is not None else "",
            subnets=node.subnets if node is not None else None,
            troubles=(
                kernel.underlay.trouble,
                kernel.trouble,
                joined.planes.outage if joined is not None else "",
                self._store_side.trouble,
                self._files.trouble,
            ),
            kernel_readable=not kernel.trouble,
            call=self._calls.now,
            in_place=self.in_place(joined),
            refused=refusals[0] if refusals else "",
            refusals=len(refusals),
            plane_trouble=joined.planes.essential_trouble if joined is not None else "",
            diversions=tuple(map(str, kernel.diversions.found)),
            encrypts=joined is not None and encrypts(joined.backend),
            unguarded=self.unguarded,
            change=self._change(joined),
            subnet_file=self._files.written,
            peers=len(joined.overlay.peers) if joined is not None else 0,
            skipped=joined.overlay.skipped if joined is not None else 0,
            firewall=self._firewall.state,
            repaired=kernel.repaired,
            last_error=self._announcements.last_error,
        )

    def put(self, settings: Settings, joined: Joined | None) -> View:
        """Put it down where it is looked for, with the details if somebody has asked for them."""
        view = self.view(settings, joined)
        request = self._window.wanted
        if request:
            view = replace(view, details=self._details(joined))
            self._window.answer(request, view)
        else:
            self._window.put(view)
        return view

    def in_place(self, joined: Joined | None) -> bool:
        """Whether the kernel holds all that the node needs for itself."""
        return joined is not None and self._kernel.tracker.in_place(item.key for item in joined.essential)

    def _change(self, joined: Joined | None) -> ChangeStatus | None:
        crossing = joined.crossing if joined is not None else None
        if crossing is None:
            return None
        return crossing.status(own_progress(self._slot.state, crossing.transition.change.id))

    def _details(self, joined: Joined | None) -> Details:
        tracker = self._kernel.tracker
        tracked, links = tuple(tracker.status()), tracker.link_names
        details = Details(self._clock(), tracked=tracked, links=links, measures=self._measures.copy())
        if joined is None:
            return details
        overlay, planes = joined.overlay, joined.planes
        with self._calls.calling(joined.backend, "describe"):
            return replace(
                details,
                peers=tuple(overlay.peers.values()),
                network=overlay.node.network,
                problems=planes.problems(),
                notes=planes.notes(),
                describes=_described(joined.backend, overlay.node),
                counters=planes.counters(),
            )


def _described(backend: Backend[Any], node: Node) -> dict[str, str]:
    """What the backend tells of itself."""
    try:
        return guarded(
            backend.name,
            "describe",
            lambda: {str(name): str(text) for name, text in backend.describe(node).items()},
        )
    except PyflannelError as error:  # a plugin's fault; nothing else depends on it
        return {"fault": str(error)}
