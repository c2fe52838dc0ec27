"""What all tabs of the page share."""

import gc

import streamlit as st
from streamlit import runtime

from .chat.desk import Desk
from .chat.store import Store, default_path


@st.cache_resource
def shared_desk() -> Desk:
    # By now everything has been imported, and lives as long as the process. A collection, for which all threads stand
    # still, needn't look at it.
    gc.collect()
    gc.freeze()
    return Desk(Store(default_path()), runtime.get_instance().is_active_session)
