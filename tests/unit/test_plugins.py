"""Plugin discovery, on real distributions that each test installs for itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from tests.starving import without_descriptors

from pyflannel.errors import ConflictError, ExitCode, KernelError, PluginError
from pyflannel.plugins import BACKENDS, STORES, distribution, installed, load_backend, load_store, open_store
from pyflannel.store import StoreLocation

SLY = """
from pyflannel.backend import Backend

class Sly(type(Backend)):
    @property
    def api_version(cls):
        1 / 0

class Plan(Backend, metaclass=Sly):
    name = "acme"
"""

GOOD = """\
from pyflannel.backend import Backend

class Plan(Backend):
    name = "{name}"

    def mtu(self, underlay):
        return underlay.mtu

"""


WHOLE_STORE = """\
from pyflannel.store import Store

def unused(self, *arguments):
    raise NotImplementedError

class Plan(Store):
    scheme = "{name}"
    read_config = write_config = snapshot = create = update = renew = delete = watch = unused

"""


class Site:
    """A directory on the import path into which distributions are installed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def install(self, distribution: str, name: str, code: str, group: str = BACKENDS, attribute: str = "Plan") -> None:
        module = f"{distribution.replace('-', '_')}_module"
        (self.path / f"{module}.py").write_text(code.replace("{name}", name))
        about = self.path / f"{distribution.replace('-', '_')}-1.2.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        (about / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}:{attribute}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.syspath_prepend(tmp_path)
    yield Site(tmp_path)
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def problem(name: str, group: str = BACKENDS) -> str:
    (found,) = [plugin for plugin in installed(group) if plugin.name == name]
    assert not found.loads
    return found.problem


def test_a_third_partys_backend_is_found_at_once(site: Site) -> None:
    with pytest.raises(PluginError, match="no backend 'acme' is installed"):
        load_backend("acme")
    site.install("acme-net", "acme", GOOD)
    assert load_backend("acme").name == "acme"
    (found,) = [plugin for plugin in installed(BACKENDS) if plugin.name == "acme"]
    assert found.loads
    assert (found.distribution, found.version, found.target) == ("acme-net", "1.2", "acme_net_module:Plan")


def test_ours_come_from_our_distribution() -> None:
    for group, name in ((BACKENDS, "vxlan"), (STORES, "file")):
        (found,) = [plugin for plugin in installed(group) if plugin.name == name]
        assert found.distribution == "pyflannel"
        assert found.loads, found.problem


def test_whose_a_loaded_plugin_is_can_be_told_without_a_descriptor(site: Site) -> None:
    """As a daemon does that takes over a generation just then."""
    site.install("acme-net", "acme", GOOD)
    site.install("other-net", "other", GOOD)
    load_backend("acme")
    with without_descriptors():
        assert distribution("backend", "acme") == ("acme-net", "1.2")
        assert distribution("backend", "other") == ("", "")
        metadata.MetadataPathFinder().invalidate_caches()  # so that directories are read now, in vain
        with pytest.raises(KernelError, match=r"Too many open files.*raise LimitNOFILE="):
            load_backend("other")
    assert distribution("backend", "other") == ("other-net", "1.2")
    assert load_backend("other").name == "other"


def test_an_unknown_name_lists_what_is_installed() -> None:
    with pytest.raises(
        PluginError, match=r"no backend 'vxlna' is installed; did you mean 'vxlan'\? installed: .*vxlan"
    ):
        load_backend("vxlna")
    with pytest.raises(PluginError, match=r"no store 'zookeeper' is installed; installed: .*file"):
        load_store("zookeeper")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_module_at_all", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("def broken(:", "SyntaxError"),
        ("assert False, 'not here'", "AssertionError: not here"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("class Gone(BaseException):\n    pass\nraise Gone('away')", "Gone: away"),
        ("raise KeyboardInterrupt", "does not load: KeyboardInterrupt"),
        ("class Mute(Exception):\n    __str__ = exit\nraise Mute", "Mute: its text can't be made"),
        ("raise ValueError('x' * 9999)", "does not load: ValueError: xxx"),
        (SLY, "can't be used: ZeroDivisionError: division by zero"),
        ("Other = 1", "AttributeError"),
        ("Plan = 1", "is not a subclass of pyflannel.backend.Backend"),
        ("from pyflannel.store import Store as Plan", "is not a subclass of pyflannel.backend.Backend"),
        (GOOD + "    api_version = 99", "version 99 of the API, this pyflannel has 1: upgrade pyflannel"),
        (GOOD + "    api_version = 0", "version 0 of the API, this pyflannel has 1: upgrade the plugin"),
        (GOOD + "    api_version = 'one'", "api_version must be a whole number"),
        (GOOD.replace("{name}", "other"), "calls itself 'other' (name), its entry point 'acme'; they must be equal"),
        (GOOD.replace("def mtu", "def mut"), "is incomplete: it lacks mtu"),
        (GOOD.replace("def mtu", "async def mtu"), "its mtu is asynchronous, and nobody would await it"),
        (GOOD + "    async def plan_node(self, node):\n        yield node", "its plan_node is asynchronous"),
        (GOOD + "    describe = None", "its describe is of type NoneType, and must be a function"),
        (GOOD.replace("name = ", "name = property(str) #"), "its name is a property, and must be a plain value"),
        (GOOD + "    capabilities = {'ipv4': True}", "its capabilities is of type dict, and must be a Capabilities"),
        (GOOD + "    Options = dict", "its Options is the class dict, and must be a dataclass"),
        (GOOD + "    Options = {}", "its Options is of type dict, and must be a dataclass"),
        (GOOD + "    actions = ['renew']", "its actions is of type list, and must be a mapping of texts to texts"),
        (
            GOOD + "    actions = {'renew': None}",
            "its actions is of type dict, and must be a mapping of texts to texts",
        ),
    ],
)
def test_a_broken_plugin_is_reported_and_harms_nobody_else(site: Site, code: str, reason: str) -> None:
    site.install("acme-net", "acme", code)
    with pytest.raises(PluginError) as caught:
        load_backend("acme")
    assert str(caught.value).startswith("backend 'acme' of acme-net (acme_net_module:Plan) ")
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 700
    assert problem("acme") == str(caught.value)
    assert load_backend("vxlan").name == "vxlan"


@pytest.mark.parametrize("target", ["", "???", "acme_net_module", "acme_net_module:", ":Plan", "acme-net:Plan"])
def test_an_entry_point_that_names_no_class_is_told_from_a_module_that_fails(site: Site, target: str) -> None:
    site.install("acme-net", "acme", GOOD)
    (site.path / "acme_net-1.2.dist-info" / "entry_points.txt").write_text(f"[{BACKENDS}]\nacme = {target}\n")
    with pytest.raises(PluginError) as caught:
        load_backend("acme")
    who = f"backend 'acme' of acme-net ({target})"
    assert str(caught.value) == f"{who} names no class: the entry point must be of the form module:Class"
    assert problem("acme") == str(caught.value)


def test_an_import_that_does_not_end_is_left_behind_and_costs_one_thread(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    site.install("acme-net", "acme", f"open({str(gate)!r}).close()\n{GOOD}")
    monkeypatch.setattr("pyflannel.plugins.IMPORT_TIMEOUT", 0.1)
    with pytest.raises(PluginError) as caught:
        load_backend("acme")
    for said in (str(caught.value), problem("acme")):
        assert "(acme_net_module:Plan) does not load: its import has not ended after 0.1 s; it stands in " in said
        assert said.endswith("acme_net_module.py, line 1")
    assert load_backend("vxlan").name == "vxlan"
    (left,) = [thread for thread in threading.enumerate() if thread.name.startswith("import of backend 'acme'")]
    gate.write_text("")
    left.join()
    assert load_backend("acme").name == "acme"


def test_what_a_module_prints_is_no_output_of_ours(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.install("acme-net", "acme", f"print('here I am')\n{GOOD}")
    load_backend("acme")
    assert capsys.readouterr() == ("", "here I am\n")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("entry_points.txt", b"\xff\xfe"),
        ("entry_points.txt", f"[{BACKENDS}]\nacme\n".encode()),
        ("METADATA", b"Name: \xff"),
        ("METADATA", b""),
    ],
)
def test_a_distribution_that_can_not_be_read_keeps_nobody_from_being_found(
    site: Site, file: str, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor itself, as far as it can be read."""
    site.install("acme-net", "acme", GOOD)
    site.install("other-net", "other", GOOD)
    (site.path / "acme_net-1.2.dist-info" / file).write_bytes(content)
    found = {plugin.name: (plugin.distribution, plugin.loads) for plugin in installed(BACKENDS)}
    assert found["vxlan"] == ("pyflannel", True)
    assert found["other"] == ("other-net", True)
    assert load_backend("other").name == "other"
    if file == "METADATA":
        assert found["acme"] == ("unknown", True)
    else:
        assert "acme" not in found
        told = f"the entry points of acme-net in {site.path} can't be read; reinstall it, or remove it"
        assert caplog.text.count(told) == 1


def test_a_duplicate_of_ours_is_reported_and_not_used(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.install("acme-net", "vxlan", GOOD)
    assert load_backend("vxlan").__module__ == "pyflannel_backends.vxlan"
    assert "backend 'vxlan' of acme-net is not used" in caplog.text
    states = {plugin.distribution: plugin.loads for plugin in installed(BACKENDS) if plugin.name == "vxlan"}
    assert states == {"pyflannel": True, "acme-net": False}


def test_what_is_not_used_is_not_imported(site: Site) -> None:
    """The duplicate would end the process; the other one is nobody's to load now."""
    site.install("acme-net", "vxlan", "raise SystemExit(3)")
    site.install("bcme-net", "bcme", "raise SystemExit(3)")
    assert load_backend("vxlan").__module__ == "pyflannel_backends.vxlan"
    assert "bcme_net_module" not in sys.modules
    assert {plugin.name for plugin in installed(BACKENDS) if not plugin.loads} == {"vxlan", "bcme"}


def test_an_upgrade_is_seen_at_once(site: Site) -> None:
    site.install("acme-net", "acme", GOOD)
    assert load_backend("acme").name == "acme"
    (site.path / "acme_net_module.py").rename(site.path / "acme_moved.py")
    (site.path / "acme_net-1.2.dist-info" / "entry_points.txt").write_text(f"[{BACKENDS}]\nacme = acme_moved:Plan\n")
    assert load_backend("acme").__module__ == "acme_moved"


def test_what_is_loaded_is_looked_for_again_when_something_was_installed_or_removed(site: Site) -> None:
    site.install("acme-1", "acme", GOOD)
    load_backend("acme")  # to import it makes a __pycache__, which changes the place, too
    acme = load_backend("acme")
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr("pyflannel.plugins.entry_points")
        assert load_backend("acme") is acme
        site.install("acme-2", "another", GOOD)
        with pytest.raises(NameError):
            load_backend("acme")
    assert load_backend("acme") is acme
    shutil.rmtree(site.path / "acme_1-1.2.dist-info")
    with pytest.raises(PluginError, match="no backend 'acme' is installed"):
        load_backend("acme")


def test_of_two_others_with_one_name_none_is_chosen(site: Site) -> None:
    site.install("acme-net", "acme", GOOD)
    site.install("bcme-net", "acme", GOOD)
    with pytest.raises(PluginError, match=r"provided more than once, by acme-net \(.*\), bcme-net \(.*\); uninstall"):
        load_backend("acme")
    assert [plugin.loads for plugin in installed(BACKENDS) if plugin.name == "acme"] == [False, False]
    assert load_backend("vxlan").name == "vxlan"


def test_a_stores_scheme_must_be_its_entry_points_name(site: Site) -> None:
    site.install("acme-net", "acme", "from pyflannel.store import Store\nclass Plan(Store):\n    scheme = 'x'", STORES)
    with pytest.raises(PluginError, match=r"store 'acme' .* calls itself 'x' \(scheme\)"):
        load_store("acme")


@pytest.mark.parametrize("name", ["Acme", "acme_sql", "7acme"])
def test_a_scheme_that_no_url_has_is_told_and_not_offered(site: Site, name: str) -> None:
    """Python's URLs are in lower case when they were read, and have no underscore."""
    site.install("acme-net", name, WHOLE_STORE.replace("{name}", name), STORES)
    assert "no URL has its scheme, which must be lower-case letters" in problem(name, STORES)
    with pytest.raises(PluginError, match="no store 'acme' is installed; installed: consul, etcd, file, kubernetes "):
        load_store("acme")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("options = ['poll']", "its options is of type list, and must be a mapping of texts to texts"),
        ("secret_options = 'token'", "its secret_options is of type str, and must be a frozenset of texts"),
        (
            "secret_options = frozenset({7})",
            "its secret_options is of type frozenset, and must be a frozenset of texts",
        ),
        ("node_clocks = 'no'", "its node_clocks is of type str, and must be True or False"),
    ],
)
def test_what_a_store_says_of_itself_has_the_contracts_types(site: Site, said: str, reason: str) -> None:
    head = "from pyflannel_stores.file import FileStore\nclass Plan(FileStore):\n    scheme = 'acme'\n"
    site.install("acme-net", "acme", f"{head}    {said}\n", STORES)
    with pytest.raises(PluginError) as caught:
        load_store("acme")
    assert str(caught.value) == f"store 'acme' of acme-net (acme_net_module:Plan) can't be used: {reason}"


STRAY = """\
from pyflannel_stores.file import FileStore

class Plan(FileStore):
    api_version = 1
    scheme = "acme"

    def __init__(self, location):
        super().__init__(location)
        if location.path.endswith("constructor"):
            raise TypeError("no argument")

    def snapshot(self):
        raise ZeroDivisionError("oops")

    def read_config(self):
        raise SystemExit(3)
"""


def test_what_a_store_raises_is_named_as_its_own_and_what_it_may_raise_passes(site: Site, tmp_path: Path) -> None:
    site.install("acme-net", "acme", STRAY, STORES)
    with open_store(StoreLocation.parse(f"acme://{tmp_path}/store")) as store:
        with pytest.raises(PluginError, match="store 'acme' failed in snapshot: ZeroDivisionError: oops"):
            store.snapshot()
        with pytest.raises(PluginError, match="store 'acme' failed in read_config: SystemExit: 3"):
            store.read_config()
        store.create("10.5.1.0-24", "{}", None)
        with pytest.raises(ConflictError):
            store.create("10.5.1.0-24", "{}", None)
        assert isinstance(store, load_store("acme"))
    with pytest.raises(PluginError, match="store 'acme' failed in its constructor: TypeError: no argument"):
        open_store(StoreLocation.parse(f"acme://{tmp_path}/constructor"))


def test_a_command_names_the_store_that_fails_it(site: Site, tmp_path: Path) -> None:
    site.install("acme-net", "acme", STRAY, STORES)
    paths = os.pathsep.join(filter(None, [str(site.path), os.environ.get("PYTHONPATH", "")]))
    words = ["-m", "pyflannel", "leases", "--store", f"acme://{tmp_path}/store"]
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.PLUGIN
    assert done.stderr == "pyflannel: error: store 'acme' failed in snapshot: ZeroDivisionError: oops\n"
