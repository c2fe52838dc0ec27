"""What the service offers."""

import time

import streamlit as st

from tokenwire import TokenwireError
from tokenwire.v1.generation_service_pb2 import CallerUsage, Model

from . import asking
from .following import FRAME_SECONDS


@st.cache_data(ttl=60, show_spinner=False)
def _models(address: str) -> list[Model]:
    return asking.client_of(address).models(timeout=2)


@st.cache_data(ttl=15, show_spinner=False)
def usage(address: str) -> list[CallerUsage]:
    """Whom the service takes us for, and what is used; nothing where it asks nobody."""
    try:
        return asking.client_of(address).usage(timeout=2)
    except TokenwireError:
        return []


def models(address: str, *, patience: float = 0.0) -> tuple[list[Model], str]:
    """The models, and what is wrong when there are none after so many seconds of trying."""
    end = time.monotonic() + patience
    while True:
        try:
            return _models(address), ""
        except TokenwireError as error:
            if time.monotonic() >= end:
                return [], str(error)
        time.sleep(FRAME_SECONDS)


def forget_models() -> None:
    """Ask for the models anew when they are wanted next."""
    _models.clear()
