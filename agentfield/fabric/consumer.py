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
* A consumer that begins with present values has its seam written into its metadata when it is created. Until its floor
  has reached the seam, the active instance reads the present values as of the seam and moves the floor by resetting the
  consumer to where it has come; only when all are done does it ask for events. So whoever takes over goes on there.
* Events that were taken out of the log before they came are reported once, by the number at which the log begins, which
  is in the metadata, too.

Source: NATS ADR-42 (priority groups); the server's ``CONSUMER.RESET`` and ``CONSUMER.UNPIN`` requests.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Mapping
from contextlib import aclosing, suppress
from typing import Any

import orjson

from agentfield.errors import AccessDeniedError, AgentFieldError, ClosedError, UnavailableError
from agentfield.fabric import records
from agentfield.fabric.client import DESCRIPTION
from agentfield.fabric.connection import ConnectionState, Message, Subscription
from agentfield.fabric.consuming import (
    WINDOW,
    Activated,
    ConsumerSpec,
    Item,
    Progress,
    Shortened,
    deliver_policy,
)
from agentfield.fabric.faults import Fault, NoAnswerFault, NoRespondersFault, ServerFault, Verdict, error_of
from agentfield.fabric.jetstream import API, PATIENCE, api, backoff, ends_pull
from agentfield.fabric.log import Log
from agentfield.fabric.present import present_values
from agentfield.fabric.trimmed import lost_to

logger = logging.getLogger("agentfield.consumer")

GROUP = "active"
PIN_TIMEOUT = 3.0
"""Seconds without a pull after which the server lets a standby take over."""
_PULL = 1.0
"""Seconds a pull stays open; each new one renews the pin, so a third of its timeout."""
_SILENCE = 2.5
"""Seconds without a word on an open pull after which it counts as lost."""
_STANDBY_PULL = 20.0
_ACK_EVERY = 250
_ACK_DELAY = 0.05
"""Seconds until a floor is acknowledged at the latest: what a kill -9 can make come again."""
_ACK_WAIT = 24 * 3600
"""Seconds until the server redelivers by itself. Long: on takeover the reset redelivers, in order; a redelivery while
the instance lives could only come out of order."""
_SAVE_EVERY = 0.5
"""Seconds between savings of how far the present values have been handled: what a kill -9 can make come again."""
_SEAM = "seam"
_LOG_START = "log-start"
_PIN = "Nats-Pin-Id"
_UNPINNED = "$JS.EVENT.ADVISORY.CONSUMER.UNPINNED"
_WRONG_PIN = 423


class PinnedConsumer:
    """An instance of a durable consumer: a :class:`~agentfield.fabric.consuming.Consumer`.

    Taking slowly is fine: no more than a window of events is requested, and the pin is renewed meanwhile.
    """

    def __init__(self, log: Log, spec: ConsumerSpec, *, progress: Progress | None = None) -> None:
        self._log = log
        self._connection = log.connection
        self._spec = spec
        self._progress = progress or Progress()
        self._next_subject = f"{API}.CONSUMER.MSG.NEXT.{log.stream}.{spec.name}"
        self._subscription: Subscription | None = None
        self._inbox = ""
        self._pull = 0
        self._pin = self._former_pin = ""
        self._lease_until = 0.0
        self._messages: deque[Message] = deque()
        self._wake = asyncio.Event()
        self._lost = False
        self._out: deque[Item] = deque()
        self._ready = asyncio.Event()
        self._received = 0
        self._seam: int | None = None
        self._presenting = False
        self._moved = asyncio.Event()
        self._log_start = 1
        self._nothing_until = 0
        self._announced = 0
        self._behind = self._was_behind = True
        self._pulled: list[int] = []
        self._unacked = 0
        self._ack_reply = ""
        self._ack_timer: asyncio.TimerHandle | None = None
        self._acks: set[asyncio.Task[None]] = set()
        self._draining = False
        self._certainty: set[asyncio.Future[None]] = set()

    def successor(self) -> PinnedConsumer:
        """One that goes on where this one was."""
        return PinnedConsumer(self._log, self._spec, progress=self._progress.successor())

    # -- the durable itself -------------------------------------------------------------------------------------------

    async def ensure(self, *, declare: bool = True) -> None:
        """Create the consumer, or make an existing one hear what it should; where it stands is never changed.

        Without ``declare``, one that is there is left as it is: whoever declared it last may have meant something else.
        Raises :class:`UnavailableError` (nothing changed) when the server does not answer.
        """
        state = await self._log.state()  # before it is created: what comes later is heard
        try:
            existing = await self._info()
            if existing is None:
                existing = await self._create(state)
            if existing is not None and declare:
                await self._conform(existing)
        except Fault as fault:
            raise error_of(fault, f"preparing the consumer {self._spec.name}") from None

    async def _create(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        """Create the consumer; if another instance was faster, return what it made."""
        spec, floor = self._spec, self._progress.floor
        config = _config(spec)
        if floor is None:
            config |= deliver_policy(spec.start)
            if spec.start == "current":
                self._seam = int(state["last_seq"])
            if spec.start in ("new", "current"):  # what was taken out before that is not missed
                self._log_start = int(state["first_seq"])
        else:
            config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": floor + 1}
            logger.warning(
                "consumer %s is gone from the server: it is made again, to go on after revision %d", spec.name, floor
            )
        config["metadata"] = self._metadata()
        try:
            self._note(await self._define(config, "create"))
        except ServerFault as fault:
            if fault.verdict is not Verdict.EXISTS:
                raise
            if floor is None:
                self._seam, self._log_start = None, 1  # what the one who made it noted counts
            return await self._info()
        return None

    async def _conform(self, existing: Mapping[str, Any]) -> None:
        """Change what an existing consumer hears, if it is not what it should."""
        config = _config(self._spec)
        known = existing.get("metadata") or {}  # the server adds fields of its own
        wanted = known | self._metadata()
        if known == wanted and all(existing.get(name) == value for name, value in config.items() if value):
            return
        config["metadata"] = wanted
        for name in ("deliver_policy", "opt_start_seq", "opt_start_time"):
            if existing.get(name) is not None:
                config[name] = existing[name]
        self._note(await self._define(config, ""))

    async def _define(self, config: Mapping[str, Any], action: str) -> dict[str, Any]:
        return await self._ask(
            "CREATE", {"stream_name": self._log.stream, "config": config, "action": action}, PATIENCE
        )

    def _metadata(self) -> dict[str, str]:
        own = {_LOG_START: str(self._log_start)}
        if self._seam is not None:
            own[_SEAM] = str(self._seam)
        return {**self._spec.metadata, **own}

    async def _info(self) -> dict[str, Any] | None:
        try:
            info = await self._ask("INFO", patience=PATIENCE)
        except ServerFault as fault:
            if fault.verdict is Verdict.ABSENT:
                return None
            raise
        self._note(info)
        config: dict[str, Any] = info["config"]
        return config

    def _note(self, info: Mapping[str, Any]) -> None:
        """Remember what the consumer knows, should it be deleted: a standby knows it only from here."""
        self._progress.raise_floor(int(info["ack_floor"]["stream_seq"]))
        metadata = info["config"].get("metadata") or {}
        if _SEAM in metadata:
            self._seam = int(metadata[_SEAM])
        self._log_start = max(self._log_start, int(metadata.get(_LOG_START, 1)))

    # -- the taker's side ---------------------------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """Whether this instance surely holds the pin at this moment."""
        return bool(self._pin) and asyncio.get_running_loop().time() < self._lease_until

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
        was_full = self._progress.is_full
        advance = self._progress.done(sequence)
        if was_full and not self._progress.is_full:
            self._wake.set()
        self._moved.set()
        if advance.reply:
            self._ack_reply = advance.reply
            self._unacked += advance.events
            self._acknowledge_soon()

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
        try:
            await self._info()
        except Fault as fault:
            raise error_of(fault, f"asking for the state of the consumer {self._spec.name}") from None

    async def still_ours(self, sequence: int) -> bool:
        """Whether an event handed out earlier is still this instance's to handle; waits while that is uncertain.

        When it is not, the event is forgotten here: the instance that is active now handles it.
        """
        while self._progress.slot(sequence) is not None:
            if self.active:
                return True
            certain = asyncio.get_running_loop().create_future()
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
        self._log_start = max(self._log_start, gap.first_available)
        try:
            await self._note_log_start()
        except Fault as fault:
            raise error_of(fault, f"noting where the log begins for the consumer {self._spec.name}") from None

    async def drain(self) -> None:
        """Hand out nothing more, and return when every event handed out is done; the pin is kept meanwhile."""
        self._draining = True
        await self._progress.idle()

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
                if self._presenting:
                    await self._ask("RESET", {"seq": self.floor + 1})
                body = orjson.dumps({"group": GROUP})
                await self._connection.request(
                    f"{API}.CONSUMER.UNPIN.{self._log.stream}.{self._spec.name}", body, timeout=2.0
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
            return await self._connection.listen(f"{_UNPINNED}.{self._log.stream}.{self._spec.name}", unpinned)
        except AccessDeniedError:
            return None  # then it shows when a pull of ours expires

    async def _free_unfinished(self) -> None:
        """Where nobody is active and something was delivered and never acknowledged, have it delivered again.

        The server pins a client only when it has something to deliver. What an instance had received when it died, or
        lost its connection, would otherwise wait for the next event.
        """
        last = self._log.last_known
        info = await self._ask("INFO")
        self._note(info)
        if not info["num_pending"] and not info["num_ack_pending"]:
            self._nothing_until = max(self._nothing_until, last)
        pinned = "".join(group.get("pinned_client_id") or "" for group in info.get("priority_groups") or ())
        if pinned and pinned == self._former_pin:
            await self._ask("UNPIN", {"group": GROUP})  # that was us, before we lost the connection
            pinned = ""
        if info["num_ack_pending"] and not pinned:
            await self._ask("RESET")

    async def _ask(
        self, what: str, body: Mapping[str, Any] | None = None, patience: float = PIN_TIMEOUT / 2
    ) -> dict[str, Any]:
        subject = f"CONSUMER.{what}.{self._log.stream}.{self._spec.name}"
        return await api(self._connection, subject, body, patience=patience)

    async def _hold(self, pin: str) -> None:
        loop = asyncio.get_running_loop()
        reset = await self._ask("RESET")
        await self._open_inbox()
        floor = int(reset["reset_seq"]) - 1
        self._note(reset)
        self._progress.raise_floor(floor)
        self._received = floor
        self._pin, self._lease_until = pin, 0.0
        logger.info("consumer %s: active from sequence %d on", self._spec.name, floor + 1)
        await self._look_for_gap(floor, exact=False)
        if self._seam is not None and floor < self._seam:
            await self._hand_out_present(floor, self._seam)
            floor = self._seam
        self._emit(Activated(floor))
        self._behind = True
        while True:
            sent = loop.time()
            if self._draining or self._progress.is_full:
                await self._keep_pin(sent)
                await self._room(max(_PULL / 10, sent + _PULL - loop.time()))
                self._behind = True
                continue
            received, last, room = self._received, self._log.last_known, WINDOW - self._progress.outstanding
            self._was_behind, self._pulled = self._behind, []
            number = await self._request(batch=room, expires=_PULL)
            await self._answers(number, sent, room)
            if self._was_behind:
                await self._look_for_gap(received)
            if not self._pulled:  # there was nothing: not at the end of this pull, nor at its beginning
                self._nothing_until, self._behind = max(self._nothing_until, last), False

    async def _keep_pin(self, sent: float) -> None:
        """A pull that no event can satisfy still renews the pin: the server answers it with a status."""
        await self._answers(await self._request(batch=1, expires=_PULL, max_bytes=1), sent, 1)

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

    # -- present values -----------------------------------------------------------------------------------------------

    async def _hand_out_present(self, floor: int, seam: int) -> None:
        """Hand out the present values as of the seam, and return when all have been handled; the pin is kept."""
        loop = asyncio.get_running_loop()
        self._presenting = True
        feeding = asyncio.create_task(self._feed_present(floor, seam), name=f"present values for {self._spec.name}")
        try:
            while not feeding.done():
                sent = loop.time()
                await self._keep_pin(sent)
                await asyncio.wait([feeding], timeout=max(_PULL / 10, sent + _PULL - loop.time()))
            await feeding
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
        await self._ask("RESET", {"seq": seam + 1})
        self._presenting = False
        self._progress.raise_floor(seam)
        self._received = seam

    async def _feed_present(self, floor: int, seam: int) -> None:
        saved = floor, asyncio.get_running_loop().time()
        async with aclosing(present_values(self._log, self._spec.filters, seam, after=floor)) as values:
            async for value in values:
                while self._progress.is_full:
                    saved = await self._save(*saved)
                self._emit(self._progress.receive_present(*value))
        while self._progress.outstanding:
            saved = await self._save(*saved)

    async def _save(self, saved: int, at: float) -> tuple[int, float]:
        """Wait until something is done, and now and then let the consumer remember how far everything is."""
        self._moved.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_SAVE_EVERY):
                await self._moved.wait()
        now = asyncio.get_running_loop().time()
        if self.floor == saved or now < at + _SAVE_EVERY or not self.active:
            return saved, at
        floor = self.floor
        await self._ask("RESET", {"seq": floor + 1})
        return floor, now

    # -- a log that somebody shortened --------------------------------------------------------------------------------

    async def _look_for_gap(self, received: int, *, exact: bool = True) -> None:
        """Report if events after ``received``, up to which all had come, may have been taken out before they came.

        Only an operator can shorten the log. The server then moves the consumer's floor up to where the log begins: so
        a floor that is there, if that is all that is known, says nothing of what was handled.
        """
        start = int((await self._log.state())["first_seq"])
        if start <= max(self._log_start, self._announced):
            return
        made = records.nanoseconds_of((await self._ask("INFO"))["created"])
        if lost_to(self._log.info["config"], self._log.info["state"], made) == 1:  # it was trimmed with regard to us
            self._log_start = start
            await self._note_log_start()
            return
        if not exact and received == start - 1:
            received = 0
        known = max(self._nothing_until, received, *(sequence for sequence in self._pulled if sequence < start))
        if known < start - 1:
            self._announced = start
            self._emit(Shortened(known, start))
        else:
            self._log_start = start
            await self._note_log_start()

    async def _note_log_start(self) -> None:
        config = (await self._ask("INFO"))["config"]
        metadata = {name: text for name, text in config["metadata"].items() if not name.startswith("_nats")}
        if int(metadata.get(_LOG_START, 1)) < self._log_start:
            config["metadata"] = {**metadata, _LOG_START: str(self._log_start)}
            await self._ask("CREATE", {"stream_name": self._log.stream, "config": config, "action": "update"})

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
        self._pulled.append(sequence)
        self._behind = delivery.pending > 0
        self._was_behind = self._was_behind or self._behind
        self._emit(self._progress.receive(delivery.record, delivery.reply))

    def _accept_again(self, sequence: int, reply: str) -> None:
        """What we have already came again: somebody reset the consumer. From now on only its new replies count."""
        slot = self._progress.slot(sequence)
        if slot is not None:
            slot.reply = reply
        elif sequence <= self.floor:
            self._ack_reply = reply
            self._unacked += 1
            self._acknowledge_soon()

    def _emit(self, item: Item) -> None:
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
        self._progress.release()
        self._presenting, self._announced, self._pulled = False, 0, []
        self._wake_uncertain()

    def _wake_uncertain(self) -> None:
        for certain in self._certainty:
            if not certain.done():
                certain.set_result(None)

    async def _room(self, seconds: float) -> None:
        """Wait until there is room in the window, at most until the pin wants renewing."""
        try:
            async with asyncio.timeout(seconds):
                while self._draining or self._progress.is_full:
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


def _config(spec: ConsumerSpec) -> dict[str, Any]:
    """What a consumer should be, whenever it was made, under the server's names."""
    return {
        "durable_name": spec.name,
        "name": spec.name,
        "description": spec.description,
        "ack_policy": "all",
        "ack_wait": int(_ACK_WAIT * 1e9),
        "max_deliver": -1,
        "max_ack_pending": -1,  # the window bounds it; a limit here would stop a consumer whose floor lags
        "max_waiting": 512,
        "filter_subjects": list(spec.filters),
        "priority_groups": [GROUP],
        "priority_policy": "pinned_client",
        "priority_timeout": int(PIN_TIMEOUT * 1e9),
    }
