"""What an upstream's code means is one table: callers get the same error whichever provider it came from."""

import grpc
import httpx2
import openai
import pytest
from google.genai.errors import APIError

from service.errors import UpstreamError, UpstreamFault
from service.providers import failures, http_failures
from service.providers.chat_completions import failures as chat_completions
from service.providers.gemini import over_grpc, over_http


def by_grpc(code: grpc.StatusCode) -> UpstreamError:
    empty = grpc.aio.Metadata()
    return over_grpc.upstream_error(grpc.aio.AioRpcError(code, empty, empty, details="secret"))


def by_genai(status: int) -> UpstreamError:
    return over_http.failure(APIError(status, {"error": {"code": status, "message": "secret"}}))


def by_chat_completions(status: int) -> UpstreamError:
    response = httpx2.Response(status, request=httpx2.Request("POST", "http://h"))
    error = openai.APIStatusError("secret", response=response, body=None)
    return chat_completions.failure("OpenAI", error)


@pytest.mark.parametrize("status", sorted({*http_failures._CODES, 418, 500}))
def test_a_status_is_the_same_error_whichever_provider_gives_it(status: int) -> None:
    code = http_failures.code(status)
    found = [by_grpc(code), by_genai(status), by_chat_completions(status)]
    assert {type(error) for error in found} == {failures._TABLE.get(code, (UpstreamFault,))[0]}
    assert {error.metadata["upstream_code"] for error in found} == {code.name}
    for error, who in zip(found, ("Vertex AI", "Vertex AI", "OpenAI"), strict=True):
        assert "secret" not in error.text
        assert who in error.text or error.text == "The model refused the request as invalid"


def test_every_code_but_ok_is_an_error_of_ours() -> None:
    for code in set(grpc.StatusCode) - {grpc.StatusCode.OK}:
        error = failures.failure("Somebody", code)
        assert error.text
        assert "{" not in error.text
