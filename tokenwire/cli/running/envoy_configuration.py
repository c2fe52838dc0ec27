"""deploy/envoy/envoy.yaml, filled in for `tokenwire edge`."""

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenwire
from tokenwire.cli.running import envoy_administration


def folder() -> Path:
    """deploy/envoy: in the wheel it stands below `tokenwire`, in the source tree beside it."""
    package = Path(tokenwire.__file__).parent
    return next(path for path in (package / "deploy/envoy", package.parent / "deploy/envoy") if path.is_dir())


def filled_in(
    *,
    addresses: Sequence[str],
    port: int,
    replicas: Iterable[str],
    replica_tls: tuple[str, Sequence[str]] | None = None,
    origins: Sequence[str] = (),
    certificate: Path | None = None,
    page: str | None = None,
    admin: envoy_administration.Admin | None = None,
    memory: int | None = None,
    metrics: Sequence[str] = (),
    metrics_port: int = 0,
) -> dict[str, Any]:
    """deploy/envoy/envoy.yaml, filled in.

    `addresses` to listen on are of IP; `replica_tls` is the file of the authorities by which replicas' certificates
    have to be, and the names and addresses of which they have to have one; `certificate` is the file of the secret of
    that name, which Envoy follows; `admin` is where Envoy's administration is to listen, if anywhere; `memory` is how
    many bytes it may hold, if not as many as the file says; `metrics` are addresses of IP as well: at their
    `metrics_port`, /metrics tells what the administration counts, which is wanted then.
    """
    import yaml  # noqa: PLC0415 - an extra

    told: dict[str, Any] = yaml.safe_load((folder() / "envoy.yaml").read_text())
    for transcoder in _holding(told, "proto_descriptor"):
        transcoder["proto_descriptor"] = str(folder() / "tokenwire.binpb")
    (listener,) = told["static_resources"]["listeners"]
    listener["address"], *others = (_address(address, port) for address in addresses)
    listener["additional_addresses"] = [{"address": other} for other in others]
    (chain,) = listener["filter_chains"]
    if certificate:
        chain["transport_socket"] = _tls(certificate)
    (routes,) = chain["filters"][0]["typed_config"]["route_config"]["virtual_hosts"]
    _allow(routes, origins)
    if page:
        routes["routes"].insert(0, _page(page))
    (cluster,) = told["static_resources"]["clusters"]
    (group,) = cluster["load_assignment"]["endpoints"]
    group["lb_endpoints"] = [{"endpoint": {"address": _address(*split(replica))}} for replica in replicas]
    if replica_tls:
        cluster["transport_socket"] = _replica_tls(*replica_tls)
    if memory:
        (heap,) = _holding(told["overload_manager"], "max_heap_size_bytes")
        heap["max_heap_size_bytes"] = memory
    if isinstance(admin, str):
        told["admin"] = {"address": {"pipe": {"path": admin, "mode": 0o600}}}
    elif admin:
        told["admin"] = {"address": _address(*admin)}
    if metrics:
        endpoints = [{"lb_endpoints": [{"endpoint": {"address": told["admin"]["address"]}}]}]
        assignment = {"cluster_name": "administration", "endpoints": endpoints}
        told["static_resources"]["clusters"].append({"name": "administration", "load_assignment": assignment})
        told["static_resources"]["listeners"] += [_metrics(_address(one, metrics_port)) for one in metrics]
    return told


def _holding(told: Any, key: str) -> Iterator[dict[str, Any]]:
    """All that holds this key, wherever it is."""
    if isinstance(told, dict):
        if key in told:
            yield told
        for value in told.values():
            yield from _holding(value, key)
    elif isinstance(told, list):
        for value in told:
            yield from _holding(value, key)


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def split(replica: str) -> tuple[str, int]:
    """Its host and its port."""
    host, _, port = replica.rpartition(":")
    return host.strip("[]"), int(port)


def _replica_tls(authorities: str, names: Sequence[str]) -> dict[str, Any]:
    """For calls and for health checks."""
    own_names = [name for name in names if not _is_address(name)]
    wanted = [
        {"san_type": "DNS" if name in own_names else "IP_ADDRESS", "matcher": {"exact": name}}
        for name in dict.fromkeys(names)
    ]
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            **({"sni": own_names[0]} if own_names else {}),
            "common_tls_context": {
                "alpn_protocols": ["h2"],  # gRPC's servers end connections without
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
                "validation_context": {
                    "trusted_ca": {"filename": str(Path(authorities).absolute())},
                    "match_typed_subject_alt_names": wanted,
                },
            },
        },
    }


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _tls(certificate: Path) -> dict[str, Any]:
    source = {"path_config_source": {"path": str(certificate)}, "resource_api_version": "V3"}
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {
                "tls_certificate_sds_secret_configs": [{"name": "certificate", "sds_config": source}],
                "alpn_protocols": ["h2", "http/1.1"],
            },
        },
    }


def _allow(routes: dict[str, Any], origins: Sequence[str]) -> None:
    """Let pages of these origins call: by CORS, and past the route that refuses pages of all others."""
    if not origins:
        return
    exact = re.compile("|".join(".*" if origin == "*" else re.escape(origin) for origin in origins)).pattern
    one_of_them = {"safe_regex": {"regex": exact}}
    routes["typed_per_filter_config"]["envoy.filters.http.cors"]["allow_origin_string_match"] = [one_of_them]
    (refusal,) = (route for route in routes["routes"] if route["name"] == "other-origins")
    refusal["match"]["headers"].append(
        {"name": "origin", "string_match": one_of_them, "invert_match": True, "treat_missing_header_as_empty": True}
    )


def _page(path: str) -> dict[str, Any]:
    return {
        "name": "page",
        "match": {"path": "/"},
        "direct_response": {"status": 200, "body": {"filename": str(Path(path).absolute())}},
        "response_headers_to_add": [
            {
                "header": {"key": "content-type", "value": "text/html; charset=utf-8"},
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
        ],
        "typed_per_filter_config": {
            "envoy.filters.http.grpc_json_transcoder": {
                "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig",
                "disabled": True,
            }
        },
    }


def _metrics(address: dict[str, Any]) -> dict[str, Any]:
    """A listener that passes on one question to Envoy's administration, which could do much else."""
    the_question = [
        {"name": ":method", "string_match": {"exact": "GET"}},
        {"name": ":path", "string_match": {"exact": "/metrics"}},  # a query would be passed on, too
    ]
    routes = [
        {
            "match": {"path": "/metrics", "headers": the_question},
            "route": {"cluster": "administration", "prefix_rewrite": "/stats/prometheus"},
        },
        {"match": {"prefix": "/"}, "direct_response": {"status": 404}},
    ]
    router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
    manager = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    told = {
        "@type": f"type.googleapis.com/{manager}",
        "stat_prefix": "metrics",
        "stream_idle_timeout": "10s",
        "request_timeout": "10s",
        "common_http_protocol_options": {"idle_timeout": "300s"},
        "route_config": {"virtual_hosts": [{"name": "metrics", "domains": ["*"], "routes": routes}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": router}}],
    }
    return {
        "name": "metrics",
        "address": address,
        # They are wanted most when there is too much of all else.
        "ignore_global_conn_limit": True,
        "bypass_overload_manager": True,
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": told}]}
        ],
    }
