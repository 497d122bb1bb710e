"""The error taxonomy: every failure pyflannel can name, what it means to a caller, and its exit code.

The idea: the *message* says what was wrong, where (file, key, value) and what to do about it; the *type* says what kind
of failure it is, and so what a caller can do, and which exit code a command ends with. Plugins raise these types, and
only these, across the contracts of :mod:`pyflannel.store` and :mod:`pyflannel.backend`; anything else that escapes a
plugin is wrapped in :class:`PluginError` with the plugin's name.

Exit codes (also listed in ``docs/reference/exit-codes.md``):

==== =========================================================================================
code meaning
==== =========================================================================================
0    success
1    an error inside pyflannel itself
2    wrong usage of the command line
3    the configuration (flags, environment, file, network document) is invalid
4    the store is unreachable, refuses access or holds something unusable
5    no lease: out of subnets, or another node holds ours
6    the kernel refused something, a right is missing, or descriptors, threads or memory ran out
7    a plugin is unknown, broken, or built for another API version
8    another daemon already runs here, or none does where one is needed
9    a check ran and found failures (lab, doctor, store check)
==== =========================================================================================
"""

from __future__ import annotations

from enum import IntEnum

__all__ = [
    "ConfigError",
    "ConflictError",
    "DaemonError",
    "ExitCode",
    "HistoryGoneError",
    "KernelError",
    "LeaseError",
    "MalformedError",
    "OutOfSubnetsError",
    "PeerRejected",
    "PluginError",
    "PyflannelError",
    "StoreAbsentError",
    "StoreDeniedError",
    "StoreError",
    "StoreUnavailableError",
    "UnderlayError",
]


class ExitCode(IntEnum):
    """The process exit codes; see the table in the module's docstring."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    CONFIG = 3
    STORE = 4
    LEASE = 5
    KERNEL = 6
    PLUGIN = 7
    DAEMON = 8
    CHECK_FAILED = 9


class PyflannelError(Exception):
    """Base of every error pyflannel raises on purpose."""

    exit_code: ExitCode = ExitCode.INTERNAL
    """What a command ends with when the error reaches it."""


class ConfigError(PyflannelError):
    """A flag, an environment variable, a config file or the network document is invalid."""

    exit_code = ExitCode.CONFIG


class MalformedError(ConfigError):
    """A text from outside (a lease, a subnet key, an address) can't be read as what it should be."""


class UnderlayError(PyflannelError):
    """No interface can carry the overlay as things are: it is missing, down, or has no address of a needed family."""

    exit_code = ExitCode.CONFIG


class StoreError(PyflannelError):
    """The store can't do what was asked; the base of all store errors."""

    exit_code = ExitCode.STORE


class StoreUnavailableError(StoreError):
    """The store did not answer, or not in time. The call may or may not have taken effect; retry after reading back."""


class StoreAbsentError(StoreUnavailableError):
    """There is no store in this place, and the caller must not create one (:meth:`Store.expect_existing`)."""


class StoreDeniedError(StoreError):
    """The store answered and refused: credentials, rights, certificate. Somebody has to change something."""


class ConflictError(StoreError):
    """Somebody else was first: create-if-absent met a key, or compare-and-swap met another version."""


class HistoryGoneError(StoreError):
    """A watch can't be resumed from the asked revision (compacted, or unknown); take a new snapshot."""


class LeaseError(PyflannelError):
    """This node has no lease and can't get one as things are."""

    exit_code = ExitCode.LEASE


class OutOfSubnetsError(LeaseError):
    """Every subnet of the network is taken. May pass when a lease expires."""


class KernelError(PyflannelError):
    """The kernel refused an object, or this process lacks the right to ask."""

    exit_code = ExitCode.KERNEL


class PluginError(PyflannelError):
    """A plugin is unknown, did not load, was built for another API, or broke its contract."""

    exit_code = ExitCode.PLUGIN


class DaemonError(PyflannelError):
    """Another daemon holds this node's run directory, it can't be used, or no daemon answers there."""

    exit_code = ExitCode.DAEMON


class PeerRejected(PyflannelError):  # noqa: N818 - it is a verdict on one peer, not a failure of the caller
    """A backend can't use one peer's lease. The message is the reason that ``pyflannel status`` shows."""

    exit_code = ExitCode.LEASE
