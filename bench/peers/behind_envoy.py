"""tokenwire, one worker, behind Envoy, one thread, as `tokenwire edge` runs it.

python -m bench.peers.behind_envoy UPSTREAM_HOST:PORT
"""

import signal
import sys

from bench.edge.running import edge, service


def main(upstream: str) -> None:
    """Serve until the process is ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # both are ended on the way out
    with service(upstream) as replica, edge(replica.address) as envoy:
        print(f"listening on {envoy.address}, ready", file=sys.stderr, flush=True)
        signal.pause()


if __name__ == "__main__":
    main(sys.argv[1])
