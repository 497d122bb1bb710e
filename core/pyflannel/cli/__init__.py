"""The command line: ``pyflannel`` runs the daemon, ``pyflannel COMMAND`` looks at or changes something.

Each command lives in a file of its own that is imported when it is run, so that ``--help`` and shell completion answer
at once. A failure is one line on standard error and one of the exit codes of :mod:`pyflannel.errors`; only a fault of
pyflannel's own, or log level debug, shows a traceback.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import click

from pyflannel.cli.flags import FlagGroup, flags, settings
from pyflannel.errors import ExitCode, PyflannelError
from pyflannel.settings.log import LONGEST
from pyflannel.small.scarcity import lacking
from pyflannel.small.strangers import strangers
from pyflannel.small.streams import answers, apart, give_up, keep_apart
from pyflannel.small.text import cut, inert
from pyflannel.version import VERSION

__all__ = ["end_in_time", "main", "pyflannel"]

INTERRUPTED: Final = 130
"""128 + SIGINT, as shells report a command that was interrupted."""

PIPE_CLOSED: Final = 141
"""128 + SIGPIPE: whoever read our output has seen enough."""

END_PATIENCE: Final = 2.0
"""Seconds that what a plugin has left behind has to end when the command has."""

UNWRITABLE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What a write to a file fails with that has no room. Files of our own are dealt with by whoever writes them."""

COMPLETION: Final = "_PYFLANNEL_COMPLETE"
"""The variable in which shells ask what could follow; the name is the one that click gives it."""

COMMANDS: Final = {
    "cleanup": ("pyflannel.cli.cleanup:cleanup", "Remove everything that pyflannel created from this node's kernel."),
    "config": ("pyflannel.cli.config:config", "Read, write or check the network config in the store."),
    "docker-opts": ("pyflannel.cli.docker_opts:docker_opts", "Write Docker's options from this node's subnet.env."),
    "doctor": ("pyflannel.cli.doctor:doctor", "Check this node and its peers, and say what to do."),
    "lab": ("pyflannel.cli.lab:lab_command", "Run an overlay of several nodes on this machine."),
    "leases": ("pyflannel.cli.leases:leases", "List the subnets that nodes hold."),
    "network": ("pyflannel.cli.network:network", "Change the network while its nodes run, without losing a packet."),
    "plugin": ("pyflannel.cli.plugin:plugin", "Start a plugin of your own (plugin new backend|store NAME)."),
    "plugin-test": ("pyflannel.cli.plugin:plugin_test", "Run the conformance kit on an installed plugin."),
    "plugins": ("pyflannel.cli.plugins:plugins", "List the installed backends and stores, and whether they work."),
    "status": ("pyflannel.cli.status:status", "Show how this node's daemon is doing."),
    "store": ("pyflannel.cli.store:store", "Move an overlay to another store, or check one."),
    "version": ("pyflannel.cli.version:version", "Print the version."),
}
"""Name to where it is and what it does."""


class LazyGroup(FlagGroup):
    """Imports a command when it is called for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, sorted."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command itself."""
        if cmd_name not in COMMANDS:
            from pyflannel.cli.action import actions

            return actions(cmd_name)
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        found: click.Command = getattr(importlib.import_module(module), name)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, importing none."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in sorted(COMMANDS.items())])
        formatter.write_paragraph()
        formatter.write_text("Backends may have commands of their own: pyflannel BACKEND --help.")

    def make_context(self, *arguments: Any, **given: Any) -> click.Context:
        """Parse the command line, which may ask for help."""
        with _pipe():
            return super().make_context(*arguments, **given)

    def invoke(self, ctx: click.Context) -> object:
        """Run it."""
        with _pipe():
            result: object = super().invoke(ctx)
            answers().flush()
        return result


class _PipeClosedError(Exception):
    """The reader of our output has gone."""


@contextmanager
def _pipe() -> Iterator[None]:
    """A closed pipe is not click's business, which would end with another exit code."""
    try:
        yield
    except BrokenPipeError:
        raise _PipeClosedError from None


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"pyflannel {VERSION}", file=answers())
        ctx.exit()


@click.group(
    "pyflannel",
    cls=LazyGroup,
    invoke_without_command=True,
    params=flags("daemon", "store", "node"),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
@click.pass_context
def pyflannel(ctx: click.Context) -> int:
    """Run this node's part of an overlay network, in the foreground.

    Every setting can be a flag, with one dash or two (--iface eth0), an environment variable (PYFLANNEL_IFACE, or
    flannel's FLANNELD_IFACE) or a key of the config file (iface = "eth0"); the first of these that is there holds.
    """
    if ctx.invoked_subcommand is not None:
        return ExitCode.OK
    wanted = settings(ctx, daemon=True)
    from pyflannel.daemon import memory

    with memory.rush():
        from pyflannel.daemon.wiring import run

        return run(wanted, lambda: settings(ctx, daemon=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: this process's) and return its exit code."""
    _open_streams()
    if arguments is not None:
        return _run(arguments)
    keep_apart()
    code = _run(None)
    end_in_time(code)
    return code


def end_in_time(code: int) -> None:
    """Have the process end soon, although a plugin's threads, for which the interpreter waits, or its functions for the
    process's end may not."""

    def leave() -> None:
        time.sleep(END_PATIENCE)
        left = strangers()
        names = " and ".join(f"the thread {name!r}" for name in left) or "a function for the process's end"
        _say(f"pyflannel: {names} of a plugin did not end and is left behind")
        os._exit(code)

    threading.Thread(target=leave, name="pyflannel-end", daemon=True).start()


def _run(arguments: Sequence[str] | None) -> int:
    try:
        with apart(lasting=True):
            return _answer(arguments)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except (_PipeClosedError, BrokenPipeError):
        give_up(answers())
        return PIPE_CLOSED
    except click.ClickException as error:
        return _usage(error)
    except PyflannelError as error:
        if logging.getLogger("pyflannel").isEnabledFor(logging.DEBUG):
            _print_traceback()
        return _fail(str(error), error.exit_code)
    except Exception as error:
        scarce = lacking(error)
        if scarce is not None:
            return _fail(scarce, ExitCode.KERNEL)
        if isinstance(error, OSError) and error.errno in UNWRITABLE and error.filename is None:
            give_up(answers())
            return _fail(f"the output can't be written: {error.strerror}; make room for it", ExitCode.KERNEL)
        _print_traceback()
        return _fail(
            f"internal error: {type(error).__name__}: {error}; please report it with the lines above", ExitCode.INTERNAL
        )


def _answer(arguments: Sequence[str] | None) -> int:
    wanted = os.environ.get(COMPLETION)
    if wanted:
        return _complete(wanted)
    result = pyflannel.main(
        args=None if arguments is None else list(arguments), prog_name="pyflannel", standalone_mode=False
    )
    return int(result) if isinstance(result, int) else ExitCode.OK


def _complete(wanted: str) -> int:
    """Answer a shell, as click does it, but with an answer that nobody else writes to."""
    from click.shell_completion import get_completion_class

    shell, _, what = wanted.partition("_")
    kind = get_completion_class(shell)
    if kind is None or what not in ("source", "complete"):
        raise click.UsageError(f"{COMPLETION} is {wanted!r}: must be bash_source, zsh_source or fish_source")
    completion = kind(pyflannel, {}, pyflannel.name or "", COMPLETION)
    click.echo(completion.source() if what == "source" else completion.complete(), file=answers())
    return ExitCode.OK


def _usage(error: click.ClickException) -> int:
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f" (see: {context.command_path} --help)" if context is not None else ""
    return _fail(error.format_message().rstrip(".") + hint, ExitCode.USAGE)


def _print_traceback() -> None:
    for line in traceback.format_exc().splitlines():
        _say(inert(line))


def _fail(message: str, code: ExitCode) -> int:
    _say(f"pyflannel: error: {cut(inert(' '.join(message.split())), LONGEST)}")
    return code


def _say(line: str) -> None:
    """Tell it on standard error. Where that can't be written to, the exit code says it alone."""
    try:
        sys.stderr.write(f"{line}\n")
    except OSError:
        give_up(sys.stderr)


def _open_streams() -> None:
    """Have something behind descriptors 0 to 2 where whoever started us has closed them.

    Otherwise the next files and sockets to be opened get these numbers, and what is meant for people ends up there.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - for as long as we run
