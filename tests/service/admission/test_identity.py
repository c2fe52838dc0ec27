"""Who calls: every kind of proof through the wire, and every way in which one is no proof."""

import asyncio
import base64
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from joserfc import jwk, jwt

from service.admission import api_keys
from service.admission.identity import Identity
from service.generation.capabilities import ModelCard
from service.testing import FakeProvider
from tests.certificates import Authority, Pair
from tests.conftest import Serve, Served, failure
from tests.service.calls.test_servicer import HELLO
from tokenwire import AsyncClient
from tokenwire.v1 import generation_service_pb2 as pb

ISSUER, AUDIENCE = "https://issuer.example", "https://tokenwire.example"
CARDS = [ModelCard(name=name, provider="gcp.vertex_ai") for name in ("small", "large")]


class KeyServer:
    """An issuer: its keys, and a server that tells them, well or not."""

    def __init__(self) -> None:
        self.keys: list[Any] = []
        self.asked = 0
        self.answer: Callable[[], bytes] = self.good
        self.url = ""

    def new_key(self, kid: str, kind: str = "RSA") -> Any:
        made: Any
        parameters: Any = {"kid": kid, "use": "sig"}
        if kind == "RSA":
            made = jwk.RSAKey.generate_key(2048, parameters=parameters)
        else:
            made = jwk.ECKey.generate_key(kind, parameters=parameters)
        self.keys.append(made)
        return made

    def jwks(self) -> bytes:
        return json.dumps({"keys": [key.as_dict(private=False) for key in self.keys]}).encode()

    def good(self) -> bytes:
        body = self.jwks()
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        writer.write(self.answer())
        await writer.drain()
        writer.close()


@pytest.fixture
async def issuer() -> AsyncIterator[KeyServer]:
    found = KeyServer()
    found.new_key("first")
    async with await asyncio.start_server(found.serve, "127.0.0.1", 0) as server:
        found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys"
        yield found


def claims(**changed: Any) -> dict[str, Any]:
    now = int(time.time())
    whole = {"iss": ISSUER, "aud": AUDIENCE, "sub": "billing", "iat": now, "exp": now + 600} | changed
    return {name: value for name, value in whole.items() if value is not None}


def signed(key: Any, *, alg: str = "RS256", header: dict[str, Any] | None = None, **changed: Any) -> str:
    whole = {"alg": alg, "kid": key.kid} | (header or {})
    return jwt.encode({k: v for k, v in whole.items() if v is not None}, claims(**changed), key, algorithms=[alg])


@pytest.fixture
def keys(tmp_path: Path) -> str:
    """A file of API keys, without any."""
    path = tmp_path / "keys"
    path.touch()
    return str(path)


CALLERS = """
[defaults]
models = ["small", "large"]

[issuers.ours]
issuer = "{issuer}"
audience = ["another", "{audience}"]
keys = "{url}"
algorithms = ["RS256", "ES256"]

[callers.billing]
api_keys = ["billing"]
tokens.ours = ["billing"]
models = ["small"]
"""


def write_callers(folder: Path, url: str, text: str = CALLERS) -> str:
    path = folder / "callers.toml"
    path.write_text(text.format(issuer=ISSUER, audience=AUDIENCE, url=url))
    return str(path)


@pytest.fixture
async def model() -> FakeProvider:
    return FakeProvider(HELLO, cards=CARDS)


@pytest.fixture
async def served(serve: Serve, issuer: KeyServer, keys: str, tmp_path: Path, model: FakeProvider) -> Served:
    return await serve(model, api_keys=keys, callers=write_callers(tmp_path, issuer.url))


async def ask(served: Served, *metadata: tuple[str, str], **fields: Any) -> list[pb.GenerateResponse]:
    call = served.stub.Generate(pb.GenerateRequest(prompt="hi", **fields), metadata=metadata)
    return [message async for message in call]


def bearer(token: str) -> tuple[str, str]:
    return "authorization", f"Bearer {token}"


async def why_refused(served: Served, *metadata: tuple[str, str], **fields: Any) -> tuple[grpc.StatusCode, str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(served, *metadata, **fields)
    code, reason = failure(caught.value)
    return code, reason, str(caught.value.details())


UNKNOWN = (
    grpc.StatusCode.UNAUTHENTICATED,
    "UNAUTHENTICATED",
    "This server has to know who calls: a valid credential is wanted",
)


async def test_a_key_is_known_until_it_is_revoked_and_two_are_valid_side_by_side(
    served: Served, keys: str, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.runtime.secured._LOOK_SECONDS", 0.01)
    first, secret = api_keys.new(keys, "billing")
    _, another = api_keys.new(keys, "billing")
    await _until(lambda: any("callers are read anew: 2 API keys" in line for line in lines))
    for token in (secret, another):
        assert (await ask(served, bearer(token)))[-1].HasField("completed")
    api_keys.revoke(keys, first.id)
    await _until(lambda: any("callers are read anew: 1 API key," in line for line in lines))
    assert await why_refused(served, bearer(secret)) == UNKNOWN
    assert (await ask(served, bearer(another)))[-1].HasField("completed")
    assert secret not in "".join(lines)


async def _until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not done():  # noqa: ASYNC110 - what is waited for is in another thread's hands
            await asyncio.sleep(0.01)


async def test_a_signed_token_is_known_by_either_kind_of_key(
    served: Served, issuer: KeyServer, model: FakeProvider
) -> None:
    token = signed(issuer.keys[0])
    for _ in range(2):
        assert (await ask(served, bearer(token)))[-1].HasField("completed")
    assert issuer.asked == 1
    assert (await ask(served, ("authorization", f"bEARER {token}")))[-1].HasField("completed")
    assert [prompt.model for prompt in model.asked] == ["small"] * 3


def forged(key: Any) -> dict[str, str]:
    """Tokens that are no proof, by what is wrong with each."""
    good = signed(key)
    head, body, signature = good.split(".")

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    stranger = jwk.RSAKey.generate_key(2048, parameters={"kid": key.kid})
    unknown = jwk.RSAKey.generate_key(2048, parameters={"kid": "unknown"})
    public = key.as_pem(private=False)
    now = int(time.time())
    return {
        "none": f"{part({'alg': 'none'})}.{body}.",
        "none with a signature": f"{part({'alg': 'none', 'kid': key.kid})}.{body}.{signature}",
        "hs256 by the public key": _hs256(public, {"alg": "HS256", "kid": key.kid}),
        "an algorithm that isn't listed": signed(key, alg="RS512"),
        "another's signature": signed(stranger),
        "another's key": signed(unknown),
        "a changed body": f"{head}.{part(claims(sub='admin'))}.{signature}",
        "a changed head": f"{part({'alg': 'ES256', 'kid': key.kid})}.{body}.{signature}",
        "a critical header": signed(key, header={"b64": True, "crit": ["b64"]}),
        "a long kid": signed(unknown, header={"kid": "x" * 3000}),
        "another issuer": signed(key, iss="https://evil.example"),
        "no issuer": signed(key, iss=None),
        "another audience": signed(key, aud="https://evil.example"),
        "other audiences": signed(key, aud=["a", "b"]),
        "no audience": signed(key, aud=None),
        "an audience of a wrong type": signed(key, aud={"a": 1}),
        "expired": signed(key, exp=now - 61),
        "without an end": signed(key, exp=None),
        "an end in words": signed(key, exp="tomorrow"),
        "an end beyond all numbers": signed(key, exp=10**400),
        "an endless end": f"{head}.{part({**claims(), 'exp': 1e999})}.{signature}",
        "not yet": signed(key, nbf=now + 120),
        "from the future": signed(key, iat=now + 120),
        "an unknown subject": signed(key, sub="nobody"),
        "no subject": signed(key, sub=None),
        "a subject of a wrong type": signed(key, sub=["billing"]),
        "cut": good[:-10],
        "two parts": f"{head}.{body}",
        "four parts": f"{good}.x",
        "empty parts": "..",
        "no JSON": "a.b.c",
        "deep JSON": f"{head}.{part_of_depth()}.{signature}",
    }


def part_of_depth() -> str:
    return base64.urlsafe_b64encode(b"[" * 3000).decode()


def _hs256(secret: bytes, header: dict[str, Any]) -> str:
    import hashlib  # noqa: PLC0415 - here only
    import hmac  # noqa: PLC0415 - here only

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    start = f"{part(header)}.{part(claims())}"
    digest = hmac.new(secret, start.encode(), hashlib.sha256).digest()
    return f"{start}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


NO_PROOFS: dict[str, list[tuple[str, str]]] = {
    "nothing": [],
    "an empty value": [("authorization", "")],
    "no scheme": [("authorization", "x" * 20)],
    "no token": [("authorization", "Bearer ")],
    "another scheme": [("authorization", "Basic YTpi")],
    "an unknown key": [bearer("tw_" + "a" * 43)],
    "a key of 8 KB": [bearer("a" * 8000)],
    "two headers": [bearer("tw_" + "a" * 43), bearer("tw_" + "b" * 43)],
    "another header": [("x-api-key", "tw_" + "a" * 43)],
}


async def test_whatever_is_no_proof_gets_the_same_words_and_reaches_no_model(
    served: Served, issuer: KeyServer, model: FakeProvider, lines: list[str]
) -> None:
    shown = NO_PROOFS | {name: [bearer(token)] for name, token in forged(issuer.keys[0]).items()}
    good = signed(issuer.keys[0])
    shown["a good token twice"] = [bearer(good), bearer(good)]
    for name, metadata in shown.items():
        assert await why_refused(served, *metadata) == UNKNOWN, name
        assert await why_refused(served, *metadata, messages=[pb.GenerateRequest().messages.add()]) == UNKNOWN, name
    assert not model.asked
    told = "".join(lines)
    for metadata in shown.values():
        for _, value in metadata:
            token = value.partition(" ")[2]
            assert len(token) < 8 or token not in told
    assert (await ask(served, bearer(good)))[-1].HasField("completed")


async def test_clocks_may_be_a_minute_apart(served: Served, issuer: KeyServer) -> None:
    now = int(time.time())
    apart: list[dict[str, Any]] = [{"exp": now - 30}, {"nbf": now + 30}, {"iat": now + 30}]
    for changed in apart:
        assert (await ask(served, bearer(signed(issuer.keys[0], **changed))))[-1].HasField("completed")


async def test_a_remembered_token_expires_all_the_same(
    served: Served, issuer: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = signed(issuer.keys[0], exp=int(time.time()) + 10)
    await ask(served, bearer(token))
    later = time.time() + 80
    monkeypatch.setattr("service.admission.json_web_tokens.time", lambda: later)
    assert await why_refused(served, bearer(token)) == UNKNOWN


async def test_an_unknown_key_has_the_keys_fetched_anew_at_most_once_a_minute(
    served: Served, issuer: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.runtime.secured._LOOK_SECONDS", 0.01)
    following = issuer.new_key("second", "P-256")
    token = signed(following, alg="ES256")
    assert issuer.asked == 1
    for _ in range(20):
        assert await why_refused(served, bearer(token)) == UNKNOWN
    assert issuer.asked == 1
    later = time.monotonic() + 61
    monkeypatch.setattr("service.admission.json_web_tokens.monotonic", lambda: later)
    await _until(lambda: issuer.asked == 2)
    async with asyncio.timeout(20):
        while True:
            try:
                await ask(served, bearer(token))
            except grpc.aio.AioRpcError:
                continue
            break
    assert issuer.asked == 2


LIES: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "no HTTP": lambda: b"\xff" * 100,
    "an error": lambda: b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
    "a page": lambda: b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
    "another JSON": lambda: b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
    "no keys": lambda: b'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n{"keys":[]}',
    "odd keys": lambda: b'HTTP/1.1 200 OK\r\nContent-Length: 32\r\n\r\n{"keys":[1,{"kty":"RSA","n":""}]}',
    "another place": lambda: b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
    "100 MB": lambda: b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n" + b"x" * 3_000_000,
    "a cut": lambda: b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{",
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_key_server_that_fails_or_lies_changes_nothing(
    served: Served, issuer: KeyServer, lie: str, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.runtime.secured._LOOK_SECONDS", 0.01)
    issuer.answer = LIES[lie]
    now = time.monotonic()
    for turn in (1, 2):
        monkeypatch.setattr("service.admission.json_web_tokens.monotonic", lambda turn=turn: now + 601 * turn)
        await _until(lambda turn=turn: issuer.asked >= 1 + turn)  # type: ignore[misc] # a lambda's default
    assert (await ask(served, bearer(signed(issuer.keys[0]))))[-1].HasField("completed")
    await _until(lambda: any("can't be had" in line for line in lines))
    assert sum("the keys of issuer ours can't be had" in line for line in lines) == 1


async def test_a_key_server_that_is_away_from_the_start_costs_its_callers_only(
    serve: Serve, keys: str, tmp_path: Path, issuer: KeyServer, lines: list[str]
) -> None:
    _, secret = api_keys.new(keys, "billing")
    model = FakeProvider(HELLO, cards=CARDS)
    served = await serve(model, api_keys=keys, callers=write_callers(tmp_path, "http://127.0.0.1:1/keys"))
    assert (await ask(served, bearer(secret)))[-1].HasField("completed")
    assert await why_refused(served, bearer(signed(issuer.keys[0]))) == UNKNOWN
    assert any("the keys of issuer ours can't be had from http://127.0.0.1:1/keys: " in line for line in lines)


async def test_until_the_keys_have_been_looked_for_a_token_is_told_to_come_again(
    serve: Serve, keys: str, tmp_path: Path, issuer: KeyServer
) -> None:
    gate = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await issuer.serve(reader, writer)

    async with await asyncio.start_server(slow, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys"
        served = await serve(None, api_keys=keys, callers=write_callers(tmp_path, url))
        token = bearer(signed(issuer.keys[0]))
        assert (await why_refused(served, token))[:2] == (grpc.StatusCode.UNAVAILABLE, "STARTING")
        assert await why_refused(served) == UNKNOWN
        gate.set()
        await served.server.announce_serving(FakeProvider(HELLO, cards=CARDS))
        assert (await ask(served, token))[-1].HasField("completed")


async def test_keys_may_stand_in_a_file_which_is_followed(
    serve: Serve, tmp_path: Path, issuer: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.runtime.secured._LOOK_SECONDS", 0.01)
    path = tmp_path / "jwks.json"
    path.write_bytes(issuer.jwks())
    served = await serve(
        FakeProvider(HELLO, cards=CARDS),
        callers=write_callers(tmp_path, str(path), CALLERS.replace('api_keys = ["billing"]', "")),
    )
    assert (await ask(served, bearer(signed(issuer.keys[0]))))[-1].HasField("completed")
    issuer.keys.clear()
    token = bearer(signed(issuer.new_key("second")))
    assert await why_refused(served, token) == UNKNOWN
    path.write_bytes(issuer.jwks())
    async with asyncio.timeout(20):
        while True:
            try:
                await ask(served, token)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.01)
                continue
            break


async def test_models_are_those_that_the_caller_may_use(served: Served, issuer: KeyServer, model: FakeProvider) -> None:
    token = bearer(signed(issuer.keys[0]))
    offered = await served.stub.ListModels(pb.ListModelsRequest(), metadata=[token])
    assert [(one.name, one.default) for one in offered.models] == [("small", True)]
    code, reason, text = await why_refused(served, token, model="large")
    assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "MODEL_NOT_ALLOWED")
    assert text == "Models that this caller may use: small"
    code, reason, text = await why_refused(served, token, model="none")
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    assert "large" not in text
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.stub.CountTokens(pb.CountTokensRequest(prompt="hi", model="large"), metadata=[token])
    assert failure(caught.value) == (grpc.StatusCode.PERMISSION_DENIED, "MODEL_NOT_ALLOWED")
    assert not model.asked


async def test_health_is_open_and_the_schema_is_not(served: Served, issuer: KeyServer) -> None:
    stub: Any = health_pb2_grpc.HealthStub(served.channel)
    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")

    async def listed(*metadata: tuple[str, str]) -> Any:
        return [one async for one in reflection.ServerReflectionInfo(iter([request]), metadata=metadata)]

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await listed()
    assert failure(caught.value) == UNKNOWN[:2]
    assert await listed(bearer(signed(issuer.keys[0])))


async def test_the_log_says_who_called_and_why_one_was_refused(
    served: Served, issuer: KeyServer, lines: list[str]
) -> None:
    await ask(served, bearer(signed(issuer.keys[0])))
    await why_refused(served, bearer(signed(issuer.keys[0], exp=1)))
    await _until(lambda: sum("rpc=Generate" in line or "Generate" in line for line in lines) >= 2)
    told = "\n".join(lines)
    assert "caller=billing" in told
    assert "reason=UNAUTHENTICATED" in told
    assert "refused='it has expired'" in told


async def test_a_callers_longest_deadline_and_labels_go_along(serve: Serve, keys: str, tmp_path: Path) -> None:
    from tests.service.calls.test_servicer import Silent  # noqa: PLC0415 - here only

    _, secret = api_keys.new(keys, "billing")
    text = '[callers.billing]\napi_keys = ["billing"]\nlongest_deadline = 0.2\nlabels = {{ team = "billing" }}\n'
    model = Silent(HELLO[:2])
    served = await serve(model, api_keys=keys, callers=write_callers(tmp_path, "", text))
    call = served.stub.Generate(pb.GenerateRequest(prompt="hi"), metadata=[bearer(secret)], timeout=30)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [message async for message in call]
    assert failure(caught.value) == (grpc.StatusCode.DEADLINE_EXCEEDED, "SERVER_DEADLINE")
    assert "No call of this caller may last longer than 0.2 s" in str(caught.value.details())
    assert model.asked[0].owner_labels == {"team": "billing"}


async def test_a_certificate_says_who_calls_by_its_names_alone_and_before_a_token(
    serve: Serve, tmp_path: Path, keys: str, model: FakeProvider, lines: list[str]
) -> None:
    authority, clients = Authority(), Authority("clients")
    certificate, key = authority.sign("127.0.0.1").write(tmp_path)
    (tmp_path / "clients.pem").write_bytes(clients.pem)
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    _, secret = api_keys.new(keys, "large")
    text = (
        '[callers.billing]\ncertificates = ["spiffe://example/billing", "billing.example"]\nmodels = ["small"]\n'
        '[callers.large]\napi_keys = ["large"]\nmodels = ["large"]\n'
    )
    settings = {
        "api_keys": keys,
        "callers": write_callers(tmp_path, "", text),
        "tls_certificate": certificate,
        "tls_key": key,
        "tls_client_ca": str(tmp_path / "clients.pem"),
    }
    served = await serve(model, **settings)

    async def models(client: Pair, token: str = "") -> list[str]:
        own, own_key = client.write(tmp_path, "own")
        address = f"https://{served.address}"
        async with AsyncClient(
            address, ca=str(tmp_path / "ca.pem"), certificate=own, key=own_key, token=token
        ) as client_:
            return [one.name for one in await client_.models()]

    for name in ("spiffe://example/billing", "billing.example"):
        assert await models(clients.sign("other.example", name)) == ["small"]
        assert await models(clients.sign(name), token=secret) == ["small"]
    assert await models(clients.sign("other.example"), token=secret) == ["large"]
    strangers = [
        clients.sign("other.example"),
        clients.sign(common_name="billing.example"),
        # gRPC ends a name at a zero byte.
        clients.sign("billing.example\0.evil.example"),
        clients.sign("spiffe://example/billing\0/../evil"),
        # A name of one kind is none of another.
        clients.sign(general=[x509.DNSName("spiffe://example/billing")]),
        clients.sign(general=[x509.RFC822Name("billing.example")]),
        clients.sign(general=[x509.UniformResourceIdentifier("billing.example")]),
    ]
    for stranger in strangers:
        with pytest.raises(Exception, match="does not know you"):
            await models(stranger)
    assert sum("refused='its certificate has no entry'" in line for line in lines) == len(strangers)
    assert not [line for line in lines if "no token" in line]


@pytest.mark.parametrize("secret_in", ["log", "status"])
async def test_no_key_or_token_is_ever_told(
    served: Served, issuer: KeyServer, lines: list[str], secret_in: str
) -> None:
    canary = "tw_canary" + "c" * 36
    token = signed(issuer.keys[0], canary="canary")
    _, _, text = await why_refused(served, bearer(canary))
    await ask(served, bearer(token))
    where = "\n".join(lines) if secret_in == "log" else text
    assert "canary" not in where
    assert token not in where


async def test_a_broken_callers_file_keeps_no_key_from_being_revoked(
    serve: Serve, keys: str, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.runtime.secured._LOOK_SECONDS", 0.01)
    made, secret = api_keys.new(keys, "billing")
    callers = tmp_path / "callers.toml"
    callers.write_text('[callers.billing]\napi_keys = ["billing"]\nmodels = ["small"]\n')
    served = await serve(FakeProvider(HELLO, cards=CARDS), api_keys=keys, callers=str(callers))
    for broken in ("[junk", "x = " + "9" * 5000, "x = " + "[" * 3000, "", "[callers.billing]\ntypo = 1\n"):
        before = len(lines)
        callers.write_text(broken)
        await _until(lambda before=before: any("not taken, and as before" in line for line in lines[before:]))  # type: ignore[misc] # a lambda's default
        token = bearer(secret)
        offered = await served.stub.ListModels(pb.ListModelsRequest(), metadata=[token])
        assert [one.name for one in offered.models] == ["small"], broken
    api_keys.revoke(keys, made.id)
    async with asyncio.timeout(20):
        while True:
            try:
                await ask(served, bearer(secret))
            except grpc.aio.AioRpcError as error:
                assert failure(error) == UNKNOWN[:2]  # noqa: PT017 - asked until then
                break
            await asyncio.sleep(0.01)


async def test_a_key_of_an_entrys_name_has_the_entrys_limits(serve: Serve, keys: str, tmp_path: Path) -> None:
    _, secret = api_keys.new(keys, "billing")
    _, other = api_keys.new(keys, "other")
    callers = tmp_path / "callers.toml"
    callers.write_text('[callers.billing]\napi_keys = ["other"]\nmodels = ["small"]\n')
    served = await serve(FakeProvider(HELLO, cards=CARDS), api_keys=keys, callers=str(callers))
    for token in (secret, other):
        offered = await served.stub.ListModels(pb.ListModelsRequest(), metadata=[bearer(token)])
        assert [one.name for one in offered.models] == ["small"]


async def test_a_pipe_or_a_device_in_place_of_a_file_holds_nothing_up(
    serve: Serve, keys: str, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.runtime.secured._LOOK_SECONDS", 0.01)
    _, secret = api_keys.new(keys, "billing")
    served = await serve(FakeProvider(HELLO, cards=CARDS), api_keys=keys)
    kept = Path(keys).read_bytes()  # noqa: ASYNC240 - a test's own file
    for odd in ("pipe", "/dev/zero"):
        before = len(lines)
        os.unlink(keys)  # noqa: PTH108 - beside the calls below, which Path has not
        os.mkfifo(keys) if odd == "pipe" else os.symlink(odd, keys)  # noqa: PTH211 - Path makes no pipes, either
        await _until(lambda before=before: any("it is no file" in line for line in lines[before:]))  # type: ignore[misc] # a lambda's default
        assert (await ask(served, bearer(secret)))[-1].HasField("completed")
        os.unlink(keys)  # noqa: PTH108 - as it was made
        Path(keys).write_bytes(kept)  # noqa: ASYNC240 - a test's own file


async def test_a_key_that_takes_anothers_place_under_its_id_ends_the_tokens_of_that(
    served: Served, issuer: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.runtime.secured._LOOK_SECONDS", 0.01)
    token = signed(issuer.keys[0])
    assert (await ask(served, bearer(token)))[-1].HasField("completed")
    issuer.keys.clear()
    issuer.new_key("first")
    later = time.monotonic() + 601
    monkeypatch.setattr("service.admission.json_web_tokens.monotonic", lambda: later)
    async with asyncio.timeout(20):
        while True:
            try:
                await ask(served, bearer(token))
            except grpc.aio.AioRpcError:
                break
            await asyncio.sleep(0.01)
    assert (await ask(served, bearer(signed(issuer.keys[0]))))[-1].HasField("completed")


async def test_files_are_followed_on_whatever_goes_wrong_once(
    serve: Serve, keys: str, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a key that is revoked later would be taken for good."""
    monkeypatch.setattr("service.runtime.secured._LOOK_SECONDS", 0.01)
    made, secret = api_keys.new(keys, "billing")
    served = await serve(FakeProvider(HELLO, cards=CARDS), api_keys=keys)
    with monkeypatch.context() as broken:

        def look(_: Identity) -> object:
            raise RuntimeError("can't start new thread")

        broken.setattr(Identity, "_look", look)
        await _until(lambda: any("files can't be followed: RuntimeError" in line for line in lines))
    api_keys.revoke(keys, made.id)
    await _until(lambda: any("callers are read anew: 0 API keys" in line for line in lines))
    assert await why_refused(served, bearer(secret)) == UNKNOWN


async def test_trouble_with_a_file_of_keys_is_told_for_each_change_by_its_name_and_so_is_its_end(
    serve: Serve, tmp_path: Path, issuer: KeyServer, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.runtime.secured._LOOK_SECONDS", 0.01)
    path = tmp_path / "jwks.json"
    path.write_bytes(issuer.jwks())
    text = CALLERS.replace('api_keys = ["billing"]', "")
    await serve(FakeProvider(HELLO, cards=CARDS), callers=write_callers(tmp_path, str(path), text))
    trouble = f"the keys of issuer ours can't be had from {path}: "

    async def until(start: str, times: int) -> None:
        await _until(lambda: sum(line.startswith(start) for line in lines) == times)

    assert not [line for line in lines if "read anew" in line]
    for times, broken in enumerate(('{"keys": []}', '{"keys":  []}', "[junk"), 1):
        path.write_text(broken)
        await until(trouble, times)
    path.unlink()
    await until(f"{trouble}No such file or directory", 1)
    path.write_bytes(issuer.jwks())
    await until(f"the keys of issuer ours are read anew from {path}: 1 key", 1)
    issuer.new_key("second")
    path.write_bytes(issuer.jwks())
    await until(f"the keys of issuer ours are read anew from {path}: 2 keys", 1)
    assert sum(line.startswith(trouble) for line in lines) == 4
    assert not [line for line in lines if "callers are read anew" in line]


async def test_the_place_of_keys_is_told_without_what_may_be_a_secret(
    serve: Serve, keys: str, tmp_path: Path, lines: list[str]
) -> None:
    url = "http://127.0.0.1:1/keys?secret=abc"
    await serve(FakeProvider(HELLO, cards=CARDS), api_keys=keys, callers=write_callers(tmp_path, url))
    await _until(lambda: any("from http://127.0.0.1:1/keys: " in line for line in lines))
    assert "abc" not in "".join(lines)
