"""What the service offers, as far as it is known: that stays on the page while the service is away, or slow."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import streamlit as st

from tokenwire import Client, DeadlineError, TokenwireError
from tokenwire.v1.generation_service_pb2 import CallerUsage, Model

from . import asking
from .following import FRAME_SECONDS

_TIMEOUT_SECONDS = 2.0

# How often the service is looked for while it is away, and looked after while it is there, for all tabs together.
_AWAY_SECONDS = 1.0
_THERE_SECONDS = 20.0


@dataclass
class _Known:
    """What a service said last."""

    client: Client
    models: Sequence[Model] = ()
    trouble: str = ""
    """Why the models could not be brought up to date; empty: they are."""
    asked: float = 0.0
    """When that was tried last, in seconds of the monotonic clock; 0: never."""
    due: float = 0.0
    """When it is to be tried again."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self) -> None:
        """Bring the models up to date, together with all others that want it in this moment."""
        begin = time.monotonic()
        with self.lock:
            if self.asked >= begin:
                return  # another one has while this one waited for it
            self.asked = time.monotonic()
            try:
                self.models, self.trouble = self.client.models(timeout=_TIMEOUT_SECONDS), ""
            except DeadlineError:
                self.trouble = f"The service has not told its models within {_TIMEOUT_SECONDS:g} s."
            except TokenwireError as error:
                self.trouble = str(error)
            self.due = time.monotonic() + (_AWAY_SECONDS if self.trouble else _THERE_SECONDS)


@st.cache_resource
def _known(address: str) -> _Known:
    return _Known(asking.client_of(address))


@st.cache_data(ttl=15, show_spinner=False)
def usage(address: str) -> list[CallerUsage]:
    """Whom the service takes us for, and what is used; nothing where it asks nobody."""
    try:
        return asking.client_of(address).usage(timeout=_TIMEOUT_SECONDS)
    except TokenwireError:
        return []


def models(address: str, *, patience: float = 0.0) -> tuple[Sequence[Model], str]:
    """Give the models that are known, and why they could not be brought up to date, if so.

    Nobody waits for them once the service has been asked, but where there is trouble: so many seconds, at most.
    """
    known, begin = _known(address), time.monotonic()
    if not known.asked or (known.trouble and patience):
        known.ask()
        while known.trouble and time.monotonic() < begin + patience:
            time.sleep(FRAME_SECONDS)
            known.ask()
    return known.models, known.trouble


def have_changed(address: str, models: Sequence[Model], trouble: str) -> bool:
    """Whether something else is known by now. For that the service is asked from time to time, and nobody waits."""
    known = _known(address)
    if time.monotonic() >= known.due and not known.lock.locked():
        threading.Thread(target=known.ask, name="tokenwire-models", daemon=True).start()
    return (known.models, bool(known.trouble)) != (models, bool(trouble))


def doubt(address: str) -> None:
    """Have the service be asked soon: what was true of it before may not be any more."""
    _known(address).due = 0.0
