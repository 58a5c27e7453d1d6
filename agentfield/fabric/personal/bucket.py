"""The bucket of the policy and the keys: storing under a name that has nothing, looking, and destroying for good.

Owns: what a key looks like there. Must not know: what is remembered, or when to look. Invariant: every look is by the
leader's word, and an answer that does not come is never taken for an empty place.
"""

from __future__ import annotations

import asyncio
import os
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import orjson

from agentfield.codec import Record
from agentfield.envelope import KEY_BYTES, DataKey
from agentfield.errors import UnavailableError
from agentfield.execution import new_id
from agentfield.fabric.faults import Fault, NoAnswerFault, NoRespondersFault, ServerFault, Verdict, error_of
from agentfield.fabric.jetstream import ATTEMPT, api, backoff
from agentfield.fabric.journals import renew_journals
from agentfield.fabric.leader import leader_get
from agentfield.fabric.topology import Topology
from agentfield.fabric.wire.connection import Connection
from agentfield.header import EVENT_ID
from agentfield.privacy import Per

_VERSION: Final = 1


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


class KeyBucket:
    """The bucket of one namespace. ``timeout`` is how long one look may take, retries included (seconds)."""

    def __init__(self, connection: Connection, topology: Topology, *, timeout: float) -> None:
        self._connection = connection
        self.stream = topology.keys.name
        self.timeout = timeout
        self._prefix = f"$KV.{topology.keys_bucket}."

    async def last_policy(self) -> Record | None:
        """The policy with the highest number; None if there is none."""
        return await self._last("policy.*", "reading the policy")

    async def create_policy(self, number: int, content: bytes) -> Record:
        """Store a policy under a number that has none; return what is there then, this or what came before it.

        Raises :class:`UnavailableError`: it may be stored nevertheless, and who looks next will find it.
        """
        return await self._create(f"policy.{number}", content)

    async def key(self, tokens: str) -> DataKey | None:
        """The key of a vault; None if there is none. Raises :class:`UnavailableError` and its kin."""
        record = await self._last(f"data.{tokens}", "reading a key")
        return None if record is None else _key_of(record)

    async def create_key(self, tokens: str) -> DataKey:
        """The key of a vault, made now if there is none: of several that are made at once, the first is everybody's.

        Raises :class:`UnavailableError`: it may be stored nevertheless, and who looks next will find it.
        """
        fields = {"v": _VERSION, "key": b64encode(os.urandom(KEY_BYTES)).decode()}
        return _key_of(await self._create(f"data.{tokens}", orjson.dumps(fields)))

    async def keys(self, tails: Sequence[str]) -> list[StoredKey]:
        """The keys whose vaults match one of these filters (as :meth:`Vault.tokens` are written).

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
            await api(self._connection, f"STREAM.MSG.DELETE.{self.stream}", body, patience=self.timeout)
        except Fault as fault:
            refusal = fault  # an earlier try may have gone through: what counts is whether it is still there
        left = await self.key(stored.tokens)
        if left is not None and left.fingerprint == stored.key.fingerprint:
            if refusal is not None:
                raise error_of(refusal, f"destroying key {left.fingerprint}") from None
            raise UnavailableError(f"the server says that it has destroyed key {left.fingerprint}, and still has it")

    async def renew_journals(self) -> bool:
        """See that no replica's journal holds what was destroyed; see :mod:`agentfield.fabric.journals`."""
        return await renew_journals(self._connection, self.stream)

    async def _create(self, tail: str, content: bytes) -> Record:
        subject = f"{self._prefix}{tail}"
        headers = {EVENT_ID: new_id(), "Nats-Expected-Last-Subject-Sequence": "0"}
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.timeout
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
            record = await self._last(tail, "storing a key")
            if record is not None:
                return record
            if isinstance(fault, ServerFault) and fault.verdict not in (Verdict.CONFLICT, Verdict.RETRY):
                raise error_of(fault, "storing a key of personal data")
            pause = backoff(attempt)
            attempt += 1
            if loop.time() + pause >= deadline:
                raise error_of(fault, "storing a key")
            await asyncio.sleep(pause)

    async def _last(self, tail: str, doing: str) -> Record | None:
        return await self._leader_get({"last_by_subj": f"{self._prefix}{tail}"}, doing)

    async def _leader_get(self, body: dict[str, Any], doing: str) -> Record | None:
        doing = f"{doing} of personal data"
        return await leader_get(self._connection, self.stream, body, doing=doing, patience=self.timeout)


def _key_of(record: Record) -> DataKey:
    try:
        return DataKey.of(b64decode(orjson.loads(record.payload)["key"], validate=True))
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        raise UnavailableError(
            f"what the bucket of keys holds under {record.subject!r} is no key of agentfield's: somebody else wrote it"
        ) from None
