"""The floor of any proxy: Envoy, on one thread, that passes upstream's call through.

python -m bench.peers.envoy UPSTREAM_HOST:PORT
"""

import sys

from bench.edge.running import pass_through

if __name__ == "__main__":
    pass_through(sys.argv[1])
