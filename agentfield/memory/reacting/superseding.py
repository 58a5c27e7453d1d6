"""Two versions of a handler at once: what the older one does while the newer one wants to hear more.

Owns: noticing that another instance has declared other patterns for the same handler, and standing aside for it. The
consumer hears what was declared last. An instance of an older version would take events that are not for it, and have
them count as handled. So it finishes what it holds, lets the others take over, and comes back when they are gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from agentfield.errors import AgentFieldError
from agentfield.fabric.consumers.durables import Durable, durable_of
from agentfield.fabric.wire.connection import Connection

logger = logging.getLogger("agentfield.handlers")

_LOOK = 5.0
"""Seconds between looks at whether the others are still there."""
_GONE_AFTER = 6
"""Looks without a trace of them after which they are gone: the server may count on one that left for 20 s."""


class SupersededError(Exception):
    """An event came that this version of the handler does not declare. Never reaches a user."""


async def stand_aside(connection: Connection, stream: str, agent: str, handler: str, filters: Sequence[str]) -> None:
    """Return when the handler is declared as here again, or nobody else is there to handle its events."""
    logger.warning(
        "handler %s of agent %s: another instance declares other patterns for it, and handles its events from now on; "
        "this one waits until it is gone",
        handler, agent,
    )  # fmt: skip
    without = 0
    while without < _GONE_AFTER:
        await asyncio.sleep(_LOOK)
        try:
            durable = await durable_of(connection, stream, agent, handler)
        except AgentFieldError as error:
            logger.debug("handler %s: %s", handler, error)
            continue
        if durable is None or set(durable.filters) == set(filters):
            return
        without = 0 if _somebody(durable) else without + 1
    logger.warning("handler %s of agent %s: nobody else is there any more, so it goes on here", handler, agent)


def _somebody(durable: Durable) -> bool:
    return durable.active or durable.waiting > 0
