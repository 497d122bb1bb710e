"""What the loop is calling a plugin for: said before the call, so that everybody sees it should it not come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from pyflannel.backend import Backend
from pyflannel.show.view import PluginName, Window
from pyflannel.small.guarded import PluginCall

__all__ = ["Calls"]


class Calls:
    """The call that is under way, if any. For the loop's thread.

    :param window: gets a view with the call before it is made.
    """

    def __init__(self, window: Window, clock: Callable[[], float]) -> None:
        self._window, self._clock = window, clock
        self.now: PluginCall | None = None
        self.backend: PluginName | None = None
        """The backend that this node is said to use, also when it has not planned anything yet."""

    @contextmanager
    def calling(self, backend: Backend[Any], what: str) -> Iterator[None]:
        """Let the view say that the backend is being called."""
        self.now = PluginCall(backend.name, what, self._clock())
        self._window.put(replace(self._window.last, call=self.now, backend=self.backend))
        try:
            yield
        finally:
            self.now = None
            self._window.put(replace(self._window.last, call=None))

    def beat(self) -> None:
        """A sign of life within long work, of which each step may be a plugin's call of its own."""
        now = self._window.beat = self._clock()
        if self.now is not None:
            self.now.since = now
