"""NATS, and nothing else: the only package that imports its client.

nats-py loads aiohttp wherever it is installed, as with the extra ``ai``, and uses it for WebSockets alone. That takes a
quarter of the time in which a command starts, so it is put off until somebody opens one.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any


class _Later(ModuleType):
    """A module that is loaded when something in it is asked for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)


def _load_client() -> None:
    """Load nats-py without aiohttp, unless either is loaded already."""
    if "aiohttp" in sys.modules or "nats" in sys.modules or find_spec("aiohttp") is None:
        return
    sys.modules["aiohttp"] = None  # type: ignore[assignment]  # how the import system notes that there is none
    try:
        transport = import_module("nats.aio.transport")
    finally:
        del sys.modules["aiohttp"]
    transport.aiohttp = _Later("aiohttp")  # type: ignore[attr-defined]


_load_client()
