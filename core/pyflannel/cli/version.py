"""``pyflannel version``."""

from __future__ import annotations

import click

from pyflannel.cli.flags import FlagCommand
from pyflannel.version import VERSION

__all__ = ["version"]


@click.command(cls=FlagCommand)
def version() -> None:
    """Print the version."""
    click.echo(f"pyflannel {VERSION}")
