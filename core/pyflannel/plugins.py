"""Which backends and stores are installed, and loading the one that is asked for.

Plugins are entry points, ours and everybody else's alike. What is installed is listed afresh each time, and nothing of
it is imported; stevedore's ``DriverManager`` loads the one that is asked for. Of two plugins with one name we take our
own distribution's, so that nothing that is installed beside pyflannel can replace a part of it by accident, and refuse
to choose among others.

A broken plugin thus harms nobody but who asks for it.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import logging
import os
import re
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from pyflannel.errors import KernelError, PluginError
from pyflannel.small.entry_points import entry_points
from pyflannel.small.guarded import guarded, is_ctrl_c, named_if_it_hangs, reason
from pyflannel.small.scarcity import lacking
from pyflannel.small.shared_log import undisturbed
from pyflannel.small.streams import apart

if TYPE_CHECKING:
    from pyflannel.backend import Backend
    from pyflannel.store import Store, StoreLocation

__all__ = ["BACKENDS", "STORES", "Plugin", "installed", "load_backend", "load_store", "open_store", "unlike"]

BACKENDS: Final = "pyflannel.backends"
"""The entry point group of backends; a name is a ``Backend.Type``."""

STORES: Final = "pyflannel.stores"
"""The entry point group of stores; a name is a URL scheme."""

_OURS: Final = "pyflannel"
_KINDS: Final = {BACKENDS: "backend", STORES: "store"}

IMPORT_TIMEOUT = 30.0
"""Seconds that a command waits for a plugin's module; the daemon has a limit of its own."""

_is_reference: Final = re.compile(r"[\w.]+\s*:\s*[\w.]+\s*(\[.*\])?").fullmatch
"""Of an entry point that can name a class (PyPA's specification of entry points)."""

_is_scheme: Final = re.compile(r"[a-z][a-z0-9+.-]*").fullmatch
"""As a URL has it when it was read (RFC 3986, section 3.1)."""

T = TypeVar("T")

log = logging.getLogger(__name__)
logging.getLogger("stevedore.extension").setLevel(logging.INFO)  # at debug it lists all that is installed, each time


@dataclass(frozen=True, slots=True)
class Plugin:
    """One installed entry point.

    :param target: where it points to, ``module:Class``.
    :param problem: why it can't be used; empty if it can.
    """

    group: str
    name: str
    distribution: str
    version: str
    target: str
    problem: str = ""

    @property
    def loads(self) -> bool:
        """Whether it can be used."""
        return not self.problem


_loaded: dict[tuple[str, str], tuple[str, str]] = {}
"""What :func:`distribution` tells of what is in use: a daemon wants it when perhaps no file can be opened."""

_found: dict[tuple[str, str], tuple[object, Any]] = {}
"""What was loaded, and the :func:`_places` as they were: to look through all that is installed takes 20 to 30 ms."""


def load_backend(name: str) -> type[Backend[Any]]:
    """The backend for the ``Backend.Type`` ``name``.

    :raises PluginError: there is none, or it can't be used.
    """
    backend: type[Backend[Any]] = _load(BACKENDS, name)
    return backend


def load_store(scheme: str) -> type[Store]:
    """The store driver for the URL scheme ``scheme``.

    :raises PluginError: there is none, or it can't be used.
    """
    store: type[Store] = _load(STORES, scheme)
    return store


def open_store(location: StoreLocation, *, existing: bool = False) -> Store:
    """The store at ``location``, for who calls it directly: what it raises is named as its plugin's, and so is a call
    that hangs.

    :param existing: for who only looks, or has no use for a new one: no store is made where there is none.
    :raises PluginError: there is no such driver, it can't be used, or raises what its contract does not know.
    """
    kind = _contained(load_store(location.scheme))
    with named_if_it_hangs(location.scheme, "its constructor", "store"), undisturbed(f"store {location.scheme!r}"):
        store = guarded(location.scheme, "its constructor", lambda: kind(location), "store")
    if existing:
        store.expect_existing()
    return store


@functools.cache
def _contained(kind: type[Store]) -> type[Store]:
    """A driver whose calls are guarded; what it is otherwise, it stays."""
    from pyflannel.store import Store

    def contained(name: str) -> Callable[..., Any]:
        @functools.wraps(getattr(kind, name))
        def call(store: Store, *arguments: Any, **named: Any) -> Any:
            with named_if_it_hangs(kind.scheme, name, "store"):
                return guarded(kind.scheme, name, lambda: getattr(kind, name)(store, *arguments, **named), "store")

        return call

    calls = [name for name, member in vars(Store).items() if inspect.isfunction(member) and not name.startswith("_")]
    return type(kind.__name__, (kind,), {"__module__": kind.__module__, **{name: contained(name) for name in calls}})


def distribution(kind: str, name: str) -> tuple[str, str]:
    """Name and version of the distribution whose plugin is used for a ``backend`` or ``store`` of this name.

    Both are empty if there is none, or nothing can be read; of a plugin that has been loaded they are known already.
    """
    group = next(group for group, each in _KINDS.items() if each == kind)
    if (group, name) in _loaded:
        return _loaded[group, name]
    try:
        entry = next((entry for entry in _entries(group, name) if entry.name == name), None)
        if entry is None:
            return "", ""
        described = _describe(entry, "")
    except (OSError, KernelError):  # without a descriptor, for example; it is for show
        return "", ""
    return described.distribution, described.version


def installed(group: str) -> tuple[Plugin, ...]:
    """Every plugin of ``group`` by name, each one imported to see whether it works."""
    entries = _entry_points(group)
    plugins = []
    for entry in entries:
        problem = _shadowed(entry, entries)
        if not problem:
            try:
                _checked(entry, entries)
            except PluginError as error:
                problem = str(error)
        plugins.append(_describe(entry, problem))
    return tuple(plugins)


def _load(group: str, name: str) -> Any:
    places = _places()
    before, plugin = _found.get((group, name), (None, None))
    if before != places:
        plugin = _look_for(group, name)
        _found[group, name] = places, plugin
    return plugin


def _places() -> list[tuple[str, int]]:
    """Where modules are imported from, and when each place was changed last: whenever something is installed there, or
    removed."""
    places = []
    for place in sys.path:
        try:
            changed = Path(place).stat().st_mtime_ns
        except (OSError, TypeError, ValueError):  # whatever else somebody has put there
            changed = 0
        places.append((place, changed))
    return places


def _look_for(group: str, name: str) -> Any:
    entries = _entries(group, name)
    named = [entry for entry in entries if entry.name == name]
    if not named:
        able = [entry.name for entry in entries if group == BACKENDS or _is_scheme(entry.name)]
        raise PluginError(_unknown(_KINDS[group], name, able))
    shadowed = {entry.value: problem for entry in named if (problem := _shadowed(entry, entries))}
    usable = [entry for entry in named if entry.value not in shadowed]
    if not usable:
        raise PluginError(shadowed[named[0].value])
    for problem in shadowed.values():
        log.warning("%s", problem)
    plugin = _checked(usable[0], entries)
    with suppress(OSError):  # of a file about it; it is for show
        described = _describe(usable[0], "")
        _loaded[group, name] = described.distribution, described.version
    return plugin


def _entries(group: str, name: str) -> Sequence[metadata.EntryPoint]:
    """All of ``group``; if ``name`` is not among them, as of a fresh look.

    Python takes a directory that it can't read, for want of a descriptor, for an empty one, and keeps its listing until
    the directory changes.

    :raises KernelError: nothing can be read.
    """
    try:
        entries = _entry_points(group)
        if all(entry.name != name for entry in entries):
            os.close(os.open("/", os.O_RDONLY | os.O_CLOEXEC))
            importlib.invalidate_caches()
            metadata.MetadataPathFinder().invalidate_caches()  # before Python 3.12 that goes by itself
            entries = _entry_points(group)
    except OSError as error:
        raise KernelError(f"the installed packages can't be looked through: {lacking(error) or error}") from error
    return entries


def _entry_points(group: str) -> Sequence[metadata.EntryPoint]:
    """All of ``group``, sorted; one that is seen twice (a source tree and its installation) counts once."""
    unique = {(entry.name, entry.value): entry for entry in reversed(entry_points(group))}
    named = Counter(entry.name for entry in unique.values())

    def order(entry: metadata.EntryPoint) -> tuple[str, bool, str]:
        # Whose it is takes a millisecond to read, and counts only where there are several.
        return entry.name, named[entry.name] > 1 and _distribution(entry) != _OURS, entry.value

    return sorted(unique.values(), key=order)


def _distribution(entry: metadata.EntryPoint) -> str:
    return _about(entry)[0]


def _describe(entry: metadata.EntryPoint, problem: str) -> Plugin:
    return Plugin(entry.group, entry.name, *_about(entry), entry.value, problem)


def _about(entry: metadata.EntryPoint) -> tuple[str, str]:
    """Name and version of its distribution, as far as that says so."""
    dist = entry.dist
    try:
        return (str(dist.name or "unknown"), str(dist.version or "")) if dist is not None else ("unknown", "")
    except (ValueError, KeyError, TypeError):  # of a METADATA that can't be read
        return "unknown", ""


def _shadowed(entry: metadata.EntryPoint, entries: Iterable[metadata.EntryPoint]) -> str:
    """Why ``entry`` is not the one that its name means; empty if it is."""
    others = [other for other in entries if other.name == entry.name and other != entry]
    if not others or _distribution(entry) == _OURS:
        return ""
    kind = _KINDS[entry.group]
    if any(_distribution(other) == _OURS for other in others):
        return f"{kind} {entry.name!r} of {_distribution(entry)} is not used: the name is pyflannel's own; rename it"
    named = ", ".join(sorted(f"{_distribution(item)} ({item.value})" for item in (entry, *others)))
    return f"{kind} {entry.name!r} is provided more than once, by {named}; uninstall all but one"


def _unknown(kind: str, name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.lower(), names, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    listing = ", ".join(dict.fromkeys(names)) or "none"
    return f"no {kind} {name!r} is installed; {hint}installed: {listing} (see: pyflannel plugins)"


def _checked(entry: metadata.EntryPoint, entries: Sequence[metadata.EntryPoint]) -> Any:
    """The class that ``entry`` points to, if it keeps the contract's outward part."""
    kind = _KINDS[entry.group]
    who = f"{kind} {entry.name!r} of {_distribution(entry)} ({entry.value})"
    plugin = _import(entry, who, [each for each in entries if not _shadowed(each, entries)])
    from pyflannel import backend, store

    try:
        if entry.group == BACKENDS:
            return _keeps_contract(plugin, backend.Backend, "name", backend.API_VERSION, entry.name, who)
        return _keeps_contract(plugin, store.Store, "scheme", store.API_VERSION, entry.name, who)
    except PluginError:
        raise
    except BaseException as error:  # of a metaclass or a descriptor of its own
        if is_ctrl_c(error):
            raise
        raise PluginError(f"{who} can't be used: {reason(error)}") from error


def _import(entry: metadata.EntryPoint, who: str, usable: Sequence[metadata.EntryPoint]) -> Any:
    """What ``entry`` points to; ``usable`` are all of its group that any name can mean."""
    from stevedore import DriverManager

    if not _is_reference(entry.value):
        raise PluginError(f"{who} names no class: the entry point must be of the form module:Class")

    def failed(_manager: object, _entry: metadata.EntryPoint, error: BaseException) -> NoReturn:
        raise PluginError(f"{who} does not load: {reason(error)}") from error

    def load() -> Any:
        try:
            with undisturbed(who):
                return DriverManager(entry.group, entry.name, on_load_failure_callback=failed).driver
        except PluginError:
            raise
        except BaseException as error:  # which stevedore lets through
            if is_ctrl_c(error):
                raise
            failed(None, entry, error)

    # Where stevedore puts them itself, from a file in the home directory that may be stale, and all that there are.
    DriverManager.ENTRY_POINT_CACHE[entry.group] = list(usable)
    if threading.current_thread() is not threading.main_thread():
        return load()  # the daemon's, which counts the seconds
    with apart():  # what a module says is no part of what a command prints
        return _in_time(entry, who, load)


_importing: Final[dict[str, threading.Thread]] = {}


def _in_time(entry: metadata.EntryPoint, who: str, load: Callable[[], T]) -> T:
    """What ``load`` answers in a thread of its own; one that does not come back is left behind, and waited for once.

    :raises PluginError: it has not come back within :data:`IMPORT_TIMEOUT`; says where it stands.
    """
    answers: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with named_if_it_hangs(entry.name, "its import", _KINDS[entry.group]):
                answers.append(load())
        except BaseException as error:
            errors.append(error)

    thread = _importing.get(who)
    if thread is None or not thread.is_alive():
        thread = _importing[who] = threading.Thread(target=run, name=f"import of {who}", daemon=True)
        thread.start()
        thread.join(IMPORT_TIMEOUT)
    if thread.is_alive():
        raise PluginError(f"{who} does not load: its import has not ended after {IMPORT_TIMEOUT:g} s{_where(thread)}")
    for error in errors:
        raise error
    return answers[0]


def _where(thread: threading.Thread) -> str:
    """In which line of whose code a thread stands."""
    frame = sys._current_frames().get(thread.ident or 0)
    stack = traceback.extract_stack(frame) if frame is not None else ()
    own = [each for each in stack if not each.filename.startswith("<")]
    return f"; it stands in {own[-1].filename}, line {own[-1].lineno}" if own else ""


def _keeps_contract(plugin: Any, base: type[T], attribute: str, api: int, name: str, who: str) -> type[T]:
    if not isinstance(plugin, type) or not issubclass(plugin, base):
        raise PluginError(f"{who} is not a subclass of {base.__module__}.{base.__qualname__}")
    problem = unlike(plugin, base)
    if problem:
        raise PluginError(f"{who} can't be used: {problem}")
    built_for = getattr(plugin, "api_version", None)
    if built_for != api:
        if not isinstance(built_for, int):
            advice = "api_version must be a whole number"
        elif built_for < api:
            advice = "upgrade the plugin"
        else:
            advice = "upgrade pyflannel"
        raise PluginError(f"{who} was built for version {built_for} of the API, this pyflannel has {api}: {advice}")
    own = getattr(plugin, attribute, None)
    if own != name:
        raise PluginError(f"{who} calls itself {own!r} ({attribute}), its entry point {name!r}; they must be equal")
    if attribute == "scheme" and not _is_scheme(name):
        raise PluginError(
            f"{who} can't be used: no URL has its scheme, which must be lower-case letters, digits, '+', '-' and '.', "
            "beginning with a letter"
        )
    missing = ", ".join(sorted(getattr(plugin, "__abstractmethods__", ())))
    if missing:
        raise PluginError(f"{who} is incomplete: it lacks {missing}")
    return plugin


def unlike(plugin: type[Any], base: type[Any]) -> str:
    """Which member of a plugin's class is of another kind than its contract says; empty if none.

    Methods are called, and must not have to be awaited; all else is read from the class, before there is an object.
    """
    unset = {name for name, kind in base.__annotations__.items() if str(kind).startswith("ClassVar")}
    for name, member in {**dict.fromkeys(unset), **vars(base)}.items():
        own = inspect.getattr_static(plugin, name, None)
        if name.startswith("_"):
            continue
        if inspect.isfunction(member):
            called = own.__func__ if isinstance(own, staticmethod | classmethod) else own
            if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
                return f"its {name} is asynchronous, and nobody would await it; make it an ordinary function"
            if not callable(called):
                return f"its {name} is of type {type(own).__name__}, and must be a function"
        elif isinstance(own, property | functools.cached_property) and not isinstance(member, property):
            return f"its {name} is a property, and must be a plain value of the class"
        elif wanted := _unfit(own, member):
            return f"its {name} is {_short(own)}, and must be {wanted}"
    return ""


def _unfit(own: Any, default: Any) -> str:
    """What an attribute of a class must be, if it can't stand where its contract has this default; else empty."""
    if isinstance(default, bool):
        return "" if isinstance(own, bool) else "True or False"
    if isinstance(default, Mapping):
        fits = isinstance(own, Mapping) and all(isinstance(each, str) for pair in own.items() for each in pair)
        return "" if fits else "a mapping of texts to texts"
    if isinstance(default, frozenset):
        fits = isinstance(own, Set) and all(isinstance(each, str) for each in own)
        return "" if fits else "a frozenset of texts"
    if isinstance(default, type):
        return "" if isinstance(own, type) and is_dataclass(own) else "a dataclass"
    if is_dataclass(default):
        return "" if isinstance(own, type(default)) else f"a {type(default).__name__}"
    return ""


def _short(value: Any) -> str:
    return f"the class {value.__qualname__}" if isinstance(value, type) else f"of type {type(value).__name__}"
