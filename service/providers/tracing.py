"""LangChain's own tracing to LangSmith, where the server's owner has switched it on (TOKENWIRE_LANGSMITH).

What its first trace needs runs other programs (`uname`, `git`) and sets up TLS: for a tenth of a second every stream
would stand still. So it is made when the server starts, off the event loop.
"""

from langchain_core.env import get_runtime_environment
from langchain_core.tracers.langchain import get_client
from langsmith.env import get_langchain_env_var_metadata
from langsmith.env import get_runtime_environment as get_langsmith_environment
from langsmith.utils import tracing_is_enabled


def know_system() -> None:
    """Find out what each trace tells of this system, for this process and all that are forked from it.

    To be called before anything is served: a server that serves TLS must not start other programs.
    """
    if tracing_is_enabled():
        get_runtime_environment()
        get_langsmith_environment()
        get_langchain_env_var_metadata()


def open_client() -> None:
    """Make the client that sends the traces. It has threads, so each process makes its own."""
    if tracing_is_enabled():
        get_client()
