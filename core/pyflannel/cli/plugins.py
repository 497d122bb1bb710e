"""``pyflannel plugins``: what is installed, from where, and whether it works."""

from __future__ import annotations

import click

from pyflannel.cli.flags import FlagCommand
from pyflannel.cli.output import show_json, show_table
from pyflannel.plugins import BACKENDS, STORES, installed

__all__ = ["plugins"]


@click.command(cls=FlagCommand)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def plugins(as_json: bool) -> None:
    """List the installed backends and stores, and whether they work.

    Each one is imported to find out. A plugin that does not work is listed with the reason.
    """
    found = {"backend": installed(BACKENDS), "store": installed(STORES)}
    if as_json:
        show_json(
            {
                f"{kind}s": [
                    {
                        "name": plugin.name,
                        "distribution": plugin.distribution,
                        "version": plugin.version,
                        "target": plugin.target,
                        "loads": plugin.loads,
                        "problem": plugin.problem or None,
                    }
                    for plugin in group
                ]
                for kind, group in found.items()
            }
        )
        return
    show_table(
        ("KIND", "NAME", "DISTRIBUTION", "VERSION", "TARGET", "STATE"),
        [
            (kind, plugin.name, plugin.distribution, plugin.version, plugin.target, plugin.problem or "ok")
            for kind, group in found.items()
            for plugin in group
        ],
    )
