"""LangChain's own standard suite over its unchanged chat models, against SmolLM2 behind the local Vertex's doors.

What SmolLM2 can't do (tools, images, forms) is declared as such, and the suite leaves it out. The upstream is a process
of its own: half of the suite calls without asyncio, and would wait for an event loop that it holds up.
"""

import asyncio
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from google.oauth2.credentials import Credentials
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests

from tests.ports import free_port

pytestmark = [pytest.mark.smollm2, pytest.mark.timeout(300)]

FEW = {"max_tokens": 30, "temperature": 0.0}
"""No test wants to know what the model says."""


@pytest.fixture(scope="module")
def addresses() -> Iterator[tuple[str, str]]:
    """Of gRPC and of HTTP."""
    port, rest = free_port(), free_port()
    command = [sys.executable, "-m", "vertex_emulator", "--port", str(port), "--rest-port", str(rest)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        told = ""
        while "http://" not in told:
            told = process.stdout.readline()
            assert told, "the local Vertex has ended"
        yield f"127.0.0.1:{port}", f"http://127.0.0.1:{rest}"
        process.terminate()


@contextmanager
def deprecated() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


class Small(ChatModelIntegrationTests):
    """What SmolLM2 can do."""

    grpc_address = http_address = ""

    @pytest.fixture(autouse=True)
    async def there(self, addresses: tuple[str, str]) -> AsyncIterator[None]:
        self.grpc_address, self.http_address = addresses
        # A test without asyncio makes channels as well, and asyncio.run in a test before it leaves the thread no loop.
        asyncio.set_event_loop(asyncio.get_running_loop())
        yield
        for one in self.made:
            await self.let_go(one)

    @property
    def made(self) -> list[Any]:
        """The models of this test."""
        found: list[Any] = self.__dict__.setdefault("_made", [])
        return found

    async def let_go(self, model: Any) -> None:
        """Close a model's connections."""

    def kept(self, kind: type[Any]) -> type[BaseChatModel]:
        """The class itself, but for keeping what is made of it: the suite closes nothing."""
        made = self.made

        def make(self: Any, **settings: Any) -> None:
            with deprecated():
                kind.__init__(self, **settings)
            made.append(self)

        with deprecated():
            return type(kind.__name__, (kind,), {"__init__": make, "__module__": kind.__module__})

    @pytest.fixture
    async def model(self) -> BaseChatModel:
        """As the suite makes it, but on the event loop."""
        return self.chat_model_class(**self.chat_model_params)

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False

    @property
    def supports_json_mode(self) -> bool:
        return False

    @property
    def supports_model_override(self) -> bool:
        return False


class TestChatVertexAI(Small):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        with deprecated():
            from langchain_google_vertexai import ChatVertexAI  # noqa: PLC0415 - importing it takes seconds

        return self.kept(ChatVertexAI)

    @property
    def chat_model_params(self) -> dict[str, Any]:
        from google.cloud.aiplatform_v1beta1.services import prediction_service as google  # noqa: PLC0415 - importing it takes seconds
        from google.cloud.aiplatform_v1beta1.services.prediction_service.transports import (  # noqa: PLC0415 - importing it takes seconds
            grpc as plain,
        )
        from google.cloud.aiplatform_v1beta1.services.prediction_service.transports import (  # noqa: PLC0415 - importing it takes seconds
            grpc_asyncio as asynchronous,
        )

        here, there = grpc.insecure_channel(self.grpc_address), grpc.aio.insecure_channel(self.grpc_address)
        return {
            "model": "smollm2",
            "project": "p",
            "location": "us-central1",
            "max_retries": 0,
            "client": google.PredictionServiceClient(transport=plain.PredictionServiceGrpcTransport(channel=here)),
            "async_client": google.PredictionServiceAsyncClient(
                transport=asynchronous.PredictionServiceGrpcAsyncIOTransport(channel=there)
            ),
            **FEW,
        }

    async def let_go(self, model: Any) -> None:
        model.client.transport.close()
        await model.async_client.transport.close()


class TestChatGoogleGenerativeAI(Small):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        from langchain_google_genai import ChatGoogleGenerativeAI  # noqa: PLC0415 - importing it takes seconds

        return self.kept(ChatGoogleGenerativeAI)

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": "smollm2",
            "vertexai": True,
            "project": "p",
            "location": "us-central1",
            "base_url": self.http_address,
            "credentials": Credentials(token="local"),  # type: ignore[no-untyped-call]
            "max_retries": 1,
            **FEW,
        }

    async def let_go(self, model: Any) -> None:
        await model.client.aio.aclose()
        model.client.close()


class TestChatOpenAI(Small):
    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        from langchain_openai import ChatOpenAI  # noqa: PLC0415 - importing it takes seconds

        return self.kept(ChatOpenAI)

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {
            "model": "smollm2",
            "base_url": f"{self.http_address}/v1",
            "api_key": "any",
            "max_retries": 0,
            "stream_usage": True,
            "http_client": httpx.Client(timeout=60),  # else all models share one
            "http_async_client": httpx.AsyncClient(timeout=60),
            **FEW,
        }

    async def let_go(self, model: Any) -> None:
        model.http_client.close()
        await model.http_async_client.aclose()
