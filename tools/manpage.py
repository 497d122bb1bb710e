"""The man page pyflannel(8), made from what ``--help`` says of the commands: ``manpage.py > pyflannel.8``."""

from __future__ import annotations

from collections.abc import Iterator

import click

from pyflannel.cli import pyflannel
from pyflannel.version import VERSION


def escaped(text: str) -> str:
    """Text as roff wants it."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in text.splitlines())


def options(command: click.Command, context: click.Context) -> Iterator[str]:
    """Each option with its help."""
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            yield f".TP\n.B {escaped(record[0])}\n{escaped(record[1] or ' ')}"


def commands(group: click.Command, name: str, context: click.Context) -> Iterator[str]:
    """Each command below ``group``, with its own options."""
    if not isinstance(group, click.Group):
        return
    for word in group.list_commands(context):
        command = group.get_command(context, word)
        if command is None or command.hidden:
            continue
        inner = click.Context(command, info_name=word, parent=context)
        usage = " ".join(command.collect_usage_pieces(inner))
        yield f".SS {escaped(f'{name} {word}')} {escaped(usage)}\n{escaped((command.help or '').strip())}"
        if not isinstance(command, click.Group):
            yield from options(command, inner)
        yield from commands(command, f"{name} {word}", inner)


def page() -> str:
    """All of it."""
    entry: click.Command = pyflannel
    context = click.Context(entry, info_name="pyflannel")
    parts = [
        f'.TH PYFLANNEL 8 "" "pyflannel {VERSION}" "System administration"',
        ".SH NAME\npyflannel \\- overlay network daemon, compatible with flannel",
        f".SH SYNOPSIS\n.B pyflannel\n{escaped(' '.join(entry.collect_usage_pieces(context)))}",
        f".SH DESCRIPTION\n{escaped((entry.help or '').strip())}",
        ".SH OPTIONS",
        *options(entry, context),
        ".SH COMMANDS",
        *commands(entry, "pyflannel", context),
        ".SH FILES\n.TP\n.I /etc/pyflannel/pyflannel.toml\nSettings.",
        ".TP\n.I /run/flannel/subnet.env\nWhat a container runtime reads: the subnet of this node.",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    print(page(), end="")
