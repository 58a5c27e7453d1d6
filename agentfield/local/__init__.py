"""The embedded server: a nats-server on this machine, found or started with no configuration.

It belongs to a home, a directory that holds its data, its log and the record of its last start; by default the one that
the settings name. It listens on the loopback interface only, acknowledges a write when it is on the disk, and outlives
the process that started it.

The coroutines do their work in a thread, so the caller's event loop goes on; a cancelled one stops waiting, and what it
began is finished by the thread or, if the process ends, taken up by the next caller.
"""

from __future__ import annotations

import asyncio
from os import PathLike
from pathlib import Path

from agentfield.local import lifecycle
from agentfield.local.server import Server, TroubleError
from agentfield.settings import Settings

__all__ = ["Server", "TroubleError", "ensure_server", "find_server", "recorded_server", "stop_server"]


async def ensure_server(home: str | PathLike[str] | None = None) -> Server:
    """Returns the running server of a home, which is started first if there is none.

    One that has switched its storage off, because the disk was full, is restarted as soon as there is room.
    However many processes ask at once, one starts it (its ``Server.started`` is True) and all get the same. A running
    server is found in about 2 ms, a new one answers in well under a second.

    Raises:
        InvalidInputError: the home is not an absolute path, or there is a file in its place.
        UnavailableError: no server can be had: no room, a home that cannot be written, no nats-server program, a server
            that does not answer within 2 s or does not come up within 10 s. The sentence says what to do.
        IncompatibleServerError: the only nats-server there is is too old.
    """
    return await asyncio.to_thread(lifecycle.ensure, _directory(home))


def find_server(home: str | PathLike[str] | None = None) -> Server | None:
    """Returns the running server of a home, or None if there is none; starts nothing and changes nothing.

    Blocks, usually for 2 ms, for up to 2 s when the server is in distress. Raises what ``ensure_server`` raises.
    """
    return lifecycle.find(_directory(home))


async def recorded_server(home: str | PathLike[str] | None = None) -> tuple[str, str] | None:
    """The URL and the name of a home's server as its last start recorded them, running or not; None if there was none.

    The name is new at every start: whatever answers at the URL with another one is not the home's server. Takes far
    less than a millisecond; asks nobody. Raises :class:`UnavailableError` if the home cannot be read.
    """
    return await asyncio.to_thread(lifecycle.recorded, _directory(home))


async def stop_server(home: str | PathLike[str] | None = None) -> bool:
    """Stops the server of a home and returns when it is gone: True if it was running, False if there was none.

    Agents that are connected lose nothing that was acknowledged; they reconnect when it is started again, on whatever
    port, and to no other server that takes the port meanwhile. A server that has not ended after 10 s is killed.

    Raises:
        UnavailableError: it cannot be stopped from here; it goes on running.
    """
    return await asyncio.to_thread(lifecycle.stop, _directory(home))


def _directory(home: str | PathLike[str] | None) -> Path:
    return Settings.load().home if home is None else Path(home)
