"""The option table as click sees it, and flannel's way of writing flags.

flannel is a Go program: its users write ``-iface=eth0`` and ``--iface eth0``, ``-ip-masq`` and ``--ip-masq=false``. The
commands here rewrite what they are given into click's own form before click parses it. Values stay text: the settings
read them, since they alone know how sources combine.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from pyflannel.network.lease import JSON
from pyflannel.settings import log
from pyflannel.settings.options import BOOLEAN, OPTIONS, Option
from pyflannel.settings.settings import Settings, load
from pyflannel.small.streams import answers

__all__ = ["Command", "FlagCommand", "FlagGroup", "flags", "settings"]

_GIVEN: Final = "pyflannel.flags"


class Flag(click.Option):
    """A row of the option table as a flag of a command."""

    def __init__(self, row: Option) -> None:
        super().__init__(
            [row.name.replace("-", "_"), row.flag],
            multiple=row.repeatable,
            metavar=row.kind.metavar,
            help=row.help,
            expose_value=False,
            callback=self._remember,
        )
        self.row = row

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """``--flag METAVAR`` and what it means, with the default."""
        row = self.row
        left = f"{row.flag}[=BOOL]" if row.is_boolean else f"{row.flag} {row.kind.metavar}"
        default = row.default_text
        return left, row.help + (f"  [default: {default}]" if default else "")

    @staticmethod
    def _remember(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
        """Keep what was given; a flag behind the subcommand's name wins over one before it."""
        if value is not None and value != () and isinstance(parameter, Flag):
            ctx.meta.setdefault(_GIVEN, {})[parameter.row.name] = value


class Command(click.Command):
    """A command whose help is an answer, kept apart from what plugins print."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """The option that shows it."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.callback = _show_help
        return option


class FlagCommand(Command):
    """A command that takes flags as flannel does."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse after rewriting."""
        return super().parse_args(ctx, self._rewritten(ctx, args))

    def _rewritten(self, ctx: click.Context, args: Sequence[str]) -> list[str]:
        known = {name.lstrip("-"): option for option in _options(self, ctx) for name in option.opts}
        result: list[str] = []
        rest = iter(args)
        for word in rest:
            if word == "--" or (not _is_flag(word) and isinstance(self, click.Group)):
                return [*result, word, *rest]  # what follows belongs to the subcommand
            name, equals, value = word.lstrip("-").partition("=")
            option = known.get(name)
            if not _is_flag(word):
                result.append(word)
            elif option is None:
                result.append("--" + word.lstrip("-"))
            elif isinstance(option, Flag) and option.row.is_boolean:
                result.append(f"{option.opts[0]}={value if equals else 'true'}")
            elif option.is_flag:
                result += _switch(option, equals + value)
            else:
                result += [option.opts[0], *([value] if equals else itertools.islice(rest, 1))]
        return result

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options, then the settings by section."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for option in _options(self, ctx):
            record = option.get_help_record(ctx)
            if record is not None:
                sections.setdefault(option.row.section if isinstance(option, Flag) else "Options", []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class FlagGroup(FlagCommand, click.Group):
    """A group that takes flags as flannel does, before and behind its subcommands' names."""

    command_class = FlagCommand

    def __init__(self, *arguments: Any, **given: Any) -> None:
        super().__init__(*arguments, **given)
        self.no_args_is_help = False  # click's error would be all of the help, and an error is one line

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Commands first: there are many options."""
        self.format_commands(ctx, formatter)
        FlagCommand.format_options(self, ctx, formatter)


def flags(*scopes: str) -> list[click.Parameter]:
    """The flags of those scopes (see :class:`~pyflannel.settings.options.Option`) and of scope ``any``."""
    return [Flag(row) for row in OPTIONS if row.scope in {"any", *scopes}]


def settings(ctx: click.Context, *, daemon: bool = False, beneath: Mapping[str, JSON] | None = None) -> Settings:
    """The settings that flags, environment and config file make; sets up logging and passes on the warnings.

    :param beneath: see :func:`~pyflannel.settings.settings.load`.
    :raises ConfigError: they are invalid.
    """
    loaded = load(ctx.meta.get(_GIVEN, {}), os.environ, daemon=daemon, beneath=beneath)
    log.configure(loaded.settings.log_level, loaded.settings.log_format)
    for warning in loaded.warnings:
        logging.getLogger("pyflannel").warning("%s", warning)
    return loaded.settings


def _show_help(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(ctx.get_help(), file=answers(), color=ctx.color)
        ctx.exit()


def _switch(option: click.Option, value: str) -> list[str]:
    """A switch that is no setting, such as ``--version``; Go's ``-version=true`` is one, too."""
    try:
        return [option.opts[0]] if not value or BOOLEAN.parse(value[1:]) else []
    except ValueError:
        return [option.opts[0] + value]  # which click refuses


def _options(this: click.Command, ctx: click.Context) -> list[click.Option]:
    return [parameter for parameter in this.get_params(ctx) if isinstance(parameter, click.Option)]


def _is_flag(word: str) -> bool:
    return word.startswith("-") and word != "-"
