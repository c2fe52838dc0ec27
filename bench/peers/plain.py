"""The obvious twenty lines: `ChatVertexAI.astream` in a grpc.aio handler.

python -m bench.peers.plain UPSTREAM_HOST:PORT
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from google.cloud.aiplatform_v1beta1.services.prediction_service import PredictionServiceAsyncClient
from google.cloud.aiplatform_v1beta1.services.prediction_service.transports.grpc_asyncio import (
    PredictionServiceGrpcAsyncIOTransport,
)
from langchain_google_vertexai import ChatVertexAI

from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.generation_service_pb2_grpc import (
    GenerationServiceServicer,
    add_GenerationServiceServicer_to_server,
)


class Plain(GenerationServiceServicer):
    def __init__(self, chat: ChatVertexAI) -> None:
        self._chat = chat

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> AsyncIterator[pb.GenerateResponse]:
        del context
        async for chunk in self._chat.astream(request.prompt):
            yield pb.GenerateResponse(text=str(chunk.content))


async def main(upstream: str) -> None:
    """Serve until the process is ended."""
    transport = PredictionServiceGrpcAsyncIOTransport(channel=grpc.aio.insecure_channel(upstream))
    client = PredictionServiceAsyncClient(transport=transport)
    chat = ChatVertexAI(model="gemini-2.5-flash", project="local", location="us-central1", async_client=client)
    server = grpc.aio.server()
    add_GenerationServiceServicer_to_server(Plain(chat), server)  # type: ignore[abstract] # the other methods stay unimplemented
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"listening on 127.0.0.1:{port}, ready", file=sys.stderr, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
