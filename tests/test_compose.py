"""deploy/compose is what its parts take: their own parsers read it, and all of it is held against each other.

It isn't run: that takes Docker, and images that come from a registry.
"""

import argparse
import json
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import Settings
from tests import stopping
from tests.ports import free_port
from tests.test_deploy import ALERTS, JOBS, promtool
from tokenwire.cli import health
from tokenwire.cli.running import edge

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy/compose"
GIVEN = {"GOOGLE_CLOUD_PROJECT": "project", "SERVER_NAME": "tokenwire.example"}
"""What its user says."""


def interpolated(text: str, environ: Mapping[str, str]) -> str:
    """As compose does it."""

    def value(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        name, kind, rest = found.group("name", "kind", "rest")
        if not environ.get(name):
            assert kind == ":-", f"{name} is wanted: {rest}"
            return str(rest)
        return environ[name]

    return re.sub(r"\$\$|\$\{(?P<name>\w+)(?P<kind>:[-?])(?P<rest>[^}]*)\}", value, text)


SOURCE = (FOLDER / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(interpolated(SOURCE, GIVEN))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
REPLICA, EDGE, REDIS, PROMETHEUS, ALERTMANAGER, GRAFANA = (
    SERVICES[name] for name in ("replica", "edge", "redis", "prometheus", "alertmanager", "grafana")
)
OURS = {"edge", "replica"}


def seconds(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(s|m)", text).groups()  # type: ignore[union-attr]
    return int(number) * {"s": 1, "m": 60}[unit]


def mounts(service: Mapping[str, Any]) -> dict[str, str]:
    """By the path in the container: what is there, a path or the name of a volume."""
    return {there: here for here, there, *_ in (volume.split(":") for volume in service.get("volumes", []))}


def file_at(service: Mapping[str, Any], path: str) -> Path:
    """What stands there in the container, in the tree."""
    return (FOLDER / mounts(service)[path]).resolve()


def within(service: Mapping[str, Any], path: str) -> bool:
    """Whether the container has that secret."""
    return path.startswith("/run/secrets/") and path.removeprefix("/run/secrets/") in service["secrets"]


def test_without_what_its_user_has_to_say_it_says_what_that_is() -> None:
    for name in GIVEN:
        with pytest.raises(AssertionError, match=f"{name} is wanted"):
            interpolated(SOURCE, {other: "x" for other in GIVEN if other != name})


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_names_is_there(name: str) -> None:
    service = SERVICES[name]
    for source in mounts(service).values():
        assert (FOLDER / source).is_file() if source.startswith(".") else source in COMPOSE["volumes"]
    assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"])
    assert set(service["networks"]) <= set(COMPOSE["networks"])
    assert set(service.get("depends_on", [])) <= set(SERVICES)
    if "build" in service:
        context = FOLDER / service["build"]["context"]
        assert context.resolve() == ROOT
        assert (context / service["build"]["dockerfile"]).is_file()


@pytest.mark.parametrize("kind", ["secrets", "networks", "volumes"])
def test_nothing_is_declared_that_nobody_uses(kind: str) -> None:
    used = {one for service in SERVICES.values() for one in service.get(kind, [])}
    if kind == "volumes":
        used = {source for service in SERVICES.values() for source in mounts(service).values()}
    assert set(COMPOSE[kind]) - used == set()


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined_and_asked_for_its_health(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.search(r":v?\d+\.\d+\.\d+(-\w+)?$", service["image"]), "a version is wanted"
    assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}
    assert seconds(service["healthcheck"]["timeout"]) <= seconds(service["healthcheck"]["interval"])


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_can_take_all_of_the_machine(name: str) -> None:
    service = SERVICES[name]
    assert service["cpus"] > 0
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert service["pids_limit"] > 0
    # What is written there is memory.
    for folder in service.get("tmpfs", []):
        assert re.fullmatch(r"/[\w/]+:size=\d+m", folder)


SECTION = (ROOT / "docs/operations.md").read_text().partition("\n## Compose\n")[2].partition("\n## ")[0]


def test_who_made_the_secrets_can_write_them_and_others_get_no_further_than_their_folder(tmp_path: Path) -> None:
    """As the page makes them: `cat new > secrets/keys` is how a file changes that is mounted."""
    folder = tmp_path / "secrets"
    (mkdir,) = re.findall(r"^mkdir .*secrets.*$", SECTION, re.MULTILINE)
    (chmod,) = re.findall(r"^chmod .*secrets.*$", SECTION, re.MULTILINE)
    assert "cat new > secrets/keys" in SECTION
    subprocess.run(["sh", "-ec", f"umask 077\n{mkdir}\necho old > secrets/keys\n{chmod}"], cwd=tmp_path, check=True)
    assert oct(folder.stat().st_mode & 0o777) == "0o700"
    mode = (folder / "keys").stat().st_mode
    assert mode & stat.S_IWUSR
    assert mode & stat.S_IROTH
    assert not mode & (stat.S_IWGRP | stat.S_IWOTH)


@pytest.mark.parametrize("name", SERVICES)
def test_no_secret_stands_in_the_file(name: str) -> None:
    for variable, value in SERVICES[name].get("environment", {}).items():
        if re.search("PASSWORD|SECRET|TOKEN_FILE|KEY|CREDENTIALS", variable):
            assert within(SERVICES[name], value), variable


@pytest.mark.parametrize("name", SERVICES)
def test_a_secret_that_is_named_is_given(name: str) -> None:
    mounted = [FOLDER / source for source in mounts(SERVICES[name]).values() if source.startswith(".")]
    told = "".join([json.dumps(SERVICES[name]), *(path.read_text() for path in mounted)])
    named = re.findall(r"/run/secrets/[\w.-]+", told)
    assert [path for path in named if not within(SERVICES[name], path)] == []
    assert {path.rpartition("/")[2] for path in named} == set(SERVICES[name].get("secrets", []))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("edge", "replica"),
        ("replica", "redis"),
        ("prometheus", "replica"),
        ("prometheus", "edge"),
        ("prometheus", "alertmanager"),
        ("grafana", "prometheus"),
    ],
)
def test_who_calls_another_is_on_one_network_with_it_and_on_no_second(one: str, other: str) -> None:
    """On two, the other's name would have an address in each."""
    assert len(set(SERVICES[one]["networks"]) & set(SERVICES[other]["networks"])) == 1


def test_only_envoy_is_reached_from_other_machines() -> None:
    published = {name: port for name, service in SERVICES.items() for port in service.get("ports", [])}
    assert {name for name, port in published.items() if not port.startswith("127.0.0.1:")} == {"edge"}
    assert all("ports" not in service or set(service["networks"]) - INTERNAL for service in SERVICES.values())
    assert set(EDGE["networks"]) & set(REPLICA["networks"]) <= INTERNAL
    assert set(REDIS["networks"]) <= INTERNAL


INTERNAL = {name for name, network in COMPOSE["networks"].items() if (network or {}).get("internal")}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a replica, as the service itself reads them."""
    environ = {"TOKENWIRE_HOST": "0.0.0.0", **REPLICA["environment"]}  # the image sets the first
    for name in REPLICA["secrets"]:
        (tmp_path / name).write_text("x")
    environ = {name: value.replace("/run/secrets", str(tmp_path)) for name, value in environ.items()}
    assert REPLICA["command"][0] == "serve"
    return Settings.load(REPLICA["command"][1:], environ, prog="tokenwire serve")


def test_the_service_takes_the_settings_of_replicas(settings: Settings) -> None:
    assert settings.exposed
    assert settings.asks_who
    assert settings.google.project == GIVEN["GOOGLE_CLOUD_PROJECT"]
    assert set(re.findall(r"redis://(\w+):", settings.redis_url)) == {"redis"}


def test_a_replica_goes_once_envoy_has_heard_of_it(settings: Settings) -> None:
    assert settings.drain_delay >= 2 * _health_interval()


def test_a_stop_has_the_time_that_all_of_its_steps_take(settings: Settings) -> None:
    for service, takes in ((REPLICA, stopping.server_takes(settings)), (EDGE, stopping.edge_takes(edge_options()))):
        assert seconds(service["stop_grace_period"]) >= takes + stopping.BESIDE_SECONDS
        # What the comment says is what is counted.
        assert SOURCE.count(f": {takes:g} s.") == 1
    (by_hand,) = re.findall(r"docker stop --time (\d+)", SECTION)
    assert f"{by_hand}s" == REPLICA["stop_grace_period"]


def test_no_call_may_last_longer_than_a_stop_lets_it(settings: Settings) -> None:
    """Whatever deadline it brings; the callers file is the one that the page makes."""
    (callers,) = re.findall(r"^printf '(.*)' > secrets/callers.toml$", SECTION, re.MULTILINE)
    stopping.hold(settings, edge_options().grace, callers=[callers.replace("\\n", "\n")])


def edge_options() -> argparse.Namespace:
    return edge._parser("tokenwire edge").parse_args(EDGE["command"][1:])


def _health_interval() -> float:
    """How often Envoy asks a replica."""
    told = yaml.safe_load((ROOT / "deploy/envoy/envoy.yaml").read_text())
    ((check,),) = (cluster["health_checks"] for cluster in told["static_resources"]["clusters"])
    return float(check["interval"].removesuffix("s")) * int(check["unhealthy_threshold"])


def test_envoy_is_in_front_of_the_replicas(settings: Settings) -> None:
    assert EDGE["command"][0] == "edge"
    options = edge_options()
    assert options.replica == [f"replica:{settings.port}"]
    assert within(EDGE, options.tls_certificate)
    assert within(EDGE, options.tls_key)
    assert EDGE["ports"] == [f"{options.port}:{options.port}"]
    assert options.threads == EDGE["cpus"]
    assert EDGE["environment"]["TOKENWIRE_ADDRESS"] == f"https://localhost:{options.port}"


@pytest.mark.parametrize("name", sorted(OURS))
def test_the_health_of_ours_is_asked_as_our_command_takes_it(name: str) -> None:
    _, program, command, *flags = SERVICES[name]["healthcheck"]["test"]
    assert (program, command) == ("tokenwire", "health")
    options = health._parser("tokenwire health").parse_args(flags)
    assert options.server_name == (GIVEN["SERVER_NAME"] if name == "edge" else "")
    assert options.timeout <= seconds(SERVICES[name]["healthcheck"]["timeout"])


def flags(service: Mapping[str, Any]) -> dict[str, str]:
    return dict(flag.removeprefix("--").split("=", 1) for flag in service["command"])


def test_prometheus_takes_its_configuration_and_reads_every_replica_and_envoy(
    settings: Settings, tmp_path: Path
) -> None:
    configuration = Path(flags(PROMETHEUS)["config.file"])
    for path in mounts(PROMETHEUS):
        if path.startswith(f"{configuration.parent}/"):
            shutil.copy(file_at(PROMETHEUS, path), tmp_path)
    said = promtool("check", "config", str(tmp_path / configuration.name))
    assert "1 rule files found" in said
    told = yaml.safe_load((tmp_path / configuration.name).read_text())
    options = edge_options()
    assert {job["job_name"]: job["dns_sd_configs"] for job in told["scrape_configs"]} == {
        job: [{"names": [name], "type": "A", "port": port, "refresh_interval": "15s"}]
        for job, name, port in (
            ("tokenwire", "replica", settings.metrics_port),
            ("tokenwire-edge", "edge", options.metrics_port),
        )
    }
    assert {job["job_name"] for job in told["scrape_configs"]} == JOBS
    assert settings.metrics_host == options.metrics_host == "0.0.0.0"
    assert flags(PROMETHEUS)["storage.tsdb.path"] in mounts(PROMETHEUS)


def amtool(*arguments: str) -> str:
    """What it says; fails if it finds anything wrong."""
    program = shutil.which("amtool")
    assert program, "amtool is missing: make tools installs it"
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_prometheus_tells_alertmanager_which_takes_its_configuration(tmp_path: Path) -> None:
    configuration = file_at(PROMETHEUS, flags(PROMETHEUS)["config.file"])
    (told,) = yaml.safe_load(configuration.read_text())["alerting"]["alertmanagers"]
    ((target,),) = (one["targets"] for one in told["static_configs"])
    name, _, port = target.partition(":")
    assert SERVICES[name] is ALERTMANAGER
    assert ALERTMANAGER["ports"] == [f"127.0.0.1:{port}:{port}"]
    # Where it looks for the secret has to be a file here.
    source = file_at(ALERTMANAGER, flags(ALERTMANAGER)["config.file"]).read_text()
    assert "1 receivers" in amtool("check-config", _written(tmp_path, source))
    named = re.findall(r"_file: (\S+)$", source, re.MULTILINE)
    assert named
    assert all(within(ALERTMANAGER, path) for path in named)
    assert not re.findall(r"https?://(?!prometheus\.io/docs/)", source)
    assert flags(ALERTMANAGER)["storage.path"] in mounts(ALERTMANAGER)


def _written(folder: Path, text: str) -> str:
    path = folder / "alertmanager.yaml"
    path.write_text(text)
    return str(path)


def test_amtool_finds_what_is_wrong_with_a_configuration(tmp_path: Path) -> None:
    source = file_at(ALERTMANAGER, flags(ALERTMANAGER)["config.file"]).read_text()
    with pytest.raises(AssertionError, match="api_url_path"):
        amtool("check-config", _written(tmp_path, source.replace("api_url_file", "api_url_path")))


@pytest.mark.parametrize("severity", sorted({rule["labels"]["severity"] for rule in ALERTS.values()}))
def test_every_alert_reaches_somebody(tmp_path: Path, severity: str) -> None:
    source = file_at(ALERTMANAGER, flags(ALERTMANAGER)["config.file"]).read_text()
    where = f"--config.file={_written(tmp_path, source)}"
    amtool("config", "routes", "test", where, "--verify.receivers=people", f"severity={severity}")
    with pytest.raises(AssertionError):
        amtool("config", "routes", "test", where, "--verify.receivers=nobody", f"severity={severity}")


# Of Grafana's own page on provisioning, those that are used or might be.
_DATASOURCE = {"name", "type", "uid", "access", "url", "isDefault", "editable", "jsonData", "orgId", "version"}
_PROVIDER = {"name", "type", "orgId", "folder", "disableDeletion", "updateIntervalSeconds", "allowUiUpdates", "options"}


def test_grafana_is_given_prometheus_and_the_dashboard() -> None:
    provisioning = "/etc/grafana/provisioning"
    sources = yaml.safe_load(file_at(GRAFANA, f"{provisioning}/datasources/tokenwire.yaml").read_text())
    assert sources.keys() == {"apiVersion", "datasources"}
    (source,) = sources["datasources"]
    assert source.keys() <= _DATASOURCE
    assert source["url"] == "http://prometheus:9090"
    folders = yaml.safe_load(file_at(GRAFANA, f"{provisioning}/dashboards/tokenwire.yaml").read_text())
    assert folders.keys() == {"apiVersion", "providers"}
    (folder,) = folders["providers"]
    assert folder.keys() <= _PROVIDER
    dashboard = json.loads(file_at(GRAFANA, f"{folder['options']['path']}/tokenwire.json").read_text())
    wanted = [one for one in dashboard["templating"]["list"] if one["type"] == "datasource"]
    assert [one["query"] for one in wanted] == [source["type"]]


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """It runs by the very command, but for where its password, its data and its port are. Gives its port."""
    (tmp_path / "redis-password").write_text("pass\n")
    port = free_port()
    shell, flag, script = REDIS["command"]
    script = script.replace("/run/secrets", str(tmp_path)).replace("/data", str(tmp_path))
    script = script.replace(" <<END", f" --port {port} --bind 127.0.0.1 <<END")
    process = subprocess.Popen([shell, flag, script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "Ready to accept connections" in line:
                break
        else:
            pytest.fail(f"redis-server has ended with {process.wait()}")
        yield port, tmp_path
        process.terminate()  # it replaces the shell
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stdout.close()


@pytest.mark.process
def test_redis_asks_for_the_password_and_keeps_what_it_counts(redis: tuple[int, Path]) -> None:
    port, folder = redis

    def said(script: str) -> str:
        script = script.replace("redis-cli", f"redis-cli -p {port}").replace("/run/secrets", str(folder))
        return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False).stdout

    assert "NOAUTH" in said("redis-cli get x")
    kind, check = REDIS["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    done = subprocess.run(
        ["sh", "-c", check.replace("redis-cli", f"redis-cli -p {port}").replace("/run/secrets", str(folder))],
        check=False,
    )
    assert done.returncode == 0
    asked = said("REDISCLI_AUTH=pass redis-cli config get '[am]*'")
    assert "appendonly\nyes\n" in asked
    assert "maxmemory-policy\nnoeviction\n" in asked
