"""Erasing: personal values made unreadable wherever they have been copied to, by destroying their keys.

Owns: the order of the steps, and the receipt. The keys are condemned first, by an event in the log: no event encrypted
with one of them can be stored after that (see ``encrypting``), so what the receipt counts is all there is. Then the
present entries are deleted, as events, so that whoever reacts knows; the log is looked through for what is covered and
what is not; the keys are destroyed, the leader is asked whether they are gone, and the replicas' journals are made
anew; a notice is left in the log, and views that hold plain values are told; the receipt is stored. Invariants:
whatever step it broke off at, doing it again finishes it; nothing is said to be covered whose key is still there, or
that was never encrypted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict

from agentfield.amount import number_of
from agentfield.codec import Record, encrypted_by, is_delete
from agentfield.errors import DecodeError, InvalidInputError, UnavailableError
from agentfield.event import Writer
from agentfield.execution import new_id
from agentfield.fabric.appending import Conflict
from agentfield.fabric.batch import BatchItem, append_batch
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import backoff
from agentfield.fabric.personal.bucket import StoredKey
from agentfield.header import encode_event
from agentfield.memory import views
from agentfield.memory.addressing import AnyScope
from agentfield.memory.encrypting import condemnations
from agentfield.memory.lifetime import Lifetimes
from agentfield.memory.lifetimes.clearing import delete_each, is_to_go
from agentfield.memory.preparing import prepare
from agentfield.memory.writing import store
from agentfield.pattern import Pattern
from agentfield.privacy import RECEIPT, is_reserved, vault_of
from agentfield.scope import GLOBAL, ScopeKind
from agentfield.value import encode_value
from agentfield.version import __version__

logger = logging.getLogger("agentfield.erasing")

NOT_KNOWN = (
    "what was copied in plain: views that are not registered, exports, prompts and answers of models, results of "
    "calls, notes, errors, logs"
)
"""What no erasure can know of; every receipt says so."""
_TRIES = 20
"""How often condemning a key is tried: for some seconds, about as long as an election takes."""
MAX_RANGES = 200
"""Ranges of revisions that a receipt lists one by one."""

Sign = Callable[[bytes], str]
"""Signs the bytes of a receipt; what it returns is kept with it."""

Fate = Literal["erased", "erased before", "not personal", "key still in use"]
"""What became of the value of an event: its key was destroyed now, or by an earlier erasure; it was written in plain,
before it was declared personal; or its key is also that of others, which this erasure was not about, or was made after
it had begun."""


@dataclass(frozen=True)
class Target:
    """What is to be erased: everything in one scope, or the keys that match a pattern in some scopes."""

    pattern: Pattern
    scopes: tuple[AnyScope, ...]

    def __str__(self) -> str:
        where = ", ".join(kind if id is None or kind == "global" else f"{kind}:{id}" for kind, id in self.scopes)
        return where if self.pattern.text == "*" else f"{self.pattern.text} in {where}"

    def matches(self, fabric: Fabric, subject: str) -> bool:
        """Whether it is about a key, by the key's subject. Receipts of earlier erasures are never erased."""
        try:
            scope, key = fabric.subjects.parse(subject)
        except InvalidInputError:
            return self.pattern.text == "*"  # what others put into the scope goes, too
        return self.pattern.matches(key) and not is_reserved(scope, key)


class Tally(BaseModel):
    """Events whose values met one fate."""

    model_config = ConfigDict(frozen=True)

    fate: Fate
    events: int
    first: int
    """The first revision."""
    last: int
    """The last revision."""
    revisions: list[tuple[int, int]]
    """All of them, as ranges with both ends included, as far as 200 ranges go."""
    complete: bool = True
    """Whether ``revisions`` lists every one."""


class ErasureReceipt(BaseModel):
    """What an erasure covered, and what not. It holds no personal data, but for the name of what was erased.

    ``model_dump(mode="json")`` is what is stored, under the key ``erasure_receipt_<id>`` of the global scope.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    erased: str
    """What it was asked for, such as ``session:user-42`` or ``user_*_email in global``."""
    scopes: list[tuple[ScopeKind, str | None]]
    pattern: str
    at: datetime
    """When the keys were gone: aware, UTC, by the server's clock."""
    by: str | None
    """Who asked for it."""
    deleted: int
    """Entries that had a value until then, and were deleted."""
    keys: list[str]
    """Fingerprints of the keys that were destroyed: the names by which the events and the envelopes call them."""
    journals_renewed: bool
    """Whether the servers' journals are free of destroyed keys, too; on a single server, always. If not, a replica was
    away, or permissions forbid it: erase again when it is back."""
    up_to: int
    """The last revision that was looked at."""
    looked_from: int = 1
    """The first revision that was looked at. Above 1 if the log was trimmed and no archive of what was before is at
    hand: of that, only what keys held when it was trimmed was looked at."""
    tallies: list[Tally]
    """What became of every value ever stored there."""
    views: dict[str, views.Answer]
    """The views that hold plain values, and what they said: ``"dropped"``, they confirm that these are gone;
    ``"told"``, they are still at it; ``"failed"``; ``"not running"``: whoever keeps it next is told first of all."""
    not_known: str = NOT_KNOWN
    version: str = __version__
    signature: str | None = None
    """Of the receipt without it, where it was to be signed."""

    @property
    def covered(self) -> int:
        """Events whose values nobody can read any more because of this."""
        return sum(tally.events for tally in self.tallies if tally.fate == "erased")

    @property
    def left(self) -> list[Tally]:
        """What is still readable to whoever has the log."""
        return [tally for tally in self.tallies if tally.fate in ("not personal", "key still in use")]

    @property
    def complete(self) -> bool:
        """Whether the whole log was looked at, nothing is left in it or in journals, and every view dropped it."""
        dropped = all(answer == "dropped" for answer in self.views.values())
        return not self.left and self.looked_from == 1 and self.journals_renewed and dropped


async def erase(
    fabric: Fabric, target: Target, *, writer: Writer, by: str | None = None, sign: Sign | None = None
) -> ErasureReceipt:
    """Erase personal values for good and return the receipt, which is stored by then.

    Raises InvalidInputError, before anything is done, if there is an archive and it is not the log's;
    :class:`UnavailableError` and its kin at any step: what is done stays done, and doing it again goes on.
    """
    await fabric.keys.policies.present()  # keys that were lost are not erased: they may be in a backup
    first = await fabric.log.begins()
    keys = await _condemn(fabric, target)
    filters = fabric.subjects.filters([target.pattern], target.scopes)
    present = [
        record._replace(payload=b"")
        async for record in fabric.log.current(filters)
        if target.matches(fabric, record.subject) and is_to_go(record, fabric.log.now())
    ]
    deleted = await delete_each(fabric, present, writer, "cleared")
    up_to = int((await fabric.log.state())["last_seq"])
    tallies = await _tallies(fabric, target, filters, up_to, {stored.key.fingerprint for stored in keys})
    for stored in keys:
        await fabric.keys.destroy(stored)
    await _prove(fabric, target, keys)
    await fabric.keys.policies.announce()
    journals = await fabric.keys.renew_journals()
    id = new_id()
    notice = await views.notify(fabric, views.Erasure(id, target.pattern, target.scopes))
    receipt = ErasureReceipt(
        id=id,
        erased=str(target),
        scopes=list(target.scopes),
        pattern=target.pattern.text,
        at=datetime.fromtimestamp(fabric.log.now() / 1e9, UTC),
        by=by if by is not None else writer.agent,
        deleted=deleted.number,
        keys=[stored.key.fingerprint for stored in keys],
        journals_renewed=journals,
        up_to=up_to,
        looked_from=first,
        tallies=tallies,
        views=await views.tell(fabric, notice),
    )
    if sign is not None:
        signature = sign(orjson.dumps(receipt.model_dump(mode="json", exclude={"signature"})))
        receipt = receipt.model_copy(update={"signature": signature})
    write = prepare(fabric, GLOBAL, f"{RECEIPT}{id}", "set", encode_value(receipt), writer)
    await store(fabric, Lifetimes(), write, None)
    logger.info("erased %s: %s, %s", receipt.erased, number_of(receipt.covered, "event"), number_of(len(keys), "key"))
    return receipt


async def _condemn(fabric: Fabric, target: Target) -> list[StoredKey]:
    """The keys to destroy, after which nothing more is stored that is encrypted with one of them."""
    candidates = await fabric.keys.stored(_vaults(fabric, target))
    found = [stored for stored in candidates if _is_meant(fabric, target, stored)]
    for stored in found:
        fingerprint = stored.key.fingerprint
        payload = orjson.dumps({"key": fingerprint, "condemned": True})
        items = [
            BatchItem(
                subject,
                payload,
                encode_event(event_id=f"{fingerprint}-condemned-{lane}", operation="set", writer=Writer()),
            )
            for lane, subject in enumerate(condemnations(fabric, fingerprint, stored.per))
        ]
        await _append(fabric, items)
    return found


async def _append(fabric: Fabric, items: Sequence[BatchItem]) -> None:
    """Store them all; they expect nothing, but may meet checks of their subjects that are not decided yet."""
    for attempt in range(_TRIES):
        try:
            await append_batch(fabric.log, items)
        except Conflict:
            await asyncio.sleep(backoff(attempt))
        else:
            return
    raise UnavailableError("condemning a key met undecided writes for too long: erase again")


def _vaults(fabric: Fabric, target: Target) -> list[str]:
    """Filters of the vaults that the target may be about."""
    prefix = f"{fabric.subjects.namespace}.memory."
    tails = [subject.removeprefix(prefix) for subject in fabric.subjects.filters([target.pattern], target.scopes)]
    whole = [".".join(tail.split(".")[:2]) for tail in tails] if target.pattern.text == "*" else []
    return [*dict.fromkeys(whole), *tails]


def _is_meant(fabric: Fabric, target: Target, stored: StoredKey) -> bool:
    if stored.per == "scope":
        return target.pattern.text == "*"
    return target.matches(fabric, f"{fabric.subjects.namespace}.memory.{stored.tokens}")


async def _prove(fabric: Fabric, target: Target, keys: Sequence[StoredKey]) -> None:
    gone = {stored.key.fingerprint for stored in keys}
    left = [stored for stored in await fabric.keys.stored(_vaults(fabric, target)) if stored.key.fingerprint in gone]
    if left:
        raise UnavailableError(
            f"{number_of(len(left), 'key')} of {target} still there after being destroyed: erase again"
        )


async def _tallies(
    fabric: Fabric, target: Target, filters: Sequence[str], up_to: int, destroyed: set[str]
) -> list[Tally]:
    """What becomes of the value of each event once these keys are gone."""
    counts: dict[Fate, _Count] = {}
    async for record in fabric.log.read(filters, stop=up_to):
        if not is_delete(record) and target.matches(fabric, record.subject):
            fate = await _fate(fabric, record, destroyed)
            counts.setdefault(fate, _Count()).add(record.sequence)
    return [counts[fate].tally(fate) for fate in sorted(counts)]


async def _fate(fabric: Fabric, record: Record, destroyed: set[str]) -> Fate:
    try:
        encryption = encrypted_by(record)
    except DecodeError:
        return "not personal"  # whatever it is, it is as it was written
    if encryption is None:
        return "not personal"
    if encryption.key in destroyed:
        return "erased"
    scope, key = fabric.subjects.parse(record.subject)
    found = await fabric.keys.find(vault_of(encryption, scope, key), encryption.key)
    return "erased before" if found is None else "key still in use"


class _Count:
    """Counts events in the order of the log."""

    def __init__(self) -> None:
        self.events = 0
        self.last = 0
        self.ranges: list[tuple[int, int]] = []
        self.complete = True

    def add(self, sequence: int) -> None:
        self.events += 1
        if self.ranges and self.ranges[-1][1] == self.last == sequence - 1:
            self.ranges[-1] = (self.ranges[-1][0], sequence)
        elif len(self.ranges) < MAX_RANGES:
            self.ranges.append((sequence, sequence))
        else:
            self.complete = False
        self.last = sequence

    def tally(self, fate: Fate) -> Tally:
        return Tally(
            fate=fate,
            events=self.events,
            first=self.ranges[0][0],
            last=self.last,
            revisions=self.ranges,
            complete=self.complete,
        )
