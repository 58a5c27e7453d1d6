"""Which execution code runs in: the rules for calls, for handlers, and for code that binds a workflow or a session.

Pure but for the context variable in :mod:`agentfield.execution`, and one that says what was current before. Invariant:
what was current before a block is current after it, whatever happens inside, and whoever else is in the same block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from types import TracebackType
from typing import Final, Literal

from agentfield.errors import InvalidInputError
from agentfield.execution import Execution, child, current, root
from agentfield.scope import Scope


class Identity:
    """Who an agent is: what its executions are stamped with."""

    __slots__ = ("actor_id", "agent")

    def __init__(self, agent: str, actor_id: str) -> None:
        self.agent = agent
        self.actor_id = actor_id

    def root(self) -> Execution:
        """A fresh root execution of this agent."""
        return root(self.agent, self.actor_id)

    def adopt(self, execution: Execution | None, reasoner: str) -> Execution:
        """The execution that a caller made for this agent; a caller that made none (a NATS tool) begins a workflow."""
        return replace(execution or self.root(), agent=self.agent, actor_id=self.actor_id, function=reasoner)

    @contextmanager
    def somewhere(self, reasoner: str) -> Iterator[None]:
        """Run in the current execution, or in a fresh root execution of a reasoner where there is none."""
        if current.get() is not None:
            yield
            return
        token = current.set(self.adopt(None, reasoner))
        try:
            yield
        finally:
            current.reset(token)


def for_call(agent: str, session_id: str | None) -> Execution:
    """The execution in which ``agent`` will run a call made here.

    In the caller's workflow and session, or in a new workflow when nothing is current; ``session_id`` binds another
    session. Raises InvalidInputError if that is illegal.
    """
    caller = current.get()
    execution = root(agent, None) if caller is None else child(caller, agent, None)
    if session_id is None:
        return execution
    return replace(execution, session_id=Scope.of("session", session_id).id)


class Binding:
    """``async with`` this, and the code inside runs in one workflow or session, inherited by every call it makes.

    It may be entered again, within itself, and by any number of tasks at once.
    """

    def __init__(self, identity: Identity, kind: Literal["workflow", "session"], id: str) -> None:
        self._identity = identity
        self._kind = kind
        self._id = Scope.of(kind, id).id

    async def __aenter__(self) -> str:
        """Bind, and return the id."""
        execution = current.get()
        if execution is None:
            # A session outside any workflow stays outside: what is written without a scope goes to the session.
            execution = replace(self._identity.root(), workflow_id=None)
        if self._kind == "workflow":
            execution = replace(execution, workflow_id=self._id)
        else:
            execution = replace(execution, session_id=self._id)
        _entered.set((*_entered.get(), (self, current.get())))
        current.set(execution)
        return self._id

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Return to what was current before. InvalidInputError in another task than the one that entered."""
        entered = _entered.get()
        depth = max((depth for depth, (binding, _) in enumerate(entered) if binding is self), default=None)
        if depth is None:
            raise InvalidInputError(
                f"{self._kind}({self._id!r}) is left in another task than it was entered in: leave it in the same one"
            )
        _entered.set(entered[:depth])
        current.set(entered[depth][1])


_entered: Final[ContextVar[tuple[tuple[Binding, Execution | None], ...]]] = ContextVar(
    "agentfield.bindings", default=()
)
"""The blocks that the running code is in, innermost last, and what was current before each."""
