"""One durable consumer with one active instance: order per key, hot standbys, nothing missed.

Owns: competing for the pin (``priority_policy: pinned_client``) and keeping it, the lease that tells an instance
whether it is still the active one, and the floor up to which everything has been handled.
Must not know: what an event means or how it is handled. Invariants:

* An instance hands out events only while it holds the pin, by its own monotonic clock, counted from when it *sent* the
  last pull that the server accepted: a process that was paused for longer hands out nothing on waking.
* Whoever gains the pin first resets the consumer to its acknowledged floor. So what the previous instance had received
  and not finished comes again, in order, before anything newer.
* Only a floor is acknowledged (``ack_policy: all``): every event at or below it has been handled. And only while the
  pin is surely ours: after a takeover the consumer counts anew, and an acknowledgement from before would mislead it.
* Until the floor has reached the seam of a consumer that begins with present values, the active instance reads these as
  of the seam and moves the floor by resetting the consumer to where it has come; only when all are done does it ask for
  events. So whoever takes over goes on there. In the same way it reads what lies far behind.

Source: NATS ADR-42 (priority groups); the server's ``CONSUMER.RESET`` and ``CONSUMER.UNPIN`` requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from typing import Any

from agentfield.codec import Record
from agentfield.errors import AccessDeniedError, AgentFieldError, ClosedError, ResyncRequired
from agentfield.fabric import records
from agentfield.fabric.acknowledging import Acknowledging
from agentfield.fabric.connection import ConnectionState, Message
from agentfield.fabric.consuming import WINDOW, Activated, Advance, ConsumerSpec, Item, Progress, Shortened
from agentfield.fabric.durable import GROUP, PIN_TIMEOUT, Durable
from agentfield.fabric.faults import Fault, ServerFault, error_of
from agentfield.fabric.feeding import Feeding
from agentfield.fabric.gaps import Gaps
from agentfield.fabric.jetstream import backoff
from agentfield.fabric.log import Log
from agentfield.fabric.pulling import Pulls

__all__ = ["GROUP", "PIN_TIMEOUT", "PinnedConsumer"]

logger = logging.getLogger("agentfield.consumer")

_PULL = 1.0
"""Seconds a pull stays open, or a little more or less; each new one renews the pin, so a third of its timeout."""
_SILENCE = 2.5
"""Seconds without a word on an open pull after which it counts as lost."""
_STANDBY_PULL = 20.0
_PIN = "Nats-Pin-Id"


class PinnedConsumer:
    """An instance of a durable consumer: a :class:`~agentfield.fabric.consuming.Consumer`.

    Taking slowly is fine: no more than a window of events is requested, and the pin is renewed meanwhile.
    """

    def __init__(self, log: Log, spec: ConsumerSpec, *, progress: Progress | None = None) -> None:
        self._log = log
        self._connection = log.connection
        self._spec = spec
        self._progress = progress or Progress()
        self._durable = Durable(log, spec, self._progress)
        self._gaps = Gaps(log, self._durable)
        self._pulls = Pulls(log.connection, log.stream, spec.name)
        self._acks = Acknowledging(log.connection, spec.name, lambda: self.active)
        self._feeding = Feeding(log, spec, self._durable, self._progress, lambda: self.active)
        self._fed = False
        self._pin = self._former_pin = ""
        self._lease_until = 0.0
        self._out: deque[Item] = deque()
        self._ready = asyncio.Event()
        self._received = 0
        self._pending = 0
        self._behind = self._was_behind = True
        self._pulled: list[int] = []
        self._draining = False
        self._certainty: set[asyncio.Future[None]] = set()
        self._loop = asyncio.get_running_loop()

    def successor(self) -> PinnedConsumer:
        """One that goes on where this one was."""
        return PinnedConsumer(self._log, self._spec, progress=self._progress.successor())

    async def ensure(self, *, declare: bool = True) -> None:
        """Create the consumer, or make an existing one hear what it should; where it stands is never changed.

        Without ``declare``, one that is there is left as it is: whoever declared it last may have meant something else.
        Raises :class:`UnavailableError` (nothing changed) when the server does not answer.
        """
        await self._durable.ensure(declare=declare)

    # -- the taker's side ---------------------------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether this instance surely holds the pin at this moment."""
        return bool(self._pin) and self._loop.time() < self._lease_until

    async def next(self) -> Item:
        """What to do next. Waits while there is nothing, and while it is uncertain whether we are still active."""
        while not self._out or self._draining or not self.active:
            self._ready.clear()
            await self._ready.wait()
        item = self._out.popleft()
        self._progress.begin(item)
        return item

    def done(self, sequence: int) -> None:
        """The event has been handled (or given up for good): it may be acknowledged when all before it are, too."""
        progress = self._progress
        was_full = progress.is_full
        advance = progress.done(sequence)
        if was_full and not progress.is_full:
            self._pulls.wake.set()
            self._feeding.moved.set()
        elif not progress.outstanding:
            self._feeding.moved.set()
        self._acks.floor(advance)

    def put_back(self, sequence: int) -> None:
        """The event was handed out and is not for this instance: it stays unhandled, and comes to whoever is next."""
        self._progress.end(sequence)

    @property
    def floor(self) -> int:
        """The sequence up to which everything is known to have been handled, by whichever instance; 0 for nothing."""
        return self._progress.floor or 0

    def is_begun(self, sequence: int) -> bool:
        """Whether the event was handed out here and is not done yet."""
        return self._progress.is_begun(sequence)

    def is_handled(self, sequence: int) -> bool:
        """Whether the event is known to have been handled, by whichever instance, or came before the beginning."""
        return self._progress.is_handled(sequence)

    async def learn_floor(self) -> None:
        """Ask the server how far the consumer has come: what another instance handles is known only from there.

        Raises :class:`UnavailableError` when the server does not answer.
        """
        await self._durable.learn()

    def surely_ours(self, sequence: int) -> bool:
        """Whether an event handed out earlier is at this moment, beyond doubt, this instance's to handle."""
        return self.active and self._progress.slot(sequence) is not None

    async def still_ours(self, sequence: int) -> bool:
        """Whether an event handed out earlier is still this instance's to handle; waits while that is uncertain.

        When it is not, the event is forgotten here: the instance that is active now handles it.
        """
        while self._progress.slot(sequence) is not None:
            if self.active:
                return True
            certain = self._loop.create_future()
            self._certainty.add(certain)
            try:
                await certain
            finally:
                self._certainty.discard(certain)
        self._progress.end(sequence)
        return False

    async def reported(self, gap: Shortened) -> None:
        """That the log was shortened has been reported, and need not be again, by no instance.

        Raises :class:`UnavailableError` when the server does not answer.
        """
        try:
            await self._durable.note_log_start(gap.first_available)
        except Fault as fault:
            raise error_of(fault, f"noting where the log begins for the consumer {self._spec.name}") from None

    async def drain(self) -> None:
        """Hand out nothing more, and return when every event handed out is done; the pin is kept meanwhile."""
        self._draining = True
        await self._progress.idle()

    async def leave(self) -> None:
        """Acknowledge what is done and let a standby take over at once. Call after ``run`` has ended."""
        self._acks.now()
        await self._acks.sent()
        pinned = self.active
        self._pin = ""
        self._acks.forget()
        await self._pulls.close()
        if pinned and self._connection.state == "connected":
            try:
                await self._connection.flush(2.0)  # the acknowledgement first
                if self._fed:
                    await self._durable.ask("RESET", {"seq": self.floor + 1})
                await self._durable.ask("UNPIN", {"group": GROUP})
            except (Fault, AgentFieldError) as error:
                logger.debug("consumer %s: leaving: %s", self._spec.name, error)

    # -- the puller's side --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Compete for the pin and keep it, until cancelled. Outlives outages and the deletion of the consumer."""
        forget = self._connection.on_state(self._on_state)
        attempt = 0
        try:
            while True:
                try:
                    await self._progress.idle()  # what we still handle must end before we may compete again
                    if self._draining:
                        await asyncio.Event().wait()  # until cancelled: whoever is leaving competes no more
                    pin = await self._acquire()
                    attempt = 0
                    await self._hold(pin)
                except ClosedError:
                    raise
                except (Fault, AgentFieldError, TimeoutError) as error:
                    level = logging.WARNING if isinstance(error, AccessDeniedError) else logging.DEBUG
                    logger.log(level, "consumer %s: %r", self._spec.name, error)
                    self._release()
                    await asyncio.sleep(backoff(attempt))
                    attempt += 1
                    await self._await_consumer()
        finally:
            forget()

    async def _await_consumer(self) -> None:
        """After a fault: wait for the connection, and see that the consumer is still there."""
        try:
            await self._connection.wait_connected(60.0)
            self._pulls.regained()
            await self.ensure(declare=False)
        except ClosedError:
            raise
        except AgentFieldError as error:
            logger.warning("consumer %s: %s; trying again", self._spec.name, error)

    def _on_state(self, state: ConnectionState) -> None:
        if state != "connected":
            self._pulls.lost()

    async def _acquire(self) -> str:
        """Wait as a standby until the server pins this instance. The event that tells so comes again later."""
        await self._pulls.open_inbox()
        advisories = await self._pulls.hear_of_unpinning()
        try:
            while True:
                number = await self._pulls.request(pin=self._pin, batch=1, expires=_STANDBY_PULL)
                await self._free_unfinished()
                while True:
                    message = await self._pulls.receive(_STANDBY_PULL + _SILENCE)
                    if self._pulls.says_unpinned(message):
                        await self._free_unfinished()
                    elif not message.status:
                        if not (pin := message.headers.get(_PIN)):
                            raise ServerFault(500, 0, f"the consumer {self._spec.name} does not pin its client")
                        return pin
                    elif self._pulls.ends(message, number):
                        break
        finally:
            if advisories is not None:
                await advisories.unsubscribe()

    async def _free_unfinished(self) -> None:
        """Where nobody is active and something was delivered and never acknowledged, have it delivered again.

        The server pins a client only when it has something to deliver. What an instance had received when it died, or
        lost its connection, would otherwise wait for the next event.
        """
        last = self._log.last_known
        info = await self._durable.ask("INFO")
        self._durable.note(info)
        if not info["num_pending"] and not info["num_ack_pending"]:
            self._gaps.nothing_until(last)
        pinned = "".join(group.get("pinned_client_id") or "" for group in info.get("priority_groups") or ())
        if pinned and pinned == self._former_pin:
            await self._durable.ask("UNPIN", {"group": GROUP})  # that was us, before we lost the connection
            pinned = ""
        if info["num_ack_pending"] and not pinned:
            await self._durable.ask("RESET")

    async def _hold(self, pin: str) -> None:
        reset = await self._durable.ask("RESET")
        await self._pulls.open_inbox()
        floor = int(reset["reset_seq"]) - 1
        self._durable.note(reset)
        self._progress.raise_floor(floor)
        self._received, self._pending = floor, int(reset["num_pending"])
        self._pin, self._lease_until = pin, 0.0
        logger.info("consumer %s: active from sequence %d on", self._spec.name, floor + 1)
        await self._look_for_gap(floor, exact=False)
        if (seam := self._durable.seam) is not None and floor < seam:
            info = await self._feed(self._feeding.present(floor, seam, self._take_present))
            floor = self._received = seam
            self._pending = int(info["num_pending"])
        self._emit(Activated(floor))
        self._behind = True
        while True:
            sent = self._loop.time()
            if self._draining or self._progress.is_full:
                await self._keep_pin(sent)
                await self._room(max(_PULL / 10, sent + _PULL - self._loop.time()))
                self._behind = True
            elif self._feeding.pays(self._pending):
                await self._catch_up()
            else:
                await self._pull_events(sent)

    async def _pull_events(self, sent: float) -> None:
        """One pull, for as many events as there is room for."""
        received, last, room = self._received, self._log.last_known, WINDOW - self._progress.outstanding
        self._was_behind, self._pulled = self._behind, []
        number = await self._pulls.request(pin=self._pin, batch=room, expires=self._until_turn())
        await self._answers(number, sent, room)
        if self._was_behind:
            await self._look_for_gap(received)
        if not self._pulled:  # there was nothing: not at the end of this pull, nor at its beginning
            self._gaps.nothing_until(last)
            self._behind = False

    def _until_turn(self) -> float:
        """About so long a pull stays open: all of one connection end together, so that one wake-up renews them all."""
        left = _PULL * (1 - (self._loop.time() / _PULL + self._connection.phase) % 1)
        return left if left > _PULL / 4 else left + _PULL

    async def _catch_up(self) -> None:
        """Hand out what lies far behind. From here on the consumer counts anew: no old acknowledgement is sent."""
        self._acks.forget()
        self._progress.forget_replies()
        self._pulled = []
        start = max(self._received + 1, self._gaps.log_start)
        self._pending, self._behind = 0, True
        try:
            info = await self._feed(self._feeding.backlog(start, self._take))
            self._pending = int(info["num_pending"])
        except ResyncRequired:
            await self._look_for_gap(self._received)
            await self._durable.ask("RESET", {"seq": self.floor + 1})
        except AccessDeniedError as error:
            logger.info(
                "consumer %s: catching up takes longer without the permission to read: %s", self._spec.name, error
            )
            self._feeding.forbid()
            await self._durable.ask("RESET", {"seq": self.floor + 1})

    async def _feed(self, feeding: Coroutine[Any, Any, Any]) -> Any:
        """Hand out what does not come by pulls, and return when that has ended; the pin is kept meanwhile."""
        self._fed = True
        task = asyncio.create_task(feeding, name=f"feeding {self._spec.name}")
        try:
            while not task.done():
                sent = self._loop.time()
                await self._keep_pin(sent)
                await asyncio.wait([task], timeout=max(_PULL / 10, sent + _PULL - self._loop.time()))
            outcome = await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._fed = False
        return outcome

    async def _keep_pin(self, sent: float) -> None:
        """A pull that no event can satisfy still renews the pin: the server answers it with a status."""
        number = await self._pulls.request(pin=self._pin, batch=1, expires=_PULL, max_bytes=1)
        await self._answers(number, sent, 1)

    async def _answers(self, number: int, sent: float, owed: int) -> None:
        """Everything that one pull brings, until the server ends it or it is complete; each answer proves the lease."""
        while owed > 0:
            message = await self._pulls.receive(_SILENCE)
            ended = bool(message.status) and self._pulls.ends(message, number)
            if message.status and not ended:
                continue
            self._lease_until = sent + PIN_TIMEOUT
            self._ready.set()
            if self._certainty:
                self._wake_uncertain()
            if ended:
                return
            owed -= 1
            self._accept(message)

    def _accept(self, message: Message) -> None:
        delivery = records.of_consumer(message)
        sequence = delivery.record.sequence
        self._pending = delivery.pending
        if sequence <= self._received:
            self._accept_again(sequence, delivery.reply)
            return
        self._received = sequence
        self._pulled.append(sequence)
        self._behind = delivery.pending > 0
        self._was_behind = self._was_behind or self._behind
        self._emit(self._progress.receive(delivery.record, delivery.reply))

    def _accept_again(self, sequence: int, reply: str) -> None:
        """What we have already came again: the consumer was reset. From now on only its new replies count."""
        if not self._progress.renew(sequence, reply) and sequence <= self.floor:
            self._acks.floor(Advance(1, reply))

    def _take(self, record: Record) -> None:
        self._received = record.sequence
        self._emit(self._progress.receive(record))

    def _take_present(self, record: Record, previous: Record | None) -> None:
        self._emit(self._progress.receive_present(record, previous))

    def _emit(self, item: Item) -> None:
        self._out.append(item)
        self._ready.set()

    async def _look_for_gap(self, received: int, *, exact: bool = True) -> None:
        gap = await self._gaps.look(received, self._pulled, exact=exact)
        if gap is not None:
            self._emit(gap)

    def _release(self) -> None:
        """The pin is lost or in doubt: forget what was received; what is being handled is finished by the taker."""
        if self._pin:
            logger.info("consumer %s: no longer active", self._spec.name)
            self._former_pin = self._pin
        self._pin = ""
        self._acks.forget()
        self._gaps.forget()
        self._out.clear()
        self._progress.release()
        self._fed, self._pulled = False, []
        self._wake_uncertain()

    def _wake_uncertain(self) -> None:
        for certain in self._certainty:
            if not certain.done():
                certain.set_result(None)

    async def _room(self, seconds: float) -> None:
        """Wait until there is room in the window, at most until the pin wants renewing."""
        wake = self._pulls.wake
        try:
            async with asyncio.timeout(seconds):
                while self._draining or self._progress.is_full:
                    wake.clear()
                    await wake.wait()
        except TimeoutError:
            return
