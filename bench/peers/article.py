"""What articles show: FastAPI's `StreamingResponse` over `ChatVertexAI.stream`, under uvicorn with its defaults.

python -m bench.peers.article UPSTREAM_HOST:PORT
"""

import sys
from collections.abc import Iterator

import grpc
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from google.cloud.aiplatform_v1beta1.services.prediction_service import PredictionServiceClient
from google.cloud.aiplatform_v1beta1.services.prediction_service.transports.grpc import PredictionServiceGrpcTransport
from langchain_google_vertexai import ChatVertexAI


def application(chat: ChatVertexAI) -> FastAPI:
    app = FastAPI()

    @app.post("/run_stream")
    async def run_stream(message: str) -> StreamingResponse:
        def answer() -> Iterator[str]:
            for chunk in chat.stream(message):
                yield str(chunk.content)

        return StreamingResponse(answer(), media_type="text/event-stream")

    return app


def main(upstream: str) -> None:
    """Serve until the process is ended; uvicorn says where it listens."""
    client = PredictionServiceClient(transport=PredictionServiceGrpcTransport(channel=grpc.insecure_channel(upstream)))
    chat = ChatVertexAI(
        model="gemini-2.5-flash", project="local", location="us-central1", streaming=True, client=client
    )
    uvicorn.run(application(chat), port=0)


if __name__ == "__main__":
    main(sys.argv[1])
