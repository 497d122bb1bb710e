"""The conformance kit for stores: the contract of :mod:`pyflannel.store`, checked on a live store.

Subclass it in a test module of your own distribution, name your driver, and give every test an empty place::

    class TestMyStore(StoreConformance):
        store_class = MyStore

        @pytest.fixture
        def location(self, my_server):
            return StoreLocation.parse(f"mystore://127.0.0.1:{my_server.port}/{uuid.uuid4()}")

What your server can't do is said in class attributes (its shortest TTL, how late it notices an expiry); what only you
can do to it, such as stopping it, in hook methods. A test whose hook is missing skips and names the hook. Several
processes take part, so the location must be reachable from all of them and the driver importable by name.

No test hangs with its driver: each call has :data:`~pyflannel.store.CALL_TIMEOUT` and a little more, not counting the
time for which the machine had no CPU for it, and whatever is waited for is named when it does not come. How soon a
watch tells of a change is nobody's promise, so it is told in the summary, with a warning from 250 ms on.
"""

from __future__ import annotations

from pyflannel.testing._following import Follower, contents, same_value
from pyflannel.testing._store_records import StoreRecords
from pyflannel.testing._store_subject import CONFIG as CONFIG
from pyflannel.testing._store_subject import KEY as KEY
from pyflannel.testing._store_subject import OTHER as OTHER
from pyflannel.testing._store_subject import VALUE as VALUE
from pyflannel.testing._store_watches import StoreWatches
from pyflannel.testing._store_workers import Opening
from pyflannel.testing._waiting import eventually

__all__ = [
    "Follower",
    "Opening",
    "StoreConformance",
    "contents",
    "eventually",
    "same_value",
]


class StoreConformance(StoreRecords, StoreWatches):
    """The tests. Set the class attributes, provide ``location``, override the hooks your server allows."""
