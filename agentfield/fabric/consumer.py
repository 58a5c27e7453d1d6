"""One durable consumer with one active instance: order per key, hot standbys, nothing missed.

Owns: the pinned pull protocol (``priority_policy: pinned_client``, by raw requests: nats-py has no helper for it), the
lease that tells an instance whether it is still the active one, and the floor up to which everything has been handled.
Must not know: what an event means or how it is handled. Invariants:

* An instance hands out events only while it holds the pin, by its own monotonic clock, counted from when it *sent* the
  last pull that the server accepted: a process that was paused for longer hands out nothing on waking.
* Whoever gains the pin first resets the consumer to its acknowledged floor. So what the previous instance had received
  and not finished comes again, in order, before anything newer.
* Only a floor is acknowledged (``ack_policy: all``): every event at or below it has been handled. And only while the
  pin is surely ours: after a takeover the consumer counts anew, and an acknowledgement from before would mislead it.

Source: NATS ADR-42 (priority groups); the server's ``CONSUMER.RESET`` and ``CONSUMER.UNPIN`` requests.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from agentfield.codec import Record
from agentfield.errors import AccessDeniedError, AgentFieldError, ClosedError, UnavailableError
from agentfield.fabric import records
from agentfield.fabric.client import DESCRIPTION
from agentfield.fabric.connection import Connection, ConnectionState, Message, Subscription
from agentfield.fabric.faults import Fault, NoAnswerFault, NoRespondersFault, ServerFault, Verdict, error_of
from agentfield.fabric.jetstream import API, api, backoff, ends_pull

logger = logging.getLogger("agentfield.consumer")

GROUP = "active"
PIN_TIMEOUT = 3.0
"""Seconds without a pull after which the server lets a standby take over."""
_PULL = 1.0
"""Seconds a pull stays open; each new one renews the pin, so a third of its timeout."""
_SILENCE = 2.5
"""Seconds without a word on an open pull after which it counts as lost."""
_STANDBY_PULL = 20.0
WINDOW = 1000
"""Events that may be received and not yet handled."""
_WINDOW_BYTES = 16 * 1024 * 1024
_REFILL = WINDOW // 4
"""Pull again when this much room has come free, so that requests stay few under load."""
_ACK_EVERY = 250
_ACK_DELAY = 0.05
"""Seconds until a floor is acknowledged at the latest: what a kill -9 can make come again."""
_ACK_WAIT = 24 * 3600
"""Seconds until the server redelivers by itself. Long: on takeover the reset redelivers, in order; a redelivery while
the instance lives could only come out of order."""
_PIN = "Nats-Pin-Id"
_UNPINNED = "$JS.EVENT.ADVISORY.CONSUMER.UNPINNED"
_WRONG_PIN = 423


@dataclass(frozen=True, slots=True)
class Activated:
    """This instance is now the active one. Every event up to ``floor`` has been handled, by whomever."""

    floor: int


@dataclass(frozen=True, slots=True)
class Received:
    """An event to handle, in the order of the log. ``handled``: this instance did, before an interruption: skip it."""

    record: Record
    handled: bool


class _Slot:
    """An event received and not yet below the acknowledged floor."""

    __slots__ = ("done", "reply", "sequence", "size")

    def __init__(self, sequence: int, reply: str, size: int) -> None:
        self.sequence = sequence
        self.reply = reply
        self.size = size
        self.done = False


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """A durable consumer: its name, what it hears, where it begins if it is new, and what operators should see."""

    stream: str
    name: str
    filters: tuple[str, ...]
    start: Mapping[str, Any]
    """The server's deliver policy for a new consumer, e.g. ``{"deliver_policy": "new"}``."""
    description: str = ""
    metadata: Mapping[str, str] | None = None

    def config(self) -> dict[str, Any]:
        """The configuration under the server's names."""
        return {
            "durable_name": self.name,
            "name": self.name,
            "description": self.description,
            "metadata": dict(self.metadata or {}),
            "ack_policy": "all",
            "ack_wait": int(_ACK_WAIT * 1e9),
            "max_deliver": -1,
            "max_ack_pending": -1,  # the window bounds it; a limit here would stop a consumer whose floor lags
            "max_waiting": 512,
            "filter_subjects": list(self.filters),
            "priority_groups": [GROUP],
            "priority_policy": "pinned_client",
            "priority_timeout": int(PIN_TIMEOUT * 1e9),
            **self.start,
        }


class PinnedConsumer:
    """An instance of a durable consumer. ``ensure`` it, ``run`` it in a task of yours, take from ``next``.

    ``next`` yields :class:`Activated` and :class:`Received`; report each received event with :meth:`done`. Taking
    slowly is fine: no more than a window of events is requested, and the pin is renewed meanwhile. To stop: end taking,
    :meth:`drain`, then cancel ``run`` and :meth:`leave`.
    """

    def __init__(self, connection: Connection, spec: ConsumerSpec) -> None:
        self._connection = connection
        self._spec = spec
        self._next_subject = f"{API}.CONSUMER.MSG.NEXT.{spec.stream}.{spec.name}"
        self._subscription: Subscription | None = None
        self._inbox = ""
        self._pull = 0
        self._pin = self._former_pin = ""
        self._lease_until = 0.0
        self._messages: deque[Message] = deque()
        self._wake = asyncio.Event()
        self._lost = False
        self._out: deque[Activated | Received] = deque()
        self._ready = asyncio.Event()
        self._window: deque[_Slot] = deque()
        self._slots: dict[int, _Slot] = {}
        self._outstanding = 0
        self._outstanding_bytes = 0
        self._received = 0
        self._handled_floor: int | None = None
        self._handled_above: set[int] = set()
        self._running: set[int] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._unacked = 0
        self._ack_reply = ""
        self._ack_timer: asyncio.TimerHandle | None = None
        self._acks: set[asyncio.Task[None]] = set()
        self._draining = False
        self._certainty: set[asyncio.Future[None]] = set()

    # -- the durable itself -------------------------------------------------------------------------------------------

    async def ensure(self, *, declare: bool = True) -> None:
        """Create the consumer, or make an existing one hear what it should; where it stands is never changed.

        Without ``declare``, one that is there is left as it is: whoever declared it last may have meant something else.
        Raises :class:`UnavailableError` (nothing changed) when the server does not answer.
        """
        spec = self._spec
        config = spec.config()
        try:
            existing = await self._info()
            if existing is not None:
                if not declare:
                    return
                for name in ("deliver_policy", "opt_start_seq", "opt_start_time"):
                    config.pop(name, None)
                    if existing.get(name) is not None:
                        config[name] = existing[name]
                if all(existing.get(name) == value for name, value in config.items() if name != "metadata" and value):
                    known = existing.get("metadata") or {}  # the server adds fields of its own
                    if known == (known := known | config["metadata"]):
                        return
                    config["metadata"] = known
            elif self._handled_floor is not None:  # deleted under us, and we know how far it had come
                config.pop("opt_start_time", None)
                config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": self._handled_floor + 1}
            body = {"stream_name": spec.stream, "config": config, "action": ""}
            self._note_floor(await api(self._connection, f"CONSUMER.CREATE.{spec.stream}.{spec.name}", body))
        except Fault as fault:
            raise error_of(fault, f"preparing the consumer {spec.name}") from None

    async def _info(self) -> dict[str, Any] | None:
        try:
            info = await api(self._connection, f"CONSUMER.INFO.{self._spec.stream}.{self._spec.name}")
        except ServerFault as fault:
            if fault.verdict is Verdict.ABSENT:
                return None
            raise
        self._note_floor(info)
        config: dict[str, Any] = info["config"]
        return config

    def _note_floor(self, info: Mapping[str, Any]) -> None:
        """Remember how far the consumer has come, should it be deleted; a standby knows it only from here."""
        self._raise_floor(int(info["ack_floor"]["stream_seq"]))

    def _raise_floor(self, floor: int) -> None:
        if self._handled_floor is None or floor > self._handled_floor:
            self._handled_floor = floor
            self._handled_above = {sequence for sequence in self._handled_above if sequence > floor}

    # -- the taker's side ---------------------------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether this instance surely holds the pin at this moment."""
        return bool(self._pin) and asyncio.get_running_loop().time() < self._lease_until

    async def next(self) -> Activated | Received:
        """What to do next. Waits while there is nothing, and while it is uncertain whether we are still active."""
        while not self._out or self._draining or not self.active:
            self._ready.clear()
            await self._ready.wait()
        item = self._out.popleft()
        if isinstance(item, Received):
            self._running.add(item.record.sequence)
            self._idle.clear()
        return item

    def done(self, sequence: int) -> None:
        """The event has been handled (or given up for good): it may be acknowledged when all before it are, too."""
        self._running.discard(sequence)
        if not self._running:
            self._idle.set()
        if not self.is_handled(sequence):
            self._handled_above.add(sequence)
        slot = self._slots.pop(sequence, None)
        if slot is None:
            return  # it was received under a pin that is lost: known as handled should it come again
        slot.done = True
        self._outstanding -= 1
        before = self._outstanding_bytes
        self._outstanding_bytes -= slot.size
        if self._outstanding == WINDOW - _REFILL or before > _WINDOW_BYTES >= self._outstanding_bytes:
            self._wake.set()
        window = self._window
        while window and window[0].done:
            head = window.popleft()
            self._handled_above.discard(head.sequence)
            self._handled_floor = max(self._handled_floor or 0, head.sequence)
            self._ack_reply = head.reply
            self._unacked += 1
        self._acknowledge_soon()

    def put_back(self, sequence: int) -> None:
        """The event was handed out and is not for this instance: it stays unhandled, and comes to whoever is next."""
        self._running.discard(sequence)
        if not self._running:
            self._idle.set()

    @property
    def floor(self) -> int:
        """The sequence up to which everything is known to have been handled, by whichever instance; 0 for nothing."""
        return self._handled_floor or 0

    def is_begun(self, sequence: int) -> bool:
        """Whether the event was handed out here and is not done yet."""
        return sequence in self._running

    def is_handled(self, sequence: int) -> bool:
        """Whether the event is known to have been handled, by whichever instance, or came before the beginning."""
        floor = self._handled_floor
        return (floor is not None and sequence <= floor) or sequence in self._handled_above

    async def learn_floor(self) -> None:
        """Ask the server how far the consumer has come: what another instance handles is known only from there.

        Raises :class:`UnavailableError` when the server does not answer.
        """
        try:
            await self._info()
        except Fault as fault:
            raise error_of(fault, f"asking for the state of the consumer {self._spec.name}") from None

    async def still_ours(self, sequence: int) -> bool:
        """Whether an event handed out earlier is still this instance's to handle; waits while that is uncertain.

        When it is not, the event is forgotten here: the instance that is active now handles it.
        """
        while sequence in self._slots:
            if self.active:
                return True
            certain = asyncio.get_running_loop().create_future()
            self._certainty.add(certain)
            try:
                await certain
            finally:
                self._certainty.discard(certain)
        self._running.discard(sequence)
        if not self._running:
            self._idle.set()
        return False

    async def drain(self) -> None:
        """Hand out nothing more, and return when every event handed out is done; the pin is kept meanwhile."""
        self._draining = True
        await self._idle.wait()

    async def leave(self) -> None:
        """Acknowledge what is done and let a standby take over at once. Call after ``run`` has ended."""
        self._acknowledge()
        if self._acks:
            await asyncio.gather(*self._acks)
        pinned = self.active
        self._pin = ""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.unsubscribe()
        if pinned and self._connection.state == "connected":
            try:
                await self._connection.flush(2.0)  # the acknowledgement first
                body = orjson.dumps({"group": GROUP})
                await self._connection.request(
                    f"{API}.CONSUMER.UNPIN.{self._spec.stream}.{self._spec.name}", body, timeout=2.0
                )
            except (Fault, UnavailableError, ClosedError) as error:
                logger.debug("consumer %s: leaving: %s", self._spec.name, error)

    def _acknowledge_soon(self) -> None:
        if self._unacked >= _ACK_EVERY and self.active:
            self._acknowledge()
        elif self._unacked and self._ack_timer is None:
            self._ack_timer = asyncio.get_running_loop().call_later(_ACK_DELAY, self._acknowledge)

    def _acknowledge(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        if not self.active:
            if self._pin:
                self._acknowledge_soon()
            return
        reply, self._ack_reply, self._unacked = self._ack_reply, "", 0
        if reply:
            task = asyncio.ensure_future(self._send_ack(reply))
            self._acks.add(task)
            task.add_done_callback(self._acks.discard)

    async def _send_ack(self, reply: str) -> None:
        try:
            await self._connection.publish(reply, b"+ACK")
        except (UnavailableError, ClosedError) as error:
            logger.debug("consumer %s: %s; what is handled is skipped should it come again", self._spec.name, error)

    # -- the puller's side --------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Compete for the pin and keep it, until cancelled. Outlives outages and the deletion of the consumer."""
        forget = self._connection.on_state(self._on_state)
        attempt = 0
        try:
            while True:
                try:
                    await self._idle.wait()  # what we still handle must end before we may compete again
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
            self._lost = False
            await self.ensure(declare=False)
        except ClosedError:
            raise
        except AgentFieldError as error:
            logger.warning("consumer %s: %s; trying again", self._spec.name, error)

    def _on_state(self, state: ConnectionState) -> None:
        if state != "connected":
            self._lost = True
            self._wake.set()

    async def _open_inbox(self) -> None:
        """A fresh inbox: whatever is still on its way to the old one was meant for an earlier turn."""
        old, self._subscription = self._subscription, None
        if old is not None:
            await old.unsubscribe()
        self._inbox = f"_INBOX.{uuid.uuid4().hex}"
        self._messages = deque()
        messages = self._messages

        def arrived(message: Message) -> None:
            messages.append(message)
            self._wake.set()

        self._subscription = await self._connection.listen(f"{self._inbox}.*", arrived)

    async def _acquire(self) -> str:
        """Wait as a standby until the server pins this instance. The event that tells so comes again later."""
        await self._open_inbox()
        advisories = await self._hear_of_unpinning()
        try:
            while True:
                number = await self._request(batch=1, expires=_STANDBY_PULL)
                await self._free_unfinished()
                while True:
                    message = await self._receive(_STANDBY_PULL + _SILENCE)
                    if message.subject.startswith(_UNPINNED):
                        await self._free_unfinished()
                    elif not message.status:
                        if not (pin := message.headers.get(_PIN)):
                            raise ServerFault(500, 0, f"the consumer {self._spec.name} does not pin its client")
                        return pin
                    elif self._ends(message, number):
                        break
        finally:
            if advisories is not None:
                await advisories.unsubscribe()

    async def _hear_of_unpinning(self) -> Subscription | None:
        """Be told, among the other messages, when the active instance is gone; None where that is not permitted."""
        messages = self._messages

        def unpinned(message: Message) -> None:
            messages.append(message)
            self._wake.set()

        try:
            return await self._connection.listen(f"{_UNPINNED}.{self._spec.stream}.{self._spec.name}", unpinned)
        except AccessDeniedError:
            return None  # then it shows when a pull of ours expires

    async def _free_unfinished(self) -> None:
        """Where nobody is active and something was delivered and never acknowledged, have it delivered again.

        The server pins a client only when it has something to deliver. What an instance had received when it died, or
        lost its connection, would otherwise wait for the next event.
        """
        info = await self._ask("INFO")
        pinned = "".join(group.get("pinned_client_id") or "" for group in info.get("priority_groups") or ())
        if pinned and pinned == self._former_pin:
            await self._ask("UNPIN", {"group": GROUP})  # that was us, before we lost the connection
            pinned = ""
        if info["num_ack_pending"] and not pinned:
            await self._ask("RESET")

    async def _ask(self, what: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        subject = f"CONSUMER.{what}.{self._spec.stream}.{self._spec.name}"
        return await api(self._connection, subject, body, patience=PIN_TIMEOUT / 2)

    async def _hold(self, pin: str) -> None:
        loop = asyncio.get_running_loop()
        reset = await self._ask("RESET")
        await self._open_inbox()
        floor = int(reset["reset_seq"]) - 1
        self._raise_floor(floor)
        self._received = floor
        self._pin, self._lease_until = pin, 0.0
        logger.info("consumer %s: active from sequence %d on", self._spec.name, floor + 1)
        self._emit(Activated(floor))
        while True:
            sent = loop.time()
            room = WINDOW - self._outstanding
            if self._draining or room < _REFILL or self._outstanding_bytes > _WINDOW_BYTES:
                # A pull that no event can satisfy still renews the pin: the server answers it with a status.
                number = await self._request(batch=1, expires=_PULL, max_bytes=1)
                await self._answers(number, sent, 1)
                await self._room(max(_PULL / 10, sent + _PULL - loop.time()))
            else:
                number = await self._request(batch=room, expires=_PULL)
                await self._answers(number, sent, room)

    async def _answers(self, number: int, sent: float, owed: int) -> None:
        """Everything that one pull brings, until the server ends it or it is complete; each answer proves the lease."""
        while owed > 0:
            message = await self._receive(_SILENCE)
            ended = bool(message.status) and self._ends(message, number)
            if message.status and not ended:
                continue
            self._lease_until = sent + PIN_TIMEOUT
            self._ready.set()
            self._wake_uncertain()
            if ended:
                return
            owed -= 1
            self._accept(message)

    def _ends(self, message: Message, number: int) -> bool:
        """Whether a status ends pull ``number`` in the ordinary way. Raises a fault when it says anything else."""
        if message.status == _WRONG_PIN:
            raise NoAnswerFault("another instance is active")
        if not ends_pull(message):
            description = message.headers.get(DESCRIPTION, "")
            raise NoAnswerFault(f"the server ended the pull: {message.status} {description}")
        return message.subject == f"{self._inbox}.{number}"

    def _accept(self, message: Message) -> None:
        delivery = records.of_consumer(message)
        sequence = delivery.record.sequence
        if sequence <= self._received:
            self._accept_again(sequence, delivery.reply)
            return
        self._received = sequence
        slot = _Slot(sequence, delivery.reply, len(message.payload))
        self._slots[sequence] = slot
        self._window.append(slot)
        self._outstanding += 1
        self._outstanding_bytes += slot.size
        self._emit(Received(delivery.record, self.is_handled(sequence)))

    def _accept_again(self, sequence: int, reply: str) -> None:
        """What we have already came again: somebody reset the consumer. From now on only its new replies count."""
        slot = self._slots.get(sequence)
        if slot is not None:
            slot.reply = reply
        elif self._handled_floor is not None and sequence <= self._handled_floor:
            self._ack_reply = reply
            self._unacked += 1
            self._acknowledge_soon()

    def _emit(self, item: Activated | Received) -> None:
        self._out.append(item)
        self._ready.set()

    def _release(self) -> None:
        """The pin is lost or in doubt: forget what was received; what is being handled is finished by the taker."""
        if self._pin:
            logger.info("consumer %s: no longer active", self._spec.name)
            self._former_pin = self._pin
        self._pin = ""
        self._ack_reply, self._unacked = "", 0
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        self._out.clear()
        self._slots.clear()
        self._window.clear()
        self._outstanding = self._outstanding_bytes = 0
        self._wake_uncertain()

    def _wake_uncertain(self) -> None:
        for certain in self._certainty:
            if not certain.done():
                certain.set_result(None)

    async def _room(self, seconds: float) -> None:
        """Wait until there is room in the window, at most until the pin wants renewing."""
        try:
            async with asyncio.timeout(seconds):
                while self._draining or WINDOW - self._outstanding < _REFILL or self._outstanding_bytes > _WINDOW_BYTES:
                    self._wake.clear()
                    await self._wake.wait()
        except TimeoutError:
            return

    async def _request(self, *, batch: int, expires: float, max_bytes: int = 0) -> int:
        self._pull += 1
        body: dict[str, Any] = {"group": GROUP, "batch": batch, "expires": int(expires * 1e9)}
        if self._pin:
            body["id"] = self._pin
        if max_bytes:
            body["max_bytes"] = max_bytes
        await self._connection.publish(self._next_subject, orjson.dumps(body), reply=f"{self._inbox}.{self._pull}")
        return self._pull

    async def _receive(self, silence: float) -> Message:
        while not self._messages:
            if self._lost:
                raise NoAnswerFault("the connection was lost")
            self._wake.clear()
            async with asyncio.timeout(silence):
                await self._wake.wait()
        message = self._messages.popleft()
        if message.status == 503:
            raise NoRespondersFault(f"the consumer {self._spec.name} is gone")
        return message
