"""Envoy's metrics have a port of their own, which can do nothing else."""

import re
from pathlib import Path

from tests.certificates import Authority
from tests.edge.conftest import Running, running_edge
from tests.ports import free_port
from tests.test_deploy import EXPRESSIONS, NAMES, OF_THE_EDGE
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer

DOCUMENTED = set(re.findall(r"`(envoy_\w+)`", (Path(__file__).parents[2] / "docs/http.md").read_text()))


async def test_prometheus_finds_what_is_documented_and_nothing_but_metrics(
    running: Running, vertex: Emulator, tmp_path: Path
) -> None:
    vertex.script.play(answer("CANARY-ANSWER"))
    certificate, key = Authority().sign("localhost").write(tmp_path)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    flags = ("--metrics-port", str(port), "--tls-certificate", certificate, "--tls-key", key)
    async with running_edge("--replica", running.service, *flags) as edge, edge.client(verify=False) as client:
        assert (await client.post("/v1/generate", json={"prompt": "CANARY-PROMPT"})).status_code == 200
        told = await client.get(f"{url}/metrics")
        for method, path in [
            ("GET", "/"),
            ("GET", "/stats/prometheus"),
            ("GET", "/config_dump"),
            ("GET", "/metrics/../config_dump"),
            ("GET", "/metrics?filter=.*"),
            ("GET", "/metricsx"),
            ("POST", "/metrics"),
            ("POST", "/quitquitquit"),
        ]:
            assert (await client.request(method, f"{url}{path}")).status_code == 404, path
        assert (await client.get("/metrics")).status_code == 404
        names = set(re.findall(r"^(\w+)[{ ]", told.text, re.MULTILINE))
    assert told.headers["content-type"].startswith("text/plain")
    assert 'envoy_cluster_membership_healthy{envoy_cluster_name="replicas"} 1' in told.text
    assert re.search(
        r'envoy_cluster_upstream_rq\{envoy_response_code="200",envoy_cluster_name="replicas"\} 1', told.text
    )
    assert OF_THE_EDGE <= DOCUMENTED
    assert DOCUMENTED - names == set()
    assert not {name for name in names if not name.startswith("envoy_")}
    assert not {name for name in NAMES if name.startswith("envoy_")}
    assert "CANARY" not in told.text
    # What alerts and panels select by is there; the job is Prometheus' to say.
    asked = selections("\n".join(expression for _, expression in EXPRESSIONS))
    assert {name for name, _ in asked} == OF_THE_EDGE
    for name, labels in asked:
        assert any(name == other and labels - {JOB} <= others for other, others in selections(told.text)), (
            name,
            labels,
        )


JOB = ("job", "tokenwire-edge")


def selections(text: str) -> list[tuple[str, set[tuple[str, str]]]]:
    """Metrics of Envoy and their labels, as PromQL selects them and as Prometheus reads them."""
    found = re.findall(r"\b(envoy_\w+)\{([^}]*)\}", text)
    return [(name, set(re.findall(r'(\w+)="([^"]*)"', labels))) for name, labels in found]
