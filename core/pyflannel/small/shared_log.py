"""The process's logging, which plugins and their libraries share with us.

A library that sets up logging as only a program should (``logging.config.dictConfig`` or ``fileConfig``,
``basicConfig(force=True)``, ``logging.disable``) takes our handler away or silences every logger that there is: from
then on nobody hears of anything. That is undone when a plugin has been imported or made; what it adds for itself stays.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

__all__ = ["keep", "undisturbed"]

log = logging.getLogger(__name__)

_OURS: Final = "pyflannel"
"""How the names of our loggers begin, and those of plugins that are called as ours are."""


class _Kept(NamedTuple):
    handler: logging.Handler
    level: int


_kept: Final[list[_Kept]] = []
_named: Final[set[str]] = set()


def keep(handler: logging.Handler, level: int) -> None:
    """Have everything logged to ``handler``, from this level on, in place of what was kept before."""
    root = logging.getLogger()
    for old in _kept:
        root.removeHandler(old.handler)
    _kept[:] = [_Kept(handler, level)]
    root.addHandler(handler)
    root.setLevel(level)


@contextmanager
def undisturbed(who: str) -> Iterator[None]:
    """Undo what is done to logging meanwhile.

    :param who: does it, as in ``store 'acme'``; is named in the log, once.
    """
    root = logging.getLogger()
    level, disabled, silent = root.level, root.manager.disable, _silent()
    usual = [each.level for each in _kept] == [level]
    try:
        yield
    finally:
        changed = False
        for kept in _kept:
            level = kept.level if usual else level  # it may be another one by now
            if kept.handler not in root.handlers:
                root.addHandler(kept.handler)
                changed = True
        if root.level != level:
            root.setLevel(level)
            changed = True
        if root.manager.disable != disabled:
            logging.disable(disabled)
            changed = True
        for logger in _silent() - silent:
            logger.disabled, changed = False, True
        if changed and who not in _named:
            _named.add(who)
            log.warning("%s has set up logging for the whole process, which is left to programs; that is undone", who)


def _silent() -> set[logging.Logger]:
    """Those that were told to be silent."""
    root = logging.getLogger()
    found = [each for name, each in root.manager.loggerDict.items() if name.startswith(_OURS)]
    return {each for each in (root, *found) if isinstance(each, logging.Logger) and each.disabled}
