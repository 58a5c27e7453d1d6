"""Views that hold values in plain: which there are, and telling them what to drop after an erasure.

Owns: the notice of an erasure in the log, which stands behind every event that the erasure is about; the register of
views, one entry each in the global scope that says up to which notice it has dropped what it was told to; and the
exchange with the process that keeps a view. Must not know: what a view is. Invariant: a view that is registered hears
of every erasure: at once while somebody keeps it, else when it is kept again, before anything else; one that could not
be told, or has not confirmed, is named in the receipt.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import orjson

from agentfield.codec import Record, decode_data, is_delete
from agentfield.errors import ConflictError, InvalidInputError, UnavailableError
from agentfield.event import Writer
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.faults import NoAnswerFault, NoRespondersFault
from agentfield.fabric.wire.connection import ConnectionState
from agentfield.fabric.wire.message import Message
from agentfield.header import encode_event
from agentfield.memory.addressing import AnyScope
from agentfield.memory.lifetime import Lifetimes
from agentfield.memory.preparing import prepare
from agentfield.memory.state import live_entries
from agentfield.memory.writing import store
from agentfield.naming import shown
from agentfield.pattern import Pattern
from agentfield.privacy import VIEW
from agentfield.scope import GLOBAL, Scope
from agentfield.value import encode_value

logger = logging.getLogger("agentfield.views")

PATIENCE = 30.0
"""Seconds a view is given to drop what was erased, before the receipt says that it is at it still."""

_MOMENT = 1.0
"""Seconds that whoever stops keeping a view leaves to what it is just dropping."""

Answer = Literal["dropped", "told", "failed", "not running"]
"""What a view said: it has dropped what was erased; it has been told, and is at it; it could not; nobody keeps it now,
and whoever keeps it next will be told."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True)
class Erasure:
    """What was erased, as a view is told it."""

    id: str
    """Of the erasure and of its receipt. The same erasure may come twice."""
    pattern: Pattern
    scopes: tuple[AnyScope, ...]
    revision: int = 0
    """Of its notice in the log: no event after that is encrypted with a key that was destroyed."""

    def concerns(self, scope: Scope, key: str) -> bool:
        """Whether what a view holds of this key is to go: all of it, the present and the past."""
        return self.pattern.matches(key) and any(
            kind == scope.kind and (id is None or id == scope.id) for kind, id in self.scopes
        )

    def fields(self) -> dict[str, Any]:
        """The erasure as its notice holds it."""
        return {"id": self.id, "pattern": self.pattern.text, "scopes": [list(scope) for scope in self.scopes]}

    @classmethod
    def of(cls, fields: Any) -> Erasure:
        """The erasure that ``fields()`` became."""
        scopes = tuple((kind, id) for kind, id in fields["scopes"])
        return cls(fields["id"], Pattern.parse(fields["pattern"]), scopes, int(fields.get("revision", 0)))


Drop = Callable[[Erasure], Awaitable[None]]
"""Takes what was erased out of a view; on return it is gone."""


# -- notices ----------------------------------------------------------------------------------------------------------


def notice_subject(fabric: Fabric, erasure: str = "*") -> str:
    """Where in the log an erasure leaves its notice, or all do; each has a subject, so that trimming leaves them."""
    return f"{fabric.subjects.namespace}.checks.erasures.{erasure}"


async def notify(fabric: Fabric, erasure: Erasure) -> Erasure:
    """Leave the notice of an erasure whose keys are gone; return the erasure with its revision."""
    headers = encode_event(event_id=f"{erasure.id}-notice", operation="set", writer=Writer())
    ack = await fabric.log.append(notice_subject(fabric, erasure.id), orjson.dumps(erasure.fields()), headers)
    return replace(erasure, revision=ack.sequence)


async def last_notice(fabric: Fabric) -> int:
    """The revision of the newest notice; 0 if nothing was ever erased."""
    record = await fabric.log.last_of(notice_subject(fabric))
    return 0 if record is None else record.sequence


async def notices(fabric: Fabric, after: int) -> list[Erasure]:
    """The erasures whose notices come after a revision, oldest first."""
    last = await last_notice(fabric)
    if last <= after:
        return []
    read = fabric.log.read([notice_subject(fabric)], start=max(1, after + 1), stop=last)
    return [Erasure.of({**orjson.loads(record.payload), "revision": record.sequence}) async for record in read]


# -- the register -----------------------------------------------------------------------------------------------------


async def registered(fabric: Fabric) -> dict[str, int]:
    """Every view by its name, and the notice up to which it has dropped what was erased."""
    scopes: tuple[AnyScope, ...] = (("global", GLOBAL.id),)
    return {
        fabric.subjects.parse(record.subject)[1].removeprefix(VIEW): _handled(fabric, record)
        async for record in live_entries(fabric, [Pattern.parse(f"{VIEW}*")], scopes)
    }


async def confirm(fabric: Fabric, name: str, revision: int, writer: Writer) -> None:
    """Register a view, or note that it has dropped whatever has a notice up to this revision. Never goes back."""
    subject = fabric.subjects.memory(GLOBAL, f"{VIEW}{name}")
    while True:
        (record,) = await fabric.log.last([subject])
        if record is not None and not is_delete(record) and _handled(fabric, record) >= revision:
            return
        write = prepare(fabric, GLOBAL, f"{VIEW}{name}", "set", encode_value({"handled": revision}), writer)
        try:
            await store(fabric, Lifetimes(), write, 0 if record is None else record.sequence)
        except ConflictError:
            continue  # the same view is kept elsewhere as well
        return


async def unregister(fabric: Fabric, name: str, writer: Writer) -> None:
    """Take a view that is no more off the register."""
    if name in await registered(fabric):
        await store(fabric, Lifetimes(), prepare(fabric, GLOBAL, f"{VIEW}{name}", "delete", b"", writer), None)


def _handled(fabric: Fabric, record: Record) -> int:
    fields = decode_data(record, fabric.subjects)
    return int(fields.get("handled", 0)) if isinstance(fields, dict) else 0


# -- keeping a view ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def keeping(fabric: Fabric, name: str, drop: Drop, writer: Writer) -> AsyncIterator[None]:
    """Register a view, have it drop what was erased while nobody kept it, and then whatever is erased."""
    if _NAME.fullmatch(name) is None:
        raise InvalidInputError(f"view name {shown(name)}: 1 to 64 of A-Z a-z 0-9 _ -")
    one_at_a_time = asyncio.Lock()
    missed = asyncio.Event()

    async def catch_up() -> None:
        """Drop in the order of the notices; none is confirmed while one before it is not dropped."""
        handled = (await registered(fabric)).get(name, 0)
        await confirm(fabric, name, handled, writer)
        for erasure in await notices(fabric, handled):
            await drop(erasure)
            await confirm(fabric, name, erasure.revision, writer)

    async def told(_: Erasure) -> None:
        async with one_at_a_time:
            await catch_up()

    async def look_again() -> None:
        while True:
            await missed.wait()
            missed.clear()
            try:
                async with one_at_a_time:
                    await catch_up()
            except Exception:  # the function is the user's; told again, or kept again, it is tried again
                logger.exception("view %s could not drop what was erased while it was disconnected", name)

    def reconnected(state: ConnectionState) -> None:
        if state == "connected":
            missed.set()

    await one_at_a_time.acquire()  # so that what is told meanwhile waits for its turn
    async with listening(fabric, name, told):
        try:
            await catch_up()
        finally:
            one_at_a_time.release()
        forget = fabric.connection.on_state(reconnected)
        looking = asyncio.create_task(look_again(), name=f"view {name}")
        try:
            yield
        finally:
            forget()
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)


@asynccontextmanager
async def listening(fabric: Fabric, name: str, drop: Drop) -> AsyncIterator[None]:
    """Have a view drop what is erased from now on, and say so to who erased it. What is missed has left its notice."""
    idle = asyncio.Event()
    idle.set()

    async def told(message: Message) -> None:
        idle.clear()
        try:
            if message.reply:
                await fabric.connection.publish(message.reply, _answer("told"))
            answer = await dropped(message)
            if message.reply:
                await fabric.connection.publish(message.reply, _answer(answer))
        finally:
            idle.set()

    async def dropped(message: Message) -> Answer:
        try:
            await drop(Erasure.of(orjson.loads(message.payload)))
        except Exception:  # the function is the user's: the receipt says that it failed
            logger.exception("view %s could not drop what was erased", name)
            return "failed"
        return "dropped"

    subscription = await fabric.connection.subscribe(_door(fabric, name), told)
    try:
        yield
    finally:
        with suppress(TimeoutError):  # who is at it may still say how it ended
            async with asyncio.timeout(_MOMENT):
                await idle.wait()
        await subscription.unsubscribe()


async def tell(fabric: Fabric, erasure: Erasure) -> dict[str, Answer]:
    """Tell every registered view; return what they say."""
    names = list(await registered(fabric))
    payload = orjson.dumps({**erasure.fields(), "revision": erasure.revision})
    answers = await asyncio.gather(*(_tell(fabric, name, payload) for name in names))
    return dict(zip(names, answers, strict=True))


async def _tell(fabric: Fabric, name: str, payload: bytes) -> Answer:
    told = False

    def is_last(message: Message) -> bool:
        nonlocal told
        if message.payload == _answer("told"):
            told = True
            return False
        return True

    try:
        answers = await fabric.connection.request_many(_door(fabric, name), payload, timeout=PATIENCE, last=is_last)
    except NoRespondersFault:
        return "not running"
    except (NoAnswerFault, UnavailableError):
        return "told" if told else "failed"
    return "dropped" if answers[-1].payload == _answer("dropped") else "failed"


def _door(fabric: Fabric, name: str) -> str:
    return f"{fabric.subjects.namespace}.views.{name}"


def _answer(answer: Answer) -> bytes:
    return orjson.dumps({"answer": answer})
