"""``pyflannel config``: the network document in the store.

``set`` writes a document and nothing else: nodes that run follow it at once only where they need not agree with each
other. So it says what a change means for the nodes that are leased now, sends to ``pyflannel network change`` where
that is the better way, and writes only if the document is still the one it looked at.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timezone
from ipaddress import ip_network
from pathlib import Path
from typing import Final

import click

from pyflannel.cli.flags import FlagGroup, flags, settings
from pyflannel.cli.output import say
from pyflannel.errors import ConfigError, MalformedError, PluginError, PyflannelError, StoreError
from pyflannel.network.change import read
from pyflannel.network.document import NetworkConfig, with_backend
from pyflannel.network.lease import JSON, Lease, Subnets
from pyflannel.planning.judging import backend_types
from pyflannel.plugins import load_backend, open_store
from pyflannel.small import files
from pyflannel.small.guarded import named_if_it_hangs
from pyflannel.small.streams import answers, given
from pyflannel.small.text import counted, inert
from pyflannel.store import Record, Snapshot, Store

__all__ = ["checked", "config"]

log = logging.getLogger(__name__)

_STDIN: Final = "-"


@click.group(cls=FlagGroup, params=flags("store"))
def config() -> None:
    """Read, write or check the network config in the store.

    It is the JSON document, the same as flannel's, that all nodes of an overlay share.
    """


@config.command(params=flags("store"))
@click.pass_context
def get(ctx: click.Context) -> None:
    """Print the document as it is stored."""
    with _open_store(ctx, existing=True) as store:
        record = store.read_config()
    if record is None:
        raise StoreError(f"{store.location} holds no network config; write one with: pyflannel config set FILE")
    text = record.value.rstrip("\n")
    # As it is for a file or a pipe; a terminal would obey what others may have put there.
    say("\n".join(map(inert, text.splitlines())) if answers().isatty() else text)


@config.command("set", params=flags("store"))
@click.argument("file")
@click.option("--force", is_flag=True, help="Change the network or the backend although leases exist.")
@click.pass_context
def set_(ctx: click.Context, file: str, force: bool) -> None:
    """Check the document in FILE ("-" for standard input) and write it to the store."""
    with _open_store(ctx) as store:
        text = _read(file)
        network = checked(text, _source(file))
        snapshot = store.snapshot()
        if network.assumption:
            network = network.following(_running(snapshot))
            text = with_backend(text, network.backend_type)
            log.warning("%s; this is written down", network.assumption)
        consequences = _consequences(snapshot, network)
        if consequences and not force:
            raise ConfigError(f"{'; '.join(consequences)}. Nothing was written; --force writes it all the same")
        for consequence in consequences:
            log.warning("%s", consequence)
        for warning in _covered(snapshot, network):
            log.warning("%s", warning)
        store.write_config(_noted(text, snapshot, forced=bool(consequences)), snapshot.config)
    say(f"written to {store.location}")


@config.command(params=flags())
@click.argument("file")
@click.pass_context
def validate(ctx: click.Context, file: str) -> None:
    """Check the document in FILE ("-" for standard input), without a store."""
    settings(ctx)
    network = checked(_read(file), _source(file))
    for family in network.families:
        say(f"{family.network}: {counted(family.size, 'subnet')} of /{family.subnet_len}, from {family.subnet_min}")
    say(f"backend {network.backend_type}")


def _noted(text: str, snapshot: Snapshot, forced: bool) -> str:
    """The document with a note of how it came about, for nodes that start.

    One that was forced upon nodes is to be followed, whomever they reach by it; any other leaves the note that is
    there.
    """
    written = read(text)
    if written.change is not None:  # whoever writes that knows what nodes are to do
        return text
    if snapshot.config is not None and written.outcome is None:
        with suppress(ConfigError):
            text = written.noting(read(snapshot.config.value)) or text
    if forced:
        return read(text).forced(secrets.token_hex(8), f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}")
    return text


def _open_store(ctx: click.Context, existing: bool = False) -> Store:
    return open_store(settings(ctx).store, existing=existing)


def _read(file: str) -> str:
    try:
        if file == _STDIN:
            return files.take_text(given().buffer)
        return files.read_text(Path(file))
    except OSError as error:
        raise ConfigError(f"{_source(file)}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{_source(file)}: is not UTF-8 text") from None


def _source(file: str) -> str:
    return "standard input" if file == _STDIN else file


def checked(text: str, source: str) -> NetworkConfig:
    """Validate the document and, if its backend is installed here, the backend's options; warn of unknown keys.

    :param source: where it comes from, for messages.
    :raises ConfigError: no node would take it.
    """
    network = NetworkConfig.from_json(text, source)
    unknown = list(network.unknown_keys)
    try:
        backend = load_backend(network.backend_type)
    except PluginError as error:
        log.warning("the options of backend %r are not checked: %s", network.backend_type, error)
    else:
        from pyflannel.backend import parse_options
        from pyflannel.planning.guard import guarded, not_carried

        options, unknown_options = parse_options(backend.Options, network.backend_options, source)
        reason = not_carried(backend, network)
        if reason:
            raise ConfigError(f"{source}: {reason}")
        try:
            with named_if_it_hangs(backend.name, "its constructor"):
                guarded(backend.name, "its constructor", lambda: backend(options))
        except PyflannelError as error:  # a file of a node's own need not be here
            log.warning("%s: a daemon on this machine would refuse it: %s", source, error)
        unknown += [f"Backend.{key}" for key in unknown_options]
    for key in unknown:
        log.warning("%s: unknown key %s (kept; a newer flannel may know it)", source, key)
    return network


def _covered(snapshot: Snapshot, network: NetworkConfig) -> Iterator[str]:
    """Which nodes' own addresses lie in the overlay: it works outside the subnets that are leased, and only just."""
    for record in snapshot.leases:
        try:
            attributes = Lease.from_record(record.key, record.value).attributes
        except MalformedError:
            continue
        for family in network.families:
            public = attributes.public(family.network.version)
            if public is not None and public in family.network:
                leasable = bool(family.index_range(ip_network(public)))
                outcome = "other nodes will skip it" if leasable else "no subnet there is leased, so that works"
                yield f"lease {record.key}: its node's address {public} lies in the network {family.network}; {outcome}"


def _running(snapshot: Snapshot) -> list[str | None]:
    """The backend types that the nodes of this store run: what its document says, else what the leases say."""
    if snapshot.config is not None:
        with suppress(ConfigError):
            stored = NetworkConfig.from_json(snapshot.config.value)
            if not stored.assumption:
                return [stored.backend_type]
    return list(backend_types(snapshot.leases))


def _consequences(snapshot: Snapshot, new: NetworkConfig) -> list[str]:
    """What the change from the stored document to ``new`` does to the nodes that hold leases now."""
    if snapshot.config is None or not snapshot.leases:
        return []
    try:
        old = NetworkConfig.from_json(snapshot.config.value)
    except ConfigError:  # no daemon runs with a document that is invalid
        return []
    total = len(snapshot.leases)
    consequences = []
    under_way = read(snapshot.config.value).change
    if under_way is not None:
        consequences.append(
            f"a change of the network is under way since {under_way.began}, and nodes are on their way: let 'pyflannel "
            "network change' end it, or give it up with --abort"
        )
    leases = counted(total, "lease")
    misfits = sum(not _fits(record, new) for record in snapshot.leases)
    if (_networks(old), misfits) != (_networks(new), 0):
        consequences.append(
            f"the network changes under {leases}, of which {misfits} don't fit the new one; 'pyflannel network "
            "change' says what can be changed while containers keep their addresses"
        )
    if _backend(old) != _backend(new):
        consequences.append(
            f"the backend changes under {leases}: nodes keep the old one ({old.backend_type}) until they are "
            f"restarted, and don't reach those that run the new one ({new.backend_type}) then; 'pyflannel network "
            "change' goes over without that"
        )
    return consequences


def _networks(network: NetworkConfig) -> list[str]:
    return [str(family.network) for family in network.families]


def _backend(network: NetworkConfig) -> JSON:
    """Type and options, with defaults and in one spelling where the backend is installed to tell them."""
    from pyflannel.backend import parse_options

    written = network.backend_options
    try:
        options, unknown = parse_options(load_backend(network.backend_type).Options, written)
    except (PluginError, ConfigError):
        return network.backend_type, written
    return network.backend_type, options, {key: written[key] for key in unknown}


def _fits(record: Record, network: NetworkConfig) -> bool:
    try:
        return network.fits(Subnets.from_key(record.key))
    except MalformedError:
        return True  # no node holds it
