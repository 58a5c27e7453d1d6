"""Views that hold values in plain: which there are, and telling them what to drop after an erasure.

Owns: the register, one entry a view in the global scope, and the exchange with the process that keeps a view. Must not
know: what a view is. Invariant: a view that is registered hears of every erasure: at once while somebody keeps it, else
when it is kept again, before anything else; one that could not be told is named in the receipt.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from agentfield.codec import decode_data, encode_value
from agentfield.errors import InvalidInputError, UnavailableError
from agentfield.event import Writer
from agentfield.fabric.connection import Message
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.faults import NoAnswerFault, NoRespondersFault
from agentfield.memory.addressing import AnyScope
from agentfield.memory.lifetime import Lifetimes
from agentfield.memory.state import live_entries
from agentfield.memory.writing import prepare, store
from agentfield.naming import shown
from agentfield.pattern import Pattern
from agentfield.privacy import RECEIPT, VIEW
from agentfield.scope import GLOBAL, Scope

logger = logging.getLogger("agentfield.views")

PATIENCE = 30.0
"""Seconds a view is given to drop what was erased, before the receipt says that it failed."""

Answer = Literal["dropped", "failed", "not running"]

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Erasure:
    """What was erased, as a view is told it."""

    id: str
    """Of the erasure and of its receipt. The same erasure may come twice."""
    pattern: Pattern
    scopes: tuple[AnyScope, ...]

    def concerns(self, scope: Scope, key: str) -> bool:
        """Whether what a view holds of this key is to go: all of it, the present and the past."""
        return self.pattern.matches(key) and any(
            kind == scope.kind and (id is None or id == scope.id) for kind, id in self.scopes
        )

    def fields(self) -> dict[str, Any]:
        """The erasure as it is sent."""
        return {"id": self.id, "pattern": self.pattern.text, "scopes": [list(scope) for scope in self.scopes]}

    @classmethod
    def of(cls, fields: Any) -> Erasure:
        """The erasure that ``fields()`` became, or a receipt is about."""
        return cls(fields["id"], Pattern.parse(fields["pattern"]), tuple((kind, id) for kind, id in fields["scopes"]))


Drop = Callable[[Erasure], Awaitable[None]]
"""Takes what was erased out of a view; on return it is gone."""


@asynccontextmanager
async def keeping(fabric: Fabric, name: str, drop: Drop, writer: Writer) -> AsyncIterator[None]:
    """Register a view, have it drop what was erased while nobody kept it, and then whatever is erased."""
    if _NAME.fullmatch(name) is None:
        raise InvalidInputError(f"view name {shown(name)}: 1 to 64 of A-Z a-z 0-9 _ -")
    subject = f"{fabric.subjects.namespace}.views.{name}"
    one_at_a_time = asyncio.Lock()

    async def told(message: Message) -> None:
        answer: Answer = "dropped"
        try:
            async with one_at_a_time:
                await drop(Erasure.of(orjson.loads(message.payload)))
        except Exception:  # the function is the user's: the receipt says that it failed
            logger.exception("view %s could not drop what was erased", name)
            answer = "failed"
        if message.reply:
            await fabric.connection.publish(message.reply, orjson.dumps({"answer": answer}))

    subscription = await fabric.connection.subscribe(subject, told)
    try:
        async with one_at_a_time:
            await _catch_up(fabric, name, drop, writer)
        yield
    finally:
        await subscription.unsubscribe()


async def _catch_up(fabric: Fabric, name: str, drop: Drop, writer: Writer) -> None:
    handled = 0
    for found, fields in await _entries(fabric, f"{VIEW}{name}"):
        if found == f"{VIEW}{name}":
            handled = int(fields.get("handled", 0))
    position = handled
    scopes: tuple[AnyScope, ...] = (("global", GLOBAL.id),)
    async for record in live_entries(fabric, [Pattern.parse(f"{RECEIPT}*")], scopes):
        if record.sequence > handled:
            await drop(Erasure.of(decode_data(record, fabric.subjects)))
        position = max(position, record.sequence)
    write = prepare(fabric, GLOBAL, f"{VIEW}{name}", "set", encode_value({"handled": position}), writer)
    await store(fabric, Lifetimes(), write, None)


async def tell(fabric: Fabric, id: str, pattern: Pattern, scopes: Sequence[AnyScope]) -> dict[str, Answer]:
    """Tell every registered view; return what they say."""
    names = [key.removeprefix(VIEW) for key, _ in await _entries(fabric, f"{VIEW}*")]
    payload = orjson.dumps(Erasure(id, pattern, tuple(scopes)).fields())
    answers = await asyncio.gather(*(_tell(fabric, name, payload) for name in names))
    return dict(zip(names, answers, strict=True))


async def _tell(fabric: Fabric, name: str, payload: bytes) -> Answer:
    subject = f"{fabric.subjects.namespace}.views.{name}"
    try:
        answer = orjson.loads((await fabric.connection.request(subject, payload, timeout=PATIENCE)).payload)
    except NoRespondersFault:
        return "not running"
    except (NoAnswerFault, UnavailableError):
        return "failed"
    return "dropped" if answer.get("answer") == "dropped" else "failed"


async def _entries(fabric: Fabric, pattern: str) -> list[tuple[str, Any]]:
    scopes: tuple[AnyScope, ...] = (("global", GLOBAL.id),)
    return [
        (fabric.subjects.parse(record.subject)[1], decode_data(record, fabric.subjects))
        async for record in live_entries(fabric, [Pattern.parse(pattern)], scopes)
    ]
