"""Where it begins: the signals are taken first, and what libraries read when they are imported is set."""

import os
import sys
from collections.abc import Sequence

from .runtime import stop

# Its core reads this when it is imported. It would write what peers send to standard error as it came, line breaks
# included.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

# Libraries that come with ChatVertexAI start threads when they are imported, for arithmetic that nobody does here. A
# process with threads can't be forked safely, so: none of OpenBLAS (numpy), of numexpr, and of jemalloc (pyarrow).
os.environ.update(OPENBLAS_NUM_THREADS="1", NUMEXPR_NUM_THREADS="1", JE_ARROW_MALLOC_CONF="background_thread:false")


def main(argv: Sequence[str] | None = None, *, prog: str = "python -m service") -> int:
    """Serve until a signal stops it, then end with 0, or 1 if workers failed; returns only if it can't begin: 2.

    The signals are SIGTERM, SIGINT and, unless it follows files (certificates, callers, API keys), SIGHUP. Before it is
    ready there is nothing to drain: they end it at once, with 0; SIGHUP as soon as the settings say what it means.
    """
    stop.at_once(hang_up_waits=True)
    from . import app  # noqa: PLC0415 - takes a third of a second, in which a stop must not get lost

    return app.main(sys.argv[1:] if argv is None else argv, prog=prog)


if __name__ == "__main__":
    sys.exit(main())
