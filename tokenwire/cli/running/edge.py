"""`tokenwire edge`: Envoy in front of replicas, for HTTP and browsers."""

import argparse
import errno
import importlib.util
import ipaddress
import json
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenwire.cli import arguments
from tokenwire.cli.running import envoy_administration, envoy_configuration
from tokenwire.cli.running.envoy_administration import Admin
from tokenwire.cli.running.envoy_process import Envoy
from tokenwire.cli.running.given_files import (
    EdgeError,
    FollowedCertificate,
    check_authorities,
    check_certificate,
    check_readable,
)
from tokenwire.cli.terminal import EXIT_FAILED, say

DEFAULT_PORT = 8080
DEFAULT_REPLICA = "127.0.0.1:50051"
DEFAULT_MEMORY = 512  # MiB
SMALLEST_MEMORY = 64  # for a few requests of 16 MiB, and what Envoy allocates for itself

START_SECONDS = 60  # for Envoy to listen, on a slow machine under load
ANSWER_SECONDS = 2  # for a connection to be taken
LOOK_SECONDS = 1.0  # between two looks at the certificate, and at whether any replica serves
LONGEST_GRACE_SECONDS = 3600

STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_REPLICA = re.compile(r"(?P<host>[\w.-]+|\[[0-9A-Fa-f:.%\w]+\]):(?P<port>\d{1,5})")
_NAME = re.compile(r"[\w.-]+|[0-9A-Fa-f:.]+")
_ORIGIN = re.compile(r"\*|https?://[\w.-]+(:\d{1,5})?")


def main(argv: Sequence[str] | None = None, *, prog: str = "tokenwire edge") -> int:
    """Run Envoy until SIGINT, SIGTERM or SIGHUP, and return the exit code."""
    options = _parser(prog).parse_args(argv)
    envoy = Envoy(options.drain_delay, options.grace)
    # Whatever ends this, Envoy ends first. (nohup has SIGHUP ignored.)
    before = {number: signal.getsignal(number) for number in STOP}
    for number in STOP:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, envoy.stop)
    try:
        _check(options)
        metrics = []
        if options.metrics_port:
            metrics = _free_addresses(options.metrics_host, options.metrics_port, "--metrics-port", "--metrics-host")
        return _run(envoy, options, _free_addresses(options.host, options.port, "--port", "--host"), metrics)
    except EdgeError as error:
        say(str(error))
        return EXIT_FAILED
    finally:
        # One stop may come as several signals. Python would be ended by one that comes as it ends.
        for number in STOP:
            signal.signal(number, signal.SIG_IGN if envoy.stopped else before[number])


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Run Envoy in front of one or more replicas: gRPC, gRPC-Web, JSON in lines and server-sent events, "
        "on one port.",
    )
    parser.add_argument(
        "--replica",
        action="append",
        type=_replica,
        metavar="HOST:PORT",
        help=f"where a service is; any number of times (default: {DEFAULT_REPLICA})",
    )
    parser.add_argument(
        "--replica-ca",
        metavar="FILE",
        help="speak TLS with replicas, whose certificates have to be by these authorities, in PEM "
        "(default: plain text)",
    )
    parser.add_argument(
        "--replica-name",
        type=_name,
        metavar="NAME",
        help="and for this name or address (default: the host of a --replica)",
    )
    parser.add_argument("--port", type=arguments.port, default=DEFAULT_PORT, help="to listen on (default: %(default)s)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="which address to listen on (default: %(default)s, this machine only)"
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        type=_origin,
        metavar="ORIGIN",
        help="of which other origin pages may call, such as https://example.com; * for all; any number of times "
        "(default: none)",
    )
    parser.add_argument(
        "--tls-certificate",
        metavar="FILE",
        help="speak TLS with this certificate, in PEM; a new one in its place is followed",
    )
    parser.add_argument("--tls-key", metavar="FILE", help="its key")
    parser.add_argument("--page", metavar="FILE", help="a page to show at /, in HTML (default: none)")
    parser.add_argument(
        "--admin-port",
        type=arguments.port,
        metavar="PORT",
        help="of Envoy's own administration, on this machine only (default: none)",
    )
    parser.add_argument(
        "--metrics-port",
        type=arguments.port,
        metavar="PORT",
        help="on which Prometheus finds Envoy's metrics at /metrics (default: none)",
    )
    parser.add_argument(
        "--metrics-host",
        default="127.0.0.1",
        metavar="HOST",
        help="address of that port, which asks nobody who reads it: 0.0.0.0 is for networks of your own "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=_positive, metavar="COUNT", help="that Envoy works with (default: as many as processors)"
    )
    parser.add_argument(
        "--memory",
        type=_megabytes,
        default=DEFAULT_MEMORY,
        metavar="MB",
        help="that Envoy may hold for callers; beyond three quarters requests that are still being sent are cut off, "
        "beyond 95 %% new calls are refused, and running ones go on (default: %(default)s)",
    )
    parser.add_argument(
        "--grace",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="that running calls may go on after SIGTERM, Ctrl-C or SIGHUP, while callers are told to connect "
        "elsewhere; a second signal ends all (default: 0)",
    )
    parser.add_argument(
        "--drain-delay",
        type=_seconds,
        default=0.0,
        metavar="SECONDS",
        help="before that, in which it takes new calls and /healthz says 503, so that load balancers that look now and "
        "then notice (default: 0)",
    )
    return parser


def _replica(text: str) -> str:
    """Where a replica is."""
    found = _REPLICA.fullmatch(text)
    if not found or not 0 < int(found["port"]) < 1 << 16:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no address: HOST:PORT is wanted, such as {DEFAULT_REPLICA}; TLS is by --replica-ca"
        )
    return text


def _name(text: str) -> str:
    """What a certificate is for."""
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a host's name nor an address")
    return text


def _origin(text: str) -> str:
    """Whose pages may call."""
    if not _ORIGIN.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no origin: https://HOST or https://HOST:PORT is wanted, without a path, or *"
        )
    return text


def _positive(text: str) -> int:
    """How many."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 1024):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of threads: 1 to 1024 is wanted")
    return int(text)


def _megabytes(text: str) -> int:
    """How much memory, in MiB."""
    if not (text.isascii() and text.isdigit() and len(text) < 8 and int(text) >= SMALLEST_MEMORY):
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory: {SMALLEST_MEMORY} or more MB are wanted")
    return int(text)


def _seconds(text: str) -> float:
    """How long."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= LONGEST_GRACE_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: 0 to {LONGEST_GRACE_SECONDS} seconds are wanted")
    return value


def _check(options: argparse.Namespace) -> None:
    """Raises EdgeError for what Envoy would tell only after it has started, in its own words."""
    for module in ("envoy", "yaml"):
        if importlib.util.find_spec(module) is None:
            raise EdgeError("The edge needs Envoy, which isn't installed: it comes with tokenwire's extra 'edge'")
    if bool(options.tls_certificate) != bool(options.tls_key):
        raise EdgeError("TLS takes two files: --tls-certificate and --tls-key are wanted together")
    if options.tls_certificate:
        check_certificate(options.tls_certificate, options.tls_key)
    if options.replica_ca:
        check_authorities(options.replica_ca)
    elif options.replica_name:
        raise EdgeError("--replica-name is that of certificates: --replica-ca is wanted with it")
    if options.page:
        check_readable(options.page, "--page")
    if options.admin_port:
        _free_addresses("127.0.0.1", options.admin_port, "--admin-port", "--host")


def _free_addresses(host: str, port: int, flag: str, host_flag: str) -> list[str]:
    """This machine's addresses of that name, on which nobody listens: Envoy takes no names. Raises EdgeError."""
    found: list[str] = []
    try:
        for family, *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE):
            # Envoy shares its port with any program that shares it too, and would get only a part of the connections.
            try:
                socket.create_server(address[:2], family=family).close()
            except OSError as error:
                # Of localhost's two there may be only one.
                if error.errno != errno.EADDRNOTAVAIL or not found:
                    raise
            else:
                found.append(str(address[0]))
    except OSError as error:
        why = (error.strerror or "it failed").partition(" (")[0]  # Python adds the address, and we say it already
        remedy = f"Give {flag} another one, or end what listens there"
        if (error.errno or 0) < 0 or error.errno == errno.EADDRNOTAVAIL:  # below zero: the resolver's numbers
            remedy = f"Give {host_flag} an address of this machine"
        elif error.errno in (errno.EACCES, errno.EPERM):
            remedy = f"Give {flag} one that this user may have, such as {DEFAULT_PORT}"
        raise EdgeError(f"{flag} {port} on {host} can't be used: {why}. {remedy}") from error
    return found


def _run(envoy: Envoy, options: argparse.Namespace, addresses: Sequence[str], metrics: Sequence[str]) -> int:
    """Returns once a signal has ended it; raises EdgeError if Envoy ends by itself."""
    replicas = options.replica or [DEFAULT_REPLICA]
    names = [options.replica_name] if options.replica_name else [envoy_configuration.split(one)[0] for one in replicas]
    flags = ["--concurrency", str(options.threads)] if options.threads else []
    with TemporaryDirectory(prefix="tokenwire-edge-") as folder:
        # For itself: a socket that nobody else may open.
        admin = ("127.0.0.1", options.admin_port) if options.admin_port else str(Path(folder) / "admin")
        if options.grace or options.drain_delay:
            # Envoy closes what it drains after that time: not before the delay and the grace are over.
            flags += ["--drain-strategy", "immediate", "--drain-time-s", str(3 * LONGEST_GRACE_SECONDS)]
        certificate = None
        if options.tls_certificate:
            certificate = FollowedCertificate(options.tls_certificate, options.tls_key, Path(folder))
        told = envoy_configuration.filled_in(
            addresses=addresses,
            port=options.port,
            replicas=replicas,
            replica_tls=(options.replica_ca, names) if options.replica_ca else None,
            origins=options.allow_origin,
            certificate=certificate.secret if certificate else None,
            page=options.page,
            admin=admin,
            memory=options.memory << 20,
            metrics=metrics,
            metrics_port=options.metrics_port or 0,
        )
        file = Path(folder) / "envoy.json"
        file.write_text(json.dumps(told))
        with envoy.running(file, flags, admin):
            if _await_listening(envoy, addresses[0], options.port):
                away = not _tell(options, addresses, replicas)
                threading.Thread(
                    target=_follow, args=(envoy, admin, certificate), kwargs={"away": away}, daemon=True
                ).start()
            code = envoy.wait()
    if envoy.stopped:
        return 0
    raise EdgeError(f"Envoy has ended by itself, with {code}; what it said last is above")


def _tell(options: argparse.Namespace, addresses: Sequence[str], replicas: Sequence[str]) -> bool:
    """Say that it runs, and what is wrong with it; whether any replica is there."""
    scheme = "https" if options.tls_certificate else "http"
    shown = f"[{options.host}]" if ":" in options.host else options.host
    print(f"Envoy listening on {scheme}://{shown}:{options.port}, in front of {', '.join(replicas)}", flush=True)
    if scheme == "http" and not all(ipaddress.ip_address(one).is_loopback for one in addresses):
        say(
            "Warning: others on the network can read what is asked and answered: --tls-certificate and --tls-key "
            "are wanted, unless what stands in front of this speaks TLS"
        )
    found = any(_listens(*envoy_configuration.split(replica)) for replica in replicas)
    if not found:
        say(
            f"No replica answers at {', '.join(replicas)}: callers get 503 until one does. `tokenwire serve` "
            "starts one, and --replica says where it is"
        )
    return found


def _follow(envoy: Envoy, admin: Admin, certificate: FollowedCertificate | None, *, away: bool) -> None:
    """Until Envoy is to end, have it follow its certificate, and say when no replica serves and when one does again.

    `away`: none was there.
    """
    while not envoy.stopped:
        time.sleep(LOOK_SECONDS)
        if certificate:
            certificate.look()
        try:
            serving = envoy_administration.serving_replicas(admin) > 0
        except OSError:
            continue  # it is busy, or has ended
        if serving == away and not envoy.stopped:
            away = not serving
            say(
                "No replica says that it serves: callers get 503 until one does"
                if away
                else "A replica serves: callers get answers"
            )


def _await_listening(envoy: Envoy, address: str, port: int) -> bool:
    """Wait until it listens; False if it has ended."""
    end = time.monotonic() + START_SECONDS
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 - these mean all addresses
    while not _listens(reached, port):
        if envoy.ended():
            return False
        if time.monotonic() > end:
            raise EdgeError(f"Envoy didn't listen after {START_SECONDS} s")
        time.sleep(0.05)
    return True


def _listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
