"""The log tells the server's owner why upstream refused a call, and which upstream that was."""

import grpc
import grpc.aio
import pytest

from service.settings import Settings
from tests.providers.conftest import LINES, Open
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, status


@pytest.mark.parametrize("provider", LINES)
@pytest.mark.parametrize("told", [False, True])
async def test_the_log_says_whose_failure_it_was_and_in_whose_words(
    open_provider: Open, emulator: Emulator, lines: list[str], provider: str, told: bool
) -> None:
    emulator.script.play(default=answer(status("INVALID_ARGUMENT", "The prompt SECRET is bad.")))
    line = LINES[provider].format(rest=emulator.rest_address)
    environ = {
        "OPENAI_API_KEY": "k",
        "AZURE_OPENAI_API_KEY": "k",
        "VERTEX_EMULATOR_HOST": emulator.address,
        "VERTEX_EMULATOR_REST_HOST": str(emulator.rest_address),
    }
    settings = Settings.load(["--models", line, "--model", line.partition("=")[0]], environ, prog="tokenwire serve")
    upstream = await open_provider(
        provider,
        model=settings.model,
        models=settings.models,
        emulator=settings.emulator,
        emulator_rest=settings.emulator_rest,
        log_upstream_text=told,
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await upstream.ask()
    assert "SECRET" not in str(caught.value)
    (line,) = [one for one in lines if "Generate code=" in one]
    host = emulator.address if provider == "vertex" else emulator.rest_address
    chat = "/400/INVALID_REQUEST_ERROR"
    words = {"vertex": "", "genai": "/400", "openai": chat, "azure": chat}[provider]
    assert f" upstream=INVALID_ARGUMENT{words} " in line
    assert f" host={host}" in line
    assert ("SECRET" in line) is told
