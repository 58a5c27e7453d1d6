"""The agent: what users make, decorate and run.

Owns: the agent's identity, its reasoners, where it is present, and the order in which its parts come up and go down.
Must not know: how any of them works. Invariants: constructing an agent and decorating functions does no I/O and needs
no loop; a graceful end finishes every call and every handler that was begun; where it was closed, it stays closed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeVar, cast, overload

from agentfield.agent.ai import AI, AIConfig, Model
from agentfield.agent.binding import Binding, Identity, for_call
from agentfield.agent.collecting import collected
from agentfield.agent.presence import GRACE, Presence
from agentfield.agent.reasoner import Reasoner, check_name
from agentfield.errors import ClosedError, InvalidInputError, RemoteError
from agentfield.execution import Execution, Seen, current
from agentfield.fabric.calling.micro import Endpoint
from agentfield.fabric.calling.protocol import call_subject
from agentfield.fabric.calling.service import Service
from agentfield.fabric.fabric import Fabric
from agentfield.memory import Memory
from agentfield.memory.lifetime import Lifetimes, Periods
from agentfield.memory.lifetimes.expiry import ExpiryWorker
from agentfield.memory.reacting.subscription import HandlerRun
from agentfield.memory.reacting.subscriptions import Subscriptions
from agentfield.naming import shown
from agentfield.scope import Scope
from agentfield.settings import Settings
from agentfield.value import decode_value, encode_value
from agentfield.version import __version__

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

CALL_TIMEOUT = 300.0
"""Seconds a call may take unless it says otherwise; a dead callee is noticed long before."""


class Agent:
    """An agent: a name, reasoners that others can call, handlers of memory events, and shared memory.

    ``nats_url`` defaults to ``$AGENTFIELD_NATS_URL``, ``$NATS_URL``, else the local embedded server, started if need
    be; ``namespace`` to ``$AGENTFIELD_NAMESPACE``, else ``agentfield``; ``ai`` (a LiteLLM model name, an
    :class:`AIConfig` or an async callable) to ``$AGENTFIELD_AI_MODEL``; ``actor_id``, which names the agent's own actor
    scope, to its name.

    Serve with :meth:`run`, or with ``async with`` inside a loop of yours. Without either, memory, calls and notes
    connect when they are first used. Raises InvalidInputError for an illegal name, namespace, URL or actor id.
    """

    def __init__(
        self,
        name: str,
        *,
        nats_url: str | None = None,
        namespace: str | None = None,
        ai: str | AIConfig | Model | None = None,
        actor_id: str | None = None,
    ) -> None:
        self.name = check_name(name, what="agent")
        settings = Settings.load()
        self._presence = Presence(
            self.name,
            url=nats_url,
            namespace=settings.namespace if namespace is None else namespace,
            ai=AI(settings.ai_model if ai is None else ai),
        )
        self.actor_id = Scope.of("actor", name if actor_id is None else actor_id).id
        self._identity = Identity(self.name, self.actor_id)
        self._reasoners: dict[str, Reasoner] = {}
        self._lifetimes = Lifetimes(Periods(workflow=settings.workflow_grace, session=settings.session_idle))
        self._max_depth = settings.max_depth
        self._seen = Seen()
        self.memory = Memory(
            self._fabric,
            agent=self.name,
            actor_id=self.actor_id,
            lifetimes=self._lifetimes,
            seen=self._seen,
            declaring=self._check_declaring,
        )
        if (agents := collected.get()) is not None:
            agents.append(self)

    def __repr__(self) -> str:
        return f"Agent({self.name!r}, namespace={self.namespace!r})"

    @property
    def namespace(self) -> str:
        """The namespace that it is in."""
        return self._presence.namespace

    # -- reasoners ----------------------------------------------------------------------------------------------------

    @overload
    def reasoner(self, function: F, /) -> F: ...
    @overload
    def reasoner(self, /, *, name: str | None = None) -> Callable[[F], F]: ...
    def reasoner(self, function: Any = None, /, *, name: str | None = None) -> Any:
        """Make a function callable as ``<agent>.<name>``; the name defaults to the function's.

        Its type hints validate the arguments. A plain ``def`` runs in a thread. The decorated function can still be
        called directly; outside any execution it then runs in a fresh root execution. Raises InvalidInputError for a
        name in use, an agent that serves already, and a function that cannot be called with JSON keyword arguments;
        ClosedError if the agent is closed.
        """
        if function is None:
            return lambda decorated: self._register(decorated, name)
        return self._register(function, name)

    @property
    def reasoners(self) -> Mapping[str, Reasoner]:
        """The reasoners by name."""
        return MappingProxyType(self._reasoners)

    @property
    def handlers(self) -> Mapping[str, HandlerRun]:
        """The handlers by name, as they run in this process; none while the agent is not served."""
        subscriptions = self._presence.subscriptions
        return {} if subscriptions is None else {run.name: run for run in subscriptions.runs}

    def _register(self, function: F, name: str | None) -> F:
        reasoner = Reasoner(function, name)
        if reasoner.name in self._reasoners:
            raise InvalidInputError(f"agent {self.name!r} has a reasoner {reasoner.name!r} already: use name=…")
        self._check_declaring(reasoner.name)
        self._reasoners[reasoner.name] = reasoner
        return self._direct(function, reasoner)

    def _check_declaring(self, name: str) -> None:
        """Raises unless a reasoner or handler of that name would still be served."""
        if self._presence.closed:
            raise ClosedError(f"agent {self.name!r} is closed: make a new one, and define {name!r} before it starts")
        if self._presence.serving is not None:
            raise InvalidInputError(f"agent {self.name!r} serves already: define {name!r} before it starts")

    def _direct(self, function: F, reasoner: Reasoner) -> F:
        if reasoner.is_async:

            @functools.wraps(function)
            async def run_async(*args: Any, **kwargs: Any) -> Any:
                with self._identity.somewhere(reasoner.name):
                    return await function(*args, **kwargs)

            return cast(F, run_async)

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self._identity.somewhere(reasoner.name):
                return function(*args, **kwargs)

        return cast(F, run)

    # -- what agents do -----------------------------------------------------------------------------------------------

    async def call(
        self, target: str, /, *, timeout: float = CALL_TIMEOUT, session_id: str | None = None, **arguments: Any
    ) -> Any:
        """Call ``"agent.reasoner"`` with keyword arguments; return its result as JSON data.

        The callee runs in the caller's workflow and session (``session_id`` binds another session); outside any
        execution, the call begins a workflow. ``timeout`` is in seconds. If the caller is cancelled, the callee is
        stopped. Raises :class:`InvalidInputError` (nothing ran), :class:`AgentUnavailableError`, :class:`NotFoundError`
        (no such reasoner), :class:`RemoteError` (it raised), :class:`UnavailableError` (no server; nothing ran),
        :class:`OutcomeUnknownError` (the time is up; the call may still be running).
        """
        agent, reasoner = _parse_target(target)
        seconds = _check_timeout(timeout)
        execution = for_call(agent, session_id)
        try:
            payload = encode_value(arguments)
        except InvalidInputError as error:
            raise InvalidInputError(f"{target} was not called: its arguments cannot be sent: {error}") from None
        link = await self._presence.handle.link()
        if execution.workflow_id is not None:
            self._lifetimes.shared(Scope("workflow", execution.workflow_id))
        try:
            result = await link.calls.call(agent, reasoner, payload, execution=execution, timeout=seconds)
        finally:
            self.memory.seen.saw(execution.seen.revision)
        return _decode(result, agent, reasoner, execution.execution_id)

    @overload
    async def ai(self, *texts: str, system: str | None = ..., user: str | None = ..., schema: None = ...) -> str: ...
    @overload
    async def ai(self, *texts: str, system: str | None = ..., user: str | None = ..., schema: type[T]) -> T: ...
    async def ai(
        self, *texts: str, system: str | None = None, user: str | None = None, schema: type[Any] | None = None
    ) -> Any:
        """Ask the agent's model: ``texts`` and ``user`` together are the question, ``system`` the instructions.

        Returns text, or a validated ``schema``: a Pydantic model, or any type Pydantic validates. An answer that does
        not fit is shown to the model with the error once. Raises :class:`InvalidInputError` (no model configured, or
        the provider refuses the request), :class:`AccessDeniedError` (key refused), :class:`UnavailableError` (no
        answer, or over a rate limit), :class:`RemoteError` (an invalid answer twice, or another failure of the model).
        """
        return await self._presence.ai.ask(*texts, system=system, user=user, schema=schema)

    def note(self, text: str, tags: Sequence[str] = ()) -> None:
        """Leave a remark for people who follow the agent: logged at once, stored in the background.

        Never blocks; may be called from any thread. A note that cannot be stored is logged at WARNING.
        """
        self._presence.notes.add(text, tags)

    def workflow(self, workflow_id: str) -> Binding:
        """``async with app.workflow("wf-1")``: run any code in that workflow. InvalidInputError for an illegal id."""
        return Binding(self._identity, "workflow", workflow_id)

    def session(self, session_id: str) -> Binding:
        """``async with app.session("user-42")``: run any code in that session. InvalidInputError for an illegal id.

        Outside any workflow, what is then written without a scope goes to the session.
        """
        return Binding(self._identity, "session", session_id)

    # -- life ---------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM, then finish what was begun and return; a second signal ends at once.

        Blocking. Raises InvalidInputError inside a running loop, and what ``async with`` raises. In a file that
        ``agentfield run`` is just loading it returns at once: that command serves the agent.
        """
        if collected.get() is not None:
            return
        from agentfield.agent.running import run  # it serves agents, so it stands above them

        run([self])

    async def __aenter__(self) -> Self:
        """Connect and serve. When this returns, other agents find this one.

        Raises ClosedError after a close, UnavailableError without a server, InvalidInputError if it serves already or
        type hints of a reasoner cannot be used. After a failure nothing is left running.
        """
        presence = self._presence
        if presence.closed:
            raise ClosedError(f"agent {self.name!r} is closed: make a new one")
        if presence.serving is not None:
            raise InvalidInputError(f"agent {self.name!r} serves already")
        for reasoner in self._reasoners.values():
            reasoner.prepare()
        presence.serving = AsyncExitStack()
        try:
            await self._start(presence, presence.serving)
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop serving and close; see :meth:`aclose`."""
        await self.aclose()

    async def aclose(self, *, grace: float = GRACE) -> None:
        """Take no more calls and events, finish those begun, send the notes, disconnect. Idempotent.

        Calls and handlers that take longer than ``grace`` seconds more are cancelled; the callers are told, and the
        events are handled by another instance or after the next start.
        """
        await self._presence.aclose(grace)

    @asynccontextmanager
    async def elsewhere(
        self,
        nats_url: str | None = None,
        *,
        namespace: str | None = None,
        ai: str | AIConfig | Model | None = None,
    ) -> AsyncIterator[Self]:
        """Be on another server, in another namespace or with another model inside the block; afterwards as before.

        For agents that are made where their file is imported, above all in tests: whatever the file's functions do
        with the agent then happens elsewhere. It begins unconnected there, whatever it was before, and can be served
        by ``async with``; a view of its memory follows it. What is left out stays as it is. Leaving the block closes
        what was opened in it, served or not. Raises InvalidInputError if the agent serves, and for an illegal
        namespace or URL; nothing has changed then.
        """
        before = self._presence
        if before.serving is not None:
            raise InvalidInputError(f"agent {self.name!r} serves, and cannot go elsewhere before that ends")
        there = Presence(
            self.name,
            url=before.url if nats_url is None else nats_url,
            namespace=before.namespace if namespace is None else namespace,
            ai=before.ai if ai is None else AI(ai),
        )
        seen = self._seen.revision
        self._move(there, 0)
        try:
            yield self
        finally:
            try:
                await there.aclose()
            finally:
                self._move(before, seen)

    def _move(self, presence: Presence, seen: int) -> None:
        self._presence = presence
        self._seen.revision = seen
        self._lifetimes.forget()

    async def _start(self, presence: Presence, stack: AsyncExitStack) -> None:
        fabric = await self._fabric()
        presence.notes.start()
        await stack.enter_async_context(ExpiryWorker(fabric, self._lifetimes.periods))
        handlers = self.memory.registrations
        subscriptions = Subscriptions(
            fabric, handlers, agent=self.name, actor_id=self.actor_id, max_depth=self._max_depth
        )
        await subscriptions.start()
        presence.subscriptions = subscriptions
        stack.push_async_callback(lambda: subscriptions.drain(presence.grace))
        service = Service(
            fabric.connection,
            name=self.name,
            version=__version__,
            description=f"agentfield agent {self.name}",
            endpoints=[self._endpoint(reasoner) for reasoner in self._reasoners.values()],
            runner=self._run_call,
            handlers=[run.name for run in subscriptions.runs if run.shared],
        )
        await service.start()
        stack.push_async_callback(lambda: service.drain(presence.grace))

    def _endpoint(self, reasoner: Reasoner) -> Endpoint:
        metadata = {"description": reasoner.description} if reasoner.description else {}
        schema = reasoner.schema
        if schema is not None:
            metadata["schema"] = schema
        return Endpoint(reasoner.name, call_subject(self.namespace, self.name, reasoner.name), metadata)

    async def _run_call(self, name: str, payload: bytes, execution: Execution | None) -> bytes:
        reasoner = self._reasoners[name]
        arguments = reasoner.arguments(payload)
        here = self._identity.adopt(execution, name)
        current.set(here)  # this task's own context: it ends with the call
        if here.workflow_id is None:
            return await reasoner.run(arguments)
        async with self._lifetimes.held(await self._fabric(), Scope("workflow", here.workflow_id)):
            return await reasoner.run(arguments)

    def _fabric(self) -> Awaitable[Fabric]:
        return self._presence.handle.fabric()


def _parse_target(target: object) -> tuple[str, str]:
    agent, dot, reasoner = target.partition(".") if isinstance(target, str) else ("", "", "")
    if not dot:
        raise InvalidInputError(f"call target {shown(target)} is not of the form 'agent.reasoner'")
    return check_name(agent, what="agent"), check_name(reasoner, what="reasoner")


def _check_timeout(timeout: object) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < math.inf:
        raise InvalidInputError(f"timeout {shown(timeout)} is not a number of seconds above 0")
    return float(timeout)


def _decode(result: bytes, agent: str, reasoner: str, execution_id: str) -> Any:
    if not result:
        return None
    try:
        return decode_value(result)
    except InvalidInputError as error:
        raise RemoteError(
            type_name="InvalidAnswer", message=str(error), agent=agent, reasoner=reasoner, execution_id=execution_id
        ) from None
