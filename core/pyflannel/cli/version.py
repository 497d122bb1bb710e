"""``pyflannel version``."""

from __future__ import annotations

import click

from pyflannel.cli.flags import FlagCommand
from pyflannel.cli.output import say
from pyflannel.version import VERSION

__all__ = ["version"]


@click.command(cls=FlagCommand)
def version() -> None:
    """Print the version."""
    say(f"pyflannel {VERSION}")
