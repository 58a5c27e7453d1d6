"""Every handler of an agent in one process, for as long as the agent is served.

Owns: starting and stopping them together, and keeping each of them up. Must not know: how one handles an event.
Invariant: nothing but the agent's own end ends a handler.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from agentfield.ending import end
from agentfield.errors import AgentFieldError, ClosedError
from agentfield.fabric.consumers.durables import handlers_of
from agentfield.fabric.fabric import Fabric
from agentfield.memory.reacting.insisting import FIRST_RETRY
from agentfield.memory.reacting.registration import Registration
from agentfield.memory.reacting.subscription import HandlerRun
from agentfield.memory.reacting.superseding import SupersededError
from agentfield.settings import DEFAULT_MAX_DEPTH

logger = logging.getLogger("agentfield.handlers")

_LOOK = 2.0
"""Seconds for a look at what is on the server; a start does not wait longer for a mere warning."""


async def _kept_up(run: HandlerRun) -> None:
    """Run a handler for as long as its agent lives: whatever ends it but the agent's own end is reported and mended."""
    while True:
        try:
            await run.run()
        except Exception as error:  # a loop that ended in silence would be worse than any error
            if isinstance(error, BaseExceptionGroup) and error.split(ClosedError)[1] is None:
                return
            if isinstance(error, BaseExceptionGroup) and error.split(SupersededError)[1] is None:
                await run.renew()
                await _once_again(run)
                continue
            logger.exception("the loop of handler %s broke off; it starts again", run.name)
        await asyncio.sleep(FIRST_RETRY)
        await run.renew()


async def _once_again(run: HandlerRun) -> None:
    """Wait until another version of the handler is gone, however long that takes."""
    while True:
        try:
            await run.stand_aside()
        except AgentFieldError as error:
            logger.warning("handler %s: %s; trying again", run.name, error)
        else:
            return


class Subscriptions:
    """Every handler of an agent in this process, started and stopped together."""

    def __init__(
        self,
        fabric: Fabric,
        registrations: Sequence[Registration],
        *,
        agent: str,
        actor_id: str,
        max_depth: int = DEFAULT_MAX_DEPTH,
    ) -> None:
        self._fabric = fabric
        self._agent = agent
        self.runs = [
            HandlerRun(fabric, item, agent=agent, actor_id=actor_id, max_depth=max_depth) for item in registrations
        ]
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Fix where each handler begins, then begin to handle. On return no later event is missed.

        Raises :class:`UnavailableError` when the server does not answer; nothing runs then.
        """
        for run in self.runs:
            await run.prepare()
        await self._name_orphans()
        self._tasks = [asyncio.create_task(_kept_up(run), name=f"handler {run.name}") for run in self.runs]

    async def _name_orphans(self) -> None:
        """Warn of handlers that this agent once had: what they have not handled waits for somebody to decide."""
        fabric, agent = self._fabric, self._agent
        try:
            there = await handlers_of(fabric.connection, fabric.log.stream, agent, patience=_LOOK)
        except AgentFieldError as error:
            logger.debug("agent %s: %s", agent, error)
            return
        orphans = sorted(there - {run.name for run in self.runs if run.shared})
        if orphans:
            logger.warning(
                "agent %s has no handler %s any more, but what they were to handle still waits on the server: "
                "`agentfield handlers list` shows it, `agentfield handlers remove %s.%s` forgets it",
                agent, " and no handler ".join(orphans), agent, orphans[0],
            )  # fmt: skip

    async def drain(self, grace: float = 30.0) -> None:
        """Let handlers finish what they have begun (at most ``grace`` seconds), acknowledge, and hand over. Idempotent.

        Each hands over as soon as it has finished: a slow one does not keep the others from going on elsewhere.
        """
        tasks, self._tasks = self._tasks, []
        await asyncio.gather(*(_end(run, task, grace) for run, task in zip(self.runs, tasks, strict=False)))


async def _end(run: HandlerRun, task: asyncio.Task[None], grace: float) -> None:
    try:
        async with asyncio.timeout(grace):
            await run.drain()
    except TimeoutError:
        logger.warning("handler %s: what it has begun is not finished after %g s, and is broken off", run.name, grace)
    run.break_off()
    if await end([task]):
        logger.error(
            "handler %s catches its cancellation and goes on: it is left to itself, and its event comes again; "
            "let what catches asyncio.CancelledError raise it again", run.name,
        )  # fmt: skip
    elif not task.cancelled() and (outcome := task.exception()) is not None:
        logger.error("a handler's loop ended with %r", outcome)
    await run.leave()
