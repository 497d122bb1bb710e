"""A thread that looks after something for as long as that is wanted.

It sleeps until it is woken, ends when it is told to, and never dies without a word: what it died of is raised to
whoever asks. Ending it takes a flag, a wake-up, and a wait that has a limit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from pyflannel.small.wake import Wake

__all__ = ["Attendant"]


class Attendant:
    """A thread of a data plane's own, say, which keeps a process alive and tells it what has changed.

    :param name: the thread's.
    :param work: goes on until :attr:`stopping` is set; it sleeps in ``select``, with :attr:`wake` among what it
        waits for.
    :param leave: called in the thread at the end, whatever that came from.
    """

    def __init__(self, name: str, work: Callable[[], None], leave: Callable[[], None] = lambda: None) -> None:
        self.wake = Wake()
        self.stopping = threading.Event()
        self._work, self._leave = work, leave
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def check(self) -> None:
        """Raise what the thread has died of, if it has."""
        if self._error is not None:
            raise self._error

    def stop(self, patience: float) -> None:
        """Have it end, and wait so many seconds at most. Idempotent: the second call does not wait again."""
        if not self.stopping.is_set():
            self.stopping.set()
            self.wake.set()
            self._thread.join(patience)

    def join(self) -> None:
        """Wait until it has ended."""
        self._thread.join()

    def _run(self) -> None:
        try:
            try:
                self._work()
            finally:
                self._leave()
        except BaseException as error:  # told by check()
            self._error = error
        finally:
            # Mostly they are methods of whoever has us: a cycle, which would keep descriptors until it is collected.
            del self._work, self._leave
