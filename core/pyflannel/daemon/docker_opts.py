"""Docker's command line options from a ``subnet.env``, as the file that flannel's ``mk-docker-opts.sh`` writes.

Pure: texts in, text out. Each option is a variable ``DOCKER_OPT_...``; they come sorted by name, with those that the
environment has already, and all of them together make up one more variable that docker.service can put on dockerd's
command line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from ipaddress import IPv4Interface

from pyflannel.daemon.subnet_env import assignments
from pyflannel.errors import ConfigError

__all__ = ["PREFIX", "docker_options", "render"]

PREFIX = "DOCKER_OPT_"


def docker_options(subnet_env: str, source: str, ip_masq: bool = True) -> dict[str, str]:
    """Variable to option: the bridge's address, its MTU, and whether Docker masquerades (if we don't).

    :param subnet_env: the file's text; ``source`` names it in messages.
    :param ip_masq: leave ``--ip-masq`` out if false, for a Docker that has no such option.
    :raises ConfigError: a value is not what it should be, or none is there.
    """
    values = dict(assignments(subnet_env))
    options = {}
    if subnet := values.get("FLANNEL_SUBNET"):
        options["BIP"] = f"--bip={_checked(subnet, 'FLANNEL_SUBNET', source, _is_interface, 'an address/length')}"
    if mtu := values.get("FLANNEL_MTU"):
        options["MTU"] = f"--mtu={_checked(mtu, 'FLANNEL_MTU', source, str.isdecimal, 'a number')}"
    if masquerades := values.get("FLANNEL_IPMASQ"):
        _checked(masquerades, "FLANNEL_IPMASQ", source, {"true", "false"}.__contains__, "true or false")
        if ip_masq:
            options["IPMASQ"] = f"--ip-masq={'false' if masquerades == 'true' else 'true'}"
    if not values.keys() & {"FLANNEL_SUBNET", "FLANNEL_MTU"}:
        raise ConfigError(f"{source}: names neither FLANNEL_SUBNET nor FLANNEL_MTU; is it a daemon's subnet.env?")
    return {PREFIX + name: option for name, option in options.items()}


def render(options: Mapping[str, str], environ: Mapping[str, str], individual: bool, key: str | None) -> str:
    """The file's text.

    :param environ: where further ``DOCKER_OPT_...`` variables and what ``key`` has already are taken from.
    :param individual: write each option as a variable of its own.
    :param key: the variable to write all options into; ``None``: none.
    """
    given = {name: value for name, value in environ.items() if name.startswith(PREFIX)}
    merged = dict(sorted({**given, **options}.items()))
    lines = [f"{name}={_quoted(value)}" for name, value in merged.items()] if individual else []
    if key is not None:
        before = f"{environ[key]} " if environ.get(key) else ""
        lines.append(f"{key}={_quoted(''.join([before, *(f' {value}' for value in merged.values())]))}")
    return "".join(f"{line}\n" for line in lines)


def _quoted(value: str) -> str:
    """In double quotes, as shells and systemd's EnvironmentFile read it (``systemd.exec(5)``)."""
    return '"' + re.sub(r'(["\\$`])', r"\\\1", value) + '"'


def _checked(value: str, key: str, source: str, valid: Callable[[str], bool], rule: str) -> str:
    if not valid(value):
        raise ConfigError(f"{source}: {key} is {value!r}, which is not {rule}")
    return value


def _is_interface(text: str) -> bool:
    try:
        IPv4Interface(text)
    except ValueError:
        return False
    return "/" in text
