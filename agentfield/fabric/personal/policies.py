"""Policies: which values are personal, for every process of a namespace.

Owns: the policy as this process knows it, the news of changes, and noticing that the bucket was lost. Must not know:
data keys. Invariant: the log says which policy was the last, so a bucket that was lost, and is empty or older than the
log, is never taken for a namespace in which nothing is personal.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

import orjson

from agentfield.codec import Record
from agentfield.errors import AgentFieldError, ConflictError, InvalidInputError, UnavailableError
from agentfield.event import Writer
from agentfield.execution import new_id
from agentfield.fabric.appending import Conflict
from agentfield.fabric.log import Log
from agentfield.fabric.personal.bucket import KeyBucket
from agentfield.fabric.topology import Topology
from agentfield.fabric.wire.connection import ConnectionState
from agentfield.fabric.wire.message import Message
from agentfield.fabric.wire.subscription import Subscription
from agentfield.header import encode_event
from agentfield.privacy import PrivacyPolicy

logger = logging.getLogger("agentfield.keys")

INTERVAL: Final = 10.0
"""Seconds between looks at the policy, should its announcement have been lost."""
_MOMENT: Final = 1.0
"""Seconds for which a look at the policy is good enough to tell a key that is gone from a bucket that is."""
REMEDY: Final = (
    "Restore it from its backup; or, if there is none, declare anew what is personal (`agentfield personal set`): what "
    "was encrypted until then counts as erased"
)
"""What to do about a bucket that was lost."""


class Policies:
    """The policy of one namespace. ``start`` it once; the fabric closes it.

    ``heard`` is called at every announcement, of this process as well.
    """

    def __init__(self, log: Log, topology: Topology, bucket: KeyBucket, heard: Callable[[], None]) -> None:
        self._log = log
        self._connection = log.connection
        self._bucket = bucket
        self._heard = heard
        self._news = f"{topology.namespace}.privacy"
        self._note = f"{topology.namespace}.checks.privacy"
        self._changed = asyncio.Event()
        self._learning = asyncio.Lock()
        self._follower: asyncio.Task[None] | None = None
        self._subscription: Subscription | None = None
        self._generation = 0
        self._noted = 0
        self._learnt = -_MOMENT
        self._policy = PrivacyPolicy()

    async def start(self) -> None:
        """Learn the policy, and begin to follow it. Raises :class:`UnavailableError` and its kin; nothing runs then."""
        await self._listen()  # first, so that no change comes between the two
        await self._learn()
        self._follower = asyncio.create_task(self._follow(), name="agentfield privacy")

    async def aclose(self) -> None:
        """Stop following. Idempotent."""
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.unsubscribe()

    @property
    def declared(self) -> bool:
        """Whether anything was ever declared personal, as far as this process knows."""
        return max(self._generation, self._noted) > 0

    @property
    def known(self) -> PrivacyPolicy:
        """What is personal, as far as this process knows.

        New within a moment of a change, at the latest within :data:`INTERVAL` seconds. Raises
        :class:`UnavailableError` if the bucket that says so was lost.
        """
        if (loss := _loss(self._bucket.stream, self._noted, self._generation)) is not None:
            raise UnavailableError(f"{loss}. {REMEDY}")
        return self._policy

    async def present(self) -> PrivacyPolicy:
        """The policy by the leader's word; from now on this process's, too."""
        await self._learn()
        return self.known

    async def set(self, policy: PrivacyPolicy) -> None:
        """Make this the policy of the namespace, for every process. What is stored already stays as it is.

        Raises :class:`ConflictError` if somebody else sets it at the same time, :class:`UnavailableError`.
        """
        await self._learn()
        number = max(self._generation, self._noted) + 1
        content = orjson.dumps(policy.fields())
        stored = await self._bucket.create_policy(number, content)
        if stored.payload != content:
            raise ConflictError(
                "policy",
                expected=number - 1,
                actual=number,
                message="somebody else set the policy on personal data at the same time: look at it and decide anew",
            )
        await self._learn()
        await self.announce()

    async def announce(self) -> None:
        """Have every process look at the policy and forget every key, now. Who does not hear it does so on its own."""
        self._heard()
        await self._connection.publish(self._news, b"{}")
        await self._connection.flush()

    async def check_not_lost(self) -> None:
        """Raises :class:`UnavailableError` if the bucket was lost: that it lacks a key means nothing then."""
        if asyncio.get_running_loop().time() >= self._learnt + _MOMENT:
            await self._learn()
        _ = self.known

    async def loss(self) -> str | None:
        """What happened, if the bucket was lost, by a look that changes nothing; see ``REMEDY``. None if it was not."""
        note, record = await self._stored()
        noted = 0 if note is None else _noted_in(note)
        return _loss(self._bucket.stream, noted, 0 if record is None else _number_of(record))

    async def _learn(self) -> None:
        """Take over the policy as it is; one look at a time, so that an older answer never comes after a newer one."""
        async with self._learning:
            note, record = await self._stored()
            self._noted = 0 if note is None else _noted_in(note)
            self._learnt = asyncio.get_running_loop().time()
            if record is None:
                self._generation, self._policy = 0, PrivacyPolicy()
                return
            number = _number_of(record)
            if number != self._generation:
                self._policy = PrivacyPolicy.load(_json(record))
                self._generation = number
                logger.info("personal in this namespace: %s", self._policy)
            if self._generation > self._noted:
                await self._note_policy(0 if note is None else note.sequence)

    async def _stored(self) -> tuple[Record | None, Record | None]:
        """The log's note of the last policy, and the policy."""
        note = await self._log.last_of(self._note)  # first: it is never ahead of a bucket that is whole
        return note, await self._bucket.last_policy()

    async def _note_policy(self, expected: int) -> None:
        """Have the log say which policy is the last. Where that fails, whoever looks next does it."""
        payload = orjson.dumps({"policy": self._generation})
        headers = encode_event(event_id=new_id(), operation="set", writer=Writer())
        try:
            await self._log.append(self._note, payload, headers, expected=expected)
            self._noted = self._generation
        except (Conflict, AgentFieldError) as error:
            logger.debug("the log does not say yet that policy %d was set: %s", self._generation, error)

    async def _listen(self) -> None:
        """Hear the news, if we may."""
        if self._subscription is not None:
            return

        async def news(_: Message) -> None:
            self._heard()
            self._changed.set()

        try:
            self._subscription = await self._connection.subscribe(self._news, news)
        except AgentFieldError as error:
            logger.debug("not told of changes to what is personal: %s", error)

    async def _follow(self) -> None:
        """Keep the policy current, until cancelled."""

        def reconnected(state: ConnectionState) -> None:
            if state == "connected":
                self._changed.set()

        forget_listener = self._connection.on_state(reconnected)
        try:
            while True:
                try:
                    async with asyncio.timeout(INTERVAL):
                        await self._changed.wait()
                except TimeoutError:
                    pass
                self._changed.clear()
                await self._listen()
                try:
                    await self._learn()
                except InvalidInputError as error:  # what is written from here may not be encrypted as it should
                    logger.warning("still going by the policy on personal data from before: %s", error)
                except AgentFieldError as error:
                    logger.debug("%s", error)
        finally:
            forget_listener()


def _loss(bucket: str, noted: int, generation: int) -> str | None:
    if generation >= noted:
        return None
    held = f"policy {generation}" if generation else "none"
    return (
        f"the keys of personal data are lost: by the log, policy {noted} was set on what is personal, and the bucket "
        f"{bucket} holds {held}"
    )


def _number_of(record: Record) -> int:
    """Which policy that is. Raises InvalidInputError."""
    number = record.subject.rpartition(".")[2]
    if not (number.isascii() and number.isdigit()):
        raise InvalidInputError(
            f"the bucket of keys holds {record.subject!r}, which agentfield did not write: delete that entry"
        )
    return int(number)


def _noted_in(record: Record) -> int:
    fields = _json(record)
    number = fields.get("policy") if isinstance(fields, dict) else None
    return number if type(number) is int else 0  # something else, which agentfield did not write


def _json(record: Record) -> Any:
    try:
        return orjson.loads(record.payload)
    except orjson.JSONDecodeError:
        return None
