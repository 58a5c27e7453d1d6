"""Views in KV buckets keep what views promise, and any NATS client reads them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import nats
import orjson
import pytest

from agentfield import Event, InvalidInputError, Memory, ProjectionError
from agentfield.fabric.fabric import Fabric
from projections import Buckets, Projection, Runner, Source, open_store
from projections.stores import Stores
from projections.view import Head, Moved, Step
from tests.support import NatsServer, eventually
from tests.support.projecting import Chain


class Totals(Projection):
    name = "totals"
    patterns = "item_*"
    store = "bucket"

    async def apply(self, event: Event, view: Any) -> None:
        if event.operation == "delete":
            view.delete(event.key)
            return
        before = await view.get(event.key, {"events": 0, "total": 0})
        view.put(event.key, {"events": before["events"] + 1, "total": before["total"] + event.data})


@pytest.fixture
def source(fabric: Fabric) -> Source:
    return Source(fabric)


@pytest.fixture
def store(source: Source) -> Buckets:
    return Buckets(source)


async def write(memory: Memory, count: int, *, start: int = 0) -> dict[str, Any]:
    """Write numbers over ten keys; what the totals of all up to the last one are."""
    for begin in range(start, start + count, 10):
        await memory.set_many({f"item_{number % 10}": number for number in range(begin, begin + 10)})
    numbers = {key: [n for n in range(start + count) if n % 10 == key] for key in range(10)}
    return {f"item_{key}": {"events": len(found), "total": sum(found)} for key, found in numbers.items()}


async def shown(store: Buckets) -> dict[str, Any]:
    """What the view says."""
    view = await store.live("totals")
    assert view is not None
    async with view.frozen() as moment:
        return dict(moment.content)


async def head_of(store: Buckets) -> Head:
    view = await store.live("totals")
    assert view is not None
    return await view.head()


@pytest.fixture
async def running(source: Source, store: Buckets) -> AsyncIterator[Runner]:
    runner = Runner(source, Totals(), store)
    task = asyncio.create_task(runner.run())
    yield runner
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_view_is_the_fold_and_any_client_reads_it(
    memory: Memory, source: Source, store: Buckets, server: NatsServer, namespace: str
) -> None:
    expected = await write(memory, 300)
    await memory.delete("item_3")
    del expected["item_3"]
    await Runner(source, Totals(), store).catch_up()
    assert await shown(store) == expected
    head = await head_of(store)
    assert (head.checkpoint, head.events) == (301, 301)
    client = await nats.connect(server.url)
    try:
        bucket = await client.jetstream().key_value(f"{namespace}-view-totals-1")
        assert orjson.loads((await bucket.get("item.4")).value or b"") == expected["item_4"]
    finally:
        await client.close()


async def test_a_rebuild_under_live_writes_ends_equal_to_the_live_view(
    memory: Memory, source: Source, store: Buckets, running: Runner
) -> None:
    await write(memory, 300)
    last = await source.last()

    async def current() -> bool:
        return await store.live("totals") is not None and (await head_of(store)).checkpoint >= last

    await eventually(current, within=20)
    writing = asyncio.create_task(write(memory, 600, start=300))
    await Runner(source, Totals(), store).rebuild()
    expected = await writing
    last = await source.last() - 1  # the very last is the lease's, or an event after it
    await eventually(current, within=20)
    assert await shown(store) == expected
    assert (await head_of(store)).generation == 2
    verdict = await running.verify()
    assert (verdict.equal, verdict.rows) == (True, 10)


async def test_several_that_catch_up_at_once_apply_every_event_once(
    memory: Memory, source: Source, store: Buckets
) -> None:
    await Runner(source, Totals(), store).catch_up()
    expected = await write(memory, 3000)
    await asyncio.gather(*(Runner(source, Totals(), store).catch_up() for _ in range(3)))
    assert await shown(store) == expected
    assert (await head_of(store)).events == 3000


async def test_of_two_transactions_that_began_at_one_point_one_is_refused(source: Source, store: Buckets) -> None:
    await Runner(source, Totals(), store).catch_up()
    faster, slower = await store.live("totals"), await store.live("totals")
    assert faster is not None
    assert slower is not None
    start = (await faster.head()).checkpoint

    async def overtaken(content: Any) -> None:
        await faster.advance(Step(start, start + 7, 7), lambda content: content.put("who", "faster"))
        content.put("who", "slower")

    with pytest.raises(Moved):
        await slower.advance(Step(start, start + 5, 5), overtaken)
    assert await shown(store) == {"who": "faster"}
    assert (await head_of(store)).checkpoint == start + 7


async def test_what_apply_raises_is_undone(memory: Memory, source: Source, store: Buckets) -> None:
    class Raising(Totals):
        async def apply(self, event: Event, view: Any) -> None:
            await super().apply(event, view)
            if event.data == 25:
                raise RuntimeError("not 25")

    expected = await write(memory, 30)
    with pytest.raises(ProjectionError, match="not 25") as caught:
        await Runner(source, Raising(), store).catch_up()
    assert caught.value.sequence == 26
    assert (await shown(store))["item_5"] == {"events": 2, "total": 20}
    assert (await head_of(store)).error == "RuntimeError: not 25"
    await Runner(source, Totals(), store).catch_up()
    assert await shown(store) == expected


async def test_more_keys_than_fit_into_one_transaction_take_several(
    memory: Memory, source: Source, store: Buckets
) -> None:
    class Many(Totals):
        many = 5

        async def apply(self, event: Event, view: Any) -> None:
            for number in range(self.many):
                view.put(f"{event.key}_{event.revision}_{number}", event.data)

    await write(memory, 500)
    await Runner(source, Many(), store).catch_up()
    assert len(await shown(store)) == 2500
    await memory.set("item_1", 1)
    Many.many = 1000
    with pytest.raises(ProjectionError, match="1000 keys at once"):
        await Runner(source, Many(), store).catch_up()
    assert (await head_of(store)).checkpoint == 500


async def test_a_value_that_is_too_large_stops_the_projection_at_its_event(
    memory: Memory, source: Source, store: Buckets
) -> None:
    class Large(Totals):
        async def apply(self, event: Event, view: Any) -> None:
            view.put(event.key, "x" * (2_000_000 if event.data == 12 else 10))

    await write(memory, 20)
    with pytest.raises(ProjectionError, match=r"stopped at event 13, 'item_2': .*over the server's limit"):
        await Runner(source, Large(), store).catch_up()
    assert ((await head_of(store)).checkpoint, (await head_of(store)).failed_at) == (12, 13)


async def test_a_paused_view_stays_where_it_is(memory: Memory, source: Source, store: Buckets) -> None:
    runner = Runner(source, Totals(), store)
    await write(memory, 10)
    await runner.catch_up()
    await runner.pause(True)
    await write(memory, 10, start=10)
    assert await runner.catch_up() == 10
    await runner.pause(False)
    assert await runner.catch_up() == 20


async def test_removing_a_view_removes_its_buckets(memory: Memory, source: Source, store: Buckets) -> None:
    await Runner(source, Totals(), store).catch_up()
    assert await store.names() == ["totals"]
    assert await store.remove("totals")
    assert await store.names() == []
    assert not await store.remove("totals")


async def test_a_view_does_not_move_between_files_and_buckets(source: Source, tmp_path: Any) -> None:
    class Moving(Chain):
        version = 2
        store = "bucket"

    stores = Stores(source, open_store(tmp_path))
    await Runner(source, Chain(), stores).catch_up()
    with pytest.raises(InvalidInputError, match="remove it first"):
        await Runner(source, Moving(), stores).catch_up()
    assert await stores.names() == ["chain"]
