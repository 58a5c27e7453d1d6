"""Redelivering: from the wish to have a dead letter's event handled again to the event as it was.

Owns: finding the letter, the event in the log, and what its key held before; and taking the letter away once the event
has been handled. Must not know: how a handler runs. Invariant: a letter goes only after its event was handled, or lies
in a newer letter; so it is never lost, whenever whoever does it dies.
"""

from __future__ import annotations

import asyncio
import logging
from typing import NamedTuple

from agentfield.codec import Record
from agentfield.errors import AccessDeniedError, AgentFieldError, DecodeError
from agentfield.fabric.fabric import Fabric
from agentfield.memory.previous import PreviousTable
from agentfield.memory.reacting.letters import Letter, requested

logger = logging.getLogger("agentfield.handlers")

_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 30.0


class Recalled(NamedTuple):
    """An event to handle again: its letter, its record in the log, and the record of its key before it."""

    letter: Letter
    record: Record
    previous: Record | None


async def recall(fabric: Fabric, request: Record) -> Recalled | None:
    """The event that a request is about; None if its letter is gone: it was replayed before, or dropped.

    Raises :class:`DecodeError` when the letter, or the event in the log, is not there to be read; and
    :class:`UnavailableError`.
    """
    found = await fabric.deadletters.get(requested(request))
    if found is None:
        return None
    letter = Letter.of(found)
    record = None if letter.revision is None else await fabric.log.at(letter.revision)
    if record is None:
        raise DecodeError(
            f"the log no longer holds the event of dead letter {letter.number}",
            subject=found.subject,
            revision=letter.revision or 0,
        )
    return Recalled(letter, record, await PreviousTable(fabric.log, ()).of(record))


async def settle(fabric: Fabric, letter: Letter) -> None:
    """Take away the letter of an event that has been dealt with; insists, unless that is forbidden here."""
    pause = _FIRST_PAUSE
    while True:
        try:
            await fabric.deadletters.remove(letter.number)
        except AccessDeniedError as error:
            logger.error("handler %s handled the event of dead letter %d: %s", letter.handler, letter.number, error)
        except AgentFieldError as error:
            logger.warning("handler %s: %s; trying again", letter.handler, error)
            await asyncio.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 2)
            continue
        return
