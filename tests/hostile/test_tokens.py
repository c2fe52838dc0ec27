"""Callers who prove nothing, and files and key servers that say anything, against the real server process.

As in `test_bytes.py`: calls of a caller with a key go on beside it, and the log says nothing of what was shown.
"""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from service.admission import api_keys
from tests.conftest import ServerProcess, failure, server_process
from tests.hostile import http2
from tests.hostile.conftest import CANARY, MB, Attack, Decent, asked
from tests.hostile.http2 import Connection
from tests.service.admission.test_identity import AUDIENCE, ISSUER, LIES, KeyServer, bearer, forged, signed
from tokenwire.v1.generation_service_pb2_grpc import GenerationServiceStub
from vertex_emulator.emulator import Emulator

CALLERS = """
[issuers.ours]
issuer = "{issuer}"
audience = "{audience}"
keys = "{keys}"
algorithms = ["RS256", "ES256"]

[issuers.odd]
issuer = "https://odd.example"
audience = "{audience}"
keys = "{odd}"
algorithms = ["RS256"]

[callers.billing]
api_keys = ["billing"]
tokens.ours = ["billing"]

[callers.poor]
api_keys = ["poor"]
models = ["none-that-is-offered"]
"""

REFUSED = (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
CANARY_KEY = "tw_" + CANARY * 7
TIMES = 500


class Setting:
    """The files of the server, and those who write them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = str(folder / "keys")
        self.callers = folder / "callers.toml"
        self.jwks = folder / "jwks.json"
        self.issuer = KeyServer()
        self.key = self.issuer.new_key("first")
        self.jwks.write_bytes(self.issuer.jwks())
        self.secrets = {name: api_keys.new(self.keys, name)[1] for name in ("billing", "poor")}
        self.write()

    def text(self, odd: str = "http://127.0.0.1:1/away") -> str:
        return CALLERS.format(issuer=ISSUER, audience=AUDIENCE, keys=self.jwks, odd=odd)

    def write(self, text: str = "") -> None:
        """As a whole, as editors do."""
        new = self.callers.with_suffix(".new")
        new.write_text(text or self.text())
        new.replace(self.callers)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return Setting(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def decent(setting: Setting) -> Decent:
    return Decent(metadata=(bearer(setting.secrets["billing"]),))


@pytest.fixture(scope="module")
async def server(vertex: Emulator, setting: Setting) -> AsyncIterator[ServerProcess]:
    flags = ("--workers", "1", "--api-keys", setting.keys, "--callers", str(setting.callers))
    async with server_process(vertex, *flags) as running:
        await running.said("ready after")
        yield running


@pytest.fixture(scope="module")
async def stub(server: ServerProcess) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as opened:
        yield GenerationServiceStub(opened)


async def refused(stub: Any, *metadata: tuple[str, str | bytes]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.Generate(asked(), timeout=20, metadata=metadata):
            pass
    for value in (str(value) for _, value in metadata):
        token = value.removeprefix("Bearer ")
        assert len(token) < 8 or token not in str(caught.value.details())
    assert CANARY not in str(caught.value.details())
    return failure(caught.value)


# ---- tokens


SHOWN: dict[str, Callable[[Setting], list[tuple[str, str]]]] = {
    "no token": lambda _: [],
    "an empty token": lambda _: [("authorization", "Bearer ")],
    "two authorization headers": lambda setting: [bearer(setting.secrets["billing"])] * 2,
    "a wrong scheme": lambda setting: [("authorization", f"Basic {setting.secrets['billing']}")],
    "an unknown key": lambda _: [bearer(CANARY_KEY)],
    "alg none": lambda setting: [bearer(forged(setting.key)["none"])],
    "HS256, signed with the public key": lambda setting: [bearer(forged(setting.key)["hs256 by the public key"])],
    "a wrong signature": lambda setting: [bearer(forged(setting.key)["another's signature"])],
    "another issuer": lambda setting: [bearer(signed(setting.key, iss="https://canary.example"))],
    "another audience": lambda setting: [bearer(signed(setting.key, aud="https://canary.example"))],
    "an expired token": lambda setting: [bearer(forged(setting.key)["expired"])],
    "a token that isn't valid yet": lambda setting: [bearer(forged(setting.key)["not yet"])],
    "an unknown kid": lambda setting: [bearer(forged(setting.key)["another's key"])],
}


@pytest.mark.parametrize("name", SHOWN)
async def test_what_is_no_proof_is_refused(attack: Attack, stub: Any, setting: Setting, name: str) -> None:
    metadata = SHOWN[name](setting)
    async with attack(name):
        for _ in range(TIMES):
            assert await refused(stub, *metadata) == REFUSED


async def test_many_different_forged_tokens_are_refused(attack: Attack, stub: Any, setting: Setting) -> None:
    head, _, signature = signed(setting.key).rpartition(".")
    chance = random.Random(3)
    async with attack("2,000 different wrong signatures"):
        for _ in range(100):
            tokens = ["".join(chance.sample(signature, len(signature))) for _ in range(20)]
            found = await asyncio.gather(*(refused(stub, bearer(f"{head}.{one}")) for one in tokens))
            assert set(found) == {REFUSED}


def _called(address: str, *headers: tuple[str, str]) -> int | None:
    """The status of a call whose headers are made by hand."""
    body = http2.grpc_message(asked().SerializeToString())
    block = http2.call_headers(*headers)
    pieces = [block[at : at + 16_384] for at in range(0, len(block), 16_384)]
    frames = [http2.frame(http2.CONTINUATION, 0, 1, piece) for piece in pieces]
    frames[0] = http2.frame(http2.HEADERS, 0, 1, pieces[0])
    frames[-1] = frames[-1][:4] + bytes([http2.END_HEADERS]) + frames[-1][5:]
    with Connection(address) as connection:
        connection.hello()
        return http2.status_in(connection.call(b"".join(frames) + http2.frame(http2.DATA, http2.END_STREAM, 1, body)))


async def test_a_token_of_1_mb_is_not_even_read(attack: Attack, server: ServerProcess) -> None:
    header = "authorization", "Bearer " + CANARY * (MB // len(CANARY))
    async with attack("a token of 1 MB"):
        for _ in range(10):
            found = await asyncio.to_thread(_called, server.address, header)
            assert found in (None, grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])


async def test_a_token_that_is_no_text_is_refused(attack: Attack, server: ServerProcess) -> None:
    async with attack("a token that isn't UTF-8"):
        for _ in range(TIMES):
            found = await asyncio.to_thread(_called, server.address, ("authorization", "Bearer canary\xff\xfe"))
            assert found == grpc.StatusCode.UNAUTHENTICATED.value[0]


async def test_a_key_that_is_revoked_is_refused(
    attack: Attack, stub: Any, setting: Setting, server: ServerProcess
) -> None:
    made, secret = api_keys.new(setting.keys, "leaver")
    await _until_known(stub, secret)
    # The log is a little behind; this line stands behind what it says of the new key.
    await server.said("caller=leaver")
    async with attack("a revoked key"):
        said = sum("callers are read anew" in line for line in server.log)
        api_keys.revoke(setting.keys, made.id)
        await server.said("callers are read anew", times=said + 1)
        for _ in range(TIMES):
            assert await refused(stub, bearer(secret)) == REFUSED


async def _until_known(stub: Any, secret: str) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                async for _ in stub.Generate(asked(), timeout=20, metadata=(bearer(secret),)):
                    pass
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
                continue
            return


async def test_a_model_that_a_caller_may_not_use_is_refused(attack: Attack, stub: Any, setting: Setting) -> None:
    async with attack("a model that this caller may not use"):
        for _ in range(TIMES):
            found = await refused(stub, bearer(setting.secrets["poor"]))
            assert found == (grpc.StatusCode.PERMISSION_DENIED, "MODEL_NOT_ALLOWED")


# ---- key servers


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n"

# What each says: pieces, and the seconds between them.
KEY_SERVERS: dict[str, tuple[list[bytes], float] | None] = {
    "a key server that is away": None,
    "a key server that says a byte a second": ([bytes([one]) for one in HEAD], 1),
    "a key server that lies": ([LIES["odd keys"]()], 0),
    "a key server that sends somebody elsewhere": ([LIES["another place"]()], 0),
    "a key server that says 100 MB": ([HEAD, *[b"x" * 10_000] * 10_000], 0),
}


@pytest.mark.parametrize("name", KEY_SERVERS)
async def test_a_key_server_that_does_not_help_costs_its_own_callers_only(
    attack: Attack, stub: Any, setting: Setting, server: ServerProcess, name: str
) -> None:
    says = KEY_SERVERS[name]
    asked_for = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked_for.set()
        assert says is not None
        pieces, pause = says
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(pause)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as key_server, attack(name):
        port = 1 if says is None else key_server.sockets[0].getsockname()[1]
        troubles = sum("can't be had" in line for line in server.log)
        setting.write(setting.text(f"http://127.0.0.1:{port}/{list(KEY_SERVERS).index(name)}"))
        if says is not None:
            await asyncio.wait_for(asked_for.wait(), 20)
        # Its own callers are told to come again until it has been looked for, and are refused from then on.
        token = bearer(signed(setting.key, iss="https://odd.example"))
        waiting = grpc.StatusCode.UNAVAILABLE, "STARTING"
        async with asyncio.timeout(30):
            while sum("can't be had" in line for line in server.log) <= troubles:
                assert await refused(stub, token) in (REFUSED, waiting)
                await asyncio.sleep(0.05)
        assert await refused(stub, token) == REFUSED
        await _until_known(stub, signed(setting.key))
    setting.write()


# ---- the callers file


WRONG_FILES = {
    "a callers file with unknown fields": '[callers.billing]\napi_keys = ["billing"]\ncanary = 1\n',
    "a callers file with negative numbers": '[callers.billing]\napi_keys = ["billing"]\nstreams = -1\n',
    "a callers file where two have one key": (
        '[callers.billing]\napi_keys = ["billing"]\n[callers.other]\napi_keys = ["billing"]\n'
    ),
    "a callers file with a key pasted into it": f'[callers.billing]\napi_keys = ["{CANARY_KEY}"]\n',
    "a callers file that is no TOML": "[callers.billing\n" * 100,
    "an empty callers file": " ",
}


@pytest.mark.parametrize("name", WRONG_FILES)
async def test_a_callers_file_that_is_wrong_changes_nothing(
    attack: Attack, stub: Any, setting: Setting, server: ServerProcess, name: str
) -> None:
    text = WRONG_FILES[name]
    # A name that is no secret may be told: it is what has to be mended.
    text = text.replace("canary = 1", "unknown = 1")
    async with attack(name):
        told = sum("not taken, and as before" in line for line in server.log)
        setting.write(text)
        await server.said("not taken, and as before", times=told + 1)
        for _ in range(TIMES):
            await _until_known(stub, setting.secrets["billing"])
            assert (await refused(stub, bearer(setting.secrets["poor"])))[1] == "MODEL_NOT_ALLOWED"
    setting.write()


# ---- secrets


def _shown_by(pid: int) -> Iterator[bytes]:
    """What anybody on the machine may read of this process and those below it, and its owner."""
    for name in ("cmdline", "environ"):
        yield Path(f"/proc/{pid}/{name}").read_bytes()
    for child in _children(pid):
        yield from _shown_by(child)


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_secrets_are_in_no_log_no_command_line_and_no_crash(
    server: ServerProcess, stub: Any, setting: Setting
) -> None:
    """The last one: it ends the server while calls with secrets are open."""
    secrets = [*setting.secrets.values(), signed(setting.key), CANARY_KEY]
    shown = list(_shown_by(server.process.pid))
    calls = [stub.Generate(asked(), metadata=(bearer(one),)) for one in secrets]
    reading = asyncio.gather(*(call.read() for call in calls), return_exceptions=True)
    await asyncio.sleep(0)
    for pid in (*_children(server.process.pid), server.process.pid):
        os.kill(pid, signal.SIGABRT)
    await asyncio.wait_for(server.process.wait(), 20)
    await reading
    crash = "\n".join(server.log)
    for secret in secrets:
        assert not [one for one in shown if secret.encode() in one]
        assert secret not in crash
        assert api_keys.hashed(secret) not in crash
    assert CANARY not in crash
