"""Keys: what personal values are encrypted with, and the policy that says which values are personal.

Owns: the bucket that holds both, apart from the log, and what this process remembers of it. Must not know: values.
Invariants: a vault has at most one key at any time, the same for everybody; only the leader's word makes a key count as
destroyed; no key is remembered for longer than :data:`KEY_LIFETIME` without being looked up again, and none survives
the announcement of an erasure. The log says which policy was the last: so a bucket that was lost, and is empty or older
than the log, is neither taken for a namespace in which nothing is personal nor for an erasure.
"""

from __future__ import annotations

import asyncio
import logging
import os
from base64 import b64decode, b64encode
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple
from weakref import WeakValueDictionary

import orjson

from agentfield.codec import Record
from agentfield.envelope import KEY_BYTES, DataKey
from agentfield.errors import AgentFieldError, ConflictError, InvalidInputError, UnavailableError
from agentfield.event import Writer
from agentfield.execution import new_id
from agentfield.fabric import records
from agentfield.fabric.appending import Conflict
from agentfield.fabric.faults import NO_MESSAGE, Fault, NoAnswerFault, NoRespondersFault, ServerFault, Verdict, error_of
from agentfield.fabric.jetstream import ATTEMPT, api, backoff
from agentfield.fabric.journals import renew_journals
from agentfield.fabric.log import Log
from agentfield.fabric.topology import Topology
from agentfield.fabric.wire.connection import ConnectionState
from agentfield.fabric.wire.message import Message
from agentfield.fabric.wire.subscription import Subscription
from agentfield.header import EVENT_ID, encode_event
from agentfield.privacy import Per, PrivacyPolicy, Vault
from agentfield.subject import Subjects

logger = logging.getLogger("agentfield.keys")

KEY_LIFETIME: Final = 20.0
"""Seconds after which a key that this process remembers is looked up again when it is needed."""
INTERVAL: Final = 10.0
"""Seconds between looks at the policy, should its announcement have been lost; old keys are forgotten as often."""
_MOMENT: Final = 1.0
"""Seconds for which a look at the policy is good enough to tell a key that is gone from a bucket that is."""
REMEDY: Final = (
    "Restore it from its backup; or, if there is none, declare anew what is personal (`agentfield personal set`): what "
    "was encrypted until then counts as erased"
)
"""What to do about a bucket that was lost."""
_MAX_KEYS = 10_000
_VERSION = 1


class StoredKey(NamedTuple):
    """A data key as the bucket holds it."""

    tokens: str
    """Its vault, as part of a subject."""
    sequence: int
    key: DataKey

    @property
    def per(self) -> Per:
        """Whether it is for everything in a scope, or for one key."""
        return "scope" if self.tokens.count(".") == 1 else "key"


class _Remembered(NamedTuple):
    key: DataKey | None
    until: float


class Keys:
    """The keys and the policy of one namespace. ``start`` it once; the fabric closes it."""

    def __init__(self, log: Log, topology: Topology) -> None:
        self._log = log
        self._connection = log.connection
        self._stream = topology.keys.name
        self._prefix = f"$KV.{topology.keys_bucket}."
        self._subjects = Subjects(topology.namespace)
        self._news = f"{topology.namespace}.privacy"
        self._note = f"{topology.namespace}.checks.privacy"
        self._timeout = log.timeout
        self._remembered: OrderedDict[str, _Remembered] = OrderedDict()
        self._looking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._epoch = 0
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
        """Stop following and forget every key. Idempotent."""
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.cancel()
            await asyncio.gather(follower, return_exceptions=True)
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.unsubscribe()
        self.forget()

    @property
    def declared(self) -> bool:
        """Whether anything was ever declared personal, as far as this process knows."""
        return max(self._generation, self._noted) > 0

    # -- the policy ---------------------------------------------------------------------------------------------------

    @property
    def policy(self) -> PrivacyPolicy:
        """What is personal, as far as this process knows.

        New within a moment of a change, at the latest within :data:`INTERVAL` seconds. Raises
        :class:`UnavailableError` if the bucket that says so was lost.
        """
        if (loss := _loss(self._stream, self._noted, self._generation)) is not None:
            raise UnavailableError(f"{loss}. {REMEDY}")
        return self._policy

    async def present_policy(self) -> PrivacyPolicy:
        """The policy by the leader's word; from now on this process's, too."""
        await self._learn()
        return self.policy

    async def set_policy(self, policy: PrivacyPolicy) -> None:
        """Make this the policy of the namespace, for every process. What is stored already stays as it is.

        Raises :class:`ConflictError` if somebody else sets it at the same time, :class:`UnavailableError`.
        """
        await self._learn()
        number = max(self._generation, self._noted) + 1
        content = orjson.dumps(policy.fields())
        stored = await self._create(f"policy.{number}", content)
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
        self.forget()
        await self._connection.publish(self._news, b"{}")
        await self._connection.flush()

    async def _learn(self) -> None:
        """Take over the policy as it is; one look at a time, so that an older answer never comes after a newer one."""
        async with self._learning:
            note, record = await self._stored_policy()
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

    async def loss(self) -> str | None:
        """What happened, if the bucket was lost, by a look that changes nothing; see ``REMEDY``. None if it was not."""
        note, record = await self._stored_policy()
        noted = 0 if note is None else _noted_in(note)
        return _loss(self._stream, noted, 0 if record is None else _number_of(record))

    async def _stored_policy(self) -> tuple[Record | None, Record | None]:
        """The log's note of the last policy, and the policy."""
        note = await self._log.last_of(self._note)  # first: it is never ahead of a bucket that is whole
        return note, await self._leader_get({"last_by_subj": f"{self._prefix}policy.*"}, "reading the policy")

    async def _note_policy(self, expected: int) -> None:
        """Have the log say which policy is the last. Where that fails, whoever looks next does it."""
        payload = orjson.dumps({"policy": self._generation})
        headers = encode_event(event_id=new_id(), operation="set", writer=Writer())
        try:
            await self._log.append(self._note, payload, headers, expected=expected)
            self._noted = self._generation
        except (Conflict, AgentFieldError) as error:
            logger.debug("the log does not say yet that policy %d was set: %s", self._generation, error)

    async def _check_not_lost(self) -> None:
        """Raises :class:`UnavailableError` if the bucket was lost: that it lacks a key means nothing then."""
        if asyncio.get_running_loop().time() >= self._learnt + _MOMENT:
            await self._learn()
        _ = self.policy

    async def _listen(self) -> None:
        """Hear the news, if we may."""
        if self._subscription is not None:
            return

        async def news(_: Message) -> None:
            self.forget()
            self._changed.set()

        try:
            self._subscription = await self._connection.subscribe(self._news, news)
        except AgentFieldError as error:
            logger.debug("not told of changes to what is personal: %s", error)

    async def _follow(self) -> None:
        """Keep the policy current and forget what is old, until cancelled."""

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
                self._forget_old()
                await self._listen()
                try:
                    await self._learn()
                except InvalidInputError as error:  # what is written from here may not be encrypted as it should
                    logger.warning("still going by the policy on personal data from before: %s", error)
                except AgentFieldError as error:
                    logger.debug("%s", error)
        finally:
            forget_listener()

    # -- data keys ----------------------------------------------------------------------------------------------------

    async def find(self, vault: Vault, fingerprint: str) -> DataKey | None:
        """The key of that name, if it is still there; None if it was destroyed. Asks the server once a vault.

        Raises :class:`UnavailableError` and its kin: whether it is still there is not known then.
        """
        tokens = vault.tokens(self._subjects)
        for name in (tokens, fingerprint):  # what is destroyed is remembered under its own name
            known = self._recall(name)
            if known is not None and (known.key is None or known.key.fingerprint == fingerprint):
                return known.key
        async with self._lock(tokens):
            known = self._recall(tokens)
            if known is not None and known.key is not None and known.key.fingerprint == fingerprint:
                return known.key
            key = await self._look(tokens)
            if key is not None and key.fingerprint == fingerprint:
                return key
            await self._check_not_lost()
            self._remember(fingerprint, None)
            return None

    async def current(self, vault: Vault) -> DataKey:
        """The key that what is written to a vault now is encrypted with; made if there is none.

        Of processes that make it at once, the first one's is everybody's. Raises :class:`UnavailableError` and its kin.
        """
        tokens = vault.tokens(self._subjects)
        known = self._recall(tokens)
        if known is not None and known.key is not None:
            return known.key
        async with self._lock(tokens):
            known = self._recall(tokens)
            if known is not None and known.key is not None:
                return known.key
            key = await self._look(tokens)
            if key is None:
                await self._check_not_lost()
                epoch = self._epoch
                fields = {"v": _VERSION, "key": b64encode(os.urandom(KEY_BYTES)).decode()}
                key = _key_of(await self._create(f"data.{tokens}", orjson.dumps(fields)))
                self._remember(tokens, key, epoch)
            return key

    def forget(self) -> None:
        """Remember no key any more."""
        self._epoch += 1
        self._remembered.clear()

    async def stored(self, tails: Sequence[str]) -> list[StoredKey]:
        """The keys whose vaults match one of these filters (as :meth:`Vault.tokens` are written), by the leader's word.

        A list of what there is at the call. Raises :class:`UnavailableError` and its kin.
        """
        found = []
        for tail in tails:
            subject, start = f"{self._prefix}data.{tail}", 1
            while True:
                record = await self._leader_get({"next_by_subj": subject, "seq": start}, "reading keys")
                if record is None:
                    break
                tokens = record.subject.removeprefix(f"{self._prefix}data.")
                found.append(StoredKey(tokens, record.sequence, _key_of(record)))
                start = record.sequence + 1
        return found

    async def destroy(self, stored: StoredKey) -> None:
        """Destroy a key: the server overwrites it on its disk. On return the leader has none of that name any more.

        Raises :class:`UnavailableError` and its kin: it may be there or gone; destroying again is safe.
        """
        body = {"seq": stored.sequence, "no_erase": False}  # without erasing, the bytes would stay in the file
        refusal: Fault | None = None
        try:
            await api(self._connection, f"STREAM.MSG.DELETE.{self._stream}", body, patience=self._timeout)
        except Fault as fault:
            refusal = fault  # an earlier try may have gone through: what counts is whether it is still there
        self.forget()
        left = await self._look(stored.tokens)
        if left is not None and left.fingerprint == stored.key.fingerprint:
            if refusal is not None:
                raise error_of(refusal, f"destroying key {left.fingerprint}") from None
            raise UnavailableError(f"the server says that it has destroyed key {left.fingerprint}, and still has it")

    async def renew_journals(self) -> bool:
        """See that no replica's journal holds what was destroyed; see :mod:`agentfield.fabric.journals`."""
        return await renew_journals(self._connection, self._stream)

    def _recall(self, name: str) -> _Remembered | None:
        known = self._remembered.get(name)
        return known if known is not None and known.until > asyncio.get_running_loop().time() else None

    def _remember(self, name: str, key: DataKey | None, epoch: int | None = None) -> None:
        if epoch is not None and epoch != self._epoch:
            return  # an erasure was announced meanwhile: this key may be one of those
        self._remembered[name] = _Remembered(key, asyncio.get_running_loop().time() + KEY_LIFETIME)
        self._remembered.move_to_end(name)
        if len(self._remembered) > _MAX_KEYS:
            self._remembered.popitem(last=False)

    def _forget_old(self) -> None:
        now = asyncio.get_running_loop().time()
        for name in [name for name, known in self._remembered.items() if known.until <= now]:
            del self._remembered[name]

    def _lock(self, tokens: str) -> asyncio.Lock:
        """Held by whoever asks the server about a vault, so that others need not."""
        return self._looking.setdefault(tokens, asyncio.Lock())

    async def _look(self, tokens: str) -> DataKey | None:
        epoch = self._epoch
        record = await self._leader_get({"last_by_subj": f"{self._prefix}data.{tokens}"}, "reading a key")
        if record is None:
            return None
        key = _key_of(record)
        self._remember(tokens, key, epoch)
        return key

    # -- the bucket ---------------------------------------------------------------------------------------------------

    async def _create(self, tail: str, content: bytes) -> Record:
        """Store something under a name that has nothing; return what is there then, this or what came before it.

        Raises :class:`UnavailableError`: it may be stored nevertheless, and who looks next will find it.
        """
        subject = f"{self._prefix}{tail}"
        headers = {EVENT_ID: new_id(), "Nats-Expected-Last-Subject-Sequence": "0"}
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        attempt = 0
        while True:
            fault: Fault | UnavailableError
            try:
                limit = min(ATTEMPT, max(0.001, deadline - loop.time()))
                answer = await self._connection.request(subject, content, headers, timeout=limit)
                error = orjson.loads(answer.payload).get("error")
                fault = ServerFault.of(error) if error else NoAnswerFault("it was stored, and is gone again")
            except (NoAnswerFault, NoRespondersFault, UnavailableError) as caught:
                fault = caught
            # Whatever the answer was, or whether it came: what is there now is what everybody has.
            record = await self._leader_get({"last_by_subj": subject}, "storing a key")
            if record is not None:
                return record
            if isinstance(fault, ServerFault) and fault.verdict not in (Verdict.CONFLICT, Verdict.RETRY):
                raise error_of(fault, "storing a key of personal data")
            pause = backoff(attempt)
            attempt += 1
            if loop.time() + pause >= deadline:
                raise error_of(fault, "storing a key")
            await asyncio.sleep(pause)

    async def _leader_get(self, body: dict[str, Any], doing: str) -> Record | None:
        try:
            answer = await api(self._connection, f"STREAM.MSG.GET.{self._stream}", body, patience=self._timeout)
        except Fault as fault:
            if isinstance(fault, ServerFault) and fault.err_code == NO_MESSAGE:
                return None
            raise error_of(fault, f"{doing} of personal data") from None
        return records.of_leader(answer["message"])


def _key_of(record: Record) -> DataKey:
    fields = _json(record)
    try:
        return DataKey.of(b64decode(fields["key"], validate=True))
    except (KeyError, TypeError, ValueError):
        raise UnavailableError(
            f"what the bucket of keys holds under {record.subject!r} is no key of agentfield's: somebody else wrote it"
        ) from None


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
