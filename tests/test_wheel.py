"""The wheel: one name at the top level, and programs that run from it, whatever else stands on the path."""

import ast
import asyncio
import os
import re
import subprocess
import sys
import tomllib
import urllib.request
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email import message_from_string
from hashlib import sha256
from importlib import metadata
from pathlib import Path

import pytest

from service.generation.events import Finished, FinishReason, Started, Text, Usage
from service.testing import FakeProvider
from tests.conftest import Serve
from tests.ports import free_port
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer

ROOT = Path(__file__).parents[1]

# The first start compiles all that it imports, which takes a minute on a busy machine.
START_SECONDS = 200
pytestmark = pytest.mark.timeout(2 * START_SECONDS)

FINISHED = Finished(
    reason=FinishReason.STOP,
    upstream_reason="STOP",
    usage=Usage(input_tokens=1, output_tokens=2, total_tokens=3),
)

BARE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(*command: str | Path) -> None:
    ended = subprocess.run([str(word) for word in command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment that has the wheel with all of its extras, and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    uv = Path(sys.executable).with_name("uv")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    # The locked packages, which uv has in its cache since the developer's environment was made.
    locked = ("--require-hashes", "-r", ROOT / "requirements" / "run.txt")
    run(uv, "pip", "install", "--python", folder, *locked)
    run(uv, "pip", "install", "--python", folder, "--offline", f"{wheel}[all]")
    run(uv, "pip", "check", "--python", folder)
    return folder / "bin"


@dataclass(frozen=True)
class Bare:
    """An environment that has the wheel without extras, and what that needs."""

    programs: Path
    """The folder of them."""
    added: set[str]
    """What installing the wheel has put at the top level of site-packages."""


@pytest.fixture(scope="module")
def bare(wheel: Path, installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Bare:
    del installed  # by which uv has all that is needed in its cache
    folder = tmp_path_factory.mktemp("bare")
    uv = Path(sys.executable).with_name("uv")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    install = (uv, "pip", "install", "--offline", "--python", folder, "-c", ROOT / "requirements" / "run.txt")
    run(*install, *tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    (packages,) = folder.glob("lib/python*/site-packages")
    before = set(packages.iterdir())
    run(*install, "--no-deps", wheel)
    run(uv, "pip", "check", "--python", folder)
    return Bare(folder / "bin", {path.name for path in set(packages.iterdir()) - before})


@asynccontextmanager
async def running(*command: str | Path, words: str, cwd: Path, **environ: str) -> AsyncIterator[str]:
    """A program; gives its first line of output with these words. Interrupted in the end, by which it ends with 0."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        cwd=cwd,
        env={**BARE, **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        async with asyncio.timeout(START_SECONDS):
            while words not in (line := (await process.stdout.readline()).decode()):
                assert line, "".join(lines)
                lines.append(line)
        yield line
        process.terminate()
        rest, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode in {0, -15}, rest.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def told(*command: str | Path, cwd: Path) -> tuple[int | None, str]:
    """The exit code of a program, and all that it writes."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), cwd=cwd, env=BARE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    words, _ = await asyncio.wait_for(process.communicate(), START_SECONDS)
    return process.returncode, words.decode()


def test_it_holds_one_name_and_what_it_needs_to_run(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"tokenwire"}
    for name in (
        "service/app.py",
        "gateway_ui/script.py",
        "gateway_ui/drawing/assets/icon.svg",
        "vertex_emulator/emulator.py",
    ):
        assert f"tokenwire/{name}" in names
    assert "tokenwire/py.typed" in names


def test_it_holds_what_the_tree_holds_byte_for_byte(wheel: Path) -> None:
    """The checkout and the wheel run the same code."""
    archive = zipfile.ZipFile(wheel)
    packed = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    tree = {}
    for package in ("tokenwire", "service", "gateway_ui", "vertex_emulator", "deploy/envoy"):
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                above = "" if package == "tokenwire" else "tokenwire/"
                tree[f"{above}{path.relative_to(ROOT)}"] = path.read_bytes()
    assert {name: sha256(data).hexdigest() for name, data in packed.items()} == {
        name: sha256(data).hexdigest() for name, data in tree.items()
    }


def test_its_description_links_to_nothing_that_is_not_there(wheel: Path) -> None:
    """The README's own links lead to files beside it, which an index doesn't have."""
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    described = message_from_string(archive.read(name).decode())
    assert described["Description-Content-Type"] == "text/markdown"
    description = str(described.get_payload())
    targets = re.findall(r"\]\(([^)]*)\)", description)
    assert targets
    assert all(target.startswith("https://") for target in targets), targets
    assert "all settings are flags and variables" in " ".join(description.split())
    assert "The chat page while" not in description, "a picture's words are no text"
    assert "日本語" not in description


def test_an_environment_gets_one_name_and_the_description_of_the_package(bare: Bare) -> None:
    assert bare.added == {"tokenwire", f"tokenwire-{metadata.version('tokenwire')}.dist-info"}


async def test_without_extras_a_question_is_answered(bare: Bare, serve: Serve, tmp_path: Path) -> None:
    served = await serve(FakeProvider([Started("gemini-2.5-flash"), Text("Base"), Text("ball."), FINISHED]))
    assert await told(bare.programs / "tokenwire", "ask", "What?", "--address", served.address, cwd=tmp_path) == (
        0,
        "Baseball.\n",
    )


async def test_without_extras_programs_say_which_one_they_need(bare: Bare, tmp_path: Path) -> None:
    tokenwire = bare.programs / "tokenwire"
    for command, extra in ((("serve", "--emulator", "127.0.0.1:1"), "server"), (("ui",), "ui")):
        code, words = await told(tokenwire, *command, cwd=tmp_path)
        assert code != 0
        assert f"tokenwire's extra '{extra}'" in words
        assert words.count("\n") == 1


@pytest.mark.smollm2
async def test_the_demo_streams_an_answer_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code, words = await told(installed / "tokenwire", "demo", "--once", cwd=tmp_path)
    assert code == 0, words
    answered, figures, _ = words.partition("What is baseball?")[2].partition("\nfirst chunk ")
    assert figures, words
    assert len(answered.splitlines()[-1]) > 10, words


def test_a_caller_imports_nothing_but_the_front_door(installed: Path, tmp_path: Path) -> None:
    code = "import sys, tokenwire; tokenwire.Client; print(sorted(n for n in sys.modules if n.count('.') < 2))"
    command: list[str | Path] = [installed / "python", "-c", code]
    ended = subprocess.run(command, cwd=tmp_path, env=BARE, capture_output=True, text=True, check=True)
    assert "tokenwire.client" in ended.stdout
    assert not {"langchain_core", "streamlit", "tokenwire.service"} & set(ast.literal_eval(ended.stdout))


def foreign(folder: Path) -> Path:
    """A folder that comes first on somebody's path, and has packages by the names of ours."""
    for name in ("service", "gateway_ui", "vertex_emulator"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise SystemExit('not ours')")
    return folder


async def test_programs_run_beside_folders_of_the_same_names(
    installed: Path, emulator: Emulator, tmp_path: Path
) -> None:
    emulator.script.play(default=answer("Base", "ball."))
    path = str(foreign(tmp_path))
    tokenwire = installed / "tokenwire"
    flags = ("--port", "0", "--workers", "2", "--emulator", emulator.address)
    async with running(tokenwire, "serve", *flags, words="ready after", cwd=tmp_path, PYTHONPATH=path) as ready:
        del ready


async def test_the_programs_of_the_checkout_run_beside_such_folders_too(emulator: Emulator, tmp_path: Path) -> None:
    path = os.pathsep.join(map(str, (foreign(tmp_path), ROOT)))
    # Python puts the current folder first, too, where a module is run.
    for tokenwire in ([Path(sys.executable).with_name("tokenwire")], [sys.executable, "-m", "tokenwire.cli"]):
        for program in ("serve", "ui", "emulator"):
            async with running(*tokenwire, program, "--help", words="usage: ", cwd=tmp_path, PYTHONPATH=path) as usage:
                assert usage.startswith(f"usage: tokenwire {program} ")
    flags = ("--port", "0", "--workers", "2", "--emulator", emulator.address)
    async with running(*tokenwire, "serve", *flags, words="ready after", cwd=tmp_path, PYTHONPATH=path) as ready:
        del ready


async def test_ask_gets_an_answer_and_the_page_is_served(installed: Path, emulator: Emulator, tmp_path: Path) -> None:
    emulator.script.play(default=answer("Base", "ball."))
    port, page = free_port(), free_port()
    tokenwire = installed / "tokenwire"
    flags = ("--port", str(port), "--workers", "2", "--emulator", emulator.address)
    async with running(tokenwire, "serve", *flags, words="ready after", cwd=tmp_path):
        address = f"localhost:{port}"
        asked = await told(tokenwire, "ask", "What is baseball?", "--address", address, cwd=tmp_path)
        assert asked == (0, "Baseball.\n")
        shown = ("--port", str(page), "--address", address)
        async with running(tokenwire, "ui", *shown, words="URL", cwd=tmp_path):
            health = await asyncio.to_thread(_read, f"http://localhost:{page}/_stcore/health")
            assert health == b"ok"


def _read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as response:
        return bytes(response.read())
