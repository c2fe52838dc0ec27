"""What callers are told of Vertex AI's failures, by either way."""

from functools import partial

import grpc

from .. import failures
from .specs import VERTEX

_WORDS: failures.Words = {
    grpc.StatusCode.NOT_FOUND: (
        "{who} doesn't know this model in the server's project and region; its owner has to check "
        "TOKENWIRE_MODEL and GOOGLE_CLOUD_LOCATION"
    ),
    grpc.StatusCode.UNAUTHENTICATED: (
        "{who} refused the server's credentials; its owner has to renew its application default credentials"
    ),
    grpc.StatusCode.PERMISSION_DENIED: (
        "The server's credentials may not use {who} in its project; its owner has to grant them "
        "roles/aiplatform.user and check GOOGLE_CLOUD_PROJECT"
    ),
    grpc.StatusCode.FAILED_PRECONDITION: (
        "{who} can't be used like this from the server's project and region; its owner has to look at "
        "GOOGLE_CLOUD_PROJECT, GOOGLE_CLOUD_LOCATION and the project's billing"
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: "The server's quota on {who} is used up for now",
}

failure = partial(failures.failure, VERTEX.title, words=_WORDS)
"""As `failures.failure`, of Vertex AI."""
