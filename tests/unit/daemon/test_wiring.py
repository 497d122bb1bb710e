"""What the daemon does with a store's driver before anything else needs it."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sites import installed
from tests.unit.daemon.running import settings_in

from pyflannel.daemon.loop import first_window
from pyflannel.daemon.wiring import _made, _Owner
from pyflannel.membership.slot import Slot
from pyflannel.show.view import PluginName
from pyflannel.store import Store, StoreLocation

STORE = """\
import logging.config
from pyflannel_stores.file import FileStore

logging.config.dictConfig({"version": 1, "disable_existing_loggers": True})

class Stuck(FileStore):
    scheme = "stuck"

    def __init__(self, location):
        super().__init__(location)
        logging.disable(logging.CRITICAL)

    def close(self):
        self.connection.close()
"""


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[type[Store]]:
    """As the daemon has it from an installed plugin."""
    about = tmp_path / "stuck-1.dist-info"
    about.mkdir()
    (tmp_path / "stuck.py").write_text(STORE)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: stuck\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[pyflannel.stores]\nstuck = stuck:Stuck\n")
    settings = settings_in(tmp_path, PYFLANNEL_STORE=f"stuck://{tmp_path}/store")
    window = first_window(
        "node-1", PluginName("stuck"), str(settings.store), Slot(lambda: None), lambda: None, time.monotonic
    )
    with installed(tmp_path):
        yield _Owner(settings, lambda: settings)._store_class(window)
    assert window.last.call is None
    sys.modules.pop("stuck")


def test_a_store_that_can_not_be_closed_before_it_is_used_is_used(driver: type[Store]) -> None:
    assert driver.scheme == "stuck"


def test_a_store_that_sets_up_logging_silences_no_daemon(
    caplog: pytest.LogCaptureFixture, driver: type[Store], tmp_path: Path
) -> None:
    for made in (False, True):
        if made:
            _made(driver, StoreLocation.parse(f"stuck://{tmp_path}/store"))
        caplog.clear()
        logging.getLogger("pyflannel.daemon.loop").warning("heard")
        assert caplog.messages == ["heard"]
