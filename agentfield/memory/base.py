"""What every part of memory stands on: the way to the fabric, who is calling, and the views of one scope."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Self

from agentfield import execution
from agentfield.effects import Effects
from agentfield.errors import InvalidInputError
from agentfield.event import Writer
from agentfield.execution import Execution, Seen
from agentfield.fabric.fabric import Fabric
from agentfield.memory.addressing import AnyScope, Place
from agentfield.memory.cache import NearCaches
from agentfield.memory.lifetime import Lifetimes
from agentfield.memory.registration import Registration
from agentfield.memory.resolving import Resolver
from agentfield.schema import Schemas
from agentfield.scope import Scope, ScopeKind

FabricSource = Callable[[], Awaitable[Fabric]]
"""Gives the open fabric, connecting on first use; raises when it cannot."""


class Base:
    """Identity, surroundings and views; the operations are in the classes built on this one."""

    def __init__(
        self,
        fabric: FabricSource,
        *,
        agent: str | None = None,
        actor_id: str | None = None,
        lifetimes: Lifetimes | None = None,
        seen: Seen | None = None,
    ) -> None:
        self._fabric = fabric
        self._agent = agent
        self._actor_id = actor_id
        self._lifetimes = lifetimes or Lifetimes()
        self._bound: AnyScope | None = None
        self._last_here: tuple[Execution | None, tuple[Place, Seen]] | None = None
        self._last_writer: tuple[Execution | None, Writer] | None = None
        self._outside = Seen() if seen is None else seen
        self._near = NearCaches()
        self.registrations: list[Registration] = []
        """The handlers declared on this memory and its views, for the agent to serve."""
        self.schemas = Schemas()
        """The models that keys are bound to on this memory and its views."""

    def __repr__(self) -> str:
        where = "" if self._bound is None else f" bound to {self._bound[0]}:{self._bound[1] or 'the current one'}"
        return f"<Memory of {self._agent or 'no agent'}{where}>"

    def workflow(self, id: str | None = None) -> Self:
        """This memory, bound to one workflow; without an id, to the one running when an operation is called."""
        return self._view("workflow", id)

    def session(self, id: str | None = None) -> Self:
        """This memory, bound to one session; without an id, to the current one."""
        return self._view("session", id)

    def actor(self, id: str | None = None) -> Self:
        """This memory, bound to one actor's private scope; without an id, to the agent's own."""
        return self._view("actor", id)

    @property
    def global_scope(self) -> Self:
        """This memory, bound to the global scope."""
        return self._view("global", None)

    def _view(self, kind: ScopeKind, id: str | None) -> Self:
        if self._bound is not None and self._bound[0] != kind:
            raise InvalidInputError(
                f"this view is bound to the {self._bound[0]} scope: make the view from the memory itself"
            )
        if id is not None:
            Scope.of(kind, id)
        view = type(self)(
            self._fabric,
            agent=self._agent,
            actor_id=self._actor_id,
            lifetimes=self._lifetimes,
            seen=self._outside,
        )
        view._bound = (kind, id)
        view._near = self._near
        view.registrations = self.registrations
        view.schemas = self.schemas
        return view

    @property
    def seen(self) -> Seen:
        """How far the running execution has seen the log; outside any, how far this memory has."""
        return self._here()[1]

    def _resolver(self, fabric: Fabric) -> Resolver:
        return Resolver(fabric, self.schemas)

    def _place(self) -> Place:
        return self._here()[0]

    def _here(self) -> tuple[Place, Seen]:
        """Where the running execution is, and what it has seen; remembered for the next time."""
        running = execution.current.get()
        last = self._last_here
        if last is not None and last[0] is running:
            return last[1]
        if running is None:
            here = Place(None, None, self._actor_id, self._bound), self._outside
        else:
            here = Place(running.workflow_id, running.session_id, self._actor_id, self._bound), running.seen
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
