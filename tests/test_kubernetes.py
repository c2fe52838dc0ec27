"""deploy/kubernetes renders, is valid by Kubernetes' own schemas, and fits the programs that it runs and itself.

No cluster has run it: names, ports, selectors, settings, flags and times are held against each other instead.
"""

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.admission.callers import Callers
from service.runtime.cores import cores
from service.settings import Settings
from tests import stopping
from tests.certificates import Authority
from tests.test_deploy import DASHBOARD, JOBS, NAMES, RULES, metrics_in
from tokenwire.cli import health
from tokenwire.cli.running import edge, envoy_process

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy/kubernetes"
OVERLAYS = sorted(path.parent for path in FOLDER.glob("overlays/*/kustomization.yaml"))
VERSION = "1.37"

# Kinds that aren't Kubernetes' own, whose schemas no package has.
_UNCHECKED = {"PodMonitor", "PrometheusRule"}
_TOLD = re.compile(r"^# (?P<what>.*)$", re.MULTILINE)

Object = Mapping[str, Any]


def _kubectl() -> str:
    return str(Path(sys.executable).parent / "kubectl")


def rendered(folder: Path) -> list[Object]:
    """All that it makes."""
    done = subprocess.run([_kubectl(), "kustomize", str(folder)], capture_output=True, text=True, check=False)
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


@pytest.fixture(scope="module", params=[False, True], ids=["as they are", "with all components"])
def with_all(request: pytest.FixtureRequest) -> bool:
    """Whether overlays take the components, too, that they have in comments."""
    told: bool = request.param
    return told


@pytest.fixture(scope="module", params=OVERLAYS, ids=lambda folder: folder.name)
def made(request: pytest.FixtureRequest, with_all: bool, tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    if not with_all:
        return Rendered(request.param)
    overlay = copied(tmp_path_factory.mktemp("deploy")) / "overlays" / request.param.name
    file = overlay / "kustomization.yaml"
    told, commented = file.read_text(), "  # - ../../components/"
    assert commented in told
    file.write_text(told.replace(commented, commented.replace("# ", "")))
    return Rendered(overlay)


def copied(to: Path) -> Path:
    """The manifests and what of deploy/ they take, to be changed."""
    for name in ("kubernetes", "grafana"):
        shutil.copytree(ROOT / "deploy" / name, to / "deploy" / name)
    return to / "deploy/kubernetes"


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
    named = {settings.api_keys, settings.callers, settings.redis_password_file}
    named |= {settings.tls_certificate, settings.tls_key}
    probes = [container[kind] for kind in PROBES]
    named |= {health_options(probe).ca for probe in probes if "exec" in probe}
    assert named - {""} == held


def test_no_secret_is_in_the_tree(made: Rendered) -> None:
    assert made.all("Secret") == []


def test_the_callers_file_is_one_that_the_service_takes(made: Rendered) -> None:
    (told,) = (one["data"]["callers.toml"] for one in made.all("ConfigMap") if "callers.toml" in one["data"])
    Callers.parse(told, "callers.toml")


def test_the_edge_takes_its_flags_and_finds_the_replicas(made: Rendered) -> None:
    options = made.edge_options
    ports = made.ports("tokenwire-edge")
    assert (options.port, options.metrics_port) == (ports["https"], ports["metrics"])
    assert (options.host, options.metrics_host) == ("0.0.0.0", "0.0.0.0")
    (replica,) = options.replica
    host, _, port = replica.partition(":")
    headless = made.one("Service", host)
    assert headless["spec"]["clusterIP"] == "None"
    assert made.matching(headless["spec"]["selector"]) == ["tokenwire"]
    # By a headless name Envoy learns addresses alone: the port is the pods' own.
    assert int(port) == made.ports("tokenwire")["grpc"]
    assert str(options.threads) == made.container("tokenwire-edge")["resources"]["limits"]["cpu"]
    mounts = {one["mountPath"] for one in made.container("tokenwire-edge")["volumeMounts"]}
    files = [options.tls_certificate, options.tls_key, *([options.replica_ca] if options.replica_ca else [])]
    assert {str(Path(path).parent) for path in files} <= mounts
    assert "/tmp" in mounts


def test_the_edge_speaks_tls_with_replicas_that_do(made: Rendered, with_all: bool) -> None:
    """By the authority of their own certificates, which the probes go by as well; else the pods say how they can."""
    settings, options = made.settings, made.edge_options
    assert bool(settings.tls_certificate) == bool(options.replica_ca) == with_all != settings.insecure
    (port,) = made.one("Service", "tokenwire-replicas")["spec"]["ports"]
    assert port["appProtocol"] == ("https" if with_all else "kubernetes.io/h2c")
    secrets = {
        volume["secret"]["secretName"]
        for pod in made.pods.values()
        for volume in pod["spec"]["volumes"]
        for item in volume.get("secret", {}).get("items", ())
        if item["key"] == "ca.crt"
    }
    assert len(secrets) == with_all


def test_a_stop_has_the_time_that_all_of_its_steps_take(made: Rendered) -> None:
    settings, options = made.settings, made.edge_options
    replica = _seconds_before(made.container("tokenwire")) + stopping.server_takes(settings)
    edge_ = _seconds_before(made.container("tokenwire-edge")) + stopping.edge_takes(options)
    for name, taken in (("tokenwire", replica), ("tokenwire-edge", edge_)):
        spec = made.pods[name]["spec"]
        assert spec["terminationGracePeriodSeconds"] >= taken + stopping.BESIDE_SECONDS, name
    # What the comments say is what is counted.
    text = (FOLDER / "base/replica.yaml").read_text(), (FOLDER / "base/edge.yaml").read_text()
    assert [f"{total:g} s." in told for told, total in zip(text, (replica, edge_), strict=True)] == [True, True]


def test_no_call_may_last_longer_than_a_stop_lets_it(made: Rendered) -> None:
    """Whatever deadline it brings, and whatever the callers file says; else a rollout would cut it."""
    (told,) = (one["data"]["callers.toml"] for one in made.all("ConfigMap") if "callers.toml" in one["data"])
    callers = told, (FOLDER / "base/callers.toml").read_text()
    stopping.hold(made.settings, made.edge_options.grace, callers=callers)


# GKE's health check of nodes for `externalTrafficPolicy: Local`, by which it drops one that has no edge any more.
_LOAD_BALANCER_ASKS_SECONDS, _LOAD_BALANCER_DROPS_AFTER = 8, 3


def test_an_edge_stays_until_load_balancers_have_dropped_its_node(made: Rendered) -> None:
    """An edge without calls ends at once when it is told to, and connections that still come are refused."""
    drops = _LOAD_BALANCER_ASKS_SECONDS * _LOAD_BALANCER_DROPS_AFTER
    # An answer of the last round may take a second or more.
    assert _seconds_before(made.container("tokenwire-edge")) >= drops + 5


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


PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def health_options(probe: Object) -> Any:
    """What a probe that is a program asks."""
    program, command, *flags = probe["exec"]["command"]
    assert (program, command) == ("tokenwire", "health")
    return health._parser("tokenwire health").parse_args(flags)


def test_each_probe_asks_a_port_that_is_there_and_has_patience(made: Rendered) -> None:
    for name in made.pods:
        container, ports = made.container(name), made.ports(name)
        for kind in PROBES:
            probe = container[kind]
            if "grpc" in probe:
                # Kubelet's own speaks no TLS.
                assert not made.settings.tls_certificate
                assert probe["grpc"]["port"] == made.settings.port
            elif "exec" in probe:
                assert made.settings.tls_certificate
                asks = health_options(probe)
                assert asks.address == f"https://localhost:{made.settings.port}"
                # The one name that the certificate has to have.
                (replica,) = made.edge_options.replica
                assert (asks.server_name, made.edge_options.replica_name) == (replica.partition(":")[0], None)
                assert asks.timeout < probe["timeoutSeconds"]
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


# Whom pods ask for names: kube-dns or CoreDNS; NodeLocal DNSCache; Cloud DNS of GKE, at the metadata server's address.
_DNS = ("kube-system", "169.254.20.10/32", "169.254.169.254/32")


def test_every_pod_asks_for_names_wherever_the_cluster_has_them_answered(made: Rendered) -> None:
    """By UDP, and by TCP where an answer is long; no policy that lets out lets a pod out to names by halves."""
    asked: dict[str, set[tuple[str, str]]] = {}
    for policy in made.all("NetworkPolicy"):
        (own,) = made.matching(policy["spec"]["podSelector"]["matchLabels"])
        for rule in policy["spec"].get("egress", ()):
            for port in (one for one in rule["ports"] if one["port"] == 53):
                for peer in rule["to"]:
                    labels = peer.get("namespaceSelector", {}).get("matchLabels", {})
                    whom = labels.get("kubernetes.io/metadata.name") or peer["ipBlock"]["cidr"]
                    asked.setdefault(own, set()).add((whom, port["protocol"]))
    wanted = {(server, protocol) for server in _DNS for protocol in ("UDP", "TCP")}
    assert asked == dict.fromkeys(made.pods, wanted)


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
        ("tokenwire-edge", "from", "monitoring", "metrics"),
        ("tokenwire-edge", "to", "tokenwire", "grpc"),
        *(("tokenwire-edge", "to", server, 53) for server in _DNS),
        ("tokenwire", "from", "tokenwire-edge", "grpc"),
        ("tokenwire", "from", "monitoring", "metrics"),
        *(("tokenwire", "to", server, 53) for server in _DNS),
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


def test_who_empties_nodes_takes_a_part_of_the_pods_whatever_their_number(made: Rendered) -> None:
    for one in made.all("PodDisruptionBudget"):
        name = one["metadata"]["name"]
        part = int(re.fullmatch(r"(\d+)%", str(one["spec"]["maxUnavailable"]))[1]) / 100  # type: ignore[index]
        fewest = made.one("HorizontalPodAutoscaler", name)["spec"]["minReplicas"]
        # Kubernetes rounds up: some may always go, and some always stay.
        assert 1 <= math.ceil(fewest * part) <= fewest / 2


def test_the_address_is_in_ones_own_network_unless_its_owner_says_otherwise(made: Rendered, tmp_path: Path) -> None:
    service = made.one("Service", "tokenwire")
    internal = "networking.gke.io/load-balancer-type"
    assert service["spec"]["type"] == "LoadBalancer"
    assert service["metadata"]["annotations"][internal] == "Internal"
    # And what the comment says makes it reachable by those that it names alone.
    overlay = copied(tmp_path) / "overlays/example/kustomization.yaml"
    told = re.sub(rf"^ +{internal}: Internal\n", "", overlay.read_text(), flags=re.MULTILINE)
    overlay.write_text(told.replace("# loadBalancerSourceRanges:", "loadBalancerSourceRanges:"))
    opened = Rendered(overlay.parent).one("Service", "tokenwire")
    kubernetes_validate.validate(opened, VERSION, strict=True)
    assert internal not in opened["metadata"]["annotations"]
    assert opened["spec"]["loadBalancerSourceRanges"] == ["203.0.113.0/24"]


@pytest.mark.skipif(
    sys.platform != "linux", reason="cores() reads a quota from Linux's cgroups, and looks for none elsewhere"
)
def test_a_replica_has_as_many_workers_as_processors_in_its_quota(
    made: Rendered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of one are rounded up, so a quota that isn't whole has a worker more than it has processors."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)))
    (tmp_path / "mine").write_text("0::/\n")
    limit = made.container("tokenwire")["resources"]["limits"]["cpu"]

    def workers(quota: str) -> int:
        (tmp_path / "cpu.max").write_text(f"{float(quota) * 100_000:.0f} 100000\n")
        return cores(cgroups=tmp_path, mine=tmp_path / "mine")

    assert workers(limit) == float(limit)
    assert workers("2.5") == 3
    assert made.settings.workers == 0
    assert "rounded up" in (FOLDER / "base/replica.yaml").read_text().partition("# As many workers")[2][:80]


def test_the_contents_of_the_page_name_every_part_of_it_and_the_page_of_scale() -> None:
    (contents,) = re.findall(r"\n\n(- \[.*?)\n\n", PAGE[:3000], re.DOTALL)
    named = set(re.findall(r"^- \[([^]]+)\]\(#", contents, re.MULTILINE))
    assert named == set(
        re.findall(r"^## (.+)$", re.sub(r"^```.*?^```", "", PAGE, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    )
    assert "(scale.md)" in contents


def test_a_rollout_takes_none_away_before_another_serves(made: Rendered) -> None:
    for one in made.all("Deployment"):
        assert one["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


# How old an answer of a cluster's DNS may be: caches of kube-dns, of CoreDNS and of each node keep one that long.
_DNS_CACHE_SECONDS = 30


def test_a_rollout_takes_none_away_before_envoy_can_know_another(made: Rendered) -> None:
    envoy = yaml.safe_load((ROOT / "deploy/envoy/envoy.yaml").read_text())
    (cluster,) = envoy["static_resources"]["clusters"]
    # Envoy's own default where it isn't told, and then it asks for the new one's health.
    asks = float(cluster.get("dns_refresh_rate", "5s").removesuffix("s"))
    (check,) = cluster["health_checks"]
    heard = asks + _DNS_CACHE_SECONDS + float(check["timeout"].removesuffix("s"))
    for one in made.all("Deployment"):
        waits = one["spec"]["minReadySeconds"]
        assert waits >= heard, one["metadata"]["name"]
        assert f"ready for {waits} s" in " ".join(SECTION.split())
        # A rollout whose pods take all the time that they may to start, and this, is none that has failed.
        starts = made.container(one["metadata"]["name"])["startupProbe"]
        most = starts["periodSeconds"] * starts["failureThreshold"] + waits
        assert one["spec"]["progressDeadlineSeconds"] > most


def test_the_autoscaler_goes_by_a_metric_that_the_service_exports(made: Rendered) -> None:
    scaler = made.one("HorizontalPodAutoscaler", "tokenwire")
    (metric,) = scaler["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name in NAMES
    assert int(metric["pods"]["target"]["averageValue"]) == made.settings.slots / 2
    (rule,) = yaml.safe_load((FOLDER / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert rule["name"]["as"] == name
    query = re.sub(r"<<\.\w+>>", "x", rule["metricsQuery"].replace("{<<.LabelMatchers>>}", ""))
    assert metrics_in(query) | {rule["seriesQuery"].partition("{")[0]} <= NAMES


def test_every_deployment_has_an_autoscaler_which_alone_says_how_many_there_are(made: Rendered) -> None:
    targets = []
    for scaler in made.all("HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        deployment = made.one(target["kind"], target["name"])
        assert target["apiVersion"] == deployment["apiVersion"]
        assert "replicas" not in deployment["spec"]
        assert 2 <= scaler["spec"]["minReplicas"] < scaler["spec"]["maxReplicas"]
        # A pause isn't taken for the end while calls may still run that began before it.
        down = scaler["spec"]["behavior"]["scaleDown"]
        assert down["stabilizationWindowSeconds"] >= made.settings.max_deadline
        targets.append(target["name"])
    assert sorted(targets) == sorted(made.pods)


def _milli(cpu: str) -> int:
    """Thousandths of a core."""
    return int(cpu.removesuffix("m")) if cpu.endswith("m") else round(1000 * float(cpu))


_EDGE_SECONDS_PER_CHUNK = 80e-6
"""CPU time, as docs/scale.md has it."""


def edge_cores(made: Rendered) -> float:
    """How busy the autoscaler keeps each edge."""
    (metric,) = made.one("HorizontalPodAutoscaler", "tokenwire-edge")["spec"]["metrics"]
    assert (metric["type"], metric["resource"]["name"]) == ("Resource", "cpu")
    target = metric["resource"]["target"]
    assert target["type"] == "Utilization"
    requested = _milli(made.container("tokenwire-edge")["resources"]["requests"]["cpu"])
    return requested * int(target["averageUtilization"]) / 100_000


def test_edges_are_scaled_on_cpu_that_they_can_have_and_no_faster_than_they_drain(made: Rendered) -> None:
    scaler, container = made.one("HorizontalPodAutoscaler", "tokenwire-edge"), made.container("tokenwire-edge")
    # More than what is requested a full node needn't give: the target would never be reached, and nothing scaled.
    assert edge_cores(made) < _milli(container["resources"]["requests"]["cpu"]) / 1000
    for policy in scaler["spec"]["behavior"]["scaleDown"]["policies"]:
        assert policy["periodSeconds"] >= made.pods["tokenwire-edge"]["spec"]["terminationGracePeriodSeconds"]
    # As many as all replicas want, with every slot taken, at five chunks a second.
    replicas = made.one("HorizontalPodAutoscaler", "tokenwire")["spec"]["maxReplicas"]
    wanted = replicas * made.settings.slots * 5 * _EDGE_SECONDS_PER_CHUNK
    assert scaler["spec"]["maxReplicas"] * edge_cores(made) >= wanted


def test_prometheus_finds_the_metrics_under_the_name_that_the_alerts_go_by(made: Rendered) -> None:
    jobs: dict[str, str] = {}
    for monitor in made.all("PodMonitor"):
        (name,) = made.matching(monitor["spec"]["selector"]["matchLabels"])
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert endpoint["port"] in made.ports(name)
        assert endpoint["path"] == "/metrics"
        jobs[name] = _job(monitor, made.pods[name]["metadata"]["labels"])
    assert jobs == {name: name for name in made.pods}
    assert set(jobs.values()) == JOBS


def _job(monitor: Object, labels: Mapping[str, str]) -> str:
    """How Prometheus calls what it reads of these pods."""
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    given = [one["replacement"] for one in endpoint.get("relabelings", ()) if one["targetLabel"] == "job"]
    # These come last, as the operator has it.
    (job,) = given or [labels[monitor["spec"]["jobLabel"]]]
    return str(job)


def test_the_alerts_reach_the_cluster_as_they_are_tested(made: Rendered) -> None:
    (rule,) = made.all("PrometheusRule")
    assert rule["spec"] == yaml.safe_load((RULES / "alerts.yaml").read_text()), (
        "below `spec:` of prometheus-rule.yaml put what this says: "
        "sed '/^#/d; s/^\\(.\\)/  \\1/' deploy/prometheus/alerts.yaml"
    )


def test_the_operator_of_the_helm_chart_heeds_the_monitor_and_the_rules(made: Rendered) -> None:
    """It looks for a label with the name of its release."""
    found = [one["metadata"]["labels"] for kind in ("PodMonitor", "PrometheusRule") for one in made.all(kind)]
    assert [labels["release"] for labels in found] == ["prometheus"] * 3


def test_the_dashboard_reaches_the_cluster_where_grafana_looks_for_it(made: Rendered) -> None:
    (found,) = [one for one in made.all("ConfigMap") if "grafana_dashboard" in one["metadata"].get("labels", {})]
    assert json.loads(found["data"]["tokenwire.json"]) == DASHBOARD


def test_who_changes_a_setting_rolls_the_replicas_and_who_changes_a_caller_does_not(made: Rendered) -> None:
    names = [one["metadata"]["name"] for one in made.all("ConfigMap")]
    assert [name for name in names if re.fullmatch(r"tokenwire-settings-\w{10}", name)]
    assert "tokenwire-callers" in names


PAGE = (ROOT / "docs/operations.md").read_text()
(SECTION,) = re.findall(r"^## Kubernetes\n(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [
    " ".join(command.replace("\\\n", " ").partition("#")[0].split())
    for example in re.findall(r"^```bash\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
    for command in re.split(r"(?<!\\)\n", example.strip())
]


def test_the_overlay_that_the_page_makes_is_valid_and_the_readers_own(tmp_path: Path) -> None:
    copied(tmp_path)
    own = "export PROJECT=own-project LOCATION=europe-west4 REGISTRY=own.registry HOST=own.host"
    steps = [one for one in COMMANDS if one.startswith(("cp ", "sed "))]
    assert len(steps) == 2
    subprocess.run(["bash", "-ec", "\n".join([own, *steps])], cwd=tmp_path, check=True)
    found = Rendered(tmp_path / "deploy/kubernetes/overlays/production")
    for one in found.objects:
        if one["kind"] not in _UNCHECKED:
            kubernetes_validate.validate(one, VERSION, strict=True)
    assert (found.settings.project, found.settings.location) == ("own-project", "europe-west4")
    told = yaml.safe_dump_all(found.objects)
    assert "example.com" not in told
    assert "your-project" not in told
    assert found.container("tokenwire")["image"] == "own.registry/tokenwire:0.1.0"


def test_the_patch_that_the_page_has_for_the_number_of_edges_is_one(tmp_path: Path) -> None:
    overlay = copied(tmp_path) / "overlays/example"
    (patch,) = re.findall(r"^```yaml\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
    changed = patch.replace("minReplicas: 3", "minReplicas: 4")
    assert changed != patch
    with (overlay / "kustomization.yaml").open("a") as file:  # of which patches are the last part
        file.write(changed)
    scaler = Rendered(overlay).one("HorizontalPodAutoscaler", "tokenwire-edge")
    kubernetes_validate.validate(scaler, VERSION, strict=True)
    assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (4, 10)


def test_the_secrets_that_the_page_makes_are_those_that_the_pods_mount(
    made: Rendered, with_all: bool, tmp_path: Path
) -> None:
    for name in ("keys", "redis-password", "replica.crt", "replica.key", "replicas.pem"):
        (tmp_path / name).write_text("x")
    authority = Authority()
    authority.sign("localhost").write(tmp_path)
    held: set[tuple[str, str]] = set()
    for command in COMMANDS:
        if command.startswith("kubectl create secret"):
            words = [*shlex.split(command)[1:], "--dry-run=client", "--output=yaml"]
            secret = yaml.safe_load(
                subprocess.run([_kubectl(), *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
            )
            kubernetes_validate.validate(secret, VERSION, strict=True)
            (namespace,) = made.all("Namespace")
            assert secret["metadata"]["namespace"] == namespace["metadata"]["name"]
            held |= {(secret["metadata"]["name"], key) for key in secret["data"]}
    options = made.edge_options
    paths = {Path(path) for path in (options.tls_certificate, options.tls_key)}
    wanted: set[tuple[str, str]] = set()
    for name, pod in made.pods.items():
        mounted = {one["name"]: Path(one["mountPath"]) for one in made.container(name)["volumeMounts"]}
        for volume in (one for one in pod["spec"]["volumes"] if "secret" in one):
            secret = volume["secret"]
            # Without a list all keys are files of their own name.
            keys = [item["key"] for item in secret.get("items", ())] or [
                path.name for path in paths if path.parent == mounted[volume["name"]]
            ]
            assert keys
            wanted |= {(secret["secretName"], key) for key in keys}
    assert wanted <= held
    # The page says of which component this one is.
    assert {name for name, _ in held - wanted} == (set() if with_all else {"tokenwire-replica-tls"})


def test_what_the_page_names_is_there(made: Rendered) -> None:
    for path in re.findall(r"deploy/[\w./-]+|tests/[\w./]+", SECTION):
        # The Containerfile is looked at by tests of its own.
        if not path.startswith(("deploy/image", "deploy/kubernetes/overlays/production")):
            assert (ROOT / path).exists(), path
    names = {f"{one['kind'].lower()}/{one['metadata']['name']}" for one in made.objects}
    assert set(re.findall(r"deployment/[\w-]+", SECTION)) <= names
    account = made.one("ServiceAccount", "tokenwire")["metadata"]
    assert f"[{account['namespace']}/{account['name']}]" in SECTION
    tags = {made.container(name)["image"].rpartition("/")[2] for name in made.pods}
    assert tags == {one.rpartition("/")[2] for one in COMMANDS if one.startswith("docker push")}


def test_who_looks_whether_policies_are_heeded_asks_a_replica_from_where_nobody_may(made: Rendered) -> None:
    """A name that isn't there would look as a policy does that is heeded."""
    (run,) = (shlex.split(one.partition("||")[0]) for one in COMMANDS if one.startswith("kubectl run policy-check"))
    command, *flags = run[run.index("--") + 1 :]
    assert command == "health"
    host, _, port = health._parser("tokenwire health").parse_args(flags).address.partition(":")
    name, _, namespace = host.partition(".")
    service = made.one("Service", name)
    assert service["metadata"]["namespace"] == namespace != run[run.index("--namespace") + 1]
    assert made.matching(service["spec"]["selector"]) == ["tokenwire"]
    assert int(port) == made.settings.port
    image = run[run.index("--image") + 1]
    assert image.rpartition("/")[2] == made.container("tokenwire")["image"].rpartition("/")[2]


def test_the_page_tells_the_times_of_a_stop_as_they_are(made: Rendered) -> None:
    settings, options = made.settings, made.edge_options
    rows = re.findall(r"^\| .* \| ([\d-]+)(?: s)? \| ([\d-]+)(?: s)? \|$", SECTION, re.MULTILINE)
    ends = [made.pods[name]["spec"]["terminationGracePeriodSeconds"] for name in ("tokenwire", "tokenwire-edge")]
    last = stopping.server_takes(settings) - settings.drain_delay - settings.grace, envoy_process.STOP_SECONDS
    assert rows == [
        tuple(f"{_seconds_before(made.container(name)):g}" for name in ("tokenwire", "tokenwire-edge")),
        (f"{settings.drain_delay:g}", "-"),
        (f"{settings.grace:g}", f"{options.grace:g}"),
        tuple(f"{one:g}" for one in last),
        tuple(map(str, ends)),
    ]


def test_the_page_of_scale_reckons_right() -> None:
    """From what it says it begins with; slots, threads and limits from the manifests and Envoy's own configuration."""
    page = (ROOT / "docs/scale.md").read_text()
    made = Rendered(FOLDER / "overlays/example")
    scaler = made.one("HorizontalPodAutoscaler", "tokenwire")["spec"]
    filled = int(scaler["metrics"][0]["pods"]["target"]["averageValue"])
    workers = int(made.container("tokenwire")["resources"]["limits"]["cpu"])
    threads = made.edge_options.threads
    stream_cores = 5 * 250e-6 + (1.6e-3 + 0.3e-3) / 30
    server_bytes, stream = 329e6, 64 * 1024

    def column(streams: int) -> list[str]:
        replicas = math.ceil(streams / filled)
        edges = math.ceil(round(streams * 5 * _EDGE_SECONDS_PER_CHUNK / edge_cores(made), 6))
        many = streams > filled
        used = streams * stream_cores
        memory = replicas * server_bytes + streams * stream
        return [
            f"{streams / 30:,.0f}",
            f"{replicas:,}",
            f"{used:,.0f}" if many else f"{used:.2f}",
            f"{streams * stream / 2**30:,.{0 if streams > 1e5 else 1}f} GB"
            if many
            else f"{filled * stream / 1e6:.0f} MB",
            f"{memory / 1e12:.1f} TB" if streams > 1e5 else f"{memory / 1e9:,.{0 if many else 1}f} GB",
            f"{replicas * workers * math.ceil(streams / replicas / workers / 90):,}",
            f"{streams * 5 * 4:,}",
            *([f"{edges:,}", f"{edges * threads * replicas:,}", f"{2 * edges:,}"] if many else ["-", "-", "-"]),
            f"{2 * streams / 30:,.0f}",
        ]

    (table,) = re.findall(
        r"^\| \| one replica \| 10,000 streams \| 1,000,000 streams \|\n\|.*\n((?:\|.*\n)+)", page, re.MULTILINE
    )
    told = [[cell.strip() for cell in row.strip("|").split("|")][1:] for row in table.splitlines()]
    assert list(map(list, zip(*told, strict=True))) == [column(one) for one in (filled, 10_000, 1_000_000)]
    assert f"Envoys, {edge_cores(made):g} of a core each" in page
    edges = made.one("HorizontalPodAutoscaler", "tokenwire-edge")["spec"]
    for name, one in (("replicas", scaler), ("edges", edges)):
        (row,) = re.findall(rf"^\| {name}: `minReplicas`, `maxReplicas` \|(.*)\|$", page, re.MULTILINE)
        least_and_most = [tuple(map(int, cell.split(","))) for cell in row.split("|")]
        assert least_and_most[0] == (one["minReplicas"], one["maxReplicas"])
        # As many as these streams want.
        for (least, most), streams in zip(least_and_most[1:], (10_000, 50_000), strict=True):
            per_pod = filled if name == "replicas" else edge_cores(made) / (5 * _EDGE_SECONDS_PER_CHUNK)
            assert least <= math.ceil(streams / per_pod) <= most
