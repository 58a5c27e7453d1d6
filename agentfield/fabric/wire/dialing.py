"""Dialing: one client's way to its first connection, within a deadline.

Owns: how nats-py is set up, how soon it notices that a server is gone, and telling a refusal from an absence. Must not
know: what the client is for, how often this is tried. Invariant: when it fails, no task goes on trying.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from agentfield.errors import AccessDeniedError, UnavailableError
from agentfield.fabric.wire.client import Client

_CONNECT_ATTEMPT = 2
"""Seconds for one TCP connect and handshake; a dead address must not eat the whole deadline of an open()."""
_PING_INTERVAL = 2
_PINGS_UNANSWERED = 2
"""More than so many unanswered pings mean a dead connection: a silent one is noticed within 6 s, well before a write
gives up, so that it can still go to another server of the cluster."""
_PENDING_BYTES = 64 * 1024 * 1024
"""Outgoing bytes the client may hold. Only what was handed over while connected can be in it."""
_REFUSED = re.compile(r"authorization|authentication", re.IGNORECASE)


class Told(NamedTuple):
    """Whom a client tells of what becomes of it, from the first try on and for as long as it lives."""

    error: Callable[[Exception], None]
    down: Callable[[], None]
    up: Callable[[], None]
    """Connected again; of the first time, :func:`dial` tells by returning."""
    closed: Callable[[], None]
    """It has given up, and will not connect again."""


async def dial(
    client: Client, urls: Sequence[str], told: Told, *, name: str, where: Callable[[], str], timeout: float
) -> None:
    """Connect a client to the first of the servers that answers.

    Raises :class:`UnavailableError` if none does in time, :class:`AccessDeniedError` if one refuses the credentials.
    The client is to be closed then; ``where`` says for people where it looked.
    """
    last: Exception | None = None
    refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def on_error(error: Exception) -> None:
        nonlocal last
        last = error
        told.error(error)
        if is_refusal(error) and not refused.done():
            refused.set_result(None)

    async def on_disconnected() -> None:
        told.down()

    async def on_reconnected() -> None:
        told.up()

    async def on_closed() -> None:
        told.closed()

    connecting = asyncio.ensure_future(
        client.connect(
            servers=list(urls),
            name=name,
            error_cb=on_error,
            disconnected_cb=on_disconnected,
            reconnected_cb=on_reconnected,
            closed_cb=on_closed,
            connect_timeout=_CONNECT_ATTEMPT,
            reconnect_time_wait=0.25,  # type: ignore[arg-type]  # seconds; a float works, only the hint says int
            max_reconnect_attempts=-1,
            ping_interval=_PING_INTERVAL,
            max_outstanding_pings=_PINGS_UNANSWERED,
            pending_size=_PENDING_BYTES,
        )
    )
    try:
        await asyncio.wait({connecting, refused}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if refused.done():  # whatever else went wrong after that: the server may reset the connection on top
            raise AccessDeniedError(
                f"the server at {where()} refused the credentials; put user:password@ or token@ in the URL"
            )
        error = connecting.exception() if connecting.done() else last
        if error is not None or not connecting.done():
            reason = f": {error}" if error is not None and str(error) else ""
            raise UnavailableError(
                f"no NATS server answered at {where()} within {timeout:g} s{reason}; nothing was sent"
            )
    finally:
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)


def is_refusal(error: Exception) -> bool:
    """Whether the server refuses the credentials."""
    return _REFUSED.search(str(error)) is not None
