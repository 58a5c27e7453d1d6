"""The side of a call that waits for it.

Owns: one reply inbox for all calls of a connection, and the judgement when to stop waiting: an outcome, nobody there,
a callee that fell silent, the caller's own deadline or cancellation. Must not know: agents as objects, or what
arguments mean. Invariants: "nothing ran" is only said when it is known; time during which this side was disconnected or
its loop was blocked does not count as the callee's silence; a pending call leaves no trace when it ends.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import NamedTuple

from agentfield.errors import (
    AccessDeniedError,
    AgentUnavailableError,
    ClosedError,
    InvalidInputError,
    NotFoundError,
    OutcomeUnknownError,
    UnavailableError,
)
from agentfield.execution import Execution, new_id, to_headers
from agentfield.fabric.calling.micro import find, find_all
from agentfield.fabric.calling.protocol import (
    CALL_HEADER,
    DONE,
    ERROR_CODE_HEADER,
    INVALID_ARGUMENTS,
    SEEN_HEADER,
    SILENCE,
    STATUS_HEADER,
    WORKING,
    Failure,
    call_subject,
    cancel_subject,
    instance_subject,
    message_size,
)
from agentfield.fabric.wire.connection import Connection, ConnectionState
from agentfield.fabric.wire.message import Message
from agentfield.fabric.wire.subscription import Subscription

logger = logging.getLogger("agentfield.calls")

_DISCOVERY = 0.6
"""Seconds within which an agent answers who it is, when its name exists but perhaps in another namespace only."""
_RECHECK = 1.0
"""Seconds between looks at the connection while it is down."""
_LATE = 1.0
"""A timer this late means that our own loop was blocked, and that messages may be waiting unread."""

_SETTLING = 2.0
"""Seconds after our own reconnection in which a missing agent may only be reconnecting too: it is asked for again."""
_ASKED = 5
"""Times that a call is given to whichever instance gets it, while each refuses its arguments: of two versions that run
at once, in equal numbers, 3 % of the calls then still miss the one that takes them, and each instance is asked."""
_ABSENT_PAUSE = 0.1
_NOBODY = 503
"""The status with which the server answers a request that no subscription took (ADR-4)."""


class _Pending:
    """A call without outcome: when its callee was last heard."""

    __slots__ = ("accepted", "heard", "outcome", "subject")

    def __init__(self, subject: str, now: float, outcome: asyncio.Future[Message]) -> None:
        self.subject = subject
        self.heard = now
        self.accepted = False
        self.outcome = outcome


class _Wait(NamedTuple):
    """What is awaited, and until when (``deadline`` on the loop's clock)."""

    agent: str
    reasoner: str
    execution_id: str
    timeout: float
    deadline: float


class Calls:
    """Makes calls over one connection. :meth:`aclose` fails those still pending."""

    def __init__(self, connection: Connection, *, silence: float = SILENCE) -> None:
        self._connection = connection
        self._silence = silence
        self._inbox = f"_INBOX.{new_id()}"
        self._pending: dict[str, _Pending] = {}
        self._subscription: Subscription | None = None
        self._subscribing = asyncio.Lock()
        self._up_since = -math.inf
        self._forget_listeners = (connection.on_state(self._on_state), connection.on_denied(self._on_denied))
        self._closed = False

    async def call(self, agent: str, reasoner: str, payload: bytes, *, execution: Execution, timeout: float) -> bytes:
        """Run ``reasoner`` of ``agent`` as ``execution`` with a JSON object of arguments; return the JSON result.

        ``timeout`` in seconds bounds the whole. Raises :class:`InvalidInputError` (too large, or the arguments do not
        fit: nothing ran), :class:`UnavailableError` (no connection: nothing was sent), :class:`AgentUnavailableError`,
        :class:`NotFoundError` (no such reasoner), :class:`RemoteError`, :class:`OutcomeUnknownError` (the time is up;
        the call may still be running), :class:`AccessDeniedError` (the server does not permit it: nothing ran). If the
        caller is cancelled, the callee is told and stops too.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        headers = {**to_headers(execution), CALL_HEADER: f"{timeout:g}"}
        subject = call_subject(self._connection.namespace, agent, reasoner)
        await self._ready(timeout)
        limit = self._connection.max_payload
        if message_size(payload, headers) > limit:
            raise InvalidInputError(
                f"the arguments of {agent}.{reasoner} are {len(payload):,} bytes of JSON, over the server's limit of "
                f"{limit:,} for one message; put the large one into memory and pass its key"
            )
        wait = _Wait(agent, reasoner, execution.execution_id, timeout, deadline)
        answer = await self._given(subject, payload, headers, wait, 0)
        for attempt in range(1, _ASKED):
            if not _is_refused(answer):
                break
            # Another instance may be of another version, whose reasoner takes these arguments.
            answer = await self._given(subject, payload, headers, wait, attempt)
        if _is_refused(answer):
            answer = await self._taken_by_one(payload, headers, wait) or answer
        if (seen := answer.headers.get(SEEN_HEADER, "")).isdecimal():
            execution.seen.saw(int(seen))
        if _is_failure(answer):
            failure = Failure.of(answer.headers, answer.payload)
            raise failure.error(agent=agent, reasoner=reasoner, execution_id=execution.execution_id)
        return answer.payload

    async def aclose(self) -> None:
        """Stop; calls still pending fail with :class:`ClosedError`. Idempotent."""
        self._closed = True
        for forget in self._forget_listeners:
            forget()
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.unsubscribe()
        for pending in self._pending.values():
            if not pending.outcome.done():
                pending.outcome.set_exception(ClosedError("closed while a call was waiting for its result"))

    async def _ready(self, timeout: float) -> None:
        if self._closed:
            raise ClosedError("this connection's calls are closed")
        await self._connection.wait_connected(max(timeout, 0.0))
        if self._subscription is None:
            async with self._subscribing:
                if self._subscription is None:
                    self._subscription = await self._connection.subscribe(f"{self._inbox}.*", self._on_reply)

    async def _given(self, subject: str, payload: bytes, headers: dict[str, str], wait: _Wait, attempt: int) -> Message:
        """What an instance answers. Raises if there is none."""
        loop = asyncio.get_running_loop()
        answer = await self._exchange(subject, payload, headers, wait, attempt)
        while answer.status == _NOBODY:
            settled = loop.time() > min(self._up_since + _SETTLING, wait.deadline - _DISCOVERY)
            await self._explain_absence(wait, final=settled)
            await asyncio.sleep(_ABSENT_PAUSE)
            answer = await self._exchange(subject, payload, headers, wait, attempt)
            if answer.status == _NOBODY and settled:
                raise AgentUnavailableError(
                    f"agent {wait.agent!r} is just stopping or starting; nothing ran", agent=wait.agent
                )
        return answer

    async def _taken_by_one(self, payload: bytes, headers: dict[str, str], wait: _Wait) -> Message | None:
        """The answer of an instance that does not refuse the arguments, if there is one; asks them one by one."""
        namespace = self._connection.namespace
        for attempt, info in enumerate(await find_all(self._connection, name=wait.agent), _ASKED):
            if any(endpoint.name == wait.reasoner for endpoint in info.endpoints):
                subject = instance_subject(namespace, wait.agent, wait.reasoner, info.id)
                answer = await self._exchange(subject, payload, headers, wait, attempt)
                if answer.status != _NOBODY and not _is_refused(answer):
                    return answer
        return None

    async def _exchange(
        self, subject: str, payload: bytes, headers: dict[str, str], wait: _Wait, attempt: int
    ) -> Message:
        loop = asyncio.get_running_loop()
        await self._connection.wait_connected(max(wait.deadline - loop.time(), 0.0))
        token = f"{wait.execution_id}-{attempt}"  # an outcome may be repeated: it is not the next attempt's
        pending = self._pending[token] = _Pending(subject, loop.time(), loop.create_future())
        try:
            reply = f"{self._inbox}.{token}"
            await self._connection.publish(subject, payload, dict(headers), reply=reply)
            return await self._outcome(pending, wait)
        except (asyncio.CancelledError, ClosedError):
            await self._give_up(wait)
            raise
        finally:
            del self._pending[token]

    async def _outcome(self, pending: _Pending, wait: _Wait) -> Message:
        loop = asyncio.get_running_loop()
        while not pending.outcome.done():
            now = loop.time()
            if now >= wait.deadline:
                raise OutcomeUnknownError(
                    f"{wait.agent}.{wait.reasoner} gave no result within {wait.timeout:g} s; it may still be running "
                    f"(execution {wait.execution_id})",
                    execution_id=wait.execution_id,
                )
            wake = now + _RECHECK
            if self._connection.state == "connected":
                wake = max(pending.heard, self._up_since) + self._silence
                if now >= wake:
                    await self._give_up(wait)
                    raise self._silent(pending, wait)
            wake = min(wake, wait.deadline)
            await asyncio.wait({pending.outcome}, timeout=wake - now)
            if loop.time() - wake > _LATE:
                pending.heard = loop.time()
        return pending.outcome.result()

    def _silent(self, pending: _Pending, wait: _Wait) -> AgentUnavailableError:
        if pending.accepted:
            text = (
                f"the instance of agent {wait.agent!r} that ran {wait.reasoner!r} has been silent for "
                f"{self._silence:g} s and is taken for dead; part of its work may be done"
            )
        else:
            text = (
                f"agent {wait.agent!r} did not confirm the call of {wait.reasoner!r} within {self._silence:g} s; the "
                "instance that was given it is taken for dead, and may or may not have begun"
            )
        return AgentUnavailableError(text, agent=wait.agent, started=True, execution_id=wait.execution_id)

    async def _explain_absence(self, wait: _Wait, *, final: bool) -> None:
        """Say who is missing: the agent, or the reasoner. Returns if both are there after all, having just come.

        Also returns if the agent is missing and this is not ``final``.
        """
        agent, reasoner = wait.agent, wait.reasoner
        info = await find(self._connection, agent, timeout=_DISCOVERY)
        if info is None:
            if not final:
                return
            raise AgentUnavailableError(
                f"no agent {agent!r} is running in namespace {self._connection.namespace!r}; nothing ran: start it, or "
                "check its name",
                agent=agent,
            )
        names = sorted(endpoint.name for endpoint in info.endpoints)
        if reasoner not in names:
            known = f"it has {', '.join(names)}" if names else "it has none"
            raise NotFoundError(f"agent {agent!r} has no reasoner {reasoner!r}: {known}")

    async def _give_up(self, wait: _Wait) -> None:
        """Tell the callee that nobody waits any more; best effort."""
        try:
            subject = cancel_subject(self._connection.namespace, wait.agent)
            await self._connection.publish(subject, wait.execution_id.encode())
        except (UnavailableError, ClosedError) as error:
            logger.debug("could not tell %s to stop execution %s: %s", wait.agent, wait.execution_id, error)

    async def _on_reply(self, message: Message) -> None:
        if message.reply:
            await self._connection.publish(message.reply)  # an outcome, perhaps a repeated one: we have it
        pending = self._pending.get(message.subject.rpartition(".")[2])
        if pending is None or pending.outcome.done():
            return
        if message.headers.get(STATUS_HEADER) == WORKING:
            pending.accepted = True
            pending.heard = asyncio.get_running_loop().time()
        else:
            pending.outcome.set_result(message)

    def _on_denied(self, subject: str) -> None:
        for pending in self._pending.values():
            if pending.subject.lower() == subject and not pending.outcome.done():
                pending.outcome.set_exception(
                    AccessDeniedError(
                        f"the server does not permit publishing to {pending.subject!r}; nothing ran",
                        subject=pending.subject,
                    )
                )

    def _on_state(self, state: ConnectionState) -> None:
        if state == "connected":
            self._up_since = asyncio.get_running_loop().time()


def _is_refused(message: Message) -> bool:
    """Whether the arguments do not fit the reasoner of the instance that answered, so that nothing ran."""
    return _is_failure(message) and Failure.of(message.headers, message.payload).kind == INVALID_ARGUMENTS


def _is_failure(message: Message) -> bool:
    status = message.headers.get(STATUS_HEADER)
    return status != DONE and (status is not None or ERROR_CODE_HEADER in message.headers)
