"""How a caller reaches the service."""

import os

DEFAULT_ADDRESS = "localhost:50051"

_SECOND_MS = 1_000
# A machine that answers neither yes nor no is given up after so long; gRPC's own limit is 20 s.
_CONNECT_TIMEOUT_MS = 3 * _SECOND_MS
# A connection that died silently is noticed in the sum of the two.
_KEEPALIVE_MS = 30 * _SECOND_MS
_PING_TIMEOUT_MS = 10 * _SECOND_MS

_CHANNEL_OPTIONS = (
    # Core's name for the time that one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", _CONNECT_TIMEOUT_MS),
    # A service that has just been started is found at once, and calls fail fast until then.
    ("grpc.initial_reconnect_backoff_ms", _SECOND_MS // 5),
    ("grpc.max_reconnect_backoff_ms", _SECOND_MS),
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
    # Without it the ping's own timeout of a minute decides.
    ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),
    # A caller sends nothing while it reads; by default it would stop pinging after two.
    ("grpc.http2.max_pings_without_data", 0),
)


def default_address() -> str:
    """Where the service is: TOKENWIRE_ADDRESS, or localhost:50051."""
    return os.environ.get("TOKENWIRE_ADDRESS") or DEFAULT_ADDRESS


def channel_options(address: str) -> tuple[tuple[str, int], ...]:
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost" or host.startswith("127.") or host == "::1":
        # http_proxy is for the way out, and a proxy can't reach this machine's own loopback.
        return (*_CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0))
    return _CHANNEL_OPTIONS
