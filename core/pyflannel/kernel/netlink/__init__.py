"""The kernel port over netlink: what the tracker wants, as messages, and what the kernel says, as model values.

:mod:`~pyflannel.kernel.netlink.port` joins the parts, and says in which order things are read and written:

* :mod:`~pyflannel.kernel.netlink.picture`: the port's picture of the namespace, and what of a row is ours;
* :mod:`~pyflannel.kernel.netlink.dumps` and :mod:`~pyflannel.kernel.netlink.found`: dumps, and what they bring
  together; :mod:`~pyflannel.kernel.netlink.surroundings`: what others have where the overlay is;
* :mod:`~pyflannel.kernel.netlink.listener`: notifications;
* :mod:`~pyflannel.kernel.netlink.devices`, :mod:`~pyflannel.kernel.netlink.sysctls` and
  :mod:`~pyflannel.kernel.netlink.entries` (all that is on devices, by the thousand): writes, which
  :mod:`~pyflannel.kernel.netlink.batch` sends.

The messages themselves are packed and parsed one level up, by kind (:mod:`~pyflannel.kernel.wire` and its neighbours),
and :mod:`~pyflannel.kernel.rtsocket` has the sockets.
"""

from pyflannel.kernel.netlink.port import NetlinkPort

__all__ = ["NetlinkPort"]
