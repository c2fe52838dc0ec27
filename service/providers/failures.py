"""Vertex AI's failures as ours."""

import re
from collections.abc import Mapping

import grpc

from service import errors

PLAIN_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,62}")
"""What may be relayed of a provider's reasons: a constant's name, never a sentence."""


# Upstream's code -> the error of ours, and what callers are told. Codes that aren't here are UpstreamFault.
_FAILURES: Mapping[grpc.StatusCode, tuple[type[errors.UpstreamError], str]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (errors.UpstreamRejected, "The model refused the request as invalid"),
    grpc.StatusCode.OUT_OF_RANGE: (errors.UpstreamRejected, "The model refused the request as invalid"),
    grpc.StatusCode.NOT_FOUND: (
        errors.UpstreamNotFound,
        (
            "Vertex AI doesn't know this model in the server's project and region; its owner has to check "
            "TOKENWIRE_MODEL and GOOGLE_CLOUD_LOCATION"
        ),
    ),
    grpc.StatusCode.UNAUTHENTICATED: (
        errors.UpstreamCredentials,
        "Vertex AI refused the server's credentials; its owner has to renew its application default credentials",
    ),
    grpc.StatusCode.PERMISSION_DENIED: (
        errors.UpstreamCredentials,
        (
            "The server's credentials may not use Vertex AI in its project; its owner has to grant them "
            "roles/aiplatform.user and check GOOGLE_CLOUD_PROJECT"
        ),
    ),
    grpc.StatusCode.FAILED_PRECONDITION: (
        errors.UpstreamPrecondition,
        (
            "Vertex AI can't be used like this from the server's project and region; its owner has to look at "
            "GOOGLE_CLOUD_PROJECT, GOOGLE_CLOUD_LOCATION and the project's billing"
        ),
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (errors.UpstreamQuota, "The server's quota on Vertex AI is used up for now"),
    grpc.StatusCode.UNAVAILABLE: (errors.UpstreamUnavailable, "Vertex AI is away or broke the connection"),
    grpc.StatusCode.ABORTED: (errors.UpstreamCut, "Vertex AI gave the request up; ask again"),
    grpc.StatusCode.CANCELLED: (errors.UpstreamCut, "Vertex AI gave the request up; ask again"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (errors.UpstreamDeadline, "Vertex AI didn't finish in time"),
}


def failure(code: grpc.StatusCode, *, told: str, reason: str, retry_after: float | None) -> errors.UpstreamError:
    """Ours for Vertex AI's: `code` is what it means, `told` the name it came under, `reason` that of its ErrorInfo."""
    kind, text = _FAILURES.get(code, (errors.UpstreamFault, "Vertex AI failed"))
    metadata = {"upstream_code": told}
    if PLAIN_REASON.fullmatch(reason):
        metadata["upstream_reason"] = reason
    return kind(text, metadata=metadata, retry_after=retry_after)
