"""A server as a company runs it: several processes, TLS, and proofs of who calls."""

import asyncio
import signal
from pathlib import Path

import pytest

from service.admission import api_keys
from tests.certificates import Authority
from tests.conftest import ServerProcess, StartProcess
from tokenwire import AsyncClient, NotAllowedError, UnavailableError
from vertex_emulator import Emulator
from vertex_emulator.script import answer


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
