"""What the rest of the node reads of us, written when it can be relied upon: ``subnet.env``, and the CNI network."""

from __future__ import annotations

from pyflannel.daemon import cni, subnet_env
from pyflannel.daemon.calls import Calls
from pyflannel.daemon.joined import Joined
from pyflannel.errors import PyflannelError
from pyflannel.planning.guard import checked_mtu, guarded
from pyflannel.settings.settings import Settings

__all__ = ["NodeFiles"]


class NodeFiles:
    """The files, and whether they are there. For the loop's thread."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.written = False
        self.trouble = ""
        """Why they can't be written."""

    def write(self, joined: Joined, settings: Settings) -> None:
        """Write what differs. What fails is tried again at the next call."""
        try:
            self._write(joined, settings)
        except PyflannelError as error:
            self.trouble = str(error)
        else:
            self.trouble = ""

    def _write(self, joined: Joined, settings: Settings) -> None:
        node, backend = joined.overlay.node, joined.backend
        with self._calls.calling(backend, "mtu"):
            mtu = checked_mtu(backend.name, guarded(backend.name, "mtu", lambda: backend.mtu(node.underlay)))
        text = subnet_env.render(node.network, node.subnets, mtu, settings.ip_masq)
        subnet_env.write(settings.subnet_file, text)
        if settings.cni_conf is not None:
            cni.write(settings.cni_conf, cni.render(node.network, node.subnets, mtu, settings.ip_masq))
        self.written = True
