"""What the daemon does with a store's driver before anything else needs it."""

from __future__ import annotations

import time
from pathlib import Path

from tests.sites import installed
from tests.unit.daemon.running import settings_in

from pyflannel.daemon.loop import first_window
from pyflannel.daemon.wiring import _Owner
from pyflannel.membership.slot import Slot
from pyflannel.show.view import PluginName

STORE = """\
from pyflannel_stores.file import FileStore

class Stuck(FileStore):
    scheme = "stuck"

    def close(self):
        self.connection.close()
"""


def test_a_store_that_can_not_be_closed_before_it_is_used_is_used(tmp_path: Path) -> None:
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
        found = _Owner(settings, lambda: settings)._store_class(window)
    assert found.scheme == "stuck"
    assert window.last.call is None
