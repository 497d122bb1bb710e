"""The machines themselves: they boot, keep to themselves, say what went wrong, and are gone afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tests.kernels.guest import CHECKOUT, KERNELS, Guest, GuestError, NoMachineError, guest
from tests.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


def test_it_is_another_kernel_with_this_machine_s_files(machine: Guest) -> None:
    release = machine.run(["uname", "-r"]).stdout.strip()
    assert release in machine.release
    assert release != os.uname().release
    here = Path(__file__).read_text(encoding="utf-8")
    assert machine.run(["cat", str(Path(__file__).relative_to(CHECKOUT))]).stdout == here
    said = machine.run([sys.executable, "-c", "import sys, pyflannel; print(sys.version)"], timeout=10).stdout
    assert said.strip() == sys.version


def test_commands_have_input_environment_status_and_both_outputs(machine: Guest) -> None:
    script = 'read -r line; echo "$line $WORD"; echo trouble >&2; exit 3'
    done = machine.run(["sh", "-c", script], input="one\n", env={"WORD": "two"}, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "one two\n", "trouble\n")
    with pytest.raises(GuestError, match="exit status 3\none \ntrouble"):
        machine.run(["sh", "-c", script], input="one\n")
    with pytest.raises(GuestError, match=r"sleep 1000: no end within"):
        machine.run(["sleep", "1000"], timeout=0.05)
    assert machine.run(["no-such-program"], check=False).returncode == 127
    assert len(machine.run(["sh", "-c", "yes 1234567 | head -c 1000000"]).stdout) == 1_000_000


def test_it_has_no_way_out_and_can_t_write_here(machine: Guest) -> None:
    assert not machine.run(["sh", "-c", "ls -d /sys/class/net/*/device"], check=False).stdout, "a network card"
    assert not machine.run(["ip", "route"]).stdout
    machine.run(["touch", str(CHECKOUT / "from-a-guest")])
    assert not (CHECKOUT / "from-a-guest").exists()


_ELSEWHERE = """
import sys
from tests.kernels.guest import CHECKOUT, guest
with guest("uml") as machine:
    code = "import sys, tests.kernels.agent; print(sys.prefix, tests.kernels.agent.__file__)"
    print(machine.run([sys.executable, "-c", code], timeout=10).stdout)
    print(machine.run(["sh", "-c", "pwd; ls /tmp; touch here /tmp/there"]).stdout)
"""


def test_checkout_and_interpreter_may_lie_below_tmp(uml: Guest) -> None:
    """A guest has a /tmp of its own."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pyflannel-kernels-") as place:
        checkout, venv = Path(place, "a checkout"), Path(place, "a checkout", ".venv")
        shutil.copytree(CHECKOUT / "tests/kernels", checkout / "tests/kernels")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", venv], check=True)
        done = subprocess.run(
            [venv / "bin/python", "-c", _ELSEWHERE],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [checkout, CHECKOUT / "core", *sys.path]))},
            cwd=checkout,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        where = f"{venv} {checkout}/tests/kernels/agent.py"
        assert done.stdout.split("\n") == [where, "", str(checkout), Path(place).name, "", ""]
        assert not (checkout / "here").exists()


@pytest.mark.parametrize("module", ["veth", "bridge", "tun", "vxlan", "ipip", "nf_tables"])
def test_modules_load_as_the_kernel_asks_for_them(machine: Guest, module: str) -> None:
    machine.run(["/run/guest/modprobe", module])


def test_a_machine_that_is_not_there_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYFLANNEL_CACHE", str(tmp_path))
    for name in KERNELS:
        with pytest.raises(NoMachineError, match=f"is missing: tools/fetch-kernels {name}"), guest(name):
            pass


_FORSAKE = """
import sys, time
from tests.kernels.guest import guest
with guest(sys.argv[1]) as machine:
    print(machine._process.pid, flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_nothing_is_left_of_it_when_its_owner_is_killed(name: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(name)  # or the reason why there is none
    owner = subprocess.Popen(
        [sys.executable, "-c", _FORSAKE, name], env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, stdout=subprocess.PIPE
    )
    with owner:
        assert owner.stdout is not None
        namespace = os.readlink(f"/proc/{int(owner.stdout.readline())}/ns/pid")
        owner.send_signal(signal.SIGKILL)
    until(lambda: not _members(namespace), lambda: _members(namespace))


def _members(namespace: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "ns/pid") == namespace:
                found.append((entry / "cmdline").read_text(encoding="utf-8").replace("\0", " "))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found
