"""Placing: a value that is too large for its event goes to an object first.

Owns: what a large write becomes on its way to the log. Invariant: an event is appended only after its object is whole,
and only on the condition, checked by the server, that the object has not been condemned meanwhile (see ``orphans``). So
however long a writer was paused in between, no event ever refers to an object that is gone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from agentfield.errors import AgentFieldError
from agentfield.fabric.batch import Expectation
from agentfield.fabric.fabric import Fabric
from agentfield.header import refer
from agentfield.memory.orphans import Orphan, collect, condemnation
from agentfield.scope import Scope

logger = logging.getLogger("agentfield.writing")

_EVENT_ROOM = 16 * 1024
"""Bytes of a message kept free for an event's headers, when a server takes messages smaller than the threshold."""


class Placed(NamedTuple):
    """A large write as the log will hold it, and what its event takes for granted."""

    payload: bytes
    headers: dict[str, str]
    guard: Expectation
    orphan: Orphan
    """What the object is as long as the event is not in the log."""


def is_large(fabric: Fabric, payload: bytes) -> bool:
    """Whether a value's JSON goes to an object."""
    size = len(payload)
    return size > fabric.objects.threshold or (size > 1024 and size > fabric.connection.max_payload - _EVENT_ROOM)


async def place(
    fabric: Fabric, scope: Scope, key: str, subject: str, content: bytes, headers: dict[str, str]
) -> Placed:
    """Store the value's JSON as an object; return what to append.

    Raises :class:`UnavailableError` and its kin: nothing refers to what may be left in the store then.
    """
    after = int((await fabric.log.state())["last_seq"])
    orphan = Orphan("", subject, after)
    reference = await fabric.objects.put(content, description=f"{scope} {key}", about=orphan.about())
    return Placed(
        reference.payload(fabric.objects.bucket),
        refer(headers, reference),
        Expectation(condemnation(fabric, reference.name), 0),
        orphan._replace(name=reference.name),
    )


async def was_condemned(fabric: Fabric, objects: Sequence[Placed]) -> bool:
    """Whether one of the objects was given up by somebody who took its writer for dead: then place all of them anew."""
    return any(await fabric.log.last([placed.guard.subject for placed in objects]))


async def give_up(fabric: Fabric, objects: Sequence[Placed]) -> None:
    """Take objects away whose events were refused, now rather than when they are swept."""
    try:
        for placed in objects:
            await collect(fabric, placed.orphan)
    except AgentFieldError as error:
        logger.debug("what was stored for a write that was refused stays until it is collected: %s", error)
