"""deploy/systemd: systemd's own tools find nothing wrong, and what it says of the server is true."""

import asyncio
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.app import EXIT_SETTING
from service.settings import Settings
from tests import stopping
from tests.confined import UNKNOWN
from tests.ports import free_port
from tokenwire import AsyncClient
from tokenwire.cli.__main__ import COMMANDS
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy/systemd"
UNIT = (FOLDER / "tokenwire.service").read_text()
ANALYZE = shutil.which("systemd-analyze")

needs_systemd = pytest.mark.skipif(
    ANALYZE is None, reason="only systemd itself can say what it makes of a unit, and it isn't installed here"
)


def told(option: str) -> list[str]:
    """All that the unit says of an option."""
    return re.findall(rf"^{option}=(.*)$", UNIT, re.MULTILINE)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with its drop-in, and with a program that is there."""
    folder = tmp_path / "tokenwire.service.d"
    folder.mkdir()
    shutil.copy(FOLDER / "google-key.conf", folder)
    found = tmp_path / "tokenwire.service"
    here = str(Path(sys.executable).with_name("tokenwire"))
    found.write_text(UNIT.replace("/opt/tokenwire/bin/tokenwire", here))
    return found


def analyze(*arguments: str | Path) -> str:
    command = [str(ANALYZE), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_systemd
def test_systemd_finds_nothing_wrong_with_it(unit: Path) -> None:
    assert analyze("verify", "--man=false", unit) == ""


@needs_systemd
def test_systemd_would_find_what_is_wrong(unit: Path) -> None:
    (unit.with_suffix(".service.d") / "wrong.conf").write_text("[Service]\nNoSuchOption=1\nTimeoutStopSec=soon\n")
    said = subprocess.run([str(ANALYZE), "verify", unit], capture_output=True, text=True, check=False).stderr
    assert "NoSuchOption" in said
    assert "soon" in said


@needs_systemd
def test_systemd_finds_it_well_confined(unit: Path) -> None:
    """Its measure goes from 0 to 10, and above 2 it no longer says OK."""
    assert "OK" in analyze("security", "--offline=true", "--threshold=20", "--no-pager", unit)


def settings() -> Settings:
    """As the unit has them, where /etc/tokenwire/environment says nothing else."""
    return Settings.load([], dict(one.split("=", 1) for line in told("Environment") for one in line.split()), prog="")


def test_a_stop_has_the_time_that_all_of_its_steps_take() -> None:
    takes = stopping.server_takes(settings())
    (most,) = told("TimeoutStopSec")
    assert float(most) >= takes + stopping.BESIDE_SECONDS
    # What the comment says is what is counted.
    assert f": {takes:g} s." in UNIT
    assert told("KillMode") == ["mixed"]


def test_no_call_may_last_longer_than_a_stop_lets_it() -> None:
    """Unless its owner says otherwise: what is in the file wins, and the page's example says nothing of it."""
    stopping.hold(settings())
    (example,) = re.findall(r"/etc/tokenwire/environment << 'END'\n(.*?)^END$", SECTION, re.DOTALL | re.MULTILINE)
    names = {line.partition("=")[0] for line in example.splitlines()}
    assert names <= set(Settings.variables().values())
    assert not names & {one.partition("=")[0] for line in told("Environment") for one in line.split()}


def test_what_it_runs_is_the_server_and_a_reload_is_the_signal_for_it() -> None:
    (command,) = told("ExecStart")
    path, name = command.split(" ")
    assert path.endswith("/bin/tokenwire")
    assert COMMANDS[name][0] == "service.__main__"
    assert told("ExecReload") == ["/bin/kill -HUP $MAINPID"]
    assert told("RestartPreventExitStatus") == [str(EXIT_SETTING)]


PAGE = (ROOT / "docs/operations.md").read_text()
(SECTION,) = re.findall(r"^## systemd\n(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)


def test_its_user_has_the_name_of_no_group_that_the_page_makes() -> None:
    """A dynamic user is called as its unit is, and systemd takes no name that a group has already (217/USER)."""
    assert told("DynamicUser") == ["yes"]
    (user,) = told("User") or ["tokenwire"]  # the unit's own name
    made = re.findall(r"^groupadd --system (\S+)$", SECTION, re.MULTILINE)
    assert made == told("SupplementaryGroups")
    assert user not in made
    assert set(re.findall(r"--group (\S+)", SECTION)) == set(made)
    # Nor does the page make such a user.
    assert "useradd" not in SECTION


def test_it_waits_for_no_word_that_the_server_does_not_say() -> None:
    says = [path for path in (ROOT / "service").rglob("*.py") if "NOTIFY_SOCKET" in path.read_text()]
    assert told("Type") == ["exec"] if not says else ["notify"]


def calls(*groups: str) -> set[str]:
    """All system calls of groups, such as "@process"."""
    found: set[str] = set()
    for group in groups:
        lines = [line.strip() for line in analyze("syscall-filter", "--no-pager", group).splitlines()[1:]]
        named = [line for line in lines if line and not line.startswith("#")]
        found |= {line for line in named if not line.startswith("@")}
        found |= calls(*(line for line in named if line.startswith("@")))
    return found


def confinement() -> dict[str, Any]:
    """What the unit leaves to the server, for `tests.confined`."""
    allowed: set[str] = set()
    for line in told("SystemCallFilter"):
        groups = line.removeprefix("~").split()
        allowed = allowed - calls(*groups) if line.startswith("~") else allowed | calls(*groups)
    families = [getattr(socket, name) for line in told("RestrictAddressFamilies") for name in line.split()]
    assert told("MemoryDenyWriteExecute") == ["yes"]
    assert told("SystemCallErrorNumber") == ["EPERM"]
    return {"calls": sorted(allowed), "families": families, "executable": False}


@needs_systemd
@pytest.mark.process
@pytest.mark.thorough
async def test_the_server_serves_and_drains_with_what_the_unit_leaves_to_it(emulator: Emulator) -> None:
    """System calls, kinds of sockets, and no memory that can be both written and run."""
    emulator.script.play(default=answer("Base", "ball."))
    address = f"127.0.0.1:{free_port()}"
    flags = ("--port", address.partition(":")[2], "--workers", "2", "--emulator", emulator.address)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.confined", json.dumps(confinement())),
        *(sys.executable, "-m", "tokenwire.cli", "serve", *flags),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    said = []
    async with asyncio.timeout(100):
        async for line in process.stdout:
            said.append(line.decode())
            if "ready after" in said[-1]:
                break
        else:
            if await process.wait() == UNKNOWN:
                pytest.skip(
                    "MemoryDenyWriteExecute is tried by prctl(PR_SET_MDWE), which this kernel lacks (it came with 6.3)"
                )
            pytest.fail("".join(said))
    async with AsyncClient(address) as client, client.generate("What is baseball?") as pieces:
        assert "".join([piece async for piece in pieces.text()]) == "Baseball."
    process.send_signal(signal.SIGTERM)
    rest, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, rest.decode()
    assert "warning" not in "".join(said).lower()
