"""Values too large for an event: whole or not there, the same to every reader, and nothing of them left behind."""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import nats
import pytest
from nats.js.errors import KeyNotFoundError

from agentfield import (
    Agent,
    ConflictError,
    DecodeError,
    Event,
    InvalidInputError,
    LockLostError,
    Memory,
    UnavailableError,
    connect,
    reference,
)
from agentfield.codec import reference_of
from agentfield.fabric.fabric import Fabric
from agentfield.fabric.upload import IN_FLIGHT, OutOfOrderFault, Upload
from agentfield.memory.watch import CaughtUp
from agentfield.reference import LARGE as THRESHOLD
from tests.support import NatsServer, eventually
from tests.support.objects import (
    LARGE,
    condemned,
    fabric_of,
    flip_a_bit,
    last_record,
    messages,
    names,
    object_of,
    rewrite,
)

OTHER = {"pages": ["é" * 1000] * 200}
"""Another value of more than one chunk, which is no string."""


# -- the caller sees no difference ------------------------------------------------------------------------------------


@pytest.mark.smoke
async def test_a_large_value_is_the_same_to_every_read(memory: Memory) -> None:
    revision = await memory.set("report", LARGE)
    await memory.set("small", 1)
    assert await memory.get("report") == LARGE
    assert await memory.get("report", consistency="cached") == LARGE
    assert await memory.get("report", as_type=str) == LARGE
    entry = await memory.entry("report")
    assert entry is not None
    assert (entry.value, entry.revision) == (LARGE, revision)
    assert await memory.get_many(["report", "small"]) == {"report": LARGE, "small": 1}
    assert {each.key: each.value async for each in memory.items()} == {"report": LARGE, "small": 1}
    assert [key async for key in memory.keys("*")] == ["report", "small"]
    async with memory.transaction() as tx:
        assert await tx.get("report") == LARGE
        tx.set("report", OTHER)
        assert await tx.get("report") == OTHER
    assert await memory.get("report") == OTHER


async def test_events_hold_large_values_before_and_after(memory: Memory) -> None:
    await memory.set("report", LARGE)
    await memory.set("report", OTHER)
    await memory.delete("report")
    expected = [(LARGE, None), (OTHER, LARGE), (None, OTHER)]
    assert [(event.data, event.previous_data) async for event in memory.history("report")] == expected
    watched = []
    async for item in memory.watch("report", start="all"):
        if isinstance(item, CaughtUp):
            break
        watched.append((item.data, item.previous_data))
    assert watched == expected


async def test_a_handler_gets_large_values_and_what_was_before_them(
    server: NatsServer, namespace: str, memory: Memory
) -> None:
    agent = Agent("reader", nats_url=server.url, namespace=namespace)
    heard: list[Event] = []

    @agent.memory.on_change("report")
    async def react(event: Event) -> None:
        heard.append(event)

    await memory.set("report", LARGE)
    async with agent:
        await memory.set("report", OTHER)
        await memory.set("report", 1)
        await memory.set("report", LARGE)
        await eventually(lambda: len(heard) == 3)
    assert [event.data for event in heard] == [OTHER, 1, LARGE]
    assert [event.previous_data for event in heard] == [LARGE, OTHER, 1]


async def test_every_way_to_write_takes_large_values(memory: Memory) -> None:
    await memory.create("report", LARGE)
    with pytest.raises(ConflictError):
        await memory.create("report", OTHER)
    assert await memory.update("report", lambda text: text + "!") == LARGE + "!"
    assert await memory.get("report") == LARGE + "!"
    await memory.set_many({"one": LARGE, "two": OTHER, "three": 3})
    assert await memory.get_many(["one", "two", "three"]) == {"one": LARGE, "two": OTHER, "three": 3}
    async with memory.lock("writing") as lock:
        await memory.set("report", OTHER, fence=lock)
    assert await memory.get("report") == OTHER
    async with memory.offline() as buffer:
        buffer.set("later", LARGE)
    assert await memory.get("later") == LARGE
    assert await memory.clear(scope="global") == 5
    assert await memory.get("report") is None


async def test_a_large_value_expires_like_any_other(server: NatsServer, namespace: str, memory: Memory) -> None:
    async with Agent("worker", nats_url=server.url, namespace=namespace):
        await memory.set("report", LARGE, ttl=0.5)
        assert await memory.get("report") == LARGE

        async def gone() -> bool:
            return [event.reason async for event in memory.history("report")] == [None, "expired"]

        await eventually(gone)
    assert await memory.get("report") is None
    assert [event.previous_data async for event in memory.history("report")] == [None, LARGE]


# -- how it lies there ------------------------------------------------------------------------------------------------


async def test_only_what_is_above_the_threshold_becomes_an_object(memory: Memory) -> None:
    fits = "x" * (THRESHOLD - 2)  # two quotation marks make it JSON
    await memory.set("k", fits)
    assert reference_of(await last_record(memory, "k")) is None
    assert not await messages(await fabric_of(memory))
    await memory.set("k", fits + "x")
    found = reference_of(await last_record(memory, "k"))
    assert found is not None
    assert found.size == THRESHOLD + 1


async def test_a_value_larger_than_a_message_may_be_on_a_small_server_becomes_an_object(
    start_server: Callable[..., NatsServer], namespace: str
) -> None:
    server = start_server(extra="max_payload: 65536\n")
    async with connect(server.url, namespace=namespace) as memory:
        for size in (1_000, 50_000, 65_000, 200_000):
            await memory.set("k", "x" * size)
            assert await memory.get("k") == "x" * size


async def test_stock_clients_read_the_reference_and_the_object(
    server: NatsServer, namespace: str, memory: Memory
) -> None:
    await memory.set("report", OTHER)
    content = json.dumps(OTHER, ensure_ascii=False, separators=(",", ":")).encode()
    client = await nats.connect(server.url)
    try:
        jetstream = client.jetstream()
        bucket = await jetstream.key_value(f"{namespace}-global")

        async def seen() -> bytes | None:
            try:
                return (await bucket.get("report")).value
            except KeyNotFoundError:
                return None

        said = json.loads(await eventually(seen) or b"")
        store = await jetstream.object_store(f"{namespace}-objects")
        assert [info.name for info in await store.list()] == [said["object"]]
        found = await store.get(said["object"])  # verifies the digest in the object's description
    finally:
        await client.close()
    assert found.data == content
    assert said == {
        "object": said["object"],
        "bucket": f"{namespace}-objects",
        "digest": found.info.digest,
        "size": len(content),
    }
    assert found.info.size == len(content)
    assert "report" in (found.info.description or "")


async def test_chunks_are_stored_in_order_a_bounded_number_at_once(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fabric = await fabric_of(memory)
    request, now, most = fabric.connection.request, 0, 0

    async def counted(subject: str, *args: Any, **kwargs: Any) -> Any:
        nonlocal now, most
        if ".C." not in subject:
            return await request(subject, *args, **kwargs)
        now += 1
        most = max(most, now)
        try:
            return await request(subject, *args, **kwargs)
        finally:
            now -= 1

    monkeypatch.setattr(fabric.connection, "request", counted)
    value = "".join(f"{number:08x}" for number in range(1_000_000))
    await memory.set("report", value)
    assert 1 < most <= IN_FLIGHT
    assert await memory.get("report") == value


async def test_an_upload_whose_chunks_got_out_of_order_begins_anew(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify, faults = Upload._verify, [OutOfOrderFault("a chunk was stored twice")]

    async def failing_once(self: Upload, count: int) -> None:
        if faults:
            raise faults.pop()
        await verify(self, count)

    monkeypatch.setattr(Upload, "_verify", failing_once)
    await memory.set("report", LARGE)
    fabric = await fabric_of(memory)
    assert await names(fabric) == {await object_of(memory, "report")}
    assert not await names(fabric, complete=False)


async def test_a_value_over_the_limit_is_refused_before_anything_is_sent(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "LARGEST", 1_000_000)
    with pytest.raises(InvalidInputError, match="'report' is 1,000,001 bytes as JSON"):
        await memory.set("report", "x" * 999_999)
    with pytest.raises(InvalidInputError, match="'report'"):
        await memory.set_many({"fine": LARGE, "report": "x" * 1_000_000})
    async with memory.transaction() as tx:
        with pytest.raises(InvalidInputError, match="'report'"):
            tx.set("report", "x" * 1_000_000)
    fabric = await fabric_of(memory)
    assert not await messages(fabric)
    assert (await fabric.log.state())["messages"] == 0


# -- many at once, and conditions -------------------------------------------------------------------------------------


async def test_concurrent_large_writes_are_all_whole(server: NatsServer, namespace: str, memory: Memory) -> None:
    async with connect(server.url, namespace=namespace) as other:
        values = {f"k{number}": hashlib.sha256(bytes([number])).hexdigest() * 8_000 for number in range(20)}
        await asyncio.gather(
            *((memory, other)[number % 2].set(key, value) for number, (key, value) in enumerate(values.items()))
        )
        assert await other.get_many(values) == values
        await asyncio.gather(*(memory.set("same", value) for value in values.values()))
    history = [event.data async for event in memory.history("same")]
    assert sorted(history) == sorted(values.values())
    assert await memory.get("same") == history[-1]


async def test_concurrent_updates_of_one_large_value_lose_nothing_and_leave_nothing(memory: Memory) -> None:
    await memory.set("log", [LARGE])
    await asyncio.gather(*(memory.update("log", lambda log, n=n: [*log, n]) for n in range(8)))  # type: ignore[misc]
    first, *rest = await memory.get("log")
    assert first == LARGE
    assert sorted(rest) == list(range(8))
    fabric = await fabric_of(memory)
    assert len(await names(fabric)) == 9
    assert not await names(fabric, complete=False)


async def test_a_large_write_that_is_refused_leaves_nothing(memory: Memory) -> None:
    revision = await memory.set("report", 1)
    with pytest.raises(ConflictError) as caught:
        await memory.set("report", LARGE, if_revision=revision + 7)
    assert (caught.value.expected, caught.value.actual) == (revision + 7, revision)
    assert await memory.set("report", LARGE, if_revision=revision) > revision

    async def overtaken() -> None:
        async with memory.transaction() as tx:
            assert await tx.get("report") == LARGE
            tx.set("other", LARGE)
            await memory.set("report", 2)

    with pytest.raises(ConflictError):
        await overtaken()
    async with memory.lock("writing", ttl=1) as lock:
        fabric = await fabric_of(memory)
        await fabric.log.append(lock.fence(fabric).subject, b"{}", {"Nats-Msg-Id": "thief"})
        with pytest.raises(LockLostError):
            await memory.set("report", LARGE, fence=lock)
    assert await memory.get("report") == 2
    assert not await memory.exists("other")
    assert len(await names(fabric)) == 1
    assert not await names(fabric, complete=False)


async def test_what_is_refused_only_after_it_was_sent_is_taken_away_at_once(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = await memory.set("report", 1)
    fabric = await fabric_of(memory)
    put = fabric.objects.put

    async def overtaken(*args: Any, **kwargs: Any) -> Any:
        stored = await put(*args, **kwargs)
        await memory.set("report", 2)
        return stored

    monkeypatch.setattr(fabric.objects, "put", overtaken)
    with pytest.raises(ConflictError) as caught:
        await memory.set("report", LARGE, if_revision=revision)
    assert caught.value.expected == revision
    assert await memory.get("report") == 2
    assert not await messages(fabric)


async def test_a_repeated_large_write_is_stored_once(memory: Memory) -> None:
    revisions = [await memory.set("report", LARGE, event_id="same") for _ in range(3)]
    assert len(set(revisions)) == 1
    assert [event.data async for event in memory.history("report")] == [LARGE]
    assert await memory.get("report") == LARGE


async def test_a_batch_with_large_values_counts_its_checks(memory: Memory) -> None:
    fabric = await fabric_of(memory)
    fabric.objects.threshold = 10

    async def too_many() -> None:
        async with memory.transaction() as tx:
            await tx.get("read")
            for number in range(1000):
                tx.set(f"k{number}", "x" * 20)

    with pytest.raises(InvalidInputError, match="at most 1000"):
        await too_many()
    assert not await messages(fabric)
    async with memory.transaction() as tx:
        await tx.get("read")
        for number in range(20):
            assert await tx.get(f"k{number}") is None
            tx.set(f"k{number}", "x" * 20)
    assert len(await memory.get_many([f"k{number}" for number in range(20)])) == 20


# -- what is damaged or gone ------------------------------------------------------------------------------------------


async def every_read(memory: Memory, key: str) -> list[Callable[[], Awaitable[Any]]]:
    async def items() -> None:
        assert [entry async for entry in memory.items(key)]

    async def history() -> None:
        assert [event async for event in memory.history(key)]

    async def transaction() -> None:
        async with memory.transaction() as tx:
            await tx.get(key)

    return [
        lambda: memory.get(key),
        lambda: memory.get(key, consistency="cached"),
        lambda: memory.entry(key),
        lambda: memory.get_many([key]),
        lambda: memory.update(key, lambda value: value),
        items,
        history,
        transaction,
    ]


async def gone(fabric: Fabric, name: str) -> None:
    await fabric.objects.remove(name)


async def cut_short(fabric: Fabric, name: str) -> None:
    await rewrite(fabric, name, [b'"xxx'])


async def replaced(fabric: Fabric, name: str) -> None:
    await rewrite(fabric, name, [b'"' + b"y" * 100_000, b"y" * 200_000 + b'"'])


async def prolonged(fabric: Fabric, name: str) -> None:
    await rewrite(fabric, name, [b'"', LARGE.encode() + b"x", b'"'])


@pytest.mark.parametrize(
    ("hurt", "said"),
    [
        (flip_a_bit, "is damaged: 300,002 bytes with digest SHA-256="),
        (cut_short, "is damaged: 4 bytes"),
        (replaced, "is damaged"),
        (prolonged, "is damaged"),
        (gone, "is not in bucket"),
    ],
)
async def test_a_value_that_is_damaged_or_gone_is_a_decode_error_and_never_none(
    memory: Memory, hurt: Callable[[Fabric, str], Awaitable[None]], said: str
) -> None:
    revision = await memory.set("report", LARGE)
    fabric = await fabric_of(memory)
    name = await object_of(memory, "report")
    await hurt(fabric, name)
    for read in await every_read(memory, "report"):
        with pytest.raises(DecodeError, match=said) as caught:
            await read()
        assert caught.value.revision == revision
        assert caught.value.subject.endswith(".memory.global.global.report")
        assert name in str(caught.value)
    assert await memory.exists("report")
    assert await memory.delete("report")
    await memory.set("report", OTHER)
    assert await memory.get("report") == OTHER


async def test_a_handler_sets_aside_what_it_cannot_read_and_goes_on(
    server: NatsServer, namespace: str, memory: Memory
) -> None:
    agent = Agent("reader", nats_url=server.url, namespace=namespace)
    heard: list[Any] = []

    @agent.memory.on_change("report", start="all")
    async def react(event: Event) -> None:
        heard.append(event.data)

    await memory.set("report", 1)
    damaged = await memory.set("report", LARGE)
    fabric = await fabric_of(memory)
    await flip_a_bit(fabric, await object_of(memory, "report"))
    await memory.delete("report")  # its previous data cannot be read either
    await memory.set("report", 2)
    async with agent:
        await eventually(lambda: heard == [1, 2])
        subject = f"{namespace}.deadletters.reader.react"
        client = await nats.connect(server.url)
        try:
            letters = await client.jetstream().subscribe(subject, ordered_consumer=True)
            texts = [json.loads((await letters.next_msg(timeout=5)).data) for _ in range(2)]
        finally:
            await client.close()
    assert [letter["revision"] for letter in texts] == [damaged, damaged + 1]
    for letter in texts:
        assert letter["error"]["type"] == "DecodeError"
        assert f"revision {damaged}" in letter["error"]["message"]


# -- outages ----------------------------------------------------------------------------------------------------------


async def test_a_server_that_restarts_in_the_middle_of_a_large_write_does_not_break_it(
    fresh_server: NatsServer, namespace: str
) -> None:
    async with connect(fresh_server.url, namespace=namespace, timeout=30) as memory:
        value = "".join(f"{number:08x}" for number in range(3_000_000))
        writing = asyncio.create_task(memory.set("report", value))
        fabric = await fabric_of(memory)

        async def under_way() -> bool:
            return await messages(fabric) > 20

        await eventually(under_way)
        await fresh_server.restart(gracefully=False)
        await writing
        assert await memory.get("report") == value


async def test_a_server_that_goes_away_in_the_middle_leaves_nothing_to_see(
    fresh_server: NatsServer, namespace: str
) -> None:
    async with connect(fresh_server.url, namespace=namespace, timeout=2) as memory:
        await memory.set("report", "before")
        fabric = await fabric_of(memory)
        writing = asyncio.create_task(memory.set("report", "x" * 30_000_000))

        async def under_way() -> bool:
            return await messages(fabric) > 20

        await eventually(under_way)
        await fresh_server.kill()
        with pytest.raises(UnavailableError):
            await writing
        with pytest.raises(UnavailableError):
            await memory.get("report")
        await fresh_server.start()

        async def back() -> Any:
            try:
                return await memory.get("report")
            except UnavailableError:
                return None

        assert await eventually(back, within=20) == "before"
        assert not await names(fabric)
        assert await names(fabric, complete=False)
        assert await condemned(fabric) == 0


async def test_a_cancelled_large_write_leaves_nothing_to_see(memory: Memory) -> None:
    fabric = await fabric_of(memory)
    writing = asyncio.create_task(memory.set("report", "x" * 30_000_000))

    async def under_way() -> bool:
        return await messages(fabric) > 20

    await eventually(under_way)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert not await memory.exists("report")
    assert not await names(fabric)
    assert len(await names(fabric, complete=False)) == 1
