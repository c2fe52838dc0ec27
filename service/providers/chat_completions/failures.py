"""What a server of Chat Completions says of a failure, as ours: errors of its SDK."""

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import grpc
import openai

from ... import errors
from .. import failures, http_failures

_BLOCKED = frozenset(
    {
        *("contentfilter", "contentpolicyviolation", "datainspectionfailed", "invalidprompt"),
        *("responsibleaipolicyviolation", "moderationblocked"),
    }
)
"""The error's code or type, as `_spelt`, where the prompt itself was refused (Azure, OpenAI, Moonshot, DashScope)."""

_BLOCKED_WORDS = re.compile(r"violates usage guidelines|content exists risk|content management policy", re.IGNORECASE)
"""Of the error's text, where its code means other things as well (xAI, DeepSeek, Azure)."""

_OF_REQUESTS = frozenset({400, 403, 422})
"""HTTP statuses by which a prompt may be refused for what it says."""

MALFORMED = "tool_use_failed"
"""The error's code where the model has asked for a function in a form that can't be read (Groq)."""

_STATUSES = {
    "authenticationerror": 401,
    "invalidapikey": 401,
    "insufficientquota": 429,
    "ratelimitexceeded": 429,
    "ratelimiterror": 429,
    "toomanyrequests": 429,
    "toomanyrequestserror": 429,
    "quotaexceeded": 429,
    "ratelimit": 429,
    "ratelimitexceedederror": 429,
    "permissionerror": 403,
    "permissiondenied": 403,
    "permissiondeniederror": 403,
    "modelnotfound": 404,
    "notfounderror": 404,
    "notfound": 404,
    "invalidrequesterror": 400,
    "badrequest": 400,
    "validation": 400,
    "badrequesterror": 400,
    "contextlengthexceeded": 400,
    "serviceunavailable": 503,
    "serviceunavailableerror": 503,
    "serveroverloaded": 503,
    "providerunavailable": 503,
    "providerdisconnected": 503,
    "overloadederror": 503,
    "engineoverloaded": 503,
    "overloaded": 503,
    "resourceexhausted": 429,
    "unauthenticated": 401,
    "invalidargument": 400,
    "unavailable": 503,
    "deadlineexceeded": 504,
    "timeout": 504,
    "timeouterror": 504,
    "apitimeouterror": 504,
    "unprocessableentityerror": 422,
    "contextwindowexceedederror": 400,
}
"""The HTTP status of an error that came in mid-stream, where there is none, by its code or type, as `_spelt`."""


_SIGNS = re.compile(r"[^a-z0-9]")

_NAMES = grpc.StatusCode.__members__.keys() - {"OK"}
"""Google's of what went wrong."""


def _spelt(word: object) -> str:
    """In one of the ways: rate_limit_error is RateLimitError, the name of a class, and Rate-Limit-Error."""
    return _SIGNS.sub("", str(word).lower())


def _body(error: openai.APIError) -> Mapping[Any, Any]:
    """What upstream says of the error; some wrap it once more, and to some it is but a text beside a code."""
    body = error.body
    if isinstance(body, str) and isinstance(error, openai.APIStatusError):
        with suppress(ValueError, RecursionError):
            body = error.response.json()
    if isinstance(body, list) and len(body) == 1:
        (body,) = body  # Google's
    if not isinstance(body, Mapping):
        return {}
    inner = body.get("error")
    return inner if isinstance(inner, Mapping) else body


def error_in(chunk: Any) -> Any:
    """The error that stands where a chunk should; None if it is a chunk. Google's stands in a list."""
    if isinstance(chunk, list) and len(chunk) == 1:
        (chunk,) = chunk
    if not isinstance(chunk, Mapping):
        return None
    told = chunk.get("error")
    kind = chunk.get("error_type")
    # Text Generation Inference says its kind beside it.
    return {"type": kind, "message": told} if kind and told and isinstance(told, str) else told or _other_error(chunk)


def _other_error(chunk: Mapping[Any, Any]) -> Any:
    """One that isn't told as OpenAI tells it: bare, in a choice, first of several, or as MiniMax has it."""
    choices, several, base = chunk.get("choices"), chunk.get("errors"), chunk.get("base_resp")
    if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) and choices[0].get("error"):
        return choices[0]["error"]
    if choices:
        return None
    if isinstance(base, Mapping) and base.get("status_code"):
        return {"code": base["status_code"], "message": base.get("status_msg")}
    if isinstance(several, list) and several:
        return several[0]
    if chunk.get("error_type") or chunk.get("error_message"):
        return {"type": chunk.get("error_type"), "message": chunk.get("error_message")}
    bare = chunk.get("object") == "error" or ("message" in chunk and ("type" in chunk or "code" in chunk))
    return chunk if bare else None


def words(told: Any) -> str:
    """What an error says, as text."""
    text = told.get("message") if isinstance(told, Mapping) else told
    return text if isinstance(text, str) else ""


def blocked(error: openai.APIError) -> str:
    """Upstream's word for it, where the error is that the prompt was blocked."""
    body = _body(error)
    inner = [body.get(name) for name in ("innererror", "inner_error")]  # Azure's
    codes = [one.get("code") for one in inner if isinstance(one, Mapping)]
    told = [str(one) for one in (error.code, body.get("code"), error.type, body.get("type"), *codes) if one]
    for word in told:
        if _spelt(word) in _BLOCKED:
            return word
    metadata = body.get("metadata")
    moderated = isinstance(metadata, Mapping) and metadata.get("reasons") and "flagged_input" in metadata  # OpenRouter
    words = f"{error.message} {body.get('message')} {body.get('error')}"
    of_request = not isinstance(error, openai.APIStatusError) or error.status_code in _OF_REQUESTS
    return [*told, "blocked"][0] if moderated or (of_request and _BLOCKED_WORDS.search(words)) else ""


def _status(error: openai.APIError) -> int:
    """The HTTP status, or the one that its words stand for; 0: they stand for none."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code
    body = _body(error)
    for told in (
        body.get("status_code"),
        body.get("status"),
        error.code,
        body.get("code"),
        error.type,
        body.get("type"),
        _of_provider(body),
    ):
        word = _spelt(int(told) if isinstance(told, float) and told.is_integer() else told)
        if word.isdecimal() and len(word) == len("429"):
            return int(word)
        if word in _STATUSES:
            return _STATUSES[word]
    return 0


def _delay(error: openai.APIError, headers: Mapping[str, str]) -> float | None:
    """After how many seconds to ask again; Google says it in the error's details, by this protocol too."""
    if (told := http_failures.delay(headers)) is not None:
        return told
    return http_failures.seconds(_detail(error, "RetryInfo").get("retryDelay"))


def _reason(error: openai.APIError) -> str:
    """Upstream's own word for it: its code, or its type where the code is but a number."""
    if reason := _detail(error, "ErrorInfo").get("reason"):
        return str(reason).upper()
    body = _body(error)
    told = (error.code, body.get("code"), error.type, body.get("type"), _of_provider(body))
    return next((str(one) for one in told if one and not str(one).replace(".", "").isdecimal()), "").upper()


def _of_provider(body: Mapping[Any, Any]) -> Any:
    """OpenRouter's word for what its own upstream said."""
    metadata = body.get("metadata")
    return metadata.get("error_type") if isinstance(metadata, Mapping) else None


def _detail(error: openai.APIError, kind: str) -> Mapping[str, Any]:
    """One of Google's details, as it has them by this protocol too; empty if there is none."""
    details = _body(error).get("details")
    for one in details if isinstance(details, list) else ():
        if isinstance(one, Mapping) and str(one.get("@type", "")).endswith(f"google.rpc.{kind}"):
            return one
    return {}


_WORDS: failures.Words = {
    grpc.StatusCode.UNAUTHENTICATED: "{who} refused the server's key; its owner has to set another one",
    grpc.StatusCode.PERMISSION_DENIED: (
        "The server's key may not use this model of {who}; its owner has to look at what the key is for"
    ),
    grpc.StatusCode.NOT_FOUND: "{who} doesn't know this model; the server's owner has to check TOKENWIRE_MODELS",
}
"""Where the server's owner has to act."""


def broken(who: str, error: Exception) -> errors.UpstreamError:
    """For a connection that can't be had, or breaks."""
    if isinstance(error, openai.APITimeoutError):
        return errors.UpstreamDeadline(f"{who} didn't finish in time")
    cause = error if isinstance(error, http_failures.ERRORS) else error.__cause__
    if isinstance(cause, http_failures.ERRORS):
        return http_failures.broken(who, cause)
    return failures.failure(who, grpc.StatusCode.UNAVAILABLE)


def failure(who: str, error: openai.APIError) -> errors.UpstreamError:
    """Status, code and delay are relayed, the text is not."""
    if isinstance(error, openai.APIConnectionError):
        return broken(who, error)
    status = _status(error)
    if http_failures.redirects(status):
        return http_failures.redirected(who)
    headers = error.response.headers if isinstance(error, openai.APIStatusError) else {}
    told = isinstance(error, openai.APIStatusError) or str(error.code) == str(status)
    name = str(_body(error).get("status"))
    return failures.failure(
        who,
        # Google says it more exactly than by HTTP's status, by this protocol too.
        grpc.StatusCode[name] if name in _NAMES else http_failures.code(status),
        words=_WORDS,
        reason=_reason(error),
        retry_after=_delay(error, headers),
        metadata={"upstream_status": str(status)} if told else {},
        said=error.message,
    )
