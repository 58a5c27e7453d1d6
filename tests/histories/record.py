"""``python -m tests.histories.record <name>``: write one of everything that can be written, and keep what it becomes.

To be run when a form of event is new, under a name that is new.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from base64 import b64encode
from pathlib import Path
from typing import Any

import nats
from pydantic import BaseModel

from agentfield import Agent, Erasure, Event, Memory, connect, execution
from agentfield.codec import Record, reference_of
from agentfield.errors import DecodeError
from agentfield.fabric.fabric import Fabric
from agentfield.memory.lifetime import Periods
from agentfield.memory.lifetimes.expiry import ExpiryWorker
from projections import Source
from tests.histories import files
from tests.histories.folding import fold
from tests.support import NatsServer, eventually

NAMESPACE = "golden"
VALUES = [None, True, 0, -1.5, 2**64 - 1, "", "ü ✓ \x00 \u2028", [], {}, [1, [2, {"a": None}]], {"ключ": {"b": [1.0]}}]
ODD_KEYS = ["_", "a__b_", "=", "a.b c", "日本_語", "_".join("abcdefghijklmnopqrst"), "$KV", "x" * 100]


class Ticket(BaseModel):
    """The first version of what a ticket is."""

    id: int
    mood: str


class TicketWithUrgency(BaseModel):
    """The second one."""

    id: int
    mood: str
    urgent: bool


def urgent_if_angry(data: dict[str, Any]) -> dict[str, Any]:
    """Lift a ticket of the first version to the second."""
    return {**data, "urgent": data["mood"] == "angry"}


def main() -> None:
    """Record a history under a new name."""
    parser = argparse.ArgumentParser(prog="python -m tests.histories.record", description=__doc__)
    parser.add_argument("name")
    name = parser.parse_args().name
    with tempfile.TemporaryDirectory() as directory:
        server = NatsServer.started(Path(directory))
        try:
            asyncio.run(_record(name, server.url))
        finally:
            server.dispose()


async def _record(name: str, url: str) -> None:
    async with connect(url, namespace=NAMESPACE, actor_id="triage", name="recorder") as memory:
        fabric = await memory._fabric()
        await _write(memory, fabric)
        await _write_with_schemas(memory, url)
        await _write_personal(memory)
        await _write_by_agents(memory, url)
        async with Source(fabric).lease("ledger-here"):
            pass
        await _write_what_is_not_ours(url)
        records = [await _whole(fabric, record) async for record in fabric.log.read([])]
        stored = await fabric.keys.stored([">"])
    keys = {each.key.fingerprint: b64encode(each.key.secret).decode() for each in stored}
    at = records[-1].timestamp
    events, state = fold(records, NAMESPACE, at, keys=keys)
    files.write(name, records, {"namespace": NAMESPACE, "keys": keys, "events": events, "at": at, "state": state})


async def _whole(fabric: Fabric, record: Record) -> Record:
    """The message with the object beside it that it refers to."""
    try:
        reference = reference_of(record)
    except DecodeError:
        return record
    return record if reference is None else record._replace(content=await fabric.objects.get(reference))


async def _write(memory: Memory, fabric: Fabric) -> None:
    for number, value in enumerate(VALUES):
        await memory.set(f"value_{number}", value)
    await memory.set_many(dict.fromkeys(ODD_KEYS, "odd"))
    running = execution.root("triage", "triage", workflow_id="wf 1.ü", session_id="user_42")
    token = execution.current.set(running)
    try:
        await memory.set("order_42_status", "new")
        first = [event async for event in memory.history("order_42_status")]
    finally:
        execution.current.reset(token)
    caused = execution.root(
        "shipping", "shipping", workflow_id="wf 1.ü", session_id="user_42", cause=first[0].id, trace=running.trace
    )
    token = execution.current.set(caused)
    try:
        await memory.set("order_42_status", {"status": "paid"})
        await memory.session().set("cart", ["tea"])
        await memory.actor("shipping").set("queue", 1)
        await memory.delete("order_42_status")
        await memory.create("order_42_status", "again")
        await memory.increment("orders")
        await memory.increment("orders")
    finally:
        execution.current.reset(token)
    async with memory.transaction() as tx:
        seen = [await tx.get(key) for key in ("value_1", "value_2", "nothing")]
        tx.set("sum", len(seen))
        tx.delete("value_0")
    async with memory.lock("reindex") as lock:
        await memory.set("index", "fresh", fence=lock)
    await memory.set("large", {"text": "lorem " * 60_000})
    await memory.set("in_an_hour", 1, ttl=3600.5)
    async with ExpiryWorker(fabric, Periods(None, None)):
        await memory.set("soon", 1, ttl=0.1)

        async def said() -> bool:
            return [event.reason async for event in memory.history("soon")] == [None, "expired"]

        await eventually(said)
    await memory.set("unsaid", 1, ttl=0.1)
    await asyncio.sleep(0.2)
    basket = memory.session("basket")
    then = await basket.set_many({"item_1": "tea", "item_2": "milk"})
    await basket.clear()
    await basket.revert("*", then)


async def _write_with_schemas(memory: Memory, url: str) -> None:
    memory.schema("ticket_*", Ticket, name="ticket")
    await memory.set("ticket_1", Ticket(id=1, mood="angry"))
    await memory.set("ticket_2", Ticket(id=2, mood="calm"))
    async with connect(url, namespace=NAMESPACE) as later:
        later.schema("ticket_*", TicketWithUrgency, name="ticket", version=2, upcast={1: urgent_if_angry})
        await later.set("ticket_2", TicketWithUrgency(id=2, mood="calm", urgent=True))
        await later.set("ticket_3", {"id": 3, "mood": "calm", "urgent": False}, ttl=86400)
        await later.delete("ticket_3")


async def _write_personal(memory: Memory) -> None:
    """Values under a key for a whole scope and under keys of their own; some of them are erased again."""
    user, other = memory.session("user-1"), memory.session("user-9")
    await user.set("street", "written in plain")
    await memory.set_personal(["session"], ["user_*_email"])
    await user.set("street", "12 Ockham's Way")
    then = await user.set("street", {"street": "12 Ockham's Way", "ü": [None, 1.5]})
    await user.set("letter", {"text": "dear " * 53_000})
    await user.set("code", 1234, ttl=86400)
    await user.increment("visits")
    await user.increment("visits", 2)
    await user.delete("street")
    await user.revert("street", then)
    await memory.set("user_7_email", "ada@example.org", scope="global")
    await user.set("user_7_email", "ada@example.net")
    async with memory.transaction() as tx:
        await tx.get("user_7_email", scope="global")
        tx.set("greeting", "hello", scope="session", scope_id="user-1")
        tx.set("greeted", True, scope="global")
    await user.set("ticket_9", Ticket(id=9, mood="private"))
    await other.set("street", "nowhere")
    await other.set("street", "nowhere else")
    await memory.set("user_9_email", "bob@example.org", scope="global")

    async def drop(_: Erasure) -> None:
        pass

    async with memory.plaintext_view("ledger", drop):
        await memory.erase(scope="session", scope_id="user-9", by="Grace")
    await memory.erase("user_9_*")
    await other.set("street", "anew")


async def _write_by_agents(memory: Memory, url: str) -> None:
    """Calls that call, handlers that start handlers, in a transaction of their own, with effects that happen once."""
    orders = Agent("orders", nats_url=url, namespace=NAMESPACE)
    shipping = Agent("shipping", nats_url=url, namespace=NAMESPACE)

    @orders.reasoner()
    async def place(item: str) -> int:
        return await orders.memory.set("parcel_1", {"item": item})

    @orders.reasoner()
    async def checkout(item: str) -> int:
        placed: int = await orders.call("orders.place", item=item)
        return placed

    @shipping.memory.on_change("parcel_*")
    async def ship(event: Event) -> None:
        async with shipping.memory.transaction(once=True) as tx:
            tx.set("label_1", {"for": event.key})
            tx.set("address", "12 Ockham's Way", scope="session")

    @shipping.memory.on_change("label_*")
    async def note(event: Event) -> None:
        await shipping.memory.set("noted", event.data, scope="global")
        await shipping.memory.delete("noted", scope="global")
        await shipping.memory.set("noted", event.revision, scope="global")

    async with orders, shipping:
        async with orders.session("user-1"):
            await orders.call("orders.checkout", item="tea")

        async def noted() -> bool:
            return isinstance(await memory.get("noted", scope="global"), int)

        await eventually(noted, within=20)


async def _write_what_is_not_ours(url: str) -> None:
    """What any NATS client may put there, and what a later version of agentfield might."""
    keys = f"{NAMESPACE}.memory.global.global"
    unknown = {"Nats-Msg-Id": "unknown", "Agentfield-Event": '{"v":99,"type":"set"}'}
    client = await nats.connect(url)
    try:
        jetstream = client.jetstream()
        await jetstream.publish(f"{keys}.foreign", b"plain")
        await jetstream.publish(f"{keys}.foreign.bytes", b"\xff\x00\xfe")
        await jetstream.publish(f"{keys}.foreign.purge", b"", headers={"KV-Operation": "PURGE"})
        await jetstream.publish(f"{keys}.later", b"1", headers=unknown)
        await jetstream.publish(f"{keys}.=zz", b"1")
        await jetstream.publish(f"{NAMESPACE}.memory.planet.x.y", b"1")
    finally:
        await client.close()


if __name__ == "__main__":
    main()
