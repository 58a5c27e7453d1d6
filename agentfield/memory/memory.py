"""Memory: what users call to share state, put together from its parts."""

from __future__ import annotations

from agentfield.memory.events import Events
from agentfield.memory.personal.private import Private
from agentfield.memory.reads import Reads
from agentfield.memory.time_travel.looking_back import LookingBack
from agentfield.memory.typed import Typed
from agentfield.memory.writes import Writes


class Memory(Reads, Writes, Events, LookingBack, Typed, Private):
    """Shared memory, as an agent or a program sees it.

    Every operation takes ``scope`` (``"workflow"``, ``"session"``, ``"actor"``, ``"global"``) and ``scope_id``. Without
    a scope, reads look through workflow, session, actor and global, and the first that has the key answers; writes go
    to the workflow, outside any workflow to the session if one is bound, else to the global scope.

    All operations may raise :class:`UnavailableError` (the server is away; nothing was stored) and
    :class:`InvalidInputError` (before anything is sent); writes also :class:`OutcomeUnknownError` (sent, but never
    confirmed; trying again with its ``event_id`` is safe).
    """
