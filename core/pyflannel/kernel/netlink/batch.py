"""Writes as messages: sent together, refused alone."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from typing import Final

from pyflannel.errors import KernelError
from pyflannel.kernel.model import Key
from pyflannel.kernel.port import Write
from pyflannel.kernel.refusal import refusal
from pyflannel.kernel.rtsocket import NotificationSocket, Refused, RequestSocket

__all__ = ["GONE", "Batches", "Encoded"]

GONE: Final = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.ENXIO, errno.EADDRNOTAVAIL})
"""How the kernel refuses to delete what isn't there."""


class Encoded:
    """One write as messages, and the errors that mean it was done already."""

    __slots__ = ("forgiven", "messages", "write")

    def __init__(self, write: Write, messages: tuple[bytes, ...], forgiven: frozenset[int] = frozenset()) -> None:
        self.write = write
        self.messages = messages
        self.forgiven = forgiven


class Batches:
    """Sends messages, as many at a time as the kernel's word of them finds room.

    :param between: called again and again while many are sent; it hears what the kernel tells meanwhile.
    """

    def __init__(self, requests: RequestSocket, notified: NotificationSocket, between: Callable[[], None]) -> None:
        self._request = requests
        self._notified = notified
        self._between = between

    def one(self, message: bytes) -> Refused | None:
        """Send a message alone: how it was refused, if it was."""
        return self._request.send([message], self._notified.most, lambda: None).get(0)

    def demand(self, write: Write, message: bytes, forgiven: frozenset[int] = frozenset()) -> None:
        """Send a message alone.

        :raises KernelError: it was refused, and not with one of the ``forgiven`` errors.
        """
        refused = self.one(message)
        if refused is not None and refused.number not in forgiven:
            raise refusal(write, *refused)

    def refused(self, messages: list[bytes]) -> list[int]:
        """Send messages; the numbers of those that were refused."""
        return list(self._request.send(messages, self._notified.most, self._between)) if messages else []

    def send(
        self,
        writes: Iterable[Encoded | None],
        failures: dict[Key, KernelError],
        unsettled: Callable[[Write, Refused], bool] = lambda write, refused: False,
    ) -> None:
        """Send writes as one batch; note in ``failures`` what the kernel refused, unless ``unsettled`` takes it."""
        batch: list[bytes] = []
        origin: list[Encoded] = []
        for each in writes:
            if each is not None:
                batch.extend(each.messages)
                origin.extend([each] * len(each.messages))
        if not batch:
            return
        for number, refused in self._request.send(batch, self._notified.most, self._between).items():
            each = origin[number]
            if refused.number not in each.forgiven and not unsettled(each.write, refused):
                failures.setdefault(each.write.key, refusal(each.write, *refused))
