"""``pyflannel BACKEND ACTION``: what a backend lets an operator ask of a running daemon.

The backend is loaded here for its list of actions only; the daemon does the work (:mod:`pyflannel.daemon.control`).
"""

from __future__ import annotations

import click

from pyflannel.cli.flags import FlagCommand, FlagGroup, flags, settings
from pyflannel.cli.output import say
from pyflannel.daemon.control import request
from pyflannel.plugins import BACKENDS, load_backend
from pyflannel.small.entry_points import entry_points
from pyflannel.small.text import inert

__all__ = ["actions"]


def actions(name: str) -> click.Group | None:
    """The commands of the backend ``name``; ``None`` if there is no such backend, or it has none.

    :raises PluginError: it does not load.
    """
    if not entry_points(BACKENDS, name):
        return None
    kind = load_backend(name)
    if not kind.actions:
        return None
    group = FlagGroup(name, help=f"What the backend {name} of a running daemon can be asked for.")
    for action, text in kind.actions.items():
        group.add_command(_command(name, action, text))
    return group


def _command(backend: str, action: str, text: str) -> click.Command:
    @click.command(action, cls=FlagCommand, params=flags("node"), help=text)
    @click.pass_context
    def command(ctx: click.Context) -> None:
        say(inert(request(settings(ctx).run_dir, backend, action)))

    found: click.Command = command
    return found
