"""What an upstream says of a failure, as ours: the one table of what its codes mean.

What callers are told of a code is the same for every provider, but where the server's owner has to act: that is said in
the provider's own words.
"""

import re
from collections.abc import Mapping

import grpc

from .. import errors

_PLAIN_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,62}")
"""What may be relayed of a provider's reasons: a constant's name, never a sentence."""

Words = Mapping[grpc.StatusCode, str]
"""What callers are told of a provider's codes, where it isn't what the table says."""

_TABLE: Mapping[grpc.StatusCode, tuple[type[errors.UpstreamError], str]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (errors.UpstreamRejected, "The model refused the request as invalid"),
    grpc.StatusCode.OUT_OF_RANGE: (errors.UpstreamRejected, "The model refused the request as invalid"),
    grpc.StatusCode.NOT_FOUND: (errors.UpstreamNotFound, "{who} doesn't know this model"),
    grpc.StatusCode.UNAUTHENTICATED: (errors.UpstreamCredentials, "{who} refused the server's credentials"),
    grpc.StatusCode.PERMISSION_DENIED: (errors.UpstreamCredentials, "The server's credentials may not use {who}"),
    grpc.StatusCode.FAILED_PRECONDITION: (errors.UpstreamPrecondition, "{who} can't be used like this"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (errors.UpstreamQuota, "The server's quota at {who} is used up for now"),
    grpc.StatusCode.UNAVAILABLE: (errors.UpstreamUnavailable, "{who} is away or broke the connection"),
    grpc.StatusCode.ABORTED: (errors.UpstreamCut, "{who} gave the request up; ask again"),
    grpc.StatusCode.CANCELLED: (errors.UpstreamCut, "{who} gave the request up; ask again"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (errors.UpstreamDeadline, "{who} didn't finish in time"),
}
"""Upstream's code -> the error of ours, and what callers are told. Codes that aren't here are UpstreamFault."""


def failure(
    who: str,
    code: grpc.StatusCode,
    *,
    words: Words | None = None,
    reason: str = "",
    retry_after: float | None = None,
    metadata: Mapping[str, str] | None = None,
    said: str = "",
) -> errors.UpstreamError:
    """Make the error of ours for a failure of `who`, a provider's name for people.

    `code` is what upstream's status means; `reason` upstream's own word for it, relayed if it is a plain token.
    `retry_after` in seconds; `metadata` is further metadata; `said` is upstream's text, which no caller is told.
    """
    kind, text = _TABLE.get(code, (errors.UpstreamFault, "{who} failed"))
    told = {"upstream_code": code.name, **(metadata or {})}
    if _PLAIN_REASON.fullmatch(reason):
        told["upstream_reason"] = reason
    made = kind((words or {}).get(code, text).format(who=who), metadata=told, retry_after=retry_after)
    made.said = said
    return made
