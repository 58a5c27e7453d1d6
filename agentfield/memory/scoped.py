"""What every kind of memory stands on: the way to the fabric, who is calling, and the views of one scope."""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable
from typing import Self

from agentfield import execution
from agentfield.errors import InvalidInputError
from agentfield.fabric.fabric import Fabric
from agentfield.memory.addressing import AnyScope, Place
from agentfield.memory.resolving import Resolver
from agentfield.schema import Schemas
from agentfield.scope import Scope, ScopeKind

FabricSource = Callable[[], Awaitable[Fabric]]
"""Gives the open fabric, connecting on first use; raises when it cannot."""


class Scoped:
    """Identity and views. A view is a copy that is bound to a scope: everything else, it shares."""

    def __init__(self, fabric: FabricSource, schemas: Schemas, *, agent: str | None, actor_id: str | None) -> None:
        self._fabric = fabric
        self._agent = agent
        self._actor_id = actor_id
        self._bound: AnyScope | None = None
        self.schemas = schemas
        """The models that keys are bound to on this memory and its views."""

    def __repr__(self) -> str:
        where = "" if self._bound is None else f" bound to {self._bound[0]}:{self._bound[1] or 'the current one'}"
        return f"<{type(self).__name__} of {self._agent or 'no agent'}{where}>"

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
        view = copy.copy(self)
        view._bound = (kind, id)
        return view

    def _resolver(self, fabric: Fabric) -> Resolver:
        return Resolver(fabric, self.schemas)

    def _place(self) -> Place:
        running = execution.current.get()
        if running is None:
            return Place(None, None, self._actor_id, self._bound)
        return Place(running.workflow_id, running.session_id, self._actor_id, self._bound)
