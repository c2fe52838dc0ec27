"""Takes away what earlier runs of the script have left on the page.

Streamlit does so when a run has ended, and one that follows an answer lasts as long as the answer. Until then, whatever
a run hasn't drawn again would stand there, grey and dead. So a run says that all is drawn before it waits for anything:
with the message by which Streamlit tells a browser that a run has ended. That names the run by an id which no script is
told, so it is filled in where the message is handed over.
"""

import threading

from streamlit import runtime
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.runtime.forward_msg_queue import ForwardMsgQueue
from streamlit.runtime.scriptrunner import get_script_run_ctx

# A session that is being closed hands nothing over any more.
_PATIENCE_SECONDS = 0.5

_runs: dict[str, str] = {}
"""The ids of the runs that the browsers have been told of last, by session."""
_sent: dict[int, tuple[str, threading.Event]] = {}
"""Our messages that aren't handed over yet: the session of each, and what tells that it is."""


def clear() -> None:
    """Take them away, now that this run has drawn all that it has to show before it waits, or ends.

    By then everything drawn has been handed over. Streamlit loses what hasn't when a fragment is to run in the moment
    in which the script ends, and the end with it (https://github.com/streamlit/streamlit/issues/9921).
    """
    context = get_script_run_ctx()
    if context is None:
        return
    message = ForwardMsg(script_finished=ForwardMsg.FINISHED_SUCCESSFULLY)
    handed_over = threading.Event()
    _sent[id(message)] = context.session_id, handed_over
    try:
        context.enqueue(message)
        handed_over.wait(_PATIENCE_SECONDS)
    finally:
        del _sent[id(message)]


def _hand_over(message: ForwardMsg) -> None:
    """Fill in the run of a message of ours; called with each that is put into a queue to a browser."""
    if message.HasField("new_session"):
        session = message.new_session.initialize.session_id
        if session not in _runs and runtime.exists():
            for gone in [one for one in _runs if not runtime.get_instance().is_active_session(one)]:
                del _runs[gone]
        _runs[session] = message.metadata.run.script_run_id
    elif (ours := _sent.get(id(message))) is not None:
        session, handed_over = ours
        message.metadata.run.script_run_id = _runs.get(session, "")
        handed_over.set()


ForwardMsgQueue.on_before_enqueue_msg(_hand_over)
