"""Running agents in a test's own process and loop, on the throwaway server, in the test's namespace.

Owns: where the agents of a test are while they run, and that they are as before afterwards. Must not know: pytest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Self

from agentfield.agent import Agent, AIConfig
from agentfield.agent.ai import Model
from agentfield.testing.settling import PATIENCE, check_agents, settled

GRACE = 5.0
"""Seconds that handlers and calls get when a test is through; what takes longer hangs, as far as a test can tell."""
_GRACE_AFTER_A_FAILURE = 0.5


class Agents:
    """The agents of one test. ``url``, ``namespace`` and ``model`` are where they run and what they ask."""

    def __init__(self, url: str, namespace: str, model: Model) -> None:
        self.url = url
        self.namespace = namespace
        self._model = model
        self._running: list[Agent] = []

    @property
    def running(self) -> tuple[Agent, ...]:
        """The agents that run now, in the order in which they were started."""
        return tuple(self._running)

    @asynccontextmanager
    async def run(
        self, *agents: Agent, namespace: str | None = None, model: str | AIConfig | Model | None = None
    ) -> AsyncIterator[Self]:
        """``async with agents.run(shop, shipping):`` serve these agents inside the block.

        Whatever URL, namespace and model they were made with, they are on the test's server, in the test's namespace
        (or in ``namespace``), and ask the test's fake model (or ``model``). Agents that were made at import time can so
        be run in any number of tests, one after the other. When the block begins, their handlers miss nothing and their
        reasoners can be called. At its end they stop: what they had begun gets 5 s to finish, after a failure half a
        second; then they are unconnected and where they were before.

        Raises InvalidInputError for an agent that is served already, and what serving raises; none of them runs then.
        """
        async with AsyncExitStack() as stack:
            for agent in check_agents(agents):
                await stack.enter_async_context(
                    agent.elsewhere(
                        self.url,
                        namespace=self.namespace if namespace is None else namespace,
                        ai=self._model if model is None else model,
                    )
                )
            grace = _GRACE_AFTER_A_FAILURE
            try:
                for agent in agents:
                    await agent.__aenter__()
                    self._running.append(agent)
                yield self
                grace = GRACE
            finally:
                self._running = [agent for agent in self._running if agent not in agents]
                await asyncio.gather(*(agent.aclose(grace=grace) for agent in agents))

    async def settled(self, *, within: float = PATIENCE) -> None:
        """Return when the handlers of all running agents have nothing left to do; see :func:`settled`."""
        await settled(*self._running, within=within)
