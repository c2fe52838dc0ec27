"""deploy/kubernetes renders, is valid by Kubernetes' own schemas, and fits the programs that it runs and itself.

No cluster has run it: names, ports, selectors, settings, flags and times are held against each other instead.
"""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.admission.callers import Callers
from service.runtime import server
from service.settings import Settings
from tests.test_deploy import NAMES, RULES, metrics_in
from tokenwire.cli.running import edge

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy/kubernetes"
OVERLAYS = sorted(path.parent for path in FOLDER.glob("overlays/*/kustomization.yaml"))
VERSION = "1.37"

# Kinds that aren't Kubernetes' own, whose schemas no package has.
_UNCHECKED = {"PodMonitor"}
_TOLD = re.compile(r"^# (?P<what>.*)$", re.MULTILINE)

Object = Mapping[str, Any]


def rendered(folder: Path) -> list[Object]:
    """All that it makes."""
    kubectl = Path(sys.executable).parent / "kubectl"
    done = subprocess.run([str(kubectl), "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


class Rendered:
    """An overlay, and what is in it."""

    def __init__(self, folder: Path) -> None:
        self.objects = rendered(folder)

    def all(self, kind: str) -> list[Object]:
        return [one for one in self.objects if one["kind"] == kind]

    def one(self, kind: str, name: str) -> Object:
        (found,) = (one for one in self.all(kind) if one["metadata"]["name"] == name)
        return found

    @property
    def pods(self) -> Mapping[str, Object]:
        """By the name of each Deployment: its pods."""
        return {one["metadata"]["name"]: one["spec"]["template"] for one in self.all("Deployment")}

    def container(self, name: str) -> Object:
        (container,) = self.pods[name]["spec"]["containers"]
        found: Object = container
        return found

    def matching(self, labels: Mapping[str, str]) -> list[str]:
        """Which pods have all of these."""
        assert labels, "an empty selector is one of all pods"
        return [name for name, pod in self.pods.items() if labels.items() <= pod["metadata"]["labels"].items()]

    def ports(self, name: str) -> Mapping[str, int]:
        return {port["name"]: port["containerPort"] for port in self.container(name)["ports"]}

    def environ(self, name: str) -> dict[str, str]:
        """As the container gets it, but for what Kubernetes adds."""
        found: dict[str, str] = {}
        for source in self.container(name).get("envFrom", ()):
            found |= self.one("ConfigMap", source["configMapRef"]["name"])["data"]
        return found | {one["name"]: one["value"] for one in self.container(name).get("env", ())}

    @property
    def settings(self) -> Settings:
        command, *flags = self.container("tokenwire")["args"]
        assert command == "serve"
        return Settings.load(flags, self.environ("tokenwire"), prog="tokenwire serve")

    @property
    def edge_options(self) -> Any:
        command, *flags = self.container("tokenwire-edge")["args"]
        assert command == "edge"
        return edge._parser("tokenwire edge").parse_args(flags)


@pytest.fixture(scope="module", params=OVERLAYS, ids=lambda folder: folder.name)
def made(request: pytest.FixtureRequest) -> Rendered:
    return Rendered(request.param)


def test_there_is_an_overlay() -> None:
    assert OVERLAYS


def test_each_object_is_valid_by_kubernetes_own_schema(made: Rendered) -> None:
    assert len(made.objects) > 10
    for one in made.objects:
        if one["kind"] not in _UNCHECKED:
            kubernetes_validate.validate(one, VERSION, strict=True)


def test_the_schemas_refuse_what_is_misspelt(made: Rendered) -> None:
    one = made.one("PodDisruptionBudget", "tokenwire")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**one, "spec": {**one["spec"], "maxUnavailabel": 1}}, VERSION, strict=True)


def test_everything_is_in_one_namespace_and_of_its_own_name(made: Rendered) -> None:
    (namespace,) = made.all("Namespace")
    keys = [(one["kind"], one["metadata"]["name"]) for one in made.objects]
    assert len(set(keys)) == len(keys)
    others = [one for one in made.objects if one is not namespace]
    assert {one["metadata"]["namespace"] for one in others} == {namespace["metadata"]["name"]}


def test_the_service_takes_all_of_its_settings(made: Rendered) -> None:
    """Settings.load refuses a variable that begins as ours do and is none, too."""
    settings = made.settings
    assert settings.project
    assert settings.asks_who
    ports = made.ports("tokenwire")
    assert (settings.port, settings.metrics_port) == (ports["grpc"], ports["metrics"])
    # From outside of the pod.
    assert (settings.host, settings.metrics_host) == ("0.0.0.0", "0.0.0.0")
    assert made.environ("tokenwire").keys() <= set(Settings.variables().values())


def test_what_settings_name_is_mounted(made: Rendered) -> None:
    settings, container = made.settings, made.container("tokenwire")
    volumes = {one["name"]: one for one in made.pods["tokenwire"]["spec"]["volumes"]}
    held = set()
    for mount in container["volumeMounts"]:
        volume = volumes.pop(mount["name"])
        # A file that is mounted by itself doesn't change while the container runs, and these are followed.
        assert "subPath" not in mount
        if "secret" in volume:
            held |= {f"{mount['mountPath']}/{item['path']}" for item in volume["secret"]["items"]}
        else:
            data = made.one("ConfigMap", volume["configMap"]["name"])["data"]
            held |= {f"{mount['mountPath']}/{name}" for name in data}
    assert volumes == {}
    named = {settings.api_keys, settings.callers, settings.redis_password_file, settings.tls_certificate} - {""}
    assert named == held


def test_no_secret_is_in_the_tree(made: Rendered) -> None:
    assert made.all("Secret") == []


def test_the_callers_file_is_one_that_the_service_takes(made: Rendered) -> None:
    (told,) = (one["data"]["callers.toml"] for one in made.all("ConfigMap") if "callers.toml" in one["data"])
    Callers.parse(told, "callers.toml")


def test_the_edge_takes_its_flags_and_finds_the_replicas(made: Rendered) -> None:
    options = made.edge_options
    assert options.port == made.ports("tokenwire-edge")["https"]
    (replica,) = options.replica
    host, _, port = replica.partition(":")
    headless = made.one("Service", host)
    assert headless["spec"]["clusterIP"] == "None"
    assert made.matching(headless["spec"]["selector"]) == ["tokenwire"]
    # By a headless name Envoy learns addresses alone: the port is the pods' own.
    assert int(port) == made.ports("tokenwire")["grpc"]
    assert str(options.threads) == made.container("tokenwire-edge")["resources"]["limits"]["cpu"]
    mounts = {one["mountPath"] for one in made.container("tokenwire-edge")["volumeMounts"]}
    assert {str(Path(path).parent) for path in (options.tls_certificate, options.tls_key)} <= mounts
    assert "/tmp" in mounts


def test_a_stop_has_the_time_that_all_of_its_steps_take(made: Rendered) -> None:
    settings, options = made.settings, made.edge_options
    replica = (
        _seconds_before(made.container("tokenwire"))
        + settings.drain_delay
        + settings.grace
        + server._FAREWELL_SECONDS
        + server._REDIS_SECONDS
        + 1  # the last traces
    )
    edge_ = _seconds_before(made.container("tokenwire-edge")) + options.grace + edge.STOP_SECONDS
    for name, taken in (("tokenwire", replica), ("tokenwire-edge", edge_)):
        spec = made.pods[name]["spec"]
        # Beside them: signals that are waited for, a process that ends on a busy node.
        assert spec["terminationGracePeriodSeconds"] >= taken + 5, name
    # What the comments say is what is counted.
    text = (FOLDER / "base/replica.yaml").read_text(), (FOLDER / "base/edge.yaml").read_text()
    assert [f"{total:g} s." in told for told, total in zip(text, (replica, edge_), strict=True)] == [True, True]
    # A call that brings no deadline ends within either's grace.
    assert min(settings.grace, options.grace) >= settings.default_deadline


def _seconds_before(container: Object) -> float:
    """Of preStop."""
    found: float = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    return found


def test_envoy_sees_that_a_replica_drains_before_its_port_is_closed(made: Rendered) -> None:
    envoy = yaml.safe_load((ROOT / "deploy/envoy/envoy.yaml").read_text())
    (cluster,) = envoy["static_resources"]["clusters"]
    (check,) = cluster["health_checks"]
    interval, timeout = (float(check[name].removesuffix("s")) for name in ("interval", "timeout"))
    assert check["unhealthy_threshold"] * interval < made.settings.drain_delay
    assert timeout <= made.settings.drain_delay
    assert cluster["type"] == "STRICT_DNS"  # so that a headless name's addresses are all found


def test_each_probe_asks_a_port_that_is_there_and_has_patience(made: Rendered) -> None:
    for name in made.pods:
        container, ports = made.container(name), made.ports(name)
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container[kind]
            if "grpc" in probe:
                # Kubelet's own speaks no TLS.
                assert not made.settings.tls_certificate
                assert probe["grpc"]["port"] == made.settings.port
            else:
                assert probe["tcpSocket"]["port"] in ports
            assert probe.get("timeoutSeconds", 1) <= probe["periodSeconds"]
        starts, lives = container["startupProbe"], container["livenessProbe"]
        # ChatVertexAI takes about ten seconds to import, several times that on a busy node.
        assert starts["periodSeconds"] * starts["failureThreshold"] >= 60
        assert lives["periodSeconds"] * lives["failureThreshold"] >= 60


def test_selectors_find_the_pods_that_they_mean(made: Rendered) -> None:
    assert set(made.pods) == {"tokenwire", "tokenwire-edge"}
    for one in made.all("Deployment"):
        name = one["metadata"]["name"]
        assert made.matching(one["spec"]["selector"]["matchLabels"]) == [name]
        for spread in one["spec"]["template"]["spec"]["topologySpreadConstraints"]:
            assert made.matching(spread["labelSelector"]["matchLabels"]) == [name]
        assert made.one("ServiceAccount", one["spec"]["template"]["spec"]["serviceAccountName"])
    for one in made.all("PodDisruptionBudget"):
        assert made.matching(one["spec"]["selector"]["matchLabels"]) == [one["metadata"]["name"]]
    assert {one["metadata"]["name"] for one in made.all("PodDisruptionBudget")} == set(made.pods)
    for one in made.all("Service"):
        (name,) = made.matching(one["spec"]["selector"])
        assert {port["targetPort"] for port in one["spec"]["ports"]} <= set(made.ports(name))
    assert made.matching(made.one("Service", "tokenwire")["spec"]["selector"]) == ["tokenwire-edge"]


def _rules(policy: Object) -> Iterator[tuple[str, Object]]:
    """Each rule, and whether it is of "from" or "to"."""
    for rule in policy["spec"].get("ingress", ()):
        yield "from", rule
    for rule in policy["spec"].get("egress", ()):
        yield "to", rule


def test_network_policies_let_through_what_is_needed_and_name_ports_that_are_there(made: Rendered) -> None:
    let: set[tuple[str, str, str, str | int]] = set()
    for policy in made.all("NetworkPolicy"):
        (own,) = made.matching(policy["spec"]["podSelector"]["matchLabels"])
        for way, rule in _rules(policy):
            for port in rule["ports"]:
                for peer in rule.get(way, [{}]):
                    whom = peer.get("podSelector") or peer.get("namespaceSelector") or {}
                    labels = whom.get("matchLabels", {})
                    pods = made.matching(labels) if "podSelector" in peer and labels else []
                    other = pods[0] if pods else next(iter(labels.values()), peer.get("ipBlock", {}).get("cidr", ""))
                    let.add((own, way, other, port["port"]))
                    listening = own if way == "from" else other
                    if isinstance(port["port"], str):
                        assert port["port"] in made.ports(listening)
    assert let == {
        ("tokenwire-edge", "from", "", "https"),
        ("tokenwire-edge", "to", "tokenwire", "grpc"),
        ("tokenwire-edge", "to", "kube-system", 53),
        ("tokenwire-edge", "to", "169.254.20.10/32", 53),
        ("tokenwire", "from", "tokenwire-edge", "grpc"),
        ("tokenwire", "from", "monitoring", "metrics"),
        ("tokenwire", "to", "kube-system", 53),
        ("tokenwire", "to", "169.254.20.10/32", 53),
        ("tokenwire", "to", "0.0.0.0/0", 443),
        ("tokenwire", "to", "169.254.169.254/32", 80),
        ("tokenwire", "to", "169.254.169.252/32", 988),
        *([("tokenwire", "to", "redis", 6379)] if made.settings.redis_url else []),
    }


def test_every_pod_is_as_confined_as_kubernetes_restricted_profile_asks(made: Rendered) -> None:
    (namespace,) = made.all("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, pod in made.pods.items():
        spec, container = pod["spec"], made.container(name)
        told = spec["securityContext"]
        assert told["runAsNonRoot"] is True
        assert told["runAsUser"] > 0
        assert told["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert {kind for one in spec["volumes"] for kind in one.keys() - {"name"}} <= {
            "configMap",
            "emptyDir",
            "secret",
        }
        # Workers are counted by the quota; without one by the node.
        assert {"cpu", "memory"} == container["resources"]["limits"].keys() == container["resources"]["requests"].keys()


def test_a_rollout_takes_none_away_before_another_serves(made: Rendered) -> None:
    for one in made.all("Deployment"):
        assert one["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_the_autoscaler_goes_by_a_metric_that_the_service_exports(made: Rendered) -> None:
    (scaler,) = made.all("HorizontalPodAutoscaler")
    target = scaler["spec"]["scaleTargetRef"]
    assert "replicas" not in made.one(target["kind"], target["name"])["spec"]
    (metric,) = scaler["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name in NAMES
    assert int(metric["pods"]["target"]["averageValue"]) == made.settings.slots / 2
    (rule,) = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert rule["name"]["as"] == name
    query = re.sub(r"<<\.\w+>>", "x", rule["metricsQuery"].replace("{<<.LabelMatchers>>}", ""))
    assert metrics_in(query) | {rule["seriesQuery"].partition("{")[0]} <= NAMES
    longest = made.settings.max_deadline
    assert scaler["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] >= longest


def test_prometheus_finds_the_metrics_under_the_name_that_the_alerts_go_by(made: Rendered) -> None:
    (monitor,) = made.all("PodMonitor")
    (name,) = made.matching(monitor["spec"]["selector"]["matchLabels"])
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in made.ports(name)
    job = made.pods[name]["metadata"]["labels"][monitor["spec"]["jobLabel"]]
    assert f'up{{job="{job}"}}' in (RULES / "alerts.yaml").read_text()


def test_who_changes_a_setting_rolls_the_replicas_and_who_changes_a_caller_does_not(made: Rendered) -> None:
    names = [one["metadata"]["name"] for one in made.all("ConfigMap")]
    assert [name for name in names if re.fullmatch(r"tokenwire-settings-\w{10}", name)]
    assert "tokenwire-callers" in names
