"""What comes before the first message is an HTTP status, with a google.rpc.Status in JSON."""

from typing import Any

import httpx
import pytest

from tests.edge.conftest import ORIGIN, Edge, running_edge
from tests.ports import free_port
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, status

ASK = {"prompt": "What is baseball?"}
EVERY_HEADER = [pytest.param({}, id="lines"), pytest.param({"accept": "text/event-stream"}, id="events")]


def detail(body: dict[str, Any], kind: str) -> dict[str, Any]:
    (found,) = [one for one in body["details"] if one["@type"] == f"type.googleapis.com/google.rpc.{kind}"]
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("headers", EVERY_HEADER)
@pytest.mark.parametrize(
    ("upstream", "http_status", "code", "reason"),
    [
        ("INVALID_ARGUMENT", 400, 3, "UPSTREAM_REJECTED"),
        ("RESOURCE_EXHAUSTED", 429, 8, "UPSTREAM_QUOTA"),
        ("UNAVAILABLE", 503, 14, "UPSTREAM_UNAVAILABLE"),
        ("PERMISSION_DENIED", 400, 9, "UPSTREAM_CREDENTIALS"),
        ("INTERNAL", 500, 13, "UPSTREAM_FAULT"),
    ],
)
async def test_errors_of_the_service_keep_their_details(
    http: httpx.AsyncClient,
    vertex: Emulator,
    *,
    headers: dict[str, str],
    upstream: str,
    http_status: int,
    code: int,
    reason: str,
) -> None:
    vertex.script.play(default=answer(status(upstream)))
    response = await http.post("/v1/generate", json=ASK, headers=headers)
    body = response.json()
    assert (response.status_code, body["code"]) == (http_status, code)
    assert response.headers["content-type"] == "application/json"
    told = detail(body, "ErrorInfo")
    assert (told["domain"], told["reason"]) == ("tokenwire", reason)


async def test_a_field_that_is_wrong_is_named(http: httpx.AsyncClient, vertex: Emulator) -> None:
    del vertex
    response = await http.post("/v1/generate", json={**ASK, "config": {"temperature": 3}})
    assert response.status_code == 400
    (violation,) = detail(response.json(), "BadRequest")["fieldViolations"]
    assert violation["field"] == "config.temperature"


@pytest.mark.parametrize(
    ("method", "path", "http_status", "code", "words"),
    [
        ("GET", "/nothing", 404, 5, "/v1/generate"),
        ("GET", "/", 404, 5, "/v1/generate"),
        ("GET", "/v1/nothing", 404, 5, "/v1/nothing"),
        ("GET", "/v1/countTokens", 404, 5, "/v1/countTokens"),
        ("DELETE", "/v1/generate", 404, 5, "/v1/generate"),
        ("POST", "/tokenwire.v1.GenerationService/Generate", 404, 5, "GenerationService"),
        ("GET", "/v1/generate?prompt=a&temperture=1", 400, 3, "temperture"),
        ("GET", "/v1/generate?prompt=a&config.top=1", 400, 3, "top"),
        ("GET", "/v1/generate?config.temperature=warm", 400, 3, "warm"),
    ],
)
async def test_what_envoy_refuses_by_itself_looks_the_same(
    http: httpx.AsyncClient, *, method: str, path: str, http_status: int, code: int, words: str
) -> None:
    response = await http.request(method, path)
    body = response.json()
    assert (response.status_code, body["code"]) == (http_status, code)
    assert response.headers["content-type"] == "application/json"
    assert words in body["message"]


@pytest.mark.parametrize("body", ["{", '{"prompt": ["a"]}', '{"prompt": "a", "config": {"temperature": "warm"}}', "a"])
async def test_a_body_that_is_no_request_is_refused(http: httpx.AsyncClient, vertex: Emulator, body: str) -> None:
    response = await http.post("/v1/generate", content=body)
    assert (response.status_code, response.json()["code"]) == (400, 3)
    assert vertex.calls == ()


async def test_a_body_that_is_too_large_is_refused(http: httpx.AsyncClient, vertex: Emulator) -> None:
    response = await http.post("/v1/generate", json={"prompt": "a" * 17_000_000})
    assert (response.status_code, response.json()["code"]) == (413, 3)
    assert vertex.calls == ()


async def test_a_field_of_a_body_that_the_contract_does_not_know_is_dropped_as_docs_http_md_says(
    http: httpx.AsyncClient, vertex: Emulator
) -> None:
    """Envoy can't refuse it (envoyproxy/envoy#46623). If this fails it can: use it, and take the warning away."""
    vertex.script.play(answer("a"))
    response = await http.post("/v1/generate", json={**ASK, "temperture": 1})
    assert response.status_code == 200


async def test_without_a_replica_it_is_503_and_the_command_says_what_to_do() -> None:
    async with running_edge("--replica", f"127.0.0.1:{free_port()}") as edge:
        async with edge.client() as client:
            response = await client.post("/v1/generate", json=ASK)
        assert (response.status_code, response.json()["code"]) == (503, 14)
    assert "No replica answers at" in "".join(edge.said)
    assert "`tokenwire serve` starts one" in "".join(edge.said)


PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "content-type,authorization"}


@pytest.mark.parametrize("path", ["/v1/generate", "/v1/models", "/tokenwire.v1.GenerationService/Generate"])
async def test_a_browser_that_asks_first_is_told_which_origins_may_call(http: httpx.AsyncClient, path: str) -> None:
    site = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}
    allowed = await http.options(path, headers={**PREFLIGHT, **site, "origin": ORIGIN})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    assert {"authorization", "content-type"} <= set(allowed.headers["access-control-allow-headers"].split(", "))
    for origin in ("https://other.example", f"{ORIGIN}.example", "null"):
        refused = await http.options(path, headers={**PREFLIGHT, **site, "origin": origin})
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize("origin", [{}, {"origin": "https://other.example"}, {"origin": f"{ORIGIN}.example"}])
async def test_a_page_of_another_origin_costs_nothing(
    http: httpx.AsyncClient, vertex: Emulator, site: str, origin: dict[str, str]
) -> None:
    """By <img> or a form it may ask without CORS."""
    headers = {"sec-fetch-site": site, **origin}
    for response in (
        await http.get("/v1/generate?prompt=a", headers=headers),
        await http.post("/v1/generate", json=ASK, headers={**headers, "content-type": "text/plain"}),
    ):
        assert (response.status_code, response.json()["code"]) == (403, 7)
    assert vertex.calls == ()


@pytest.mark.parametrize("site", ["same-origin", "none"])
async def test_a_page_of_its_own_origin_may_call(edge: Edge, vertex: Emulator, site: str) -> None:
    vertex.script.play(answer("a"))
    async with edge.client(headers={"sec-fetch-site": site}) as client:
        assert (await client.get("/v1/generate?prompt=a")).status_code == 200
