"""An agent's presence: where it is, and what it has open there, from unconnected to closed.

Owns: the server, namespace and model of one life of an agent, and the order in which what it opened comes down. Must
not know: reasoners, and what is served. Invariant: a presence that was closed opens nothing any more.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

from agentfield.agent.ai import AI
from agentfield.agent.handle import Handle
from agentfield.agent.notes import Notes
from agentfield.fabric.fabric import Fabric
from agentfield.memory.connecting import check_url, open_fabric
from agentfield.memory.reacting.subscriptions import Subscriptions
from agentfield.settings import Settings
from agentfield.subject import check_namespace

GRACE = 30.0
"""Seconds that calls and handlers in progress get to finish when an agent stops."""


class Presence:
    """One life of the agent of that name. Making it does no I/O. InvalidInputError for an illegal namespace or URL."""

    def __init__(self, agent: str, *, url: str | None, namespace: str, ai: AI) -> None:
        check_namespace(namespace)
        check_url(url)
        self.url = url
        self.namespace = namespace
        self.ai = ai
        self.handle = Handle(self._open, owner=f"agent {agent!r}")
        self.notes = Notes(agent, self.handle.fabric, self._open)
        self.serving: AsyncExitStack | None = None
        self.subscriptions: Subscriptions | None = None
        self.grace = GRACE
        self.closed = False
        self._agent = agent

    async def aclose(self, grace: float = GRACE) -> None:
        """Stop serving, send the notes, disconnect; what was begun gets ``grace`` seconds to finish. Idempotent."""
        self.closed = True
        self.grace = grace
        serving, self.serving = self.serving, None
        try:
            if serving is not None:
                await serving.aclose()
        finally:
            self.subscriptions = None
            try:
                await self.notes.aclose()
            finally:
                await self.handle.aclose()

    async def _open(self) -> Fabric:
        return await open_fabric(self.url, self.namespace, name=self._agent, settings=Settings.load())
