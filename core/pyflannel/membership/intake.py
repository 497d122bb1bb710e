"""What a store says, cut to size before anything is made of it.

Whoever may write to a store could fill every node's memory, log and page with a few records. A key that is longer than
any lease's is no lease's; of a longer text than a lease or a document may have only so much is kept that it is seen to
be too long. Versions stay, so that such a record can still be replaced or deleted.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from pyflannel.network.lease import MAX_KEY, MAX_VALUE
from pyflannel.network.parsing import MAX_DOCUMENT
from pyflannel.small.text import cut
from pyflannel.store import CONFIG_KEY, Batch, Change, Record, Snapshot

__all__ = ["bounded_batch", "bounded_record", "bounded_snapshot"]

log = logging.getLogger(__name__)


def bounded_record(record: Record) -> Record:
    """A record whose text is no longer than it takes to see that it is too long."""
    most = MAX_DOCUMENT if record.key == CONFIG_KEY else MAX_VALUE
    return record if len(record.value) <= most else replace(record, value=record.value[: most + 1])


def bounded_snapshot(snapshot: Snapshot) -> Snapshot:
    """Everything, cut to size."""
    leases = tuple(bounded_record(record) for record in snapshot.leases if len(record.key) <= MAX_KEY)
    if len(leases) < len(snapshot.leases):
        longest = max((record.key for record in snapshot.leases), key=len)
        count = len(snapshot.leases) - len(leases)
        log.warning("the store has keys that are longer than a lease's, ignored: %d, one is %r", count, cut(longest))
    config = bounded_record(snapshot.config) if snapshot.config is not None else None
    return Snapshot(snapshot.revision, config, leases)


def bounded_batch(batch: Batch) -> Batch:
    """Changes, cut to size."""
    changes = tuple(
        Change(change.key, bounded_record(change.record) if change.record is not None else None)
        for change in batch.changes
        if len(change.key) <= MAX_KEY
    )
    return Batch(batch.revision, changes)
