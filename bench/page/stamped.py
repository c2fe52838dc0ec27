"""A service that writes into each word when it was sent: `python -m bench.page.stamped`. For the page's figures.

So a reader of the page can tell how long each word took to get there. A word is `word7@1700000000000`: its number, and
milliseconds since 1970. The question says how many there are, and how fast they come: `words=100 interval=0.05 wait=1`.
"""

import asyncio
import re
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.generation_service_pb2_grpc import GenerationServiceServicer, add_GenerationServiceServicer_to_server

WORD = re.compile(r"word(\d+)@(\d{13})")
"""Its number, from 1, and when it was sent."""

_PARAGRAPH = 40
"""Words."""


def question(words: int, interval: float, wait: float) -> str:
    """Give what has the service say so many words, one each `interval` seconds, the first after `wait` seconds."""
    return f"words={words} interval={interval:g} wait={wait:g}"


class Stamped(GenerationServiceServicer):
    """Says words, each with the time."""

    async def ListModels(self, request: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        del request, context
        return pb.ListModelsResponse(models=[pb.Model(name="stamped", tools=True)])

    async def CountTokens(self, request: pb.CountTokensRequest, context: Any) -> pb.CountTokensResponse:
        raise NotImplementedError

    async def GetUsage(self, request: pb.GetUsageRequest, context: Any) -> pb.GetUsageResponse:
        raise NotImplementedError

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        del context
        told = dict(re.findall(r"(\w+)=([\d.]+)", request.messages[-1].parts[-1].text))
        words, interval, due = int(told["words"]), float(told["interval"]), time.monotonic() + float(told["wait"])
        for number in range(1, words + 1):
            # By a clock of its own: what is late doesn't put off what follows.
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += interval
            gap = "\n\n" if number % _PARAGRAPH == 0 else " "
            text = f"word{number}@{1000 * time.time():.0f}{gap}"
            yield pb.GenerateResponse(sequence=number - 1, text=text)
        usage = pb.Usage(exact=True, input_tokens=1, output_tokens=words, total_tokens=1 + words)
        completed = pb.Completed(finish_reason=pb.FINISH_REASON_STOP, usage=usage, model="stamped")
        yield pb.GenerateResponse(sequence=words, completed=completed)


async def main() -> None:
    """Serve until the process is ended."""
    server = grpc.aio.server()
    add_GenerationServiceServicer_to_server(Stamped(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listening on 127.0.0.1:{port}", file=sys.stderr, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
