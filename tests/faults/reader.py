"""`python -m tests.faults.reader ADDRESS COUNT`: a caller that reads COUNT endless streams, to be killed or stopped."""

import asyncio
import sys
from typing import Any

import grpc.aio

from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.generation_service_pb2_grpc import GenerationServiceStub


async def main(address: str, count: int) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        calls: list[Any] = [
            GenerationServiceStub(channel).Generate(pb.GenerateRequest(prompt="read")) for _ in range(count)
        ]
        for call in calls:
            while not (await call.read()).text:
                pass
        sys.stdout.write("reading\n")
        sys.stdout.flush()

        async def read(call: Any) -> None:
            while await call.read() is not grpc.aio.EOF:
                pass

        await asyncio.gather(*map(read, calls))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
