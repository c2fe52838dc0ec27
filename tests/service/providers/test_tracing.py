"""LangChain's own tracing, switched on: what it makes of itself once is made when the server starts."""

import asyncio
import os
import sys

import pytest

from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer

# Prints what other programs are run, and which clients are made, once the models are open.
PROGRAM = """
import asyncio, os, sys, time
from langsmith import Client
from service.generation.prompt import Prompt, Role, Turn
from service.providers import registry, tracing
from service.settings import Settings

settings = Settings.load(sys.argv[1:], {k: v for k, v in os.environ.items() if "EMULATOR" in k}, prog="x")
registry.imported(settings.offers)
tracing.know_system()

async def main():
    async with registry.opened(settings.offers, settings.google) as model:
        sys.addaudithook(lambda event, args: event == "subprocess.Popen" and print("ran", args[1], flush=True))
        init = Client.__init__
        Client.__init__ = lambda *args, **kwargs: (print("made a client", flush=True), init(*args, **kwargs))[1]
        for card in model.cards:
            prompt = Prompt(model=card.name, turns=[Turn(Role.USER, "Hi")])
            async with model.stream(prompt, deadline=time.monotonic() + 30) as events:
                async for _ in events:
                    pass
            print("asked", card.name, flush=True)

asyncio.run(main())
os._exit(0)  # else the traces are sent first, in vain
"""


@pytest.mark.process
async def test_nothing_is_made_for_traces_once_calls_may_come() -> None:
    async with Emulator(rest_port=0) as emulator:
        emulator.script.play(default=answer("hello", uses=0))
        line = (
            f"v=vertex:gemini-2.5-flash,g=genai:gemini-2.5-pro,o=openai:gpt?base_url=http://{emulator.rest_address}/v1"
        )
        environ = {
            "VERTEX_EMULATOR_HOST": emulator.address,
            "VERTEX_EMULATOR_REST_HOST": str(emulator.rest_address),
            "LANGSMITH_TRACING": "true",
            "LANGSMITH_API_KEY": "x",
            "LANGSMITH_ENDPOINT": "http://127.0.0.1:9",
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM, "--model", "v", "--models", line),
            env=os.environ | environ,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            printed, _ = await asyncio.wait_for(process.communicate(), 60)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert printed.decode().split("\n") == ["asked v", "asked g", "asked o", ""]
