"""One durable consumer with one active instance: order per key, hot standbys, nothing missed.

Owns: competing for the pin (``priority_policy: pinned_client``) and keeping it, the lease that tells an instance
whether it is still the active one, and the floor up to which everything has been handled.
Must not know: what an event means or how it is handled. Invariants:

* An instance hands out events only while it holds the pin, by its own monotonic clock, counted from when it *sent* the
  last pull that the server accepted: a process that was paused for longer hands out nothing on waking.
* Whoever gains the pin first resets the consumer to its acknowledged floor. So what the previous instance had received
  and not finished comes again, in order, before anything newer.
* When nothing has come for some seconds, the pin is not renewed any more: the server gives one to whoever is there with
  the next event. If that is the instance that had it, and the consumer stands where it left it, it just goes on.
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
from collections.abc import Mapping
from typing import Any, NamedTuple

from agentfield.errors import AccessDeniedError, AgentFieldError, ClosedError
from agentfield.fabric.consumers.acknowledging import Acknowledging
from agentfield.fabric.consumers.consuming import ConsumerSpec, Item, Shortened
from agentfield.fabric.consumers.durable import GROUP, PIN_TIMEOUT, Durable
from agentfield.fabric.consumers.gaps import Gaps
from agentfield.fabric.consumers.handing import Handing
from agentfield.fabric.consumers.progress import Progress
from agentfield.fabric.consumers.pulling import PIN, Pulls
from agentfield.fabric.consumers.turn import Turn
from agentfield.fabric.faults import Fault, ServerFault, Verdict, error_of
from agentfield.fabric.jetstream import backoff
from agentfield.fabric.log import Log
from agentfield.fabric.wire.connection import ConnectionState
from agentfield.fabric.wire.message import Message

__all__ = ["GROUP", "PIN_TIMEOUT", "PinnedConsumer"]

logger = logging.getLogger("agentfield.consumer")

_STANDBY_PULL = 20.0
"""Seconds that a pull stays open, where nobody is active; and between looks at whether somebody is."""
_BESIDE_PULL = 1.0
"""Seconds that one stays open beside an active instance. When that one dies, the server pins whoever pulled first: a
standby that cannot answer, as it is paused or cut off, must be forgotten by then, or another pin has to end as well."""
_CALM = 5
"""Looks in a row at which nobody was active, after which it is likely to stay so."""
_SILENCE = 2.5
"""Seconds beyond the end of a standby's pull after which it counts as lost."""
_MARGIN = 0.5
"""Seconds that the last pull of a pin that is not renewed stays open beyond it."""
_LEAVE = 2.0
"""Seconds that each step of leaving may take; a standby that nobody tells takes over after the pin's end."""


class _Stand(NamedTuple):
    """Where the server says that a consumer stands."""

    delivered: int
    acknowledged: int
    floor: int

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> _Stand:
        """Whatever another instance has handled since shows: its turn counts anew, and moves the floor."""
        delivered, acknowledged = info["delivered"], info["ack_floor"]
        return cls(delivered["consumer_seq"], acknowledged["consumer_seq"], acknowledged["stream_seq"])


class PinnedConsumer:
    """An instance of a durable consumer: a :class:`~agentfield.fabric.consumers.consuming.Consumer`.

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
        self._handing = Handing(self._progress)
        self._acks = Acknowledging(log.connection, spec.name, lambda: self._handing.active)
        self._turn: Turn | None = None
        self._rest: _Stand | None = None
        """Where the consumer stood when the last turn had nothing more to do; None if nobody knows."""
        self._former_pin = ""
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
        return self._handing.active

    async def next(self) -> Item:
        """What to do next. Waits while there is nothing, and while it is uncertain whether we are still active."""
        return await self._handing.next()

    def done(self, sequence: int) -> None:
        """The event has been handled (or given up for good): it may be acknowledged when all before it are, too."""
        progress = self._progress
        was_full = progress.is_full
        advance = progress.done(sequence)
        room = was_full and not progress.is_full
        if (room or not progress.outstanding) and self._turn is not None:
            self._turn.moved(room=room)
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
        return self._handing.surely_ours(sequence)

    async def still_ours(self, sequence: int) -> bool:
        """Whether an event handed out earlier is still this instance's to handle; waits while that is uncertain.

        When it is not, the event is forgotten here: the instance that is active now handles it.
        """
        return await self._handing.still_ours(sequence)

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
        self._handing.draining = True
        await self._progress.idle()

    async def leave(self) -> None:
        """Acknowledge what is done and let a standby take over at once. Call after ``run`` has ended."""
        self._acks.now()
        await self._acks.sent()
        pinned = self.active or self._handing.is_new
        self._handing.pin = ""
        self._acks.forget()
        pinned = await self._pulls.end(_LEAVE) or pinned
        if pinned and self._connection.state == "connected":
            try:
                await self._connection.flush(_LEAVE)  # the acknowledgement first
                if self._turn is not None and self._turn.fed:
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
                    if self._handing.draining:
                        await asyncio.Event().wait()  # until cancelled: whoever is leaving competes no more
                    message = await self._acquire()
                    attempt = 0
                    await self._hold(message)
                except ClosedError:
                    raise
                except (Fault, AgentFieldError, TimeoutError) as error:
                    logger.log(_level(error), "consumer %s: %r", self._spec.name, error)
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

    async def _acquire(self) -> Message:
        """Wait as a standby until the server pins this instance: it does so with an event, which is returned."""
        await self._pulls.open_inbox()
        advisories = await self._pulls.hear_of_unpinning()
        try:
            if self._turn is not None:  # for the last time: until this pin ends, no other pull gets an event
                await self._pulls.request(pin=self._handing.pin, batch=1, expires=PIN_TIMEOUT + _MARGIN)
            free, look = _CALM if self._turn is not None else 0, 0.0
            while True:
                expires = _STANDBY_PULL if free >= _CALM else _BESIDE_PULL
                number = await self._pulls.request(pin="", batch=1, expires=expires)
                if self._loop.time() >= look:
                    free = 0 if await self._free_unfinished() else free + 1
                    look = self._loop.time() + (0 if free else _STANDBY_PULL)
                while True:
                    message = await self._pulls.receive(expires + _SILENCE)
                    if self._pulls.says_unpinned(message):
                        await self._free_unfinished()
                    elif not message.status:
                        if not (pin := message.headers.get(PIN)):
                            raise ServerFault(500, 0, f"the consumer {self._spec.name} does not pin its client")
                        self._handing.begin(pin)
                        return message
                    elif self._pulls.says_other_pin(message):
                        continue  # to the last pull of the pin that was not renewed
                    elif self._pulls.ends(message, number):
                        break
        finally:
            if advisories is not None:
                await advisories.unsubscribe()

    async def _free_unfinished(self) -> bool:
        """Where nobody is active and something was delivered and never acknowledged, have it delivered again.

        The server pins a client only when it has something to deliver. What an instance had received when it died, or
        lost its connection, would otherwise wait for the next event. Returns whether another instance is active.
        """
        last = self._log.last_known
        info = await self._durable.ask("INFO")
        self._durable.note(info)
        pinned = _pinned(info)
        if not info["num_pending"] and not info["num_ack_pending"]:
            self._gaps.nothing_until(last)
            if pinned and pinned == self._handing.pin:
                self._rest = _Stand.of(info)
        if pinned and pinned == self._former_pin:
            await self._durable.ask("UNPIN", {"group": GROUP})  # that was us, before we lost the connection
            pinned = ""
        if info["num_ack_pending"] and not pinned:
            await self._durable.ask("RESET")
        return bool(pinned) and pinned != self._handing.pin

    async def _hold(self, message: Message) -> None:
        """Be the active instance, which the message made us, until nothing has come for a while.

        Ends with an error when the pin is lost or in doubt.
        """
        pin = self._handing.pin
        turn, rest, self._rest = self._turn, self._rest, None
        if turn is not None and rest is not None and await self._stands(rest, turn):
            turn.take(message)
        else:
            self._forget()
            self._handing.begin(pin)
            turn = await self._take_over()
        await turn.go_on()

    async def _stands(self, rest: _Stand, turn: Turn) -> bool:
        """Whether the consumer stands where our last turn left it, but for the one event that has just come."""
        await self._pulls.open_inbox()
        await turn.renew()
        info = await self._durable.ask("INFO")
        one = rest._replace(delivered=rest.delivered + 1)
        return _pinned(info) == self._handing.pin and info["num_ack_pending"] == 1 and _Stand.of(info) == one

    async def _take_over(self) -> Turn:
        """Begin a turn at the floor: what another instance had received and not finished comes again."""
        reset = await self._durable.ask("RESET")
        await self._pulls.open_inbox()
        floor = int(reset["reset_seq"]) - 1
        self._durable.note(reset)
        self._progress.raise_floor(floor)
        logger.info("consumer %s: active from sequence %d on", self._spec.name, floor + 1)
        self._turn = turn = Turn(
            self._log,
            self._spec,
            reset,
            handing=self._handing,
            durable=self._durable,
            pulls=self._pulls,
            acks=self._acks,
            gaps=self._gaps,
        )
        await turn.begin()
        return turn

    def _release(self) -> None:
        """The pin is lost or in doubt: what was received is forgotten, and comes again to whoever is active next."""
        if self._handing.pin:
            logger.info("consumer %s: no longer active", self._spec.name)
            self._former_pin = self._handing.pin
        self._forget()

    def _forget(self) -> None:
        self._turn = self._rest = None
        self._acks.forget()
        self._gaps.forget()
        self._handing.end()


def _pinned(info: Mapping[str, Any]) -> str:
    """By which the server knows the active instance of a consumer; empty if there is none."""
    return "".join(group.get("pinned_client_id") or "" for group in info.get("priority_groups") or ())


def _level(error: Exception) -> int:
    """How loudly to say why a turn has ended: what time and trying again may not mend must not pass in silence."""
    refused = isinstance(error, ServerFault) and error.verdict not in (Verdict.ABSENT, Verdict.RETRY)
    return logging.WARNING if refused or isinstance(error, AccessDeniedError) else logging.DEBUG
