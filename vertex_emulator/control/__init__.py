"""Steering an emulator from another process: the servicer, and a client for it."""

from .client import ControlClient, request_of

__all__ = ["ControlClient", "request_of"]
