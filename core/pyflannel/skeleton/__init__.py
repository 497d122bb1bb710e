"""The project that ``pyflannel plugin new`` writes: templates beside this file, and the one function that fills them.

What is written works: a backend that routes, or a store in an SQLite file, each with tests that pass. An author starts
from green and changes one thing after the other. ``README.md`` here says how templates are named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from pyflannel.errors import ConfigError
from pyflannel.plugins import BACKENDS, STORES
from pyflannel.small.entry_points import entry_points
from pyflannel.version import VERSION

__all__ = ["KINDS", "LONGEST_NAME", "check_name", "write_project"]

KINDS: Final = {"backend": BACKENDS, "store": STORES}
"""What can be written, and its entry point group."""

LONGEST_NAME: Final = 40

_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_SUFFIX: Final = ".tmpl"
_HERE: Final = Path(__file__).parent

_ABOUT: Final = {
    "backend": "Each node is the gateway to its own subnet: plain routes. All nodes must share a link.",
    "store": "Leases in an SQLite file on a local disk, for the daemons of one host.",
}
_TRY: Final = {
    "backend": ".venv/bin/pyflannel lab --backend @NAME@   # packets between containers of three nodes",
    "store": ".venv/bin/pyflannel lab --store @NAME@     # an overlay of three nodes on it",
}
_LAB: Final = """
# This lets `pyflannel lab --store @NAME@` and `pyflannel plugin-test @NAME@` start what they need.
[project.entry-points."pyflannel.lab.servers"]
@NAME@ = "@MODULE@.lab:serve"
"""


def check_name(kind: str, name: str) -> None:
    """Refuse a name that can't be a plugin's.

    :raises ConfigError: it has other characters than a backend's type and a URL scheme may both have, or is taken.
    """
    if not _NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise ConfigError(
            f"{name!r} can't name a {kind}: must be lower-case letters and digits, in words joined by '-', "
            f"beginning with a letter, at most {LONGEST_NAME} characters (such as 'acme' or 'acme-gre')"
        )
    for entry in entry_points(KINDS[kind], name):
        owner = entry.dist.name if entry.dist is not None else "another distribution"
        raise ConfigError(f"{kind} {name!r} is in {owner} already; choose another name")


def write_project(kind: str, name: str, directory: Path) -> tuple[Path, ...]:
    """Write a project for a plugin; returns its files, relative to ``directory``.

    :param kind: ``backend`` or ``store``.
    :param directory: made if it is missing; must be empty if it is there.
    :raises ConfigError: the name can't be a plugin's, or the directory can't be used.
    """
    check_name(kind, name)
    words = _words(kind, name)
    texts = dict(_filled(_HERE / "common", words)) | dict(_filled(_HERE / kind, words))
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise ConfigError(f"{directory} is not empty; name another place with --directory")
        for path, text in texts.items():
            target = directory / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the project can't be written to {directory}: {error}") from error
    return tuple(sorted(texts))


def _words(kind: str, name: str) -> Mapping[str, str]:
    parts = name.split("-")
    return {
        "ABOUT": _ABOUT[kind],
        "TRY": _TRY[kind],
        "LAB": _LAB if kind == "store" else "",
        "NAME": name,
        "KIND": kind,
        "ATTRIBUTE": "name" if kind == "backend" else "scheme",
        "DISTRIBUTION": f"pyflannel-{name}",
        "MODULE": f"pyflannel_{'_'.join(parts)}",
        "CLASS": "".join(part.capitalize() for part in parts) + kind.capitalize(),
        "PYFLANNEL": VERSION,
    }


def _filled(root: Path, words: Mapping[str, str], below: Path = Path()) -> Iterator[tuple[Path, str]]:
    for entry in root.iterdir():
        name = _fill(re.sub("^dot-", ".", entry.name), words)
        if entry.is_dir():
            yield from _filled(entry, words, below / name)
        elif name.endswith(_SUFFIX):
            yield below / name.removesuffix(_SUFFIX), _fill(entry.read_text(encoding="utf-8"), words)


def _fill(text: str, words: Mapping[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text
