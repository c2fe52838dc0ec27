"""deploy/systemd: systemd's own tools find nothing wrong, and what it says of the server is true."""

import argparse
import asyncio
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
from tokenwire.cli.running import edge
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy/systemd"
UNIT = (FOLDER / "tokenwire.service").read_text()
EDGE = (FOLDER / "tokenwire-edge.service").read_text()
ANALYZE = shutil.which("systemd-analyze")

needs_systemd = pytest.mark.skipif(
    ANALYZE is None, reason="only systemd itself can say what it makes of a unit, and it isn't installed here"
)


def told(option: str, unit: str = UNIT) -> list[str]:
    """All that a unit says of an option."""
    return re.findall(rf"^{option}=(.*)$", unit, re.MULTILINE)


@pytest.fixture(params=["tokenwire.service", "tokenwire-edge.service"])
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A unit with its drop-in, and with a program that is there."""
    found: Path = tmp_path / request.param
    folder = found.with_suffix(".service.d")
    folder.mkdir()
    if found.stem == "tokenwire":
        shutil.copy(FOLDER / "google-key.conf", folder)
    here = str(Path(sys.executable).with_name("tokenwire"))
    # The edge wants the server before it, if there is one.
    for name, text in (("tokenwire.service", UNIT), ("tokenwire-edge.service", EDGE)):
        (tmp_path / name).write_text(text.replace("/opt/tokenwire/bin/tokenwire", here))
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


def edge_options(*flags: str) -> argparse.Namespace:
    """Those of the edge as its unit starts it, with these flags of its owner."""
    (command,) = told("ExecStart", EDGE)
    path, name, *own = command.split(" ")
    assert path.endswith("/bin/tokenwire")
    assert edge.__name__ == f"tokenwire.{COMMANDS[name][0]}"
    assert own.pop() == "$EDGE_FLAGS"
    return edge._parser("tokenwire edge").parse_args([*own, *flags])


def test_a_stop_of_the_edge_has_the_time_that_all_of_its_steps_take() -> None:
    takes = stopping.edge_takes(edge_options())
    (most,) = told("TimeoutStopSec", EDGE)
    assert float(most) >= takes + stopping.BESIDE_SECONDS
    assert f": {takes:g} s." in EDGE
    assert told("KillMode", EDGE) == ["mixed"]
    stopping.hold(settings(), edge_options().grace)


def test_the_edge_is_run_with_the_flags_of_its_owner() -> None:
    (flags,) = re.findall(r"^EDGE_FLAGS=((?:.+\\\n)*.+)$", SECTION, re.MULTILINE)
    options = edge_options(*flags.replace("\\\n", "").split())
    assert options.host != edge_options().host
    assert options.replica_name
    assert edge_options("--grace", "5").grace == 5
    assert told("Environment", EDGE) == ["EDGE_FLAGS="]
    (file,) = told("EnvironmentFile", EDGE)
    assert f" {file} " in SECTION
    assert told("RestartPreventExitStatus", EDGE) == [str(EXIT_SETTING)]
    assert told("ExecReload", EDGE) == []  # SIGHUP ends it


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
    made = re.findall(r"^groupadd --system (\S+)$", SECTION, re.MULTILINE)
    for name, one in (("tokenwire", UNIT), ("tokenwire-edge", EDGE)):
        assert told("DynamicUser", one) == ["yes"]
        assert told("User", one) == []
        assert made == told("SupplementaryGroups", one)
        assert name not in made
    assert set(re.findall(r"--group (\S+)", SECTION)) == set(made)
    # Nor does the page make such a user.
    assert "useradd" not in SECTION


def test_it_waits_for_no_word_that_the_server_does_not_say() -> None:
    says = [path for path in (ROOT / "service").rglob("*.py") if "NOTIFY_SOCKET" in path.read_text()]
    assert told("Type") == ["exec"] if not says else ["notify"]


def calls(*names: str) -> set[str]:
    """These system calls, and all of groups, such as "@process"."""
    found = {name for name in names if not name.startswith("@")}
    for group in sorted(set(names) - found):
        lines = [line.strip() for line in analyze("syscall-filter", "--no-pager", group).splitlines()[1:]]
        named = [line for line in lines if line and not line.startswith("#")]
        found |= {line for line in named if not line.startswith("@")}
        found |= calls(*(line for line in named if line.startswith("@")))
    return found


def confinement(unit: str) -> dict[str, Any]:
    """What the unit leaves to its program, for `tests.confined`."""
    allowed: set[str] = set()
    for line in told("SystemCallFilter", unit):
        groups = line.removeprefix("~").split()
        allowed = allowed - calls(*groups) if line.startswith("~") else allowed | calls(*groups)
    families = [getattr(socket, name) for line in told("RestrictAddressFamilies", unit) for name in line.split()]
    assert told("MemoryDenyWriteExecute", unit) == ["yes"]
    assert told("SystemCallErrorNumber", unit) == ["EPERM"]
    return {"calls": sorted(allowed), "families": families, "executable": False}


@asynccontextmanager
async def confined(unit: str, ready: str, *command: str) -> AsyncIterator[list[str]]:
    """`tokenwire` with this command, with what the unit leaves to it; gives what it says. It ends well by SIGTERM."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.confined", json.dumps(confinement(unit))),
        *(sys.executable, "-m", "tokenwire.cli", *command),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    said: list[str] = []
    async with asyncio.timeout(100):
        async for line in process.stdout:
            said.append(line.decode())
            if ready in said[-1]:
                break
        else:
            if await process.wait() == UNKNOWN:
                pytest.skip(
                    "MemoryDenyWriteExecute is tried by prctl(PR_SET_MDWE), which this kernel lacks (it came with 6.3)"
                )
            pytest.fail("".join(said))
    try:
        yield said
    finally:
        process.send_signal(signal.SIGTERM)
        rest, _ = await asyncio.wait_for(process.communicate(), 60)
    said.append(rest.decode())
    assert process.returncode == 0, "".join(said)


@needs_systemd
@pytest.mark.process
@pytest.mark.thorough
async def test_server_and_edge_serve_and_end_with_what_their_units_leave_to_them(emulator: Emulator) -> None:
    """System calls, kinds of sockets, and no memory that can be both written and run."""
    emulator.script.play(default=answer("Base", "ball."))
    port, edge_port = str(free_port()), str(free_port())
    server = ("serve", "--port", port, "--workers", "2", "--emulator", emulator.address)
    proxy = ("edge", "--port", edge_port, "--replica", f"127.0.0.1:{port}")
    async with (
        confined(UNIT, "ready after", *server) as said,
        confined(EDGE, "Envoy listening", *proxy) as edge_said,
    ):
        for one in (port, edge_port):
            async with AsyncClient(f"127.0.0.1:{one}") as client, client.generate("What is baseball?") as pieces:
                assert "".join([piece async for piece in pieces.text()]) == "Baseball."
    assert "warning" not in "".join(said).lower()
    assert "SCHED_BATCH" not in "".join(said)  # it says so where it is refused
    # That it was told to end it says as a warning.
    assert "".join(edge_said).count("[warning]") == "".join(edge_said).count("caught ENVOY_SIGTERM")
