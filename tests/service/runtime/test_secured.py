"""A server as a company runs it: several processes, TLS, and proofs of who calls."""

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.admission import api_keys
from tests.certificates import Authority
from tests.conftest import ServerProcess, StartProcess
from tests.service.runtime.test_workers import children
from tokenwire import AsyncClient, NotAllowedError, UnavailableError
from vertex_emulator import Emulator
from vertex_emulator.script import answer, wait_for


async def said(address: str, trusted: Path, token: str) -> str:
    """By a connection of its own."""
    async with (
        AsyncClient(address, ca=str(trusted), token=token) as client,
        client.generate("hi", timeout=20) as answer,
    ):
        return "".join([piece async for piece in answer.text()])


async def ready(server: ServerProcess) -> str:
    await server.said("ready after")
    return "https://" + server.address.replace("0.0.0.0", "127.0.0.1")


async def test_workers_serve_tls_know_callers_and_follow_their_files(
    emulator: Emulator, start_process: StartProcess, tmp_path: Path
) -> None:
    first, second = Authority("first"), Authority("second")
    certificate, key = first.sign("127.0.0.1").write(tmp_path)
    trusted = tmp_path / "trusted"
    trusted.write_bytes(first.pem)
    keys = str(tmp_path / "keys")
    made, secret = await asyncio.to_thread(api_keys.new, keys, "billing")
    server = await start_process(
        *("--host", "0.0.0.0", "--workers", "2", "--tls-certificate", certificate, "--tls-key", key),
        *("--api-keys", keys),
    )
    address = await ready(server)
    emulator.script.play(*[answer("Hello")] * 100)
    for _ in range(10):
        assert await said(address, trusted, secret) == "Hello"
    with pytest.raises(NotAllowedError, match="does not know you"):
        await said(address, trusted, "tw_unknown")
    with pytest.raises(UnavailableError, match="may want TLS"):
        await said(server.address.replace("0.0.0.0", "127.0.0.1"), trusted, secret)

    second.sign("127.0.0.1").write(tmp_path)
    trusted.write_bytes(second.pem)
    for _ in range(10):
        assert await said(address, trusted, secret) == "Hello"

    await asyncio.to_thread(api_keys.revoke, keys, made.id)
    server.signal(signal.SIGHUP)
    await server.said("callers are read anew: 0 API keys", times=2)
    for _ in range(10):
        with pytest.raises(NotAllowedError):
            await said(address, trusted, secret)
    server.signal(signal.SIGTERM)
    assert await asyncio.wait_for(server.process.wait(), 30) == 0
    assert secret not in "\n".join(server.log)


@pytest.mark.parametrize("whom", ["the parent", "all of them"])
async def test_sighup_has_every_worker_read_all_files_anew(
    start_process: StartProcess, tmp_path: Path, whom: str
) -> None:
    """Also where nothing but TLS is followed, though their files look as before."""
    authority = Authority()
    certificate, key = authority.sign("127.0.0.1").write(tmp_path)
    server = await start_process("--workers", "2", "--tls-certificate", certificate, "--tls-key", key)
    await ready(server)
    async with asyncio.timeout(60):
        while len(children(server)) > 2:  # noqa: ASYNC110 - the one that greets callers is about to end
            await asyncio.sleep(0.05)
    assert not any("read anew" in line for line in server.log)
    server.signal(signal.SIGHUP)
    for child in children(server) if whom == "all of them" else ():
        os.kill(child, signal.SIGHUP)
    await server.said("the files of TLS are read anew: as before", times=2)
    server.signal(signal.SIGTERM)
    assert await asyncio.wait_for(server.process.wait(), 30) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_server_with_tls_can_send_traces_to_langsmith(
    emulator: Emulator,
    start_process: StartProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: str,
) -> None:
    """What LangChain tells of the system it finds out by other programs, which such a server may not start."""
    authority = Authority()
    certificate, key = authority.sign("127.0.0.1").write(tmp_path)
    trusted = tmp_path / "trusted"
    trusted.write_bytes(authority.pem)
    traced = asyncio.Event()

    async def langsmith(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"POST /runs"):
            traced.set()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(langsmith, "127.0.0.1", 0) as listening:
        environ = {
            "TOKENWIRE_LANGSMITH": "true",
            "LANGSMITH_TRACING": "true",
            "LANGSMITH_API_KEY": "x",
            "LANGSMITH_ENDPOINT": "http://{}:{}".format(*listening.sockets[0].getsockname()),
        }
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        server = await start_process("--workers", workers, "--tls-certificate", certificate, "--tls-key", key)
        address = await ready(server)
        emulator.script.play(answer("Hello"))
        assert await said(address, trusted, "") == "Hello"
        await asyncio.wait_for(traced.wait(), 30)
    server.signal(signal.SIGTERM)
    assert await asyncio.wait_for(server.process.wait(), 30) == 0


async def test_the_start_warns_once_and_workers_say_nothing_of_files_that_are_as_they_were(
    start_process: StartProcess, tmp_path: Path
) -> None:
    callers = tmp_path / "callers.toml"
    (tmp_path / "jwks.json").write_text("{}")
    callers.write_text(
        '[issuers.ours]\nissuer = "https://a"\naudience = "b"\nkeys = "jwks.json"\nalgorithms = ["RS256"]\n'
        '[callers.billing]\ntokens.ours = ["billing"]\nmodels = ["gone"]\n'
    )
    server = await start_process("--workers", "2", "--callers", str(callers))
    await server.said("ready after")
    assert sum("models names 'gone'" in line for line in server.log) == 1
    assert not any("read anew" in line for line in server.log)
    server.signal(signal.SIGHUP)
    await server.said("callers are read anew: 0 API keys, 1 issuer", times=2)


@dataclass(frozen=True)
class Secured:
    """Two workers that serve TLS and know one caller, by an API key."""

    server: ServerProcess
    address: str
    authority: Authority
    """Signed the server's certificate."""
    trusted: Path
    """The file with the authority's own certificate."""
    callers: Path
    secret: str

    def client(self) -> AsyncClient:
        return AsyncClient(self.address, ca=str(self.trusted), token=self.secret)


@pytest.fixture
async def secured(start_process: StartProcess, tmp_path: Path) -> Secured:
    authority = Authority()
    certificate, key = authority.sign("127.0.0.1").write(tmp_path)
    trusted, keys, callers = tmp_path / "trusted", str(tmp_path / "keys"), tmp_path / "callers.toml"
    trusted.write_bytes(authority.pem)
    _, secret = await asyncio.to_thread(api_keys.new, keys, "billing")
    callers.write_text('[callers.billing]\napi_keys = ["billing"]\n')
    server = await start_process(
        *("--workers", "2", "--tls-certificate", certificate, "--tls-key", key, "--api-keys", keys),
        *("--callers", str(callers)),
    )
    address = await ready(server)
    return Secured(server, address, authority, trusted, callers, secret)


async def test_no_stream_fails_while_certificates_and_callers_change_20_times(
    emulator: Emulator, secured: Secured, tmp_path: Path
) -> None:
    streams = 100
    emulator.script.play(*[answer("Hello", wait_for("the end"), "!")] * streams, *[answer("Hello")] * 20)

    async def stream(client: AsyncClient) -> str:
        async with client.generate("hi", timeout=100) as answered:
            return "".join([piece async for piece in answered.text()])

    async with AsyncExitStack() as stack:
        running = []
        for _ in range(10):
            client = await stack.enter_async_context(secured.client())
            running += [asyncio.ensure_future(stream(client)) for _ in range(streams // 10)]
        await emulator.wait_until(lambda e: len(e.open_calls) == streams, timeout=60)
        for turn in range(20):
            secured.authority.sign("127.0.0.1", common_name=f"the {turn}th").write(tmp_path)
            secured.callers.write_text(f'[callers.billing]\napi_keys = ["billing"]\nstreams = {200 + turn}\n')
            assert await said(secured.address, secured.trusted, secured.secret) == "Hello"
        emulator.open_gate("the end")
        assert await asyncio.gather(*running) == ["Hello!"] * streams
    async with secured.client() as client:
        async with asyncio.timeout(30):
            while True:
                (usage,) = await client.usage()
                limits = {quota.name: quota.limit for quota in usage.quotas}
                if limits["streams"] == 219:
                    break
                await asyncio.sleep(0.1)
        used = {quota.name: quota.used for quota in usage.quotas}
    assert used["streams"] == 0
    assert used["requests_per_day"] == streams + 20


async def test_a_lost_worker_is_replaced_though_no_file_can_be_used_any_more(
    emulator: Emulator, secured: Secured, tmp_path: Path
) -> None:
    server = secured.server
    emulator.script.play(*[answer("Hello")] * 100)
    secured.callers.write_text("[junk")
    (tmp_path / "server.crt").unlink()
    async with asyncio.timeout(60):
        while len(children(server)) > 2:  # noqa: ASYNC110 - the one that greets callers is about to end
            await asyncio.sleep(0.05)
    victim = min(children(server))
    os.kill(victim, signal.SIGKILL)
    await server.said("starting another")
    async with asyncio.timeout(60):
        while victim in children(server) or len(children(server)) < 2:  # noqa: ASYNC110 - another process's doing
            await asyncio.sleep(0.05)
    for _ in range(20):
        assert await said(secured.address, secured.trusted, secured.secret) == "Hello"
    assert not any("giving up" in line for line in server.log)
