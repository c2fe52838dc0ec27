"""OpenAI and Azure, which speak one protocol."""

from ..spec import GoogleCloud, Offer, ProviderSpec, host_of

OPENAI_ADDRESS = "https://api.openai.com/v1"
"""Where a line names none. Said to the SDK, which would else take it from a variable that happens to be set."""

_WAYS = ("token_limit", "stream_options", "reasoning_effort", "thoughts", "thoughts_back", "strict")
"""In which servers of the protocol differ."""

# One library reads both, whichever of the two is asked.
_FOREIGN = ("OPENAI_", "AZURE_OPENAI_")
_TUNING = ("LANGCHAIN_OPENAI_",)


def _host(offer: Offer, google: GoogleCloud) -> str:
    del google
    return host_of(offer.options.get("endpoint") or offer.options.get("base_url") or OPENAI_ADDRESS)


OPENAI = ProviderSpec(
    name="openai",
    title="OpenAI",
    telemetry_name="openai",
    module=".chat_completions.provider",
    extra="openai",
    options=("base_url", "api_key_env", "organization", *_WAYS),
    host=_host,
    key_variable="OPENAI_API_KEY",
    foreign_variables=_FOREIGN,
    tuning_variables=_TUNING,
)

AZURE = ProviderSpec(
    name="azure",
    title="Azure OpenAI",
    telemetry_name="azure.ai.openai",
    module=".chat_completions.provider",
    extra="openai",
    options=("endpoint", "api_version", "api_key_env", *_WAYS),
    host=_host,
    key_variable="AZURE_OPENAI_API_KEY",
    variables={"endpoint": "AZURE_OPENAI_ENDPOINT", "api_version": "OPENAI_API_VERSION"},
    foreign_variables=_FOREIGN,
    tuning_variables=_TUNING,
)
