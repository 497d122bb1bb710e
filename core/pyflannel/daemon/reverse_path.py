"""The kernel's reverse path filter, loosened while a peer may be heard on another link than it is spoken to on.

With ``rp_filter`` at 1 (strict) the kernel drops a packet whose source it would not answer through the link that it
came in on (RFC 3704; ``ip-sysctl.rst``). While a change of the network is under way, two nodes may use two ways for
the two directions. Loose (2) is enough then; a link that is not filtered at all is left alone. What was there before is
kept in a file, so that it comes back after the change, also when the daemon was restarted in between.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from pyflannel.errors import ConfigError
from pyflannel.kernel.model import Sysctl
from pyflannel.small import files

__all__ = ["ReversePath"]

_CONF: Final = "net/ipv4/conf"
_STRICT, _LOOSE = 1, 2


class ReversePath:
    """See the module's docstring.

    :param directory: where the file is kept; ``kernel``: where parameters are.
    """

    def __init__(self, directory: Path, kernel: Path = Path("/proc/sys")) -> None:
        self._file, self._kernel = directory / "rp_filter.json", kernel

    def loosen(self, links: Iterable[str]) -> tuple[Sysctl, ...]:
        """The parameters of ``links``, of which some may not be there yet, that have to be loose.

        :raises ConfigError: what was there before can't be kept.
        """
        wanted, kept = frozenset(links), self._kept()
        strict = {link: str(value) for link in wanted - kept.keys() if (value := self._own(link)) is not None}
        if strict:
            kept = {**kept, **strict}
            self._keep(kept)
        loose = sorted(wanted & kept.keys())
        return tuple(Sysctl(f"{_CONF}/{link}/rp_filter", str(_LOOSE), optional=True) for link in loose)

    def restore(self) -> None:
        """Put back what was there before, if anything was changed."""
        kept = self._kept()
        if not kept:
            return
        for link, value in kept.items():
            with suppress(OSError):  # the link is gone
                (self._kernel / _CONF / link / "rp_filter").write_text(value)
        with suppress(OSError):
            self._file.unlink()

    def _keep(self, kept: Mapping[str, str]) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            files.replace(self._file, json.dumps(kept))
        except OSError as error:
            raise ConfigError(
                f"{self._file}: can't be written: {error.strerror}; make room there, or name another place with "
                "--state-dir"
            ) from error

    def _own(self, link: str) -> int | None:
        """A link's own value if what comes in there is filtered strictly; the larger of its own and all's counts."""
        everywhere, own = self._read("all"), self._read(link)
        if own is None:
            own = self._read("default")
        if own is None or everywhere is None or max(everywhere, own) != _STRICT:
            return None
        return own

    def _read(self, name: str) -> int | None:
        try:
            return int((self._kernel / _CONF / name / "rp_filter").read_text())
        except (OSError, ValueError):
            return None

    def _kept(self) -> dict[str, str]:
        try:
            kept = json.loads(files.read_own(self._file))
        except (OSError, ValueError, RecursionError):
            return {}
        usable = isinstance(kept, dict)
        return {str(link): str(value) for link, value in kept.items() if "/" not in link} if usable else {}
