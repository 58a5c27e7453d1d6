"""What every part of the present's memory stands on: who writes, what has been seen, and what its views share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from agentfield import execution
from agentfield.effects import Effects
from agentfield.event import Writer
from agentfield.execution import Execution, Seen
from agentfield.memory.addressing import Place
from agentfield.memory.cache import NearCaches
from agentfield.memory.lifetime import Lifetimes
from agentfield.memory.reacting.registration import Registration
from agentfield.memory.scoped import FabricSource, Scoped
from agentfield.schema import Schemas
from agentfield.scope import ScopeKind

Declaring = Callable[[str], None]
"""Told the name of a handler before it is taken in; raises if its agent takes no more."""


class Base(Scoped):
    """Identity, surroundings and views; the operations are in the classes built on this one."""

    def __init__(
        self,
        fabric: FabricSource,
        *,
        agent: str | None = None,
        actor_id: str | None = None,
        lifetimes: Lifetimes | None = None,
        seen: Seen | None = None,
        declaring: Declaring | None = None,
    ) -> None:
        super().__init__(fabric, Schemas(), agent=agent, actor_id=actor_id)
        self._declaring = declaring
        self._lifetimes = lifetimes or Lifetimes()
        self._last_here: tuple[Execution | None, tuple[Place, Seen]] | None = None
        self._last_writer: tuple[Execution | None, Writer] | None = None
        self._outside = Seen() if seen is None else seen
        self._near = NearCaches()
        self.registrations: list[Registration] = []
        """The handlers declared on this memory and its views, for the agent to serve."""

    def _view(self, kind: ScopeKind, id: str | None) -> Self:
        view = super()._view(kind, id)
        view._last_here = None
        return view

    @property
    def seen(self) -> Seen:
        """How far the running execution has seen the log; outside any, how far this memory has."""
        return self._here()[1]

    def _place(self) -> Place:
        return self._here()[0]

    def _here(self) -> tuple[Place, Seen]:
        """Where the running execution is, and what it has seen; remembered for the next time."""
        running = execution.current.get()
        last = self._last_here
        if last is not None and last[0] is running:
            return last[1]
        here = super()._place(), self._outside if running is None else running.seen
        self._last_here = running, here
        return here

    def _effects(self) -> Effects | None:
        """What makes the writes of the running handler recognisable; None outside one."""
        running = execution.current.get()
        return None if running is None else running.effects

    def _writer(self) -> Writer:
        """Who writes here; remembered for the next time."""
        running = execution.current.get()
        last = self._last_writer
        if last is not None and last[0] is running:
            return last[1]
        writer = self._writer_in(running)
        self._last_writer = running, writer
        return writer

    def _writer_in(self, running: Execution | None) -> Writer:
        if running is None:
            return Writer.model_construct(agent=self._agent)
        return Writer.model_construct(
            agent=self._agent or running.agent,
            function=running.function,
            execution_id=running.execution_id,
            workflow_id=running.workflow_id,
            session_id=running.session_id,
            cause=running.cause,
            cause_revision=running.cause_revision,
            depth=running.depth,
            path=running.path,
            trace=running.trace,
        )
