"""The kernel of this node: what it should hold (:mod:`~pyflannel.kernel.model`), how the difference is found
(:mod:`~pyflannel.kernel.tracker`) and how it is written (:mod:`~pyflannel.kernel.netlink`)."""
