"""The side of a call that runs it: one agent instance as a NATS micro service.

Owns: the endpoint subscriptions of one instance (a queue group, so instances of one name share the calls), one task for
each call in progress, their heartbeats, and the delivery of every outcome until the caller has acknowledged it. Must
not know: what a reasoner is; it is handed one function that runs a call. Invariants: a call that was delivered to this
instance gets an outcome even across a reconnect; a graceful stop loses none; no task outlives :meth:`Service.drain`,
but for reasoners that will not be cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial

from agentfield.amount import number_of
from agentfield.ending import end
from agentfield.errors import ClosedError, InvalidInputError, UnavailableError, text_of
from agentfield.execution import Execution, from_headers, new_id
from agentfield.fabric.calling.micro import QUEUE, Endpoint, Monitor
from agentfield.fabric.calling.offer import Offer
from agentfield.fabric.calling.protocol import (
    BUSY,
    CALL_HEADER,
    DONE,
    HEARTBEAT,
    INVALID_ARGUMENTS,
    RAISED,
    SEEN_HEADER,
    SILENCE,
    STATUS_HEADER,
    STOPPED,
    WORKING,
    ArgumentsRefused,
    Failure,
    cancel_subject,
    instance_subject,
    message_size,
)
from agentfield.fabric.wire.connection import Connection
from agentfield.fabric.wire.message import Message
from agentfield.fabric.wire.subscription import Subscription

logger = logging.getLogger("agentfield.calls")

Runner = Callable[[str, bytes, Execution | None], Awaitable[bytes]]
"""Runs a call: endpoint name, JSON arguments, the execution the caller gave it (None for a plain NATS request). Returns
the JSON result; raises :class:`ArgumentsRefused` before running anything, or whatever the reasoner raised."""

CONCURRENT_CALLS = 1_000
"""Calls one instance runs at once; more are refused as busy, which a caller can act on, rather than queued unseen."""

_STOPPED_NOTICE = 5.0
"""Seconds that calls cut off at the end of the grace period have to tell their callers."""


class _Call:
    """One call in progress."""

    __slots__ = ("execution", "given_up", "id", "message", "name", "patience", "task")

    def __init__(self, name: str, message: Message, execution: Execution | None, patience: float) -> None:
        self.name = name
        self.message = message
        self.execution = execution
        self.id = execution.execution_id if execution is not None else new_id()
        self.patience = patience  # seconds the caller waits; 0 for one that wants a single plain reply
        self.given_up = False
        self.task: asyncio.Task[None] | None = None

    def seen(self) -> dict[str, str]:
        """The header that tells the caller how far this call has seen the log."""
        return {} if self.execution is None else {SEEN_HEADER: str(self.execution.seen.revision)}


class Service:
    """An agent instance that takes calls between :meth:`start` and :meth:`drain`."""

    def __init__(
        self,
        connection: Connection,
        *,
        name: str,
        version: str,
        description: str,
        endpoints: Iterable[Endpoint],
        runner: Runner,
        handlers: Sequence[str] = (),
        limit: int = CONCURRENT_CALLS,
    ) -> None:
        self.name = name
        self._connection = connection
        self._endpoints = tuple(endpoints)
        self._runner = runner
        self._limit = limit
        self._monitor = Monitor(
            connection,
            name=name,
            version=version,
            description=description,
            endpoints=self._endpoints,
            handlers=handlers,
        )
        self._subscriptions: list[Subscription] = []
        self._cancellations: Subscription | None = None
        self._running: dict[str, _Call] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._heart: asyncio.Task[None] | None = None
        self._draining = False
        self._stopping = False

    @property
    def id(self) -> str:
        """The id of this instance, as discovery shows it."""
        return self._monitor.id

    @property
    def running(self) -> int:
        """How many calls are running."""
        return len(self._running)

    async def start(self) -> None:
        """Take calls, and be discoverable when this returns. Nothing is left behind after a failure."""
        try:
            self._heart = asyncio.create_task(self._beat(), name=f"agentfield heartbeats of {self.name}")
            self._cancellations = await self._connection.subscribe(
                cancel_subject(self._connection.namespace, self.name), self._on_cancel
            )
            for endpoint in self._endpoints:
                self._subscriptions.append(
                    await self._connection.subscribe(
                        endpoint.subject, partial(self._on_request, endpoint.name), queue=QUEUE
                    )
                )
            if self._endpoints:
                mine = instance_subject(self._connection.namespace, self.name, "*", self.id)
                self._subscriptions.append(await self._connection.subscribe(mine, self._on_request_of_ours))
            await self._monitor.start()
            await self._connection.flush()
        except BaseException:
            await self.drain(0.0)
            raise

    async def drain(self, grace: float) -> None:
        """Take no new calls, finish those delivered, then stop. Idempotent.

        Calls that still run after ``grace`` seconds are cancelled, and their callers told so. When this returns, no
        task is left but those of reasoners that catch their cancellation each time; these are reported.
        """
        self._draining = True
        try:
            await self._monitor.stop()
            subscriptions, self._subscriptions = self._subscriptions, []
            await asyncio.gather(*(each.drain() for each in subscriptions))
            await self._finish(grace)
        finally:
            cancellations, self._cancellations = self._cancellations, None
            if cancellations is not None:
                await cancellations.unsubscribe()
            left = [*self._tasks, *([self._heart] if self._heart is not None else [])]
            self._heart = None
            for task in await end(left):
                logger.error(
                    "%s catches its cancellation and goes on: it is left to itself; let what catches "
                    "asyncio.CancelledError raise it again", task.get_name(),
                )  # fmt: skip

    async def _finish(self, grace: float) -> None:
        if self._tasks and grace > 0:
            await asyncio.wait(set(self._tasks), timeout=grace)
        if self._running:
            names = ", ".join(sorted({call.name for call in self._running.values()}))
            logger.warning(
                "agent %s stops; %s did not finish: %s", self.name, number_of(len(self._running), "call"), names
            )
            self._stopping = True
            for call in list(self._running.values()):
                if call.task is not None:
                    call.task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=_STOPPED_NOTICE)

    # -- requests -----------------------------------------------------------------------------------------------------

    async def _on_request_of_ours(self, message: Message) -> None:
        name = message.subject.split(".")[-2]
        if any(endpoint.name == name for endpoint in self._endpoints):
            await self._on_request(name, message)

    async def _on_request(self, name: str, message: Message) -> None:
        self._monitor.stats[name].requests += 1
        patience = _seconds(message.headers.get(CALL_HEADER))
        try:
            call = _Call(name, message, from_headers(message.headers), patience)
        except InvalidInputError as error:
            await self._refuse(_Call(name, message, None, patience), Failure(INVALID_ARGUMENTS, str(error)))
            return
        if call.id in self._running:
            return  # the same message again; its outcome is on the way
        if len(self._running) >= self._limit or len(self._tasks) >= 2 * self._limit:
            await self._refuse(call, Failure(BUSY, self._busy_text()))
            return
        if call.patience:
            await self._say_working(call)  # before it starts: nothing runs that its caller has not heard of
        self._running[call.id] = call
        call.task = asyncio.create_task(self._serve(call), name=f"agentfield call {self.name}.{name} {call.id}")
        self._tasks.add(call.task)
        call.task.add_done_callback(self._tasks.discard)

    async def _refuse(self, call: _Call, failure: Failure) -> None:
        self._monitor.stats[call.name].count(0, failure.message)
        await self._publish(call, failure.payload(), failure.headers())

    def _busy_text(self) -> str:
        return f"agent {self.name!r} is busy: this instance runs {len(self._running):,} calls already; try again later"

    async def _on_cancel(self, message: Message) -> None:
        call = self._running.get(message.payload.decode("utf-8", "replace"))
        if call is not None and call.task is not None:
            logger.info("%s.%s: its caller gave execution %s up", self.name, call.name, call.id)
            call.given_up = True
            call.task.cancel()

    async def _serve(self, call: _Call) -> None:
        began = time.perf_counter_ns()
        failure: Failure | None = None
        result = b""
        try:
            result = await self._runner(call.name, call.message.payload, call.execution)
            failure = self._too_large(call, result)
        except ArgumentsRefused as error:
            failure = Failure(INVALID_ARGUMENTS, str(error))
        except asyncio.CancelledError:
            failure = self._cancelled(call)
        except (Exception, SystemExit) as error:  # whatever a reasoner raises belongs to its caller
            said, kind = text_of(error), type(error).__name__
            logger.warning(
                "%s.%s raised %s: %s (execution %s)", self.name, call.name, kind, said, call.id, exc_info=True
            )
            failure = Failure(RAISED, said, kind)
        finally:
            self._running.pop(call.id, None)
        elapsed = time.perf_counter_ns() - began
        self._monitor.stats[call.name].count(elapsed, failure and f"{failure.type_name} {failure.message}".strip())
        if call.given_up:
            return
        if failure is None:
            await self._deliver(call, result, {STATUS_HEADER: DONE} | call.seen())
        else:
            await self._deliver(call, failure.payload(), failure.headers() | call.seen())

    def _too_large(self, call: _Call, result: bytes) -> Failure | None:
        limit = self._connection.max_payload
        if message_size(result, {STATUS_HEADER: DONE} | call.seen()) <= limit:
            return None
        return Failure(
            RAISED,
            f"the result is {len(result):,} bytes of JSON, over the server's limit of {limit:,} for one message; "
            "put it into memory and return its key",
            "InvalidInputError",
        )

    def _cancelled(self, call: _Call) -> Failure:
        if self._stopping or call.given_up:
            return Failure(STOPPED, f"agent {self.name!r} stopped before {call.name!r} was finished")
        return Failure(RAISED, "the reasoner was cancelled from inside", "CancelledError")

    # -- replies ------------------------------------------------------------------------------------------------------

    async def _deliver(self, call: _Call, payload: bytes, headers: dict[str, str]) -> None:
        if not call.patience:
            await self._publish(call, payload, headers)
            return
        offer = Offer(call.message.reply, payload, headers, call.patience)
        reason = await offer.made(self._connection, hurried=lambda: self._draining)
        if reason is not None:
            logger.warning("the reply of %s.%s (execution %s) was dropped: %s", self.name, call.name, call.id, reason)

    async def _say_working(self, call: _Call) -> None:
        await self._publish(call, b"", {STATUS_HEADER: WORKING})

    async def _publish(self, call: _Call, payload: bytes, headers: dict[str, str]) -> None:
        if not call.message.reply:
            return  # sent with a plain publish: nobody wants to hear
        try:
            await self._connection.publish(call.message.reply, payload, headers)
        except (UnavailableError, ClosedError) as error:
            logger.debug("%s.%s: %s", self.name, call.name, error)

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + HEARTBEAT
            await asyncio.sleep(HEARTBEAT)
            if (late := loop.time() - due) > SILENCE / 2:
                logger.warning(
                    "agent %s: something blocked the event loop for %.0f s, and callers give up after %.0f s of "
                    "silence; write a reasoner that blocks as a plain `def`, which runs in a thread",
                    self.name,
                    late,
                    SILENCE,
                )
            for call in list(self._running.values()):
                if call.patience:
                    await self._say_working(call)


def _seconds(text: str | None) -> float:
    try:
        return max(float(text), 0.0) if text else 0.0
    except ValueError:
        return 0.0
