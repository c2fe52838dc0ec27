"""OpenAI and Azure, which speak one protocol."""

from .spec import ProviderSpec

_WAYS = ("token_limit", "stream_options", "reasoning_effort", "thoughts")
"""In which servers of the protocol differ."""

OPENAI = ProviderSpec(
    name="openai",
    title="OpenAI",
    telemetry_name="openai",
    module=".chat_completions",
    extra="openai",
    options=("base_url", "api_key_env", "organization", *_WAYS),
    key_variable="OPENAI_API_KEY",
)

AZURE = ProviderSpec(
    name="azure",
    title="Azure OpenAI",
    telemetry_name="azure.ai.openai",
    module=".chat_completions",
    extra="openai",
    options=("endpoint", "api_version", "api_key_env", *_WAYS),
    key_variable="AZURE_OPENAI_API_KEY",
    variables={"endpoint": "AZURE_OPENAI_ENDPOINT", "api_version": "OPENAI_API_VERSION"},
)
