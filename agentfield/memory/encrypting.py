"""Encrypting: personal values on their way into the log and out of it.

Owns: what becomes of a write whose value is personal, and which records count as erased. Invariants: the plain value of
a personal write never leaves the process; an event is appended only on the condition, checked by the server, that its
key has not been condemned by an erasure (see ``erasing``): so what was acknowledged can be read until it is erased, and
whatever is encrypted with a condemned key was there before it was condemned.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from random import choice
from typing import overload

from agentfield.codec import Record, encrypted_by
from agentfield.envelope import NONCE_BYTES, DataKey, WrongEnvelope, close_up, open_up
from agentfield.errors import DecodeError
from agentfield.fabric.batch import Expectation
from agentfield.fabric.fabric import Fabric
from agentfield.header import EVENT_HEADER, EVENT_ID, OPERATION, encrypts
from agentfield.memory.placing import is_large
from agentfield.memory.preparing import Write
from agentfield.privacy import Encryption, Per, Vault, vault_of
from agentfield.reference import check_size

_LANES = 32
"""Subjects of which a write to a scope checks one: more would only make erasures dearer, by an event each."""
_AT_ONCE = 256 * 1024
"""Bytes above which a value is encrypted and decrypted in a thread."""


def vault_for(fabric: Fabric, write: Write) -> Vault | None:
    """The vault of a write's value; None if it has no value, or that is not personal."""
    if write.as_it_is or OPERATION in write.headers:
        return None
    if write.vault is not None:
        return write.vault
    policy = fabric.keys.policies.known
    return policy.vault(write.scope, write.key) if policy else None


def condemnations(fabric: Fabric, fingerprint: str, per: Per) -> list[str]:
    """The subjects in the log of which each says, by holding anything at all, that a key is being destroyed.

    They are written together. A write checks one of them, any one: a stream with replicas lets only one message at a
    time check a subject, and what is written to a scope at once should not have to queue.
    """
    prefix = f"{fabric.subjects.namespace}.checks.keys.{fingerprint}"
    return [f"{prefix}.{lane}" for lane in range(_LANES if per == "scope" else 1)]


async def encrypted(fabric: Fabric, writes: Sequence[Write]) -> tuple[list[Write], list[Expectation]]:
    """These writes with their personal values in envelopes, and what the server has to check to take them.

    Raises :class:`UnavailableError` and its kin: the keys cannot be had; nothing was written.
    """
    sealed = []
    guards: dict[str, Expectation] = {}
    for write in writes:
        vault = vault_for(fabric, write)
        if vault is None:
            sealed.append(write)
            continue
        key = await fabric.keys.current(vault)
        guards[key.fingerprint] = Expectation(choice(condemnations(fabric, key.fingerprint, vault.per)), 0)
        details = key, os.urandom(NONCE_BYTES), write.payload, write.subject, write.headers[EVENT_ID]
        payload = await asyncio.to_thread(close_up, *details) if len(write.payload) > _AT_ONCE else close_up(*details)
        headers = encrypts(write.headers, Encryption(key.fingerprint, vault.per))
        large = is_large(fabric, payload)
        if large:
            check_size(len(payload), write.key)
        else:
            fabric.log.check_size(write.subject, payload, headers)
        sealed.append(write._replace(payload=payload, headers=headers, large=large))
    return sealed, list(guards.values())


async def are_condemned(fabric: Fabric, guards: Sequence[Expectation]) -> bool:
    """Whether one of the keys behind these guards is being destroyed, or is already."""
    return any(await fabric.log.last([guard.subject for guard in guards]))


@overload
async def known(fabric: Fabric, record: Record) -> Record: ...


@overload
async def known(fabric: Fabric, record: Record | None) -> Record | None: ...


async def known(fabric: Fabric, record: Record | None) -> Record | None:
    """The record, marked as erased if the key of its value is destroyed. Costs nothing for what is not encrypted.

    Raises :class:`UnavailableError` and its kin: an outage never makes a value count as erased.
    """
    if record is None or '"encrypted"' not in record.headers.get(EVENT_HEADER, "") or record.erased:
        return record
    if (encryption := encrypted_by(record)) is None:
        return record
    return record if await _key(fabric, record, encryption) is not None else record._replace(erased=True)


async def all_known(fabric: Fabric, records: Sequence[Record | None]) -> list[Record | None]:
    """The same for several records."""
    return [await known(fabric, record) for record in records]


async def opened(fabric: Fabric, record: Record) -> Record:
    """The record with its value's JSON in it, if that is encrypted; marked as erased if nobody can decrypt it any more.

    A value that lies in an object must have been fetched. Raises :class:`DecodeError` if the envelope was tampered
    with, :class:`InvalidInputError` if this process lacks the package that decrypts, :class:`UnavailableError`.
    """
    encryption = encrypted_by(record)
    if encryption is None or record.erased:
        return record
    key = await _key(fabric, record, encryption)
    if key is None:
        return record._replace(erased=True)
    envelope = record.payload if record.content is None else record.content
    details = key, envelope, record.subject, record.headers.get(EVENT_ID, "")
    try:
        content = await asyncio.to_thread(open_up, *details) if len(envelope) > _AT_ONCE else open_up(*details)
    except WrongEnvelope as fault:
        raise DecodeError(
            f"the value of this event cannot be decrypted: {fault}", subject=record.subject, revision=record.sequence
        ) from None
    return record._replace(content=content)


async def _key(fabric: Fabric, record: Record, encryption: Encryption) -> DataKey | None:
    scope, key = fabric.subjects.parse(record.subject)
    return await fabric.keys.find(vault_of(encryption, scope, key), encryption.key)
