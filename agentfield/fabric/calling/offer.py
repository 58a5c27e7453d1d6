"""Handing the outcome of a call to its caller, for sure.

Owns: the repetition of a reply until the caller acknowledges it. Must not know: what the reply says. A reply that is
merely published can be lost without a trace: in the buffers of a server that is killed, or because the caller is
reconnecting at that moment and nobody listens on its inbox.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import NamedTuple

from agentfield.errors import ClosedError, UnavailableError
from agentfield.fabric.faults import NoAnswerFault, NoRespondersFault
from agentfield.fabric.wire.connection import Connection

logger = logging.getLogger("agentfield.calls")

_ACKNOWLEDGED_WITHIN = 2.0
_PATIENCE = 30.0
"""Seconds, counted while connected, during which a reply is offered to a caller that does not listen: it may be
reconnecting to another server of the cluster."""
_PATIENCE_HURRIED = 3.0
_PAUSE = 0.25


class Offer(NamedTuple):
    """A reply, and how long its caller will wait for it (seconds)."""

    subject: str
    payload: bytes
    headers: dict[str, str]
    awaited: float

    async def made(self, connection: Connection, *, hurried: Callable[[], bool]) -> str | None:
        """Offer the reply until it is acknowledged: None. Or the reason why that is hopeless; it is dropped then.

        An outage shorter than the caller's own wait is sat out. ``hurried`` says whether there is little time left.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            try:
                if connection.state != "connected":
                    await connection.wait_connected(self.awaited)
                    began = loop.time()
                await connection.request(self.subject, self.payload, dict(self.headers), timeout=_ACKNOWLEDGED_WITHIN)
                return None
            except NoRespondersFault:
                await asyncio.sleep(_PAUSE)  # not there at the moment, or for ever
            except NoAnswerFault:
                logger.debug("a reply was not acknowledged; sending it again")
            except UnavailableError as error:
                if connection.state != "connected":
                    return str(error)
            except ClosedError as error:
                return str(error)
            if loop.time() - began > (_PATIENCE_HURRIED if hurried() else _PATIENCE):
                return "its caller does not listen any more"
