"""``pyflannel docker-opts``: what dockerd needs to put its containers on this node's subnet.

Takes the options of flannel's ``mk-docker-opts.sh`` and writes the same file, so that it can stand in its place in a
unit or a script.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import click

from pyflannel.cli.flags import Command
from pyflannel.daemon import subnet_env as envfile
from pyflannel.daemon.docker_opts import docker_options, render
from pyflannel.errors import ConfigError
from pyflannel.small import files

__all__ = ["docker_opts"]

_FILE = click.Path(path_type=Path, dir_okay=False)


def _variable(_: click.Context, __: click.Parameter, value: str) -> str:
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", value):
        raise click.BadParameter("must be a variable's name")
    return value


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-f", "subnet_file", type=_FILE, default=envfile.DEFAULT_PATH, show_default=True, help="The subnet.env.")
@click.option("-d", "target", type=_FILE, default="/run/docker_opts.env", show_default=True, help="The file to write.")
@click.option("-i", "individual", is_flag=True, help="Write each option as a variable of its own.")
@click.option("-c", "combined", is_flag=True, help="Write all options into one variable. Without -i and -c: both.")
@click.option("-m", "no_ip_masq", is_flag=True, help="Leave out --ip-masq, for an old Docker.")
@click.option("-k", "key", callback=_variable, default="DOCKER_OPTS", show_default=True, help="That variable's name.")
def docker_opts(subnet_file: Path, target: Path, individual: bool, combined: bool, no_ip_masq: bool, key: str) -> None:
    """Write Docker's options from this node's subnet.env.

    The same options and the same file as flannel's mk-docker-opts.sh, except that a subnet.env that is missing is an
    error: Docker would start on a subnet of its own choice.
    """
    try:
        text = files.read_text(subnet_file)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise ConfigError(f"{subnet_file}: {reason}; the daemon writes it when this node has its subnet") from None
    options = docker_options(text, str(subnet_file), ip_masq=not no_ip_masq)
    both = not individual and not combined
    text = render(options, os.environ, individual or both, key if combined or both else None)
    envfile.write(target, text, "Docker's options", "-d")
